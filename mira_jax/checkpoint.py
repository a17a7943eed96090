"""Checkpoints that can be trusted: saved in the background, sealed, verified.

A thin layer over orbax, which no other file imports. Orbax restores a file
whose bits were flipped without a word, so a manifest of SHA-256 sums is written
last of all; a step without a manifest that matches is never restored.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from mira_jax.errors import ExitCode, MiraInputError

PyTree = Any
MANIFEST = 'MIRA_INTEGRITY.json'


def digests(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 of every file below `folder`, by relative path."""
  sums = {}
  for path in sorted(folder.rglob('*')):
    if path.is_file() and path.name != MANIFEST:
      with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
      sums[path.relative_to(folder).as_posix()] = digest
  return sums


def verify(folder: pathlib.Path) -> str:
  """What is wrong with a step's folder; '' when nothing is."""
  try:
    expected = json.loads((folder / MANIFEST).read_text())
  except (OSError, ValueError):
    return f'{MANIFEST} is missing or unreadable'
  actual = digests(folder)
  wrong = sorted(
    name
    for name in expected.keys() | actual.keys()
    if expected.get(name) != actual.get(name)
  )
  return f'{wrong[0]} does not match {MANIFEST}' if wrong else ''


def _options() -> ocp.CheckpointManagerOptions:
  def accuracy(metrics: Mapping[str, float]) -> float:
    return metrics['accuracy']

  # The best alone would push out the newest when accuracy falls. `best_fn` is
  # what makes orbax write the metric down, so that a resumed run knows it.
  keep = preservation_policy.AnyPreservationPolicy(
    [
      preservation_policy.LatestN(2),
      preservation_policy.BestN(get_metric_fn=accuracy, n=1),
    ]
  )
  return ocp.CheckpointManagerOptions(
    preservation_policy=keep, best_fn=accuracy, cleanup_tmp_directories=True
  )


