"""Prints the results of `mira predict`, clip by clip, in one of four forms."""

from __future__ import annotations

import collections
import csv
import functools
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mira_jax import terminal
from mira_jax.errors import NO_FACE, MiraInputError, plain

if TYPE_CHECKING:
  from mira_jax.cli.pictures import Drawn
  from mira_jax.inference.predictor import Prediction

_WAITING = 8  # results at most whose pictures are being drawn
FORMATS = ('table', 'json', 'jsonl', 'csv')


class Printer:
  """Prints results in one of FORMATS, each as soon as its picture is written.

  Use as a context manager, which completes the JSON of a stopped command, too.
  With `numbers` arrays are beside pictures, which it says at the end. Of a
  model of action units `thresholds` say which are shown.
  """

  def __init__(
    self,
    form: str,
    class_names: Sequence[str],
    *,
    numbers: bool = False,
    thresholds: Sequence[float] | None = None,
  ):
    self._form, self._names = form, class_names
    self._least = thresholds
    self._numbers, self._pictures = numbers, False
    self._csv = csv.writer(sys.stdout, lineterminator='\n')
    self._began = False
    self._notes: list[str] = []
    self._waiting: collections.deque[tuple[Drawn | None, Callable[[], None]]]
    self._waiting = collections.deque()
    self.failed = False
    self.short = 0  # clips with fewer frames than the model takes

  def __enter__(self) -> Printer:
    if self._form == 'json':
      print('[', end='', flush=True)
    elif self._form == 'csv':
      self._cells('clip', 'second', 'label', 'probability', *self._names)
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    try:
      if kind is None or issubclass(kind, MiraInputError):
        self._print_all_but(0)
    finally:
      if self._form == 'json':
        print('\n]' if self._began else ']', flush=True)
      terminal.say(*self._notes)
      if self._pictures and self._numbers and self._form == 'table':
        terminal.say('numbers: beside each picture, as .npz')

  def add(self, clip: str, found: Prediction, drawn: Drawn | None) -> None:
    """Prints the classes of a clip, once its picture is written.

    Raises:
      MiraInputError: see `Drawer.draw`.
    """
    show = functools.partial(self._show, clip, found, drawn)
    self._waiting.append((drawn, show))
    self._print_all_but(_WAITING)

  def fail(self, clip: str, error: MiraInputError) -> None:
    """Prints why a clip cannot be classified."""
    self.failed = True
    self._waiting.append((None, functools.partial(self._fail, clip, error)))
    self._print_all_but(_WAITING)

  def _print_all_but(self, most: int) -> None:
    """Prints in order; waits for a picture if more than `most` results wait."""
    while self._waiting:
      drawn, show = self._waiting[0]
      if drawn and not drawn.done() and len(self._waiting) <= most:
        return
      self._waiting.popleft()
      show()

  def _show(self, clip: str, found: Prediction, drawn: Drawn | None) -> None:
    try:
      picture = drawn and drawn.wait()
    except MiraInputError as error:
      if error.code == 'worker_died':
        raise
      self.failed = True
      self._fail(clip, error)
      return
    if self._form in ('json', 'jsonl'):
      self._row(_as_json(clip, found, picture, self._least))
    elif self._form == 'csv':
      timeline = found.timeline
      for second, row in enumerate(
        [found.mean] if timeline is None else timeline
      ):
        label = _label(row, self._names, self._least)
        numbers = (f'{x:.6f}' for x in (row.max(), *row))
        if label == NO_FACE:
          numbers = [''] * (1 + len(row))
        when = '' if timeline is None else str(second)
        self._cells(clip, when, label, *numbers)
    else:
      self._tables(clip, found)
      if found.flags:
        self._notes.append(f'{clip}: {", ".join(found.flags)}')
      if picture:
        self._notes.append(f'picture: {picture}')
        self._pictures = True

  def _tables(self, clip: str, found: Prediction) -> None:
    # Slow, and other forms need none.
    from mira_jax.evaluation import report, unit_report

    name, about = terminal.shortened(clip), _lengths(found)
    if (least := self._least) is not None:
      names, lines = self._names, found.timeline
      terminal.show(
        unit_report.prediction_table(name, found.mean, names, least, about)
      )
      if lines is not None:
        terminal.show(unit_report.timeline_table(name, lines, names, least))
      return
    terminal.show(report.prediction_table(name, found.mean, self._names, about))
    if found.timeline is not None:
      terminal.show(report.timeline_table(name, found.timeline, self._names))

  def _fail(self, clip: str, error: MiraInputError) -> None:
    if self._form in ('json', 'jsonl'):
      self._row({'clip': clip, 'error': error.code, 'hint': error.hint})
    terminal.say(f'mira: {error}', error=True)

  def _cells(self, *cells: str) -> None:
    self._csv.writerow(map(plain, cells))
    sys.stdout.flush()

  def _row(self, row: dict[str, Any]) -> None:
    encoding = sys.stdout.encoding or 'utf-8'
    if self._form == 'jsonl':
      print(terminal.as_json(row, encoding=encoding), flush=True)
      return
    text = terminal.as_json(row, encoding=encoding, indent=2)
    text = textwrap.indent(text, '  ')
    print(f'{"," * self._began}\n{text}', end='', flush=True)
    self._began = True


