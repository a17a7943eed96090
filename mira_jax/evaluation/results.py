"""How a run came out on its test clips, and how the folds of a protocol did.

A run has three results, told apart by what chose the weights: the validation
clips, the end of training, or the test clips themselves. Only the first two are
estimates of anything. The third is what much of the field reports, and what the
authors' code does; it is here to be compared with, under its own name.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mira_jax import files, terminal
from mira_jax.errors import ExitCode, MiraInputError, plain
from mira_jax.evaluation.metrics import Scores, check_names, score

NAME = 'outcome.json'
_COLUMNS = 64  # of a terminal, for all predicted classes
_MOST = 11  # classes whose matrix has room there
_CONFUSED = 12  # lines, of what was confused most often
_NAMED = 4  # folds that are named before it says 'and so on'
CHOSEN, LAST, BEST_ON_TEST = 'chosen by validation', 'last', 'best on test'
_WARNED = f'{BEST_ON_TEST}: chosen by the clips it is tested on'


@dataclasses.dataclass(kw_only=True, frozen=True)
class Row:
  """The test confusion matrix [K, K] after some step, and why that step."""

  name: str
  step: int
  matrix: np.ndarray

  @property
  def scores(self) -> Scores:
    """Of the matrix."""
    return score(self.matrix)


def rows(
  final: Mapping[int, np.ndarray],
  watched: Mapping[int, np.ndarray],
  *,
  chosen: int,
  last: int,
  by_val: bool,
) -> list[Row]:
  """The results of a run; the first is that of its weights.

  Args:
    final: test matrix of the two steps below, in all views.
    watched: test matrix at every look, in which the best one is found.
    chosen: step of the weights.
    last: step of the end.
    by_val: whether validation clips chose; else the weights are the last ones.
  """
  found = [Row(name=CHOSEN, step=chosen, matrix=final[chosen])] * by_val
  found.append(Row(name=LAST, step=last, matrix=final[last]))
  if watched:
    best = max(watched, key=lambda n: (score(watched[n]).war, n))
    found.append(Row(name=BEST_ON_TEST, step=best, matrix=watched[best]))
  return found


def write(
  workdir: pathlib.Path,
  results: Sequence[Row],
  class_names: Sequence[str],
  *,
  fold: str,
) -> pathlib.Path:
  """Writes the results of a run as outcome.json; returns its path."""
  content = {
    'fold': fold,
    'class_names': list(class_names),
    'results': [
      {
        'name': row.name,
        'step': row.step,
        'scores': row.scores.to_dict(tuple(class_names)),
        'confusion': row.matrix.tolist(),
      }
      for row in results
    ],
  }
  path = workdir / NAME
  files.clear_for_file(path)
  files.replace(path, terminal.as_json(content, indent=2) + '\n')
  return path


def read(workdir: pathlib.Path) -> list[Row]:
  """The results of a finished run; [] when there are none.

  Nor are there any, which is warned of, in a file that is damaged.
  """
  path = workdir / NAME
  try:
    content = json.loads(path.read_bytes())
    classes = len(content['class_names'])
    return [_read_row(row, classes) for row in content['results']]
  except FileNotFoundError:
    return []
  except (OSError, ValueError, LookupError, TypeError, RecursionError):
    hint = 'the command that trained the run writes it anew'
    logging.warning('%s is damaged and left out; %s', path, hint)
    return []


def _read_row(row: Mapping[str, Any], classes: int) -> Row:
  name, step, matrix = (row[key] for key in ('name', 'step', 'confusion'))
  if type(name) is not str or type(step) is not int:
    raise ValueError
  if not is_matrix(matrix, classes):
    raise ValueError
  return Row(name=name, step=step, matrix=np.array(matrix))


def is_matrix(value: Any, classes: int) -> bool:
  """Whether JSON is a confusion matrix [K, K] of so many classes."""
  rows = value if isinstance(value, list) else []
  return len(rows) == classes and all(
    isinstance(row, list)
    and len(row) == classes
    and all(type(n) is int and 0 <= n < 2**53 for n in row)
    for row in rows
  )


def table(results: Sequence[Row], title: str) -> RenderableType:
  """The results of a run on its test clips."""
  lines = _table('weights', 'step', 'WAR', 'UAR', 'macro F1')
  for row in results:
    s = row.scores
    style = '' if row is results[0] else 'dim'
    cells = [row.name, f'{row.step}', *_percents(s.war, s.uar, s.macro_f1)]
    lines.add_row(*(Text(cell, style) for cell in cells))
  warned = any(row.name == BEST_ON_TEST for row in results)
  return Group(Text(plain(title), 'bold'), lines, Text(_WARNED * warned, 'dim'))


# ----- folds ----------------------------------------------------------------


@dataclasses.dataclass(kw_only=True, frozen=True)
class Fold:
  """The evaluation of one fold: its name, matrix [K, K] and run's results."""

  name: str
  matrix: np.ndarray
  results: Sequence[Row] = ()

  def result(self, name: str) -> Row | None:
    """The run's result of that name."""
    return next((row for row in self.results if row.name == name), None)


def pooled(folds: Sequence[Fold]) -> np.ndarray:
  """The confusion matrix of all clips of all folds, [K, K].

  Raises:
    MiraInputError: the folds differ in their number of classes.
  """
  counts = {fold.name: len(fold.matrix) for fold in folds}
  if len(set(counts.values())) > 1:
    told = ', '.join(f'{name}: {count}' for name, count in counts.items())
    hint = 'the folds differ in their number of classes; train them anew'
    code = ExitCode.DATA
    raise MiraInputError('class_count', told, hint, exit_code=code)
  return np.sum([fold.matrix for fold in folds], axis=0)


