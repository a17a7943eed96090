"""Checkpoints that can be trusted: saved in the background, sealed, verified.

A thin layer over orbax, which no other file imports. Orbax commits a step by
renaming its folder, but restores a file whose bits were flipped without a word.
So a manifest with the size and the SHA-256 of every file is written last of
all, and only then are older steps removed: a step without a manifest that
matches is never restored, and one that has one is never far.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mira_jax import files
from mira_jax.devices import sharding
from mira_jax.errors import MiraInputError, checkpoint_error
from mira_jax.train.step import TrainState

PyTree = Any
MANIFEST = 'MIRA_INTEGRITY.json'
# Items of a step, each a folder: what scoring takes, and what only training
# does. So weights are read, and verified, without the optimiser's moments.
WEIGHTS, STATE, META = 'weights', 'state', 'meta'
_WEIGHTS_FIELDS = ('params', 'mira', 'average')
# Names of folders that are no steps (any more).
_STEP = re.compile('0|[1-9][0-9]{0,17}')
_CORRUPT, _REMOVED, _PART = '.corrupt', '.removed', '.manifest'
_UNCOMMITTED = '.orbax-checkpoint-tmp'
_TRIES = 20  # to read a step of a run that removes old ones meanwhile
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, RecursionError)
_THREADS = min(8, os.cpu_count() or 1)  # hashlib releases the interpreter


def _not_of_orbax(record: logging.LogRecord) -> bool:
  """Orbax logs a traceback of a failed save, which `wait` raises as a line."""
  return f'{os.sep}orbax{os.sep}' not in record.pathname


logging.getLogger('absl').addFilter(_not_of_orbax)

# ----- the manifest -----------------------------------------------------------


def seal(folder: pathlib.Path, accuracy: float | None) -> None:
  """Writes the manifest of a step's folder, whole or not at all.

  Args:
    folder: whose files are complete, named after the step.
    accuracy: that the step scored; None was not measured.
  """
  names = sorted(_sizes(folder))
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
    sums = list(threads.map(_sha256, [folder / name for name in names]))
  files = {
    name: {'size': (folder / name).stat().st_size, 'sha256': digest}
    for name, digest in zip(names, sums, strict=True)
  }
  step = int(folder.name)
  _write_manifest(folder, {'step': step, 'accuracy': accuracy, 'files': files})


def _write_manifest(folder: pathlib.Path, content: dict[str, Any]) -> None:
  content = content | {'seal': _seal_of(content)}
  part = folder.with_name(f'{folder.name}{_PART}')
  part.write_text(json.dumps(content, indent=1))
  os.replace(part, folder / MANIFEST)


def read_manifest(folder: pathlib.Path) -> dict[str, Any] | None:
  """The manifest of a step's folder; None when it is missing or damaged."""
  try:
    content = json.loads((folder / MANIFEST).read_text())
    stated = content.pop('seal')
  except (*_UNREADABLE, AttributeError):
    return None
  sealed = stated == _seal_of(content) and _is_manifest(content)
  return content if sealed else None


def _is_manifest(content: Mapping[str, Any]) -> bool:
  accuracy, files_ = content.get('accuracy'), content.get('files')
  return (
    (accuracy is None or type(accuracy) in (int, float))
    and isinstance(files_, dict)
    and all(
      isinstance(x, dict) and {'size', 'sha256'} <= x.keys()
      for x in files_.values()
    )
  )


def _step_of(folder: pathlib.Path, manifest: Mapping[str, Any]) -> Any:
  """The step that a folder was written for; None when nothing says so.

  A manifest of version 0.1.0 lacks it; then the sealed facts of the run say it.
  """
  if 'step' in manifest:
    return manifest['step']
  try:
    return json.loads((folder / META / 'metadata').read_bytes())['step']
  except _UNREADABLE:
    return None


def _seal_of(content: Mapping[str, Any]) -> str:
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _sizes(folder: pathlib.Path) -> dict[str, int]:
  """Bytes of every file below `folder`, by relative path."""
  return {
    path.relative_to(folder).as_posix(): path.stat().st_size
    for path in folder.rglob('*')
    if path.is_file() and path.name != MANIFEST
  }


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def verify(folder: pathlib.Path, part: str = '') -> str:
  """What is wrong with a step's folder; '' when nothing is.

  Sizes are compared first, because that costs nothing, then digests.

  Args:
    folder: of the step.
    part: only the files whose paths begin so.
  """
  try:
    return _trouble(folder, part)
  except OSError as error:
    return f'{error.filename} cannot be read: {error.strerror}'