def _lengths(found: Prediction) -> str:
  """The lengths of a clip and of its windows, in words."""
  words = f'{found.frames} frames'
  window = f'{found.span} frames'
  if found.seconds:
    words += f', {found.seconds:.1f} s'
    window = f'{found.span * found.seconds / max(found.frames, 1):.1f} s'
  if found.windows is None:
    return f'{words}; sliding windows of {window}'
  plural = 's' * (len(found.windows) > 1)
  return f'{words}; {len(found.windows)} window{plural} of {window}'


def _label(
  probabilities: np.ndarray,
  names: Sequence[str],
  thresholds: Sequence[float] | None = None,
) -> str:
  """The likeliest class of a row [K], or its action units; NO_FACE for NaN."""
  if np.isnan(probabilities).any():
    return NO_FACE
  if thresholds is not None:
    return ' + '.join(_shown(probabilities, names, thresholds)) or 'none'
  return names[int(probabilities.argmax())]


def _as_json(
  clip: str,
  found: Prediction,
  picture: str | None,
  thresholds: Sequence[float] | None,
) -> dict[str, Any]:
  """A prediction as JSON values; classes are sorted, likeliest first.

  Action units are in the model's order, with their thresholds.
  """
  classes = found.probabilities
  if thresholds is not None:
    names = [*classes]
    values: dict[str, Any] = {
      'shown': list(found.shown or ()),
      'units': dict(classes),
      'thresholds': dict(zip(names, thresholds, strict=True)),
    }
  else:
    values = {
      'label': found.label,
      'probability': classes[found.label],
      'classes': dict(sorted(classes.items(), key=lambda x: -x[1])),
    }
  row: dict[str, Any] = {
    'clip': clip,
    **values,
    'frames': found.frames,
    'fps': found.fps,
    'flags': list(found.flags),
  }
  if found.timeline is not None and thresholds is not None:
    row['timeline'] = _unit_timeline(found.timeline, [*classes], thresholds)
  elif found.timeline is not None:
    row['timeline'] = [
      {
        'second': second,
        'label': _label(values, [*classes]),
        'classes': None
        if np.isnan(values).any()
        else dict(zip(classes, values.tolist(), strict=True)),
      }
      for second, values in enumerate(found.timeline)
    ]
  return row | ({'picture': picture} if picture else {})


def _shown(
  probabilities: np.ndarray, names: Sequence[str], thresholds: Sequence[float]
) -> list[str]:
  """Action units at or above their threshold."""
  pairs = zip(names, probabilities >= thresholds, strict=True)
  return [name for name, there in pairs if there]


def _unit_timeline(
  timeline: np.ndarray, names: Sequence[str], thresholds: Sequence[float]
) -> list[dict[str, Any]]:
  """The action units of every second as JSON values; None without a face."""
  empty = np.isnan(timeline[:, 0]).tolist()
  return [
    {
      'second': second,
      'shown': None if empty[second] else _shown(values, names, thresholds),
      'units': None
      if empty[second]
      else dict(zip(names, values.tolist(), strict=True)),
    }
    for second, values in enumerate(timeline)
  ]
