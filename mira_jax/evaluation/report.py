"""Reports of an evaluation or a prediction: files, JSON, terminal tables.

The functions of tables return rich renderables and print nothing.
"""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mira_jax import figures, files, terminal
from mira_jax.errors import NO_FACE, plain
from mira_jax.evaluation import predictions, results, statistics
from mira_jax.evaluation.metrics import check_names, score

FOLDS = 'folds.json'
_BAR = 24  # columns
_CLASS = 24  # columns of a class name beside a prediction
_COLUMNS = 64  # of a terminal, for all predicted classes
_MOST = 11  # classes whose matrix has room there
# A run: its name, folds, matrix (None where it is not finished) and
# configuration, in words.
RunRow = tuple[str, str, np.ndarray | None, str]
_WARNING = f'{results.BEST_ON_TEST}: selected on the clips it is tested on'


# ----- files ------------------------------------------------------------------


def write_evaluation(
  directory: str | os.PathLike[str],
  *,
  matrix: np.ndarray,
  class_names: Sequence[str],
  metadata: Mapping[str, object],
  title: str,
  predicted: predictions.Predictions | None = None,
) -> pathlib.Path:
  """Writes scores.json, confusion.csv and confusion.png (with its .npz).

  Args:
    directory: made if it does not exist.
    matrix: int [K, K], rows = true class.
    class_names: K names.
    metadata: JSON values of what was evaluated: dataset, split, views, weights.
    title: title of the picture; name the dataset and the model.
    predicted: written as predictions.csv, if given.

  Returns:
    The path of scores.json, which is written last: if it is there, all is.

  Raises:
    MiraInputError: another number of names than classes.
    ValueError: metadata holds NaN or infinity, which JSON has no word for.
  """
  directory, scores = pathlib.Path(directory), score(matrix)
  content = {
    'metadata': dict(metadata),
    'scores': scores.to_dict(class_names),
    'class_names': list(class_names),
    'confusion': matrix.tolist(),
  }
  if predicted is not None:
    content['calibration_error'] = statistics.calibration(predicted).error
  text = terminal.as_json(content, indent=2, allow_nan=False)
  directory.mkdir(parents=True, exist_ok=True)
  lines = ([name, *row] for name, row in zip(class_names, matrix, strict=True))
  header = ['true \\ predicted', *class_names]
  files.write_csv(directory / 'confusion.csv', header, lines)
  picture = figures.confusion_figure(matrix, class_names, title, str(scores))
  picture.save(directory / 'confusion.png')
  if predicted is not None:
    predicted.write(directory)
  path = directory / 'scores.json'
  files.write_text(path, text + '\n')
  return path


def write_folds(
  directory: str | os.PathLike[str],
  folds: Sequence[results.Fold],
  class_names: Sequence[str],
  *,
  metadata: Mapping[str, object],
  title: str,
  missing: Sequence[str] = (),
  predicted: predictions.Predictions | None = None,
) -> pathlib.Path:
  """Writes folds.json, and `write_evaluation` of the pool; returns its path."""
  content = results.folds_dict(folds, class_names, missing) | dict(metadata)
  write_evaluation(
    directory,
    matrix=results.pooled(folds),
    class_names=class_names,
    metadata=metadata,
    title=', '.join(filter(None, [title, results.partial(missing)])),
    predicted=predicted,
  )
  path = pathlib.Path(directory) / FOLDS
  text = terminal.as_json(content, indent=2)
  files.write_text(path, text + '\n')
  return path


# ----- tables of an evaluation ------------------------------------------------


