"""Reports of an evaluation or a prediction: files, JSON, terminal tables.

The table functions return rich renderables and print nothing; the `*_dict`
functions return the same content as plain JSON values.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mira_jax import figures, terminal
from mira_jax.errors import plain
from mira_jax.evaluation import metrics

_BAR = 24  # characters


def evaluation_dict(
  matrix: np.ndarray,
  class_names: Sequence[str],
  metadata: Mapping[str, object],
) -> dict[str, object]:
  """An evaluation as JSON values: scores, confusion matrix, metadata.

  Args:
    matrix: int [K, K], rows = true class.
    class_names: K names.
    metadata: what was evaluated, JSON values: dataset, split, views, weights.
  """
  return {
    'metadata': dict(metadata),
    'scores': metrics.score(matrix).to_dict(tuple(class_names)),
    'class_names': list(class_names),
    'confusion': np.asarray(matrix).tolist(),
  }


def write_evaluation(
  directory: str | os.PathLike[str],
  *,
  matrix: np.ndarray,
  class_names: Sequence[str],
  metadata: Mapping[str, object],
  title: str,
) -> Path:
  """Writes scores.json, confusion.csv and confusion.png (with its .npz).

  Args:
    directory: made if it does not exist.
    matrix: int [K, K], rows = true class.
    class_names: K names.
    metadata: JSON values that say what was evaluated.
    title: title of the picture; name the dataset and the model.

  Returns:
    The path of scores.json, which is written last: if it is there, all is.

  Raises:
    MiraInputError: another number of names than classes.
    ValueError: metadata holds NaN or infinity, which JSON has no word for.
  """
  directory = Path(directory)
  report = evaluation_dict(matrix, class_names, metadata)
  text = terminal.as_json(report, indent=2, allow_nan=False)
  directory.mkdir(parents=True, exist_ok=True)
  with open(
    directory / 'confusion.csv', 'w', newline='', encoding='utf-8'
  ) as file:
    table = csv.writer(file)
    table.writerow(['true \\ predicted', *class_names])
    table.writerows(
      [name, *row.tolist()]
      for name, row in zip(class_names, np.asarray(matrix), strict=True)
    )
  scores = str(metrics.score(matrix))
  picture = figures.confusion_figure(matrix, class_names, title, scores)
  picture.save(directory / 'confusion.png')
  path = directory / 'scores.json'
  path.write_text(text + '\n', encoding='utf-8')
  return path


def evaluation_table(
  matrix: np.ndarray, class_names: Sequence[str], title: str
) -> RenderableType:
  """WAR, UAR and F1 of a confusion matrix, then one line per class."""
  scores = metrics.score(matrix)
  metrics.check_names(len(scores.support), class_names)
  totals = Table.grid(padding=(0, 4, 0, 0))
  totals.add_row(
    *(
      Text.assemble((f'{name} ', 'dim'), (f'{100 * value:.2f} %', 'bold'))
      for name, value in (
        ('WAR', scores.war),
        ('UAR', scores.uar),
        ('macro F1', scores.macro_f1),
        ('weighted F1', scores.weighted_f1),
      )
    )
  )
  table = _table()
  table.add_column('class', no_wrap=True)
  table.add_column('recall', max_width=_BAR)  # narrow windows shrink it
  for name in ('', 'precision', 'F1', 'clips'):
    table.add_column(name, justify='right', no_wrap=True)
  for name, recall, precision, f1, support in zip(
    class_names,
    scores.recall,
    scores.precision,
    scores.f1,
    scores.support,
    strict=True,
  ):
    share, *rest = (_percent(v) for v in (recall, precision, f1))
    table.add_row(Text(plain(name)), _bar(recall), share, *rest, f'{support}')
  present = f'{scores.present} of {len(scores.support)} classes present'
  foot = f'{scores.clips} clips, {present}; UAR and macro F1 are over these'
  return Group(Text(plain(title), 'bold'), totals, table, Text(foot, 'dim'))


def prediction_table(
  clip: str,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  *,
  width: int,
  header: bool,
  top: int = 3,
) -> RenderableType:
  """The likeliest classes of a clip with bars.

  Tables of several clips, one below the other, are one table.

  Args:
    clip: its name.
    probabilities: [K].
    class_names: K names.
    width: letters of a line of the longest name of a clip; see `name_width`.
    header: whether this is the first of them.
    top: classes.
  """
  table = _table(show_header=header, show_edge=False)
  table.add_column('clip', overflow='fold', width=width)
  table.add_column('class', overflow='fold', width=_widest(class_names, 24))
  table.add_column('probability', width=_BAR)
  table.add_column('', justify='right', no_wrap=True, width=7)
  order = np.argsort(-probabilities, kind='stable')[:top]
  for place, i in enumerate(order):
    style = 'bold' if place == 0 else 'dim'
    table.add_row(
      Text(plain(clip) if place == 0 else ''),
      Text(plain(class_names[i]), style),
      _bar(probabilities[i], best=place == 0),
      Text(_percent(probabilities[i]), style),
    )
  return Group(table, '')


def name_width(
  clips: Sequence[str], class_names: Sequence[str], console: int
) -> int:
  """How wide clips are in a table that fits into so many letters."""
  taken = _widest(class_names, 24) + _BAR + 7 + 3 * 3  # between columns
  return min(_widest(clips, 1000), max(20, console - taken))


def _widest(names: Sequence[str], most: int) -> int:
  return min(most, max(5, *(cell_len(plain(name)) for name in names)))


def timeline_table(
  clip: str, timeline: np.ndarray, class_names: Sequence[str], rows: int = 20
) -> RenderableType:
  """The likeliest class of stretches of seconds; probabilities [S, K].

  Seconds in a row with the same one are one line; of more than `rows` lines
  the longest are shown.
  """
  best = timeline.argmax(1)
  cuts = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(best)]
  stretches = list(itertools.pairwise(cuts))
  shown = sorted(sorted(stretches, key=lambda x: x[0] - x[1])[:rows])
  table = _table()
  table.add_column('seconds', no_wrap=True)
  table.add_column('class', no_wrap=True)
  table.add_column('probability', max_width=_BAR)
  table.add_column('', justify='right', no_wrap=True)
  for start, end in shown:
    i = best[start]
    mean = timeline[start:end, i].mean()
    span = f'{start}-{end}'
    table.add_row(
      span, Text(plain(class_names[i]), 'bold'), _bar(mean), _percent(mean)
    )
  left = len(stretches) - len(shown)
  foot = (
    [Text(f'{left} shorter stretches are not shown', 'dim')] if left else []
  )
  return Group(Text(plain(clip), 'bold'), table, *foot)


def prediction_dict(
  clip: str, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, object]:
  """A prediction as JSON values; `classes` is sorted, likeliest first."""
  order = np.argsort(-probabilities, kind='stable')
  classes = {class_names[i]: float(probabilities[i]) for i in order}
  label = class_names[order[0]]
  return {
    'clip': clip,
    'label': label,
    'probability': classes[label],
    'classes': classes,
  }


def table(first: str, *others: str) -> Table:
  """An empty table: a column of names, then right-aligned columns."""
  lines = _table()
  lines.add_column(first, overflow='fold')
  for name in others:
    lines.add_column(Text(name), justify='right', no_wrap=True)
  return lines


def _table(**options: bool) -> Table:
  return Table(
    box=box.SIMPLE_HEAD, header_style='dim', pad_edge=False, **options
  )


def _percent(value: float) -> str:
  return '-' if np.isnan(value) else f'{100 * value:.1f} %'


def _bar(value: float, *, best: bool = True) -> RenderableType:
  if np.isnan(value):
    return ''
  color = 'cyan' if best else 'bright_black'
  return ProgressBar(
    total=1,
    completed=float(value),
    complete_style=color,
    finished_style=color,
  )
