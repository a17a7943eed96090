"""Checkpoints of a run: saved in the background, sealed, verified.

A layer over orbax, which no other module imports. Orbax commits a step by
renaming its folder, but silently restores a file with flipped bits; so a
manifest is written last, and a step without one that matches is never restored.
Orbax's CheckpointManager removes older steps before that, so the policy of what
stays is here.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from mira_jax import files
from mira_jax.devices import sharding
from mira_jax.errors import MiraInputError, checkpoint_error, not_written
from mira_jax.train import checkpoint_reader as reader
from mira_jax.train import manifest, run_folder
from mira_jax.train.step import TrainState

PyTree = Any
# Items of a step, each a folder: what scoring takes, and what only training
# does. So weights are read, and verified, without the optimiser's moments.
WEIGHTS, STATE, META = reader.WEIGHTS, 'state', 'meta'
_WEIGHTS_FIELDS = ('params', 'mira', 'average')
# Endings of folders that are no steps (any more).
_CORRUPT, _REMOVED, _UNCOMMITTED = '.corrupt', '.removed', 'checkpoint-tmp'


class Checkpoints:
  """The checkpoints of one run: the newest two and the most accurate one.

  Use as a context manager, and one per folder: it removes what an interrupted
  save left behind.

  Args:
    directory: of the checkpoints; made when missing.
    identity: JSON-able facts that must not change within a run, such as the
      seed, the batch size and the dataset's fingerprint.
    defaults: values of facts that checkpoints of older versions lack, by name;
      'model.mira.floor' is that of a field within a field of the fact 'model'.

  Attributes:
    pending: metrics of the log that were saved with the restored state.
    scores: accuracies of all validations until the newest state, by step.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    identity: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
  ):
    self._directory = pathlib.Path(directory).absolute()
    self._identity, self._defaults = identity, defaults or {}
    self.pending: dict[str, Any] = {}
    self.scores: dict[int, float] = {}
    self._writer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(WEIGHTS, STATE, META)
    )
    self._sealer = concurrent.futures.ThreadPoolExecutor(1)
    self._sealing: concurrent.futures.Future | None = None
    self._size = 0  # of a state, in bytes
    if jax.process_index() == 0:
      if self._directory.exists() and not self._directory.is_dir():
        hint = 'it is not a folder; remove it, or choose a new --workdir'
        raise checkpoint_error('damaged', self._directory, hint)
      self._directory.mkdir(parents=True, exist_ok=True)
      for path in self._directory.iterdir():
        if path.name.endswith(_REMOVED) or _UNCOMMITTED in path.name:
          shutil.rmtree(path, ignore_errors=True)
        elif reader.STEP.fullmatch(path.name):
          files.clear_for_folder(path)
    sharding.meet('checkpoints')

  def _folder(self, step: int) -> pathlib.Path:
    return self._directory / str(step)

  # ----- saving -----

  def save(
    self,
    step: int,
    state: TrainState,
    accuracy: float | None = None,
    pending: Mapping[str, Any] | None = None,
  ) -> None:
    """Starts saving; the arrays may be donated as soon as it returns.

    The accuracy, None if not measured, decides which step is the best.

    Raises:
      MiraInputError: it could not be written, or the save before could not.
    """
    self.wait()
    if accuracy is not None:
      self.scores[step] = accuracy = float(accuracy)
    weights, rest = _parts(state)
    self._size = sum(x.nbytes for x in jax.tree.leaves(state))
    facts = {'step': step, 'pending': dict(pending or {}), **self._identity}
    facts['scores'] = {str(at): score for at, score in self.scores.items()}
    args = {
      WEIGHTS: ocp.args.StandardSave(weights),
      STATE: ocp.args.StandardSave(rest),
      META: ocp.args.JsonSave(facts),
    }
    with self._written():
      self._writer.save(self._folder(step), args=ocp.args.Composite(**args))
    self._sealing = self._sealer.submit(self._seal, step, accuracy)

  def _seal(self, step: int, accuracy: float | None) -> None:
    """Writes the manifest once orbax has committed everything else.

    Then removes all steps but the newest two sealed ones and the best.
    """
    self._writer.wait_until_finished()
    if jax.process_index() > 0:
      return
    manifest.seal(self._folder(step), accuracy)
    sealed = reader.accuracies(self._directory)
    keep = {*sorted(sealed)[-2:], *reader.best_first(sealed)[:1]}
    for old in set(reader.steps(self._directory)) - keep:
      # Half a folder must not look like a step.
      aside = self._directory / f'{old}{_REMOVED}'
      self._folder(old).rename(aside)
      shutil.rmtree(aside, ignore_errors=True)

  def check(self) -> None:
    """Raises the error of the last save if it failed; doesn't wait for it."""
    if self._sealing is not None and self._sealing.done():
      self.wait()

  def wait(self) -> None:
    """Returns when the last save is complete; raises if it failed."""
    if self._sealing is not None:
      sealing, self._sealing = self._sealing, None
      with self._written():
        sealing.result()

  @contextlib.contextmanager
  def _written(self):
    """Turns whatever fails while writing into one line."""
    try:
      yield
    except Exception as error:  # orbax and tensorstore raise many kinds
      free = shutil.disk_usage(self._directory).free
      hint = f'{self._size / 1e6:,.0f} MB could not be written, '
      hint += f'{free / 1e6:,.0f} MB are free; the same command resumes from '
      hint += f'the checkpoint before ({reader.first_line(error)})'
      raise not_written(self._directory, hint) from error

  def accuracy(self, step: int) -> float | None:
    """The accuracy that a sealed step was saved with."""
    return reader.accuracies(self._directory).get(step)

  def rate(self, step: int, accuracy: float) -> None:
    """Gives an accuracy to a sealed step that was saved without one."""
    self.scores[step] = float(accuracy)
    if jax.process_index() == 0:
      with self._written():
        manifest.rate(self._folder(step), float(accuracy))

  # ----- restoring -----

  def restore(
    self, target: TrainState, *, strict: bool = False, force: bool = False
  ) -> TrainState | None:
    """The newest valid state, or None in a fresh directory.

    Damaged steps that are newer are renamed N.corrupt, with a warning each.
    Leaves of `target` are `jax.ShapeDtypeStruct` with shardings, of any mesh.

    Raises:
      MiraInputError: the run was started with another identity (a warning with
        `force`), or its state has other shapes; every checkpoint is damaged, or
        with `strict` the newest is.
    """
    found = reader.steps(self._directory)[::-1]
    if not found:
      return None
    considered = found[:1] if strict else found
    step, damage = reader.first_valid(self._directory, lambda: considered)
    if step is None:
      why = damage.get(found[0], 'host 0 reports the damage')
      remedy = '--resume=auto resumes from the step before'
      if not strict:
        remedy = 'every older checkpoint is damaged, too; start again in a new '
        remedy += '--workdir'
      path = self._folder(found[0])
      raise checkpoint_error('damaged', path, f'{why}; {remedy}')
    self._check_identity(step, force)
    self._set_aside(damage, step)
    return self._load(step, target)

  def restore_best(self, target: TrainState) -> tuple[int, TrainState]:
    """The most accurate step that is valid, and its state; see `restore`.

    Call it when nothing is being saved.
    """
    sharding.meet('restore_best')  # the first host seals, and others don't wait
    step = reader.choose(self._directory, 'best', part='')
    return step, self._load(step, target)

  def _load(self, step: int, target: TrainState) -> TrainState:
    weights, rest = (ocp.args.StandardRestore(x) for x in _parts(target))
    try:
      found = self._read(step, {WEIGHTS: weights, STATE: rest})
    except ValueError as error:  # orbax lists every array
      hint = 'its arrays are not those of this configuration; use the model '
      hint += 'and the optimizer of the run, or choose a new --workdir'
      raise checkpoint_error('run_changed', self._folder(step), hint) from error
    return dataclasses.replace(target, **found[WEIGHTS], **found[STATE])

  def _read(self, step: int, args: dict[str, Any]) -> Any:
    composite = ocp.args.Composite(**args)
    return self._writer.restore(self._folder(step), args=composite)

  def _set_aside(self, damage: Mapping[int, str], instead: int) -> None:
    """Renames damaged steps, so that their numbers can be saved again.

    Those of earlier mishaps go: they would fill the disk in time.
    """
    if damage:
      for path in self._directory.glob(f'*{_CORRUPT}'):
        shutil.rmtree(path, ignore_errors=True)
    for step, why in damage.items():  # {} but on host 0
      folder = self._folder(step)
      text = 'checkpoint %s is damaged (%s); going back to %d'
      logging.warning(text, folder, why, instead)
      folder.rename(folder.with_name(f'{step}{_CORRUPT}'))
    sharding.meet('set_aside')

  def _check_identity(self, step: int, force: bool) -> None:
    saved = self._read(step, {META: ocp.args.JsonRestore()})[META]
    self.pending = saved.get('pending', {})
    # Those of `rate`, and of older versions, are in the manifests alone.
    known = reader.accuracies(self._directory).items()
    self.scores = {s: x for s, x in known if x is not None and s <= step}
    self.scores |= {int(s): x for s, x in saved.get('scores', {}).items()}
    changed = run_folder.changes(saved, self._identity, self._defaults)
    for name, before, now in changed:
      text = f'the run was started with {name} {before!r}, not {now!r}'
      if not force:
        hint = f'{text}; restore that, choose a new --workdir, or resume it by '
        hint += 'mira train --force'
        raise checkpoint_error('run_changed', self._directory, hint)
      logging.warning('--force: %s', text)

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
      logging.warning('%s', failure)  # the error that ended the run goes first
    finally:
      self._sealer.shutdown()
      self._writer.close()


@contextlib.contextmanager
def without_tracebacks() -> Iterator[None]:
  """Silences what orbax, asyncio and tensorstore log of failed saves.

  `Checkpoints.wait` raises them as one line.
  """
  absl, asyncio = logging.getLogger('absl'), logging.getLogger('asyncio')
  system = sys  # of this module no name is left when the interpreter ends
  level, before = asyncio.level, system.unraisablehook

  def not_of_orbax(record: logging.LogRecord) -> bool:
    return f'{os.sep}orbax{os.sep}' not in record.pathname

  def hook(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      before(unraisable)

  absl.addFilter(not_of_orbax)
  asyncio.setLevel(logging.CRITICAL)
  system.unraisablehook = hook
  try:
    yield
  finally:
    absl.removeFilter(not_of_orbax)
    asyncio.setLevel(level)
    system.unraisablehook = before


def _parts(state: TrainState) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
  """The fields of a state: what scoring takes, and the rest."""
  names = [field.name for field in dataclasses.fields(state)]
  fields = {name: getattr(state, name) for name in names}
  return {name: fields.pop(name) for name in _WEIGHTS_FIELDS}, fields
