"""Draws the pictures of clips in other processes, while the model goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pathlib
import signal
import traceback
from collections.abc import Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from mira_jax import figures, terminal
from mira_jax.data import workers
from mira_jax.devices import memory
from mira_jax.errors import MiraInputError, data_error

if TYPE_CHECKING:
  from mira_jax.inference.predictor import Prediction

_MOST = 4  # processes
_Trouble = tuple[str, str, str] | None  # of a MiraInputError


@contextlib.contextmanager
def reported(clip: str) -> Iterator[None]:
  """Turns any error of a clip into one line, so that the others go on.

  Raises:
    MiraInputError: instead of any other error ('unexpected').
  """
  try:
    with memory.explained(clip):
      yield
  except MiraInputError:
    raise
  except Exception as error:
    terminal.check()
    hint = f'{type(error).__name__}: {error}'
    if isinstance(error, OSError):  # names the file and the reason
      raise MiraInputError('os_error', clip, hint) from error
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f'{pathlib.Path(frame.filename).name}:{frame.lineno}'
    hint = f'{hint[:300]} ({place}); the other clips go on, please report it'
    raise MiraInputError('unexpected', clip, hint) from error


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A picture that another process draws."""

  path: str
  _trouble: futures.Future[_Trouble]

  def done(self) -> bool:
    """Whether `wait` returns at once."""
    return self._trouble.done()

  def wait(self) -> str:
    """The picture's path, once it is written.

    Raises:
      MiraInputError: it could not be; or see `Drawer.draw`.
    """
    with _alive():
      trouble = self._trouble.result()
    if trouble:
      raise MiraInputError(*trouble)
    return self.path


class Drawer:
  """Draws pictures into a folder.

  Use as a context manager: its processes start with it, import matplotlib
  beside whatever comes next, and end with it. A picture that is not whole then
  is not written. With `numbers` the arrays of each are beside it.
  """

  def __init__(self, folder: pathlib.Path, numbers: bool = True):
    self._folder, self._numbers = folder, numbers
    self._taken: set[str] = set()
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> Drawer:
    processes = min(_MOST, (os.cpu_count() or 1) // 4) or 1
    pool = workers.pool(processes)
    self._pool = self._stack.enter_context(pool)
    self._submit(_get_ready)
    return self

  def __exit__(self, *error: Any) -> None:
    self._stack.__exit__(*error)

  def draw(
    self,
    clip: str,
    found: Prediction,
    names: Sequence[str],
    thresholds: Sequence[float] | None = None,
  ) -> Drawn:
    """Begins to draw what `found` has, its records or its timeline.

    `thresholds` are those of action units, see `Predictor`.

    Raises:
      MiraInputError: the process that draws was killed ('worker_died').
    """
    path = self._path(clip)
    figure, arguments = _figure(clip, found, names, thresholds)
    with _alive():
      call = _draw, clip, path, figure, arguments, self._numbers
      return Drawn(path, self._submit(*call))

  def _submit(self, *call: Any) -> futures.Future[Any]:
    # A process that begins would show Ctrl-C as an error of its own: it
    # inherits that the signal is blocked. The command ends it.
    interrupt = {signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, interrupt)
    try:
      return self._pool.submit(*call)
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, before)

  def _path(self, clip: str) -> str:
    return str(self._folder / f'{new_stem(clip, self._taken)}.png')


def new_stem(clip: str, taken: set[str]) -> str:
  """A name for files of a clip, numbered where another has it; takes it."""
  # As long as the names of files may be, with a number and a suffix.
  stem = os.fsdecode(os.fsencode(pathlib.Path(clip).resolve().stem)[:224])
  names = itertools.chain([stem], (f'{stem}_{i}' for i in itertools.count(2)))
  name = next(name for name in names if name not in taken)
  taken.add(name)
  return name


@contextlib.contextmanager
def _alive() -> Iterator[None]:
  try:
    yield
  except BrokenProcessPool as error:
    hint = 'the process that draws was killed, often for memory; leave them '
    hint += 'out by --no-picture'
    raise data_error('worker_died', 'pictures', hint) from error


def _figure(
  clip: str,
  found: Prediction,
  names: Sequence[str],
  thresholds: Sequence[float] | None = None,
) -> tuple[str, dict[str, Any]]:
  """The name of a function of `figures`, and its arguments."""
  title = pathlib.Path(clip).name
  common: dict[str, Any] = {'class_names': names, 'title': title}
  if thresholds is not None:
    common['thresholds'] = thresholds
  if found.timeline is not None:
    units = 'unit_' * (thresholds is not None)
    return f'{units}timeline_figure', common | {
      'timeline': found.timeline,
      'seconds': found.seconds,
      'stills': found.stills,
    }
  records = found.records
  assert records
  if records.windows > 1:
    title += f' · window {records.number + 1} of {records.windows}'
  return 'clip_figure', common | {
    'title': title,
    'frames': records.window,
    'indices': records.indices,
    'gain': records.gain,
    'before': records.before,
    'after': records.after,
    'probabilities': found.mean,
    'scored': found.scored,
  }


# ----- in the other process ---------------------------------------------------


def _get_ready() -> None:
  """Imports what draws."""
  _ = figures.clip_figure


def _draw(
  clip: str,
  path: str,
  figure: str,
  arguments: dict[str, Any],
  numbers: bool = True,
) -> _Trouble:
  """Draws and saves a picture, or says why not."""
  try:
    with reported(clip):
      getattr(figures, figure)(**arguments).save(path, numbers=numbers)
  except MiraInputError as error:
    return error.code, error.path, error.hint
  return None
