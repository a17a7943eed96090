"""Reads the checkpoints of a run, which may be writing them meanwhile."""

from __future__ import annotations

import logging
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mira_jax.errors import checkpoint_error
from mira_jax.train import manifest

PyTree = Any
WEIGHTS = 'weights'  # item of a step: parameters, MiRA's state, the average
STEP = re.compile('0|[1-9][0-9]{0,17}')  # name of the folder of a step
_TRIES = 20  # to read a step of a run that removes old ones meanwhile


def steps(directory: pathlib.Path) -> list[int]:
  """Steps on disk, oldest first, valid or not."""
  names = (path.name for path in directory.glob('*') if path.is_dir())
  return sorted(int(name) for name in names if STEP.fullmatch(name))


def accuracies(directory: pathlib.Path) -> dict[int, float | None]:
  """Accuracy of every sealed step."""
  found = {s: manifest.read(directory / str(s)) for s in steps(directory)}
  return {s: m['accuracy'] for s, m in found.items() if m is not None}


def best_first(accuracy: Mapping[int, float | None]) -> list[int]:
  """Steps by accuracy, the later one first where it is the same."""

  def merit(step: int) -> tuple[float, int]:
    value = accuracy[step]
    return (-np.inf if value is None else value), step

  return sorted(accuracy, key=merit, reverse=True)


def first_valid(
  directory: pathlib.Path, candidates: Callable[[], list[int]], part: str = ''
) -> tuple[int | None, dict[int, str]]:
  """The first valid step, and on host 0 why those before it are not.

  When one was removed meanwhile, host 0 starts again.
  """
  valid, damage = -1, {}
  for _ in range(_TRIES if jax.process_index() == 0 else 0):
    damage, gone = {}, False
    for step in candidates():
      trouble = manifest.verify(directory / str(step), part)
      if not trouble:
        valid = step
        break
      if (directory / str(step)).exists():
        damage[step] = trouble
      else:
        gone = True
    if valid >= 0 or not gone:
      break
  if jax.process_count() > 1:
    valid = int(multihost_utils.broadcast_one_to_all(np.array(valid)))
  return (valid if valid >= 0 else None), damage


def choose(directory: pathlib.Path, which: str, part: str = WEIGHTS) -> int:
  """The valid step that a user names; passes over damaged ones with a warning.

  Nothing is changed, so a run may be writing there. `which` is 'newest', 'best'
  or a number; of a step `part` must be valid, '' is all of it.

  Raises:
    MiraInputError: there is no such step, or it is damaged.
  """

  def candidates() -> list[int]:
    accuracy = accuracies(directory)
    if which == 'newest':
      return sorted(accuracy, reverse=True)
    if which == 'best':
      return best_first(accuracy)
    return [step for step in accuracy if str(step) == which]

  if not candidates():
    there = ', '.join(map(str, sorted(accuracies(directory)))) or 'none'
    hint = f"the steps that can be used are {there}; or 'newest', 'best'"
    raise checkpoint_error('no_step', f'{directory}: {which}', hint)
  step, damage = first_valid(directory, candidates, part)
  for damaged, why in damage.items():
    text = 'checkpoint %s is damaged (%s) and passed over'
    logging.warning(text, directory / str(damaged), why)
  if step is None:
    hint = 'no checkpoint is valid; train again in a new --workdir'
    raise checkpoint_error('damaged', directory, hint)
  return step


def read_weights(
  directory: pathlib.Path, which: str, target: Mapping[str, PyTree]
) -> tuple[int, dict[str, PyTree]]:
  """Step and weights of a checkpoint; nothing else of it is read.

  A run that saves meanwhile may remove the chosen step; then this chooses
  again.

  `which` as in `choose`; `target` has those of 'params', 'mira' and 'average'
  that are wanted, leaves as in `Checkpoints.restore`.

  Raises:
    MiraInputError: see `choose`; or the weights have other shapes.
  """
  for _ in range(_TRIES):
    step = choose(directory, which)
    found = _read_if_it_stays(directory.absolute() / str(step), dict(target))
    if found is not None:
      return step, found
  hint = f'the run removed {_TRIES} steps while they were read; name another'
  raise checkpoint_error('no_step', f'{directory}: {which}', hint)


def _read_if_it_stays(
  folder: pathlib.Path, target: dict[str, PyTree]
) -> dict[str, PyTree] | None:
  """The weights of a step; None if its folder was removed while reading.

  A folder is renamed before it is removed, so one that is there afterwards was
  whole all the time. Without that, missing files might read as zeros.
  """
  leaves = ocp.checkpoint_utils.construct_restore_args(target)
  args = ocp.args.PyTreeRestore(
    target, restore_args=leaves, partial_restore=True
  )
  found, failure, before = None, None, manifest.read(folder)
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      found = reader.restore(folder / WEIGHTS, args=args)
  except Exception as error:  # orbax and tensorstore raise many kinds
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
      raise
    failure = error
  after = manifest.read(folder)
  stayed = bool(before and after and before['files'] == after['files'])
  if jax.process_count() > 1:
    stayed = bool(np.all(multihost_utils.process_allgather(np.array(stayed))))
  if not stayed:
    return None
  if failure:
    hint = 'its arrays are not those of the configuration of the run '
    hint += f'({first_line(failure)})'
    raise checkpoint_error('run_changed', folder, hint) from failure
  return found


def first_line(error: Exception) -> str:
  """The first line of a message, for another message."""
  return str(error).strip().partition('\n')[0][:200]