def evaluation_table(
  matrix: np.ndarray, class_names: Sequence[str], title: str
) -> RenderableType:
  """WAR, UAR and F1 of a confusion matrix, then one line per class."""
  scores = score(matrix)
  check_names(len(matrix), class_names)
  totals = Table.grid(padding=(0, 4, 0, 0))
  named = {
    'WAR': scores.war,
    'UAR': scores.uar,
    'macro F1': scores.macro_f1,
    'weighted F1': scores.weighted_f1,
  }
  totals.add_row(
    *(
      Text.assemble((f'{name} ', 'dim'), (f'{100 * value:.2f} %', 'bold'))
      for name, value in named.items()
    )
  )
  lines = _table()
  lines.add_column('class', no_wrap=True)
  lines.add_column('recall', max_width=_BAR)  # narrow windows shrink it
  for name in ('', 'precision', 'F1', 'clips'):
    lines.add_column(name, justify='right', no_wrap=True)
  for i, name in enumerate(class_names):
    values = (scores.recall[i], scores.precision[i], scores.f1[i])
    cells = [*map(percent, values), f'{scores.support[i]}']
    lines.add_row(Text(plain(name)), bar(scores.recall[i]), *cells)
  present = f'{scores.present} of {len(matrix)} classes present'
  foot = f'{scores.clips} clips, {present}; UAR and macro F1 are over these'
  return Group(Text(plain(title), 'bold'), totals, lines, Text(foot, 'dim'))


def results_table(
  found: Sequence[results.Result], title: str
) -> RenderableType:
  """The results of a run on its test clips."""
  lines = table('weights', 'step', 'WAR', 'UAR', 'macro F1', 'ECE')
  for row in found:
    s, error = row.scores, row.calibration
    numbers = [*map(percent, (s.war, s.uar, s.macro_f1))]
    numbers.append('-' if error is None else percent(error))
    style = '' if row is found[0] else 'dim'
    lines.add_row(row.name, f'{row.step}', *numbers, style=style)
  warned = any(row.name == results.BEST_ON_TEST for row in found)
  foot = Text(_WARNING * warned, 'dim')
  return Group(Text(plain(title), 'bold'), lines, foot)


def runs_table(rows: Sequence[RunRow], title: str) -> RenderableType:
  """A line per run."""
  lines = table('run', 'folds', 'clips', 'WAR', 'UAR', 'macro F1')
  lines.add_column('configuration')
  for name, folds, matrix, words in rows:
    cells = ['-'] * 4
    if matrix is not None:
      s = score(matrix)
      cells = [f'{s.clips}', *map(percent, (s.war, s.uar, s.macro_f1))]
    lines.add_row(Text(plain(name)), folds, *cells, Text(plain(words)))
  return Group(Text(plain(title), 'bold'), lines)


def folds_table(
  folds: Sequence[results.Fold],
  class_names: Sequence[str],
  title: str,
  missing: Sequence[str] = (),
) -> RenderableType:
  """A line per fold, the mean of folds beside the pool, and its matrix.

  Raises:
    MiraInputError: another number of names than classes.
  """
  also = {}
  for name in (results.LAST, results.PRIMARY, results.BEST_ON_TEST):
    rows = [row for fold in folds if (row := fold.result(name))]
    if len(rows) == len(folds):
      also[name] = [row.scores.war for row in rows]
  lines = table('fold, %', 'clips', 'WAR', 'UAR', 'F1', *also)
  for i, fold in enumerate(folds):
    others = [wars[i] for wars in also.values()]
    lines.add_row(Text(plain(fold.name)), *_fold_cells(fold.matrix, *others))
  lines.add_section()
  spreads = [
    f'{100 * spread["mean"]:.1f} ± {100 * spread["sd"]:.1f}'
    for name, spread in results.means(folds).items()
    if name != 'weighted_f1'
  ]
  others = [f'{100 * np.mean(wars):.1f}' for wars in also.values()]
  lines.add_row('mean', '', *spreads, *others, style='bold')
  pool = results.pooled(folds)
  lines.add_row('pooled', *_fold_cells(pool), style='bold')
  notes = 'mean ± standard deviation of folds; pooled: all clips; F1: macro'
  if also:
    notes += f'\n{" and ".join(also)}: WAR'
    notes += f'; {_WARNING}' * (results.BEST_ON_TEST in also)
  mark = [Text(plain(results.partial(missing)), 'bold yellow')]
  return Group(
    Text(plain(title), 'bold'),
    *mark[: len(missing)],
    lines,
    Text(notes, 'dim'),
    *_matrix_table(pool, class_names),
  )


def _fold_cells(matrix: np.ndarray, *others: float) -> list[str]:
  s = score(matrix)
  numbers = (s.war, s.uar, s.macro_f1, *others)
  return [f'{s.clips}', *(f'{100 * x:.1f}' for x in numbers)]