def _trouble(folder: pathlib.Path, part: str) -> str:
  manifest = read_manifest(folder)
  if manifest is None:
    return f'{MANIFEST} is missing or unreadable'
  step = _step_of(folder, manifest)
  if step is not None and str(step) != folder.name:
    return f'it was written as step {step} and renamed'
  expected, actual = (
    {name: x for name, x in files.items() if name.startswith(part)}
    for files in (manifest['files'], _sizes(folder))
  )
  for name in sorted(expected.keys() | actual.keys()):
    if name not in expected or name not in actual:
      missing = 'missing' if name in expected else f'not in {MANIFEST}'
      return f'{name} is {missing}'
    if expected[name]['size'] != actual[name]:
      return f'{name} has {actual[name]} of {expected[name]["size"]} bytes'
  names = sorted(expected)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
    sums = threads.map(_sha256, [folder / name for name in names])
    for name, digest in zip(names, sums, strict=True):
      if digest != expected[name]['sha256']:
        return f'{name} does not match {MANIFEST}'
  return ''


# ----- the checkpoints of a run -----------------------------------------------


class Checkpoints:
  """The checkpoints of one run: the newest two and the most accurate one.

  Use as a context manager, and one per folder: what a save that was cut short
  left behind is removed here.

  Args:
    directory: where they live; made when missing.
    identity: JSON-able facts that must not change within a run, such as the
      seed, the batch size and the dataset's fingerprint.
    defaults: values of facts that checkpoints of older versions lack, by name;
      'model.mira.floor' is that of a field within the fact 'model.mira'.

  Attributes:
    pending: what was saved with the state that was restored.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    identity: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
  ):
    self._directory = pathlib.Path(directory).absolute()
    self._identity = json.loads(json.dumps(identity))
    self._defaults = json.loads(json.dumps(defaults or {}))
    self.pending: dict[str, Any] = {}
    self._writer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(WEIGHTS, STATE, META)
    )
    self._sealer = concurrent.futures.ThreadPoolExecutor(1)
    self._sealing: concurrent.futures.Future | None = None
    self._bytes = 0  # of a state
    if jax.process_index() == 0:
      if self._directory.exists() and not self._directory.is_dir():
        hint = 'it is not a folder; put the checkpoints of the run there, or '
        hint += 'choose a new --workdir'
        raise checkpoint_error('damaged', self._directory, hint)
      self._directory.mkdir(parents=True, exist_ok=True)
      self._clean()
    sharding.meet('checkpoints')

  def _clean(self) -> None:
    for path in self._directory.iterdir():
      name = path.name
      if name.endswith((_REMOVED, _PART)) or _UNCOMMITTED in name:
        folder = path.is_dir() and not path.is_symlink()
        shutil.rmtree(path) if folder else path.unlink()
      elif _STEP.fullmatch(name):
        files.clear_for_folder(path)

  def _folder(self, step: int) -> pathlib.Path:
    return self._directory / str(step)

  def save(
    self,
    step: int,
    state: TrainState,
    accuracy: float | None = None,
    pending: Mapping[str, Any] | None = None,
  ) -> None:
    """Starts saving; the arrays may be donated as soon as it returns.

    Args:
      step: of the run, at most one save each.
      state: whose leaves are arrays.
      accuracy: decides which step is the best; None was not measured.
      pending: JSON-able, of the log; `restore` gives it back as `pending`.

    Raises:
      MiraInputError: it could not be written, or the save before could not.
    """
    self.wait()
    weights, rest = _parts(state)
    self._bytes = sum(x.nbytes for x in jax.tree.leaves(state))
    facts = {'step': step, 'pending': dict(pending or {}), **self._identity}
    args = ocp.args.Composite(
      **{
        WEIGHTS: ocp.args.StandardSave(weights),
        STATE: ocp.args.StandardSave(rest),
        META: ocp.args.JsonSave(facts),
      }
    )
    with self._written():
      self._writer.save(self._folder(step), args=args)
    accuracy = None if accuracy is None else float(accuracy)
    self._sealing = self._sealer.submit(self._seal, step, accuracy)

  def _seal(self, step: int, accuracy: float | None) -> None:
    """Writes the manifest once orbax has committed everything else."""
    self._writer.wait_until_finished()
    if jax.process_index() == 0:
      seal(self._folder(step), accuracy)
      self._remove_old()

  def _remove_old(self) -> None:
    """Removes all but the newest two sealed steps and the best one."""
    accuracy = _accuracies(self._directory)
    keep = {*sorted(accuracy)[-2:], *_best_first(accuracy)[:1]}
    for step in set(steps(self._directory)) - keep:
      # Half a folder must not look like a step.
      aside = self._directory / f'{step}{_REMOVED}'
      self._folder(step).rename(aside)
      shutil.rmtree(aside, ignore_errors=True)

  def check(self) -> None:
    """Raises what the last save ran into, if it has; does not wait for it."""
    if self._sealing is not None and self._sealing.done():
      self.wait()

  def wait(self) -> None:
    """Returns when the last save is complete.

    Raises:
      MiraInputError: it could not be written.
    """
    if self._sealing is not None:
      sealing, self._sealing = self._sealing, None
      with self._written():
        sealing.result()

  @contextlib.contextmanager
  def _written(self):
    """What goes wrong while writing, as one line."""
    try:
      yield
    except Exception as error:  # orbax and tensorstore raise many kinds
      free = shutil.disk_usage(self._directory).free
      first = str(error).strip().partition('\n')[0][:200]
      hint = (
        f'a checkpoint of about {_megabytes(self._bytes)} could not be '
        f'written, {_megabytes(free)} are free; the ones before are untouched '
        f'and the same command goes on from there ({first})'
      )
      raise checkpoint_error('not_written', self._directory, hint) from error

  def restore(
    self, target: TrainState, *, strict: bool = False, force: bool = False
  ) -> TrainState | None:
    """The newest sound state, or None in a fresh directory.

    Damaged steps that are newer are renamed N.corrupt, with a warning each.

    Args:
      target: leaves are `jax.ShapeDtypeStruct` with shardings, of any mesh.
      strict: whether a damaged newest step is an error.
      force: tell what differs of another identity, and restore nevertheless.

    Raises:
      MiraInputError: the run was started with another identity, or its state
        is of other shapes; or there are checkpoints and every one is damaged,
        or with `strict` the newest is.
    """
    sound, damaged = self._newest_sound(strict)
    if sound is None:
      return None
    self._check_identity(sound, force)
    self._set_aside(damaged)
    return self._load(sound, target)

  def _newest_sound(self, strict: bool) -> tuple[int | None, list[int]]:
    """The step to restore, and those above it; host 0 looks for all hosts."""
    found = steps(self._directory)[::-1]
    good, wrong = len(found), ''
    if jax.process_index() == 0:
      good, wrong = self._look(found, strict)
    if jax.process_count() > 1:
      told = multihost_utils.broadcast_one_to_all(np.array([good, len(found)]))
      good, count = map(int, told)
      wrong = wrong or 'host 0 tells which'
      assert count == len(found), 'hosts see different files'
    if not found:
      return None, []
    if good < len(found):
      return found[good], found[:good]
    if strict:
      hint = f'{wrong}; --resume=auto goes on from the step before'
      raise checkpoint_error('damaged', self._folder(found[0]), hint)
    hint = 'every checkpoint is damaged; start again in a new --workdir'
    raise checkpoint_error('damaged', self._directory, hint)

  def _look(self, found: list[int], strict: bool) -> tuple[int, str]:
    """Place of the first sound step in `found`, and what ails the first."""
    first = ''
    for i, step in enumerate(found):
      trouble = verify(self._folder(step))
      if not trouble:
        return i, first
      first = first or trouble
      if strict:
        break
      older = found[i + 1 : i + 2]
      then = f'going back to {older[0]}' if older else 'there is no older one'
      text = 'checkpoint %s is damaged (%s); %s'
      logging.warning(text, self._folder(step), trouble, then)
    return len(found), first

  def _load(self, step: int, target: TrainState) -> TrainState:
    weights, rest = _parts(target)
    args = ocp.args.Composite(
      **{
        WEIGHTS: ocp.args.StandardRestore(weights),
        STATE: ocp.args.StandardRestore(rest),
      }
    )
    try:
      found = self._writer.restore(self._folder(step), args=args)
    except ValueError as error:  # orbax goes on about every array
      hint = 'its arrays are not those of this configuration; give it the '
      hint += 'model and the optimizer of the run, or choose a new --workdir'
      raise checkpoint_error('run_changed', self._folder(step), hint) from error
    return dataclasses.replace(target, **found[WEIGHTS], **found[STATE])

  def _set_aside(self, damaged: list[int]) -> None:
    """Renames damaged steps, so that their numbers can be saved again.

    Those of earlier mishaps go: they would fill the disk in time.
    """
    if damaged and jax.process_index() == 0:
      for path in self._directory.glob(f'*{_CORRUPT}'):
        shutil.rmtree(path, ignore_errors=True)
      for step in damaged:
        folder = self._folder(step)
        folder.rename(folder.with_name(f'{step}{_CORRUPT}'))
    sharding.meet('set_aside')

  def restore_best(self, target: TrainState) -> tuple[int, TrainState]:
    """The step that was saved with the highest accuracy, and its state.

    Damaged steps are passed over, with a warning. Call it when nothing is
    being saved.

    Args:
      target: as in `restore`.

    Raises:
      MiraInputError: no step is sound.
    """
    step = _first_sound(
      self._directory, lambda: _best_first(_accuracies(self._directory))
    )
    return step, self._load(step, target)

  def _check_identity(self, step: int, force: bool) -> None:
    args = ocp.args.Composite(**{META: ocp.args.JsonRestore()})
    saved = _nested(self._writer.restore(self._folder(step), args=args)[META])
    self.pending = saved.get('pending', {})
    for name, before, now in self._changes(saved, self._identity):
      told = f'the run was started with {name} {before!r}, not {now!r}'
      if not force:
        hint = f'{told}; restore that, choose a new --workdir, or add --force'
        raise checkpoint_error('run_changed', self._directory, hint)
      logging.warning('--force: %s', told)

  def _changes(
    self, saved: Mapping[str, Any], current: Mapping[str, Any], group: str = ''
  ) -> Iterator[tuple[str, Any, Any]]:
    """Names whose values differ, with both; what `saved` lacks has a default.

    So a run of an older version resumes although the configuration has gained
    fields since.
    """
    for key, now in current.items():
      name = group + key
      before = saved.get(key, self._defaults.get(name))
      if isinstance(before, dict) and isinstance(now, dict):
        yield from self._changes(before, now, f'{name}.')
      elif before != now:
        yield name, before, now

  def accuracy(self, step: int) -> float | None:
    """What a sealed step was saved with."""
    return _accuracies(self._directory).get(step)

  def rate(self, step: int, accuracy: float) -> None:
    """Gives an accuracy to a sealed step that was saved without one."""
    if jax.process_index() == 0:
      folder = self._folder(step)
      manifest = read_manifest(folder)
      with self._written():
        _write_manifest(folder, manifest | {'accuracy': float(accuracy)})

  def stop_requested(self, step: int) -> bool:
    """Whether any host of a multi-host job was told to stop at `step`."""
    return ocp.utils.reached_preemption(step)

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind: type | None, *error: Any) -> None:
    """Completes the last save, whatever ended the run."""
    try:
      self.wait()
    except MiraInputError as failure:
      # An error of the system is the same full disk, met elsewhere.
      if kind is None or issubclass(kind, (SystemExit, OSError)):
        raise
      logging.warning('%s', failure)  # what ended the run matters more
    finally:
      self._sealer.shutdown()
      self._writer.close()


def _nested(facts: Mapping[str, Any]) -> dict[str, Any]:
  """Facts that are named 'optim.lr', as version 0.1.0 wrote them, in groups."""
  groups: dict[str, Any] = {}
  for name, value in facts.items():
    group, dot, field = name.partition('.')
    if dot:
      groups.setdefault(group, {})[field] = value
    else:
      groups[name] = value
  return groups


def _parts(state: TrainState) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
  """The fields of a state: what scoring takes, and the rest."""
  names = [field.name for field in dataclasses.fields(state)]
  fields = {name: getattr(state, name) for name in names}
  return {name: fields.pop(name) for name in _WEIGHTS_FIELDS}, fields


# ----- reading alone ----------------------------------------------------------


def steps(directory: pathlib.Path) -> list[int]:
  """Steps on disk, oldest first, sound or not."""
  names = (path.name for path in directory.glob('*') if path.is_dir())
  return sorted(int(name) for name in names if _STEP.fullmatch(name))


def _accuracies(directory: pathlib.Path) -> dict[int, float | None]:
  """Of every sealed step."""
  manifests = {s: read_manifest(directory / str(s)) for s in steps(directory)}
  return {s: m['accuracy'] for s, m in manifests.items() if m is not None}


def _best_first(accuracy: Mapping[int, float | None]) -> list[int]:
  """Steps by accuracy, the later one first where it is the same."""

  def merit(step: int) -> tuple[float, int]:
    value = accuracy[step]
    return (-np.inf if value is None else value), step

  return sorted(accuracy, key=merit, reverse=True)


def _first_sound(
  directory: pathlib.Path, candidates: Callable[[], list[int]], part: str = ''
) -> int:
  """The first of some steps that is sound, as host 0 finds it."""
  found = -1
  if jax.process_index() == 0:
    for _ in range(_TRIES):
      found, gone = _try_in_turn(directory, candidates(), part)
      if found >= 0 or not gone:
        break
  if jax.process_count() > 1:
    # Others may have looked before host 0 had sealed the last one.
    found = int(multihost_utils.broadcast_one_to_all(np.array(found)))
  if found < 0:
    hint = 'not one checkpoint is sound; train again in a new --workdir'
    raise checkpoint_error('damaged', directory, hint)
  return found


def _try_in_turn(
  directory: pathlib.Path, candidates: list[int], part: str
) -> tuple[int, bool]:
  """The first sound step, or -1; and whether one was removed meanwhile."""
  gone = False
  for step in candidates:
    folder = directory / str(step)
    trouble = verify(folder, part)
    if not trouble:
      return step, gone
    if read_manifest(folder) is None:  # it had one just now
      gone = True
      continue
    text = 'checkpoint %s is damaged (%s) and passed over'
    logging.warning(text, folder, trouble)
  return -1, gone


def choose(directory: pathlib.Path, which: str) -> int:
  """The step that a person names, with sound weights.

  Args:
    directory: of checkpoints; nothing in it is changed, so a run may be
      writing there.
    which: 'newest', 'best' or a number.

  Raises:
    MiraInputError: there is no such step, or it is damaged.
  """

  def candidates() -> list[int]:
    accuracy = _accuracies(directory)
    if which == 'newest':
      return sorted(accuracy, reverse=True)
    if which == 'best':
      return _best_first(accuracy)
    return [step for step in accuracy if str(step) == which]

  if not candidates():
    there = ', '.join(map(str, sorted(_accuracies(directory)))) or 'none'
    hint = f"the steps that can be used are {there}; or 'newest', 'best'"
    raise checkpoint_error('no_step', f'{directory}: {which}', hint)
  return _first_sound(directory, candidates, WEIGHTS)


def read_weights(
  directory: pathlib.Path, which: str, target: Mapping[str, PyTree]
) -> tuple[int, dict[str, PyTree]]:
  """Some of the weights of a step; nothing else is read.

  A run that saves meanwhile may remove the chosen step; then this chooses
  again.

  Args:
    directory: of checkpoints.
    which: see `choose`.
    target: of 'params', 'mira' and 'average' those that are wanted, leaves as
      in `Checkpoints.restore`.

  Returns:
    The step, and its weights.

  Raises:
    MiraInputError: see `choose`; or the weights are of other shapes.
  """
  for _ in range(_TRIES):
    step = choose(directory, which)
    found = _read_if_it_stays(directory.absolute() / str(step), dict(target))
    if found is not None:
      return step, found
  hint = f'the run removed {_TRIES} steps while they were read; name another, '
  hint += 'or set --config.train.save_every higher'
  raise checkpoint_error('no_step', f'{directory}: {which}', hint)


def _read_if_it_stays(
  folder: pathlib.Path, target: dict[str, PyTree]
) -> dict[str, PyTree] | None:
  """The weights of a step; None if its folder was removed while reading.

  The removed folder is renamed first, so one that is there afterwards was
  whole all the time. Without that, missing files might read as zeros.
  """
  args = ocp.args.PyTreeRestore(
    target,
    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
    partial_restore=True,
  )
  failure, before = None, read_manifest(folder)
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      found = reader.restore(folder / WEIGHTS, args=args)
  except Exception as error:  # orbax and tensorstore raise many kinds
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
      raise
    failure = error
  after = read_manifest(folder)
  stayed = before and after and before['files'] == after['files']
  if jax.process_count() > 1:
    all_stayed = multihost_utils.process_allgather(np.array(bool(stayed)))
    stayed = bool(np.all(all_stayed))
  if not stayed:
    return None
  if failure:
    first = str(failure).strip().partition('\n')[0][:200]
    hint = f'its arrays are not those of the configuration of the run ({first})'
    raise checkpoint_error('run_changed', folder, hint) from failure
  return found


def _megabytes(count: int) -> str:
  return f'{count / 1e6:,.0f} MB'
