"""Results of `mira predict`, printed clip by clip in one of four formats."""

from __future__ import annotations

import csv
import sys
import textwrap
from typing import Any

from mira_jax import terminal
from mira_jax.errors import MiraInputError, plain
from mira_jax.evaluation import report

FORMATS = ('table', 'json', 'jsonl', 'csv')


class Printer:
  """Prints results in one of FORMATS, each as it comes.

  Use as a context manager, whose end also completes what was begun when the
  command is stopped.
  """

  def __init__(self, form: str, clips: list[str], class_names: list[str]):
    self._form, self._names = form, class_names
    console = terminal.console().width
    self._width = report.name_width(clips, class_names, console)
    self._csv = csv.writer(sys.stdout, lineterminator='\n')
    self._began = False
    self._notes: list[str] = []
    self.failed = False

  def __enter__(self) -> Printer:
    if self._form == 'json':
      print('[', end='', flush=True)
    elif self._form == 'csv':
      self._cells('clip', 'second', 'label', 'probability', *self._names)
    return self

  def __exit__(self, *error: Any) -> None:
    if self._form == 'json':
      print('\n]' if self._began else ']', flush=True)
    terminal.say(*self._notes)

  def add(self, result: dict[str, Any]) -> None:
    """Prints what a clip is."""
    if self._form in ('json', 'jsonl'):
      self._row(self._as_json(result))
    elif self._form == 'csv':
      timeline = result.get('timeline')
      rows = result['probabilities'][None] if timeline is None else timeline
      for second, row in enumerate(rows):
        best = int(row.argmax())
        numbers = (f'{x:.6f}' for x in (row[best], *row))
        when = '' if timeline is None else str(second)
        self._cells(result['clip'], when, self._names[best], *numbers)
    else:
      self._table(result)

  def fail(self, clip: str, error: MiraInputError) -> None:
    """Prints why a clip cannot be classified."""
    self.failed = True
    if self._form in ('json', 'jsonl'):
      self._row({'clip': clip, 'error': error.code, 'hint': error.hint})
    print(f'mira: {error}', file=sys.stderr, flush=True)

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

  def _as_json(self, result: dict[str, Any]) -> dict[str, Any]:
    rest = {
      n: x for n, x in result.items() if n not in ('clip', 'probabilities')
    }
    if 'timeline' in rest:
      rest['timeline'] = [
        {'second': second, 'classes': dict(zip(self._names, row, strict=True))}
        for second, row in enumerate(result['timeline'].tolist())
      ]
    told = report.prediction_dict(
      result['clip'], result['probabilities'], self._names
    )
    return told | rest

  def _table(self, result: dict[str, Any]) -> None:
    clip = result['clip']
    table = report.prediction_table(
      clip,
      result['probabilities'],
      self._names,
      width=self._width,
      header=not self._began,
    )
    self._began = True
    terminal.show(table)
    if 'timeline' in result:
      terminal.show(
        report.timeline_table(clip, result['timeline'], self._names)
      )
    if result['flags']:
      self._notes.append(f'{clip}: {", ".join(result["flags"])}')
    if 'picture' in result:
      self._notes.append(f'picture: {result["picture"]}')