def _matrix_table(
  matrix: np.ndarray, class_names: Sequence[str]
) -> list[RenderableType]:
  """Clips by true and predicted class; [] where a terminal has no room."""
  check_names(len(matrix), class_names)
  if len(matrix) > _MOST:
    return []
  names = [plain(name) for name in class_names]
  width = max(3, min(9, _COLUMNS // len(names) - 2))
  lines = table('true \\ predicted')
  for name in names:  # longer ones are on several lines
    lines.add_column(Text(name), justify='right', overflow='fold', width=width)
  for i, name in enumerate(names):
    cells = [
      Text(f'{count}', 'bold' if i == j else '' if count else 'dim')
      for j, count in enumerate(matrix[i])
    ]
    lines.add_row(Text(name), *cells)
  return [lines]


# ----- tables of predictions --------------------------------------------------


def prediction_table(
  clip: str,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  about: str = '',
  top: int = 3,
) -> RenderableType:
  """The likeliest classes of a clip, with bars; probabilities [K].

  `about` is a line below the clip's name.
  """
  lines = _table(head=False)
  longest = max(cell_len(plain(name)) for name in class_names)
  lines.add_column(overflow='fold', width=min(longest, _CLASS))
  lines.add_column(width=_BAR)
  lines.add_column(justify='right', no_wrap=True, width=7)
  order = np.argsort(-probabilities, kind='stable')[:top]
  for place, i in enumerate(map(int, order)):
    style = 'dim' if place else 'bold'
    lines.add_row(
      Text(plain(class_names[i]), style),
      bar(probabilities[i], best=not place),
      Text(percent(probabilities[i]), style),
    )
  note = [Text(about, 'dim')] if about else []
  return Group(Text(plain(clip), 'bold', overflow='fold'), *note, lines, '')


def timeline_table(
  clip: str, timeline: np.ndarray, class_names: Sequence[str], rows: int = 20
) -> RenderableType:
  """The likeliest class of stretches of seconds; probabilities [S, K].

  Consecutive seconds of one class, or of NaN, which is no face, are one line;
  of more than `rows` lines the longest are shown.
  """
  best = [-1 if np.isnan(x).any() else int(x.argmax()) for x in timeline]
  cuts = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(best)]
  stretches = list(itertools.pairwise(cuts))
  shown = sorted(sorted(stretches, key=lambda x: x[0] - x[1])[:rows])
  lines = _table()
  lines.add_column('seconds', no_wrap=True)
  lines.add_column('class', no_wrap=True)
  lines.add_column('probability', max_width=_BAR)
  lines.add_column('', justify='right', no_wrap=True)
  for start, end in shown:
    if best[start] < 0:
      lines.add_row(f'{start}-{end}', Text(NO_FACE, 'dim'))
      continue
    mean = timeline[start:end, best[start]].mean()
    name = Text(plain(class_names[best[start]]), 'bold')
    lines.add_row(f'{start}-{end}', name, bar(mean), percent(mean))
  left = len(stretches) - len(shown)
  foot = [Text(f'{left} shorter stretches are not shown', 'dim')]
  return Group(Text(plain(clip), 'bold'), lines, *foot[:left])


# ----- parts of tables --------------------------------------------------------


def table(first: str, *others: str) -> Table:
  """An empty table: a column of names, then right-aligned columns."""
  lines = _table()
  lines.add_column(first, overflow='fold')
  for name in others:
    lines.add_column(Text(name), justify='right', no_wrap=True)
  return lines


def _table(head: bool = True) -> Table:
  style: dict[str, Any] = {'show_header': head, 'show_edge': head}
  style |= {'box': box.SIMPLE_HEAD, 'header_style': 'dim', 'pad_edge': False}
  return Table(**style)


def percent(value: float) -> str:
  """A fraction as text; '-' for NaN."""
  return '-' if np.isnan(value) else f'{100 * value:.1f} %'


def bar(value: float, *, best: bool = True) -> RenderableType:
  """A fraction as a bar; nothing for NaN."""
  if np.isnan(value):
    return ''
  color = 'cyan' if best else 'bright_black'
  style: Any = {'complete_style': color, 'finished_style': color}
  return ProgressBar(total=1, completed=float(value), **style)