def partial(missing: Sequence[str]) -> str:
  """A mark for titles: which folds of a protocol are missing; '' for none."""
  if not missing:
    return ''
  names, more = list(missing[:_NAMED]), len(missing) - _NAMED
  if more > 0:
    names.append(f'{more} more')
  return f'PARTIAL, without {", ".join(names)}'


def folds_dict(
  folds: Sequence[Fold],
  class_names: Sequence[str],
  missing: Sequence[str] = (),
) -> dict[str, Any]:
  """Scores of each fold, their mean and spread, and those of the pool.

  `missing` names the folds of the protocol that are not among them: without
  these no number is that of the protocol.

  The standard deviation is that of the folds (n - 1). The pooled macro F1 and
  UAR are the UF1 and UAR of micro-expression recognition (leave one subject
  out), where a fold alone may lack most classes.
  """
  names = tuple(class_names)
  each = [score(fold.matrix) for fold in folds]
  mean = {}
  for metric in ('war', 'uar', 'macro_f1', 'weighted_f1'):
    values = [getattr(scores, metric) for scores in each]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    mean[metric] = {'mean': float(np.mean(values)), 'sd': spread}
  whole = score(pooled(folds))
  return {
    'class_names': list(names),
    'partial': bool(missing),
    'missing': list(missing),
    'folds': [
      {
        'name': fold.name,
        'scores': scores.to_dict(names),
        'confusion': fold.matrix.tolist(),
        'runs': {
          row.name: {
            'step': row.step,
            'war': row.scores.war,
            'uar': row.scores.uar,
          }
          for row in fold.results
        },
      }
      for fold, scores in zip(folds, each, strict=True)
    ],
    'mean_of_folds': mean,
    'pooled': whole.to_dict(names) | {'uf1': whole.macro_f1},
    'pooled_confusion': pooled(folds).tolist(),
  }


def folds_table(
  folds: Sequence[Fold],
  class_names: Sequence[str],
  title: str,
  missing: Sequence[str] = (),
) -> RenderableType:
  """A line per fold, then the mean of folds beside the pool."""
  also = [
    name
    for name in (LAST, BEST_ON_TEST)
    if all(fold.result(name) for fold in folds)
  ]
  lines = _table('fold, %', 'clips', 'WAR', 'UAR', 'F1', *also)
  for fold in folds:
    s = score(fold.matrix)
    cells = [
      plain(fold.name),
      f'{s.clips}',
      *_numbers(s.war, s.uar, s.macro_f1),
    ]
    cells += _numbers(*(fold.result(name).scores.war for name in also))
    lines.add_row(*map(Text, cells))
  told = folds_dict(folds, class_names)
  means, whole = told['mean_of_folds'], score(pooled(folds))
  lines.add_section()
  spreads = [
    f'{100 * means[n]["mean"]:.1f} ± {100 * means[n]["sd"]:.1f}'
    for n in ('war', 'uar', 'macro_f1')
  ]
  others = _numbers(
    *(np.mean([f.result(n).scores.war for f in folds]) for n in also)
  )
  lines.add_row('mean', '', *spreads, *others, style='bold')
  totals = _numbers(whole.war, whole.uar, whole.macro_f1)
  lines.add_row('pooled', f'{whole.clips}', *totals, style='bold')
  notes = 'mean ± standard deviation of folds; pooled: all clips; F1: macro'
  if also:
    notes += f'\n{" and ".join(also)}: WAR; {_WARNED}'
  mark = [Text(plain(partial(missing)), 'bold yellow')] if missing else []
  return Group(
    Text(plain(title), 'bold'),
    *mark,
    lines,
    Text(notes, 'dim'),
    matrix_table(pooled(folds), class_names),
  )


def matrix_table(
  matrix: np.ndarray, class_names: Sequence[str]
) -> RenderableType:
  """Clips by true class (row) and predicted class (column).

  Of classes that are too many for a terminal, what was confused most often.

  Raises:
    MiraInputError: another number of names than classes.
  """
  check_names(len(matrix), class_names)
  if len(class_names) > _MOST:
    return _confusions_table(matrix, class_names)
  width = max(3, min(9, _COLUMNS // len(class_names) - 2))
  lines = _table(
    'true \\ predicted', *(plain(name)[:width] for name in class_names)
  )
  for i, name in enumerate(class_names):
    cells = [
      Text(f'{count}', 'bold' if i == j else 'dim' if not count else '')
      for j, count in enumerate(matrix[i])
    ]
    lines.add_row(Text(plain(name)), *cells)
  return lines


def _confusions_table(
  matrix: np.ndarray, class_names: Sequence[str]
) -> RenderableType:
  """The largest numbers beside the diagonal, with their share of the row."""
  wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
  largest = np.argsort(-wrong, axis=None, kind='stable')[:_CONFUSED]
  lines = _table('true', 'predicted', 'clips', 'of the class')
  for i, j in zip(*np.unravel_index(largest, wrong.shape), strict=True):
    if wrong[i, j]:
      share = wrong[i, j] / matrix[i].sum()
      cells = (f'{wrong[i, j]}', *_percents(share))
      names = (plain(class_names[n]) for n in (i, j))
      lines.add_row(*map(Text, (*names, *cells)))
  title = f'confused most often, of {len(matrix)} classes'
  return Group(Text(plain(title), 'bold'), lines)


def _table(first: str, *others: str) -> Table:
  lines = Table(box=box.SIMPLE_HEAD, header_style='dim', pad_edge=False)
  lines.add_column(first, overflow='fold')
  for name in others:
    lines.add_column(Text(name), justify='right', no_wrap=True)
  return lines


def _numbers(*values: float) -> list[str]:
  return [f'{100 * value:.1f}' for value in values]


def _percents(*values: float) -> list[str]:
  return [f'{number} %' for number in _numbers(*values)]