class Checkpoints:
  """The checkpoints of one run: the newest two and the most accurate one.

  Args:
    directory: where they live; made when missing.
    identity: JSON-able facts that must not change within a run, such as the
      seed, the batch size and the dataset's fingerprint.
  """

  def __init__(
    self, directory: str | os.PathLike[str], identity: Mapping[str, Any]
  ):
    self._directory = pathlib.Path(directory).absolute()
    self._identity = json.loads(json.dumps(identity))
    self._manager = ocp.CheckpointManager(
      self._directory, options=_options(), item_names=('state', 'meta')
    )
    self._sealer = concurrent.futures.ThreadPoolExecutor(1)
    self._sealing: concurrent.futures.Future | None = None

  def save(self, step: int, state: PyTree, accuracy: float = -1.0) -> None:
    """Starts saving; the arrays may be donated as soon as it returns.

    Args:
      step: of the run, at most one save each.
      state: pytree of arrays.
      accuracy: decides which step is the best; -1 was not measured.
    """
    self.wait()
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        meta=ocp.args.JsonSave({'step': step, **self._identity}),
      ),
      metrics={'accuracy': float(accuracy)},
    )
    self._sealing = self._sealer.submit(self._seal, step)

  def _seal(self, step: int) -> None:
    """Writes the manifest once orbax has committed everything else."""
    self._manager.wait_until_finished()
    if jax.process_index() == 0:
      folder = self._directory / str(step)
      part = folder.with_name(f'{step}.manifest')
      part.write_text(json.dumps(digests(folder), indent=1))
      os.replace(part, folder / MANIFEST)

  def steps(self) -> list[int]:
    """Steps on disk, oldest first, sound or not."""
    return sorted(self._manager.all_steps())

  def restore(self, target: PyTree, *, force: bool = False) -> PyTree | None:
    """The newest sound state, or None in a fresh directory.

    Args:
      target: pytree of `jax.ShapeDtypeStruct` with shardings.
      force: tell what differs of another identity, and restore nevertheless.

    Raises:
      MiraInputError: the run was started with another identity, or its state
        is of other shapes; or there are checkpoints and every one is damaged.
    """
    found, damaged = self.steps(), []
    for step in reversed(found):
      trouble = self._agreed(step)
      if not trouble:
        break
      folder = self._directory / str(step)
      text = 'checkpoint %s is damaged (%s); trying the one before'
      logging.warning(text, folder, trouble)
      damaged.append(step)
    else:
      if found:
        hint = 'every checkpoint is damaged; start again in a new --workdir'
        raise _unusable('damaged', self._directory, hint)
      return None
    self._check_identity(step, force)
    self._set_aside(damaged)
    return self._load(step, target)

  def _load(self, step: int, target: PyTree) -> PyTree:
    args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    try:
      return self._manager.restore(step, args=args)['state']
    except ValueError as error:  # orbax goes on about every array
      hint = 'its arrays are not those of this configuration; give it the '
      hint += 'model and the optimizer of the run, or choose a new --workdir'
      path = self._directory / str(step)
      raise _unusable('run_changed', path, hint) from error

  def _agreed(self, step: int) -> str:
    """`verify` on host 0; all hosts must restore the same step."""
    trouble = ''
    if jax.process_index() == 0:
      trouble = verify(self._directory / str(step))
    if jax.process_count() > 1:
      bad = multihost_utils.broadcast_one_to_all(bool(trouble))
      trouble = trouble or ('damaged' if bad else '')
    return trouble

  def _set_aside(self, damaged: list[int]) -> None:
    """Renames damaged steps, so that their numbers can be saved again."""
    if not damaged:
      return
    if jax.process_index() == 0:
      for step in damaged:
        folder = self._directory / str(step)
        aside = folder.with_name(f'{step}.corrupt')
        shutil.rmtree(aside, ignore_errors=True)  # of an earlier mishap
        folder.rename(aside)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('set_aside')
    self._manager.reload()

  def restore_best(self, target: PyTree) -> tuple[int, PyTree]:
    """The step that was saved with the highest accuracy, and its state.

    Damaged steps are passed over. Call it when nothing is being saved.

    Args:
      target: as in `restore`.

    Raises:
      MiraInputError: no step is sound.
    """
    accuracy = {
      step: self._manager.metrics(step)['accuracy'] for step in self.steps()
    }
    for step in sorted(accuracy, key=lambda s: (accuracy[s], s), reverse=True):
      if not self._agreed(step):
        return step, self._load(step, target)
    hint = 'every step is damaged; train again in a new --workdir'
    raise _unusable('corrupt', self._directory, hint)

  def _check_identity(self, step: int, force: bool) -> None:
    restore = ocp.args.Composite(meta=ocp.args.JsonRestore())
    saved = self._manager.restore(step, args=restore)['meta']
    for name, value in self._identity.items():
      if saved.get(name) != value:
        told = (
          f'the run was started with {name} {saved.get(name)!r}, not {value!r}'
        )
        if not force:
          hint = f'{told}; restore that, choose a new --workdir, or add --force'
          raise _unusable('run_changed', self._directory, hint)
        logging.warning('--force: %s', told)

  def wait(self) -> None:
    """Returns when the last save is complete; raises what it ran into."""
    if self._sealing is not None:
      self._sealing.result()
      self._sealing = None

  def stop_requested(self, step: int) -> bool:
    """Whether any host of a multi-host job was told to stop at `step`."""
    return self._manager.reached_preemption(step)

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *error: Any) -> None:
    """Completes the last save, whatever ended the run."""
    try:
      self.wait()
    finally:
      self._sealer.shutdown()
      self._manager.close()


def _unusable(
  code: str, path: str | os.PathLike[str], hint: str
) -> MiraInputError:
  return MiraInputError(code, path, hint, exit_code=ExitCode.CHECKPOINT)
