"""Reports on action units: files, JSON, terminal tables.

The functions of tables return rich renderables and print nothing.
"""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from mira_jax import files, terminal
from mira_jax.errors import NO_FACE, plain
from mira_jax.evaluation import results, units
from mira_jax.evaluation.report import FOLDS, bar, percent, table
from mira_jax.evaluation.units import UnitPredictions, UnitScores

_NOTE = 'F1 and accuracy at 0.5; ICC(3,1) of probability and intensity'
_TUNED = (
  '\nF1 tuned: at the threshold of each unit that was best on validation frames'
)
_STRETCHES = 8  # of a unit that a timeline names


# ----- files ------------------------------------------------------------------


def write_evaluation(
  directory: str | os.PathLike[str],
  predicted: UnitPredictions,
  thresholds: Sequence[float],
  metadata: Mapping[str, object],
) -> pathlib.Path:
  """Writes unit_predictions.csv, then scores.json; returns its path.

  Args:
    directory: made if it does not exist.
    predicted: the samples.
    thresholds: [A].
    metadata: JSON values of what was evaluated.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  content = {'metadata': dict(metadata)} | as_dict(predicted, thresholds)
  predicted.write(directory)
  path = directory / 'scores.json'
  text = terminal.as_json(content, indent=2, allow_nan=False)
  files.write_text(path, text + '\n')
  return path


def as_dict(
  predicted: UnitPredictions, thresholds: Sequence[float] | np.ndarray
) -> dict[str, Any]:
  """Scores with the interval of the mean F1, as JSON values."""
  low, high = map(units.plain, units.f1_interval(predicted))
  return {
    'labels': 'action_units',
    'class_names': list(predicted.unit_names),
    'positive_from': predicted.positive_from,
    'scores': units.score(predicted, thresholds).to_dict()
    | {'mean_f1_interval': [low, high]},
  }


def write_folds(
  directory: str | os.PathLike[str],
  folds: Mapping[str, UnitPredictions],
  thresholds: Mapping[str, Sequence[float]],
  *,
  metadata: Mapping[str, object],
  missing: Sequence[str] = (),
) -> pathlib.Path:
  """Writes folds.json and the samples of all folds; returns its path.

  Args:
    directory: made if it does not exist.
    folds: samples by the name of the fold that tests them.
    thresholds: [A], those of each fold's model.
    metadata: JSON values.
    missing: folds of the protocol that are not among them.
  """
  whole = units.join([*folds.values()])
  each = {n: units.score(x, thresholds[n]) for n, x in folds.items()}
  content = {
    'partial': bool(missing),
    'missing': list(missing),
    'folds': [{'name': n, 'scores': x.to_dict()} for n, x in each.items()],
    'mean_of_folds': _spread(each),
    'pooled': as_dict(whole, _of_samples(folds, thresholds)),
  }
  path = pathlib.Path(directory, FOLDS)
  path.parent.mkdir(parents=True, exist_ok=True)
  whole.write(path.parent)
  text = terminal.as_json(content | dict(metadata), indent=2, allow_nan=False)
  files.write_text(path, text + '\n')
  return path


def _of_samples(
  folds: Mapping[str, UnitPredictions],
  thresholds: Mapping[str, Sequence[float]],
) -> np.ndarray:
  """The thresholds of every sample of all folds, [S, A]."""
  each = [np.tile(thresholds[n], (len(x), 1)) for n, x in folds.items()]
  return np.concatenate(each)


def _spread(each: Mapping[str, UnitScores]) -> dict[str, dict[str, Any]]:
  """Mean and standard deviation (n - 1) over folds."""
  found = {}
  for name in ('f1', 'f1_tuned', 'accuracy', 'icc'):
    values = np.array([x.mean(name) for x in each.values()])
    values = values[~np.isnan(values)]
    mean = float(values.mean()) if len(values) else None
    sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    found[f'mean_{name}'] = {'mean': mean, 'sd': sd}
  return found


# ----- tables of an evaluation ------------------------------------------------


def evaluation_table(
  predicted: UnitPredictions,
  thresholds: Sequence[float] | np.ndarray,
  title: str,
) -> RenderableType:
  """A line per unit, and the means over those that a frame shows."""
  scores = units.score(predicted, thresholds)
  low, high = units.f1_interval(predicted)
  tuned = ('F1 tuned', 'threshold') if scores.tuned else ()
  columns = ('F1', *tuned, 'ICC', 'accuracy', 'shown', 'of')
  lines = table('action unit, %', *columns)
  for i, name in enumerate(scores.unit_names):
    numbers = [_hundred(scores.f1[i])]
    if scores.tuned:
      numbers += [_hundred(scores.f1_tuned[i]), _two(scores.threshold[i])]
    numbers += [_two(scores.icc[i]), _hundred(scores.accuracy[i])]
    numbers += [f'{scores.positives[i]}', f'{scores.known[i]}']
    lines.add_row(Text(plain(name)), *numbers)
  lines.add_section()
  means = [_hundred(scores.mean('f1'))]
  means += [_hundred(scores.mean('f1_tuned')), ''] if scores.tuned else []
  means += [_two(scores.mean('icc')), _hundred(scores.mean('accuracy'))]
  lines.add_row('mean', *means, '', '', style='bold')
  foot = f'{scores.samples} frames, {scores.present} of {len(scores.known)} '
  foot += 'units shown; 95 % interval of the mean F1, by subject: '
  foot += f'{_hundred(low)} to {_hundred(high)}\n{_NOTE}{_TUNED * scores.tuned}'
  return Group(Text(plain(title), 'bold'), lines, Text(foot, 'dim'))


def results_table(
  rows: Sequence[tuple[str, int, UnitScores]], watched: float, title: str
) -> RenderableType:
  """The results of a run on its test clips: names, steps and scores.

  `watched` is the best mean F1 of all looks at the test clips, NaN without.
  """
  lines = table('weights', 'step', 'F1', 'F1 tuned', 'ICC', 'accuracy')
  for i, (name, step, s) in enumerate(rows):
    numbers = [percent(s.mean('f1')), percent(s.mean('f1_tuned'))]
    numbers += [_two(s.mean('icc')), percent(s.mean('accuracy'))]
    lines.add_row(name, f'{step}', *numbers, style='dim' if i else '')
  foot = ''
  if not np.isnan(watched):
    lines.add_row(results.BEST_ON_TEST, '', percent(watched), style='dim')
    foot = f'{results.BEST_ON_TEST}: selected on the clips it is tested on'
  return Group(Text(plain(title), 'bold'), lines, Text(foot, 'dim'))


def folds_table(
  folds: Mapping[str, UnitPredictions],
  thresholds: Mapping[str, Sequence[float]],
  title: str,
  missing: Sequence[str] = (),
) -> RenderableType:
  """A line per fold, their mean, and the units of all frames together."""
  each = {n: units.score(x, thresholds[n]) for n, x in folds.items()}
  lines = table('fold, %', 'frames', 'F1', 'F1 tuned', 'ICC', 'accuracy')
  for name, s in each.items():
    numbers = [_hundred(s.mean(x)) for x in ('f1', 'f1_tuned')]
    numbers += [_two(s.mean('icc')), _hundred(s.mean('accuracy'))]
    lines.add_row(Text(plain(name)), f'{s.samples}', *numbers)
  lines.add_section()
  cells = []
  for name, x in _spread(each).items():
    scale, digits = (1, 2) if name == 'mean_icc' else (100, 1)
    if (mean := x['mean']) is None:
      cells.append('-')
      continue
    cells.append(f'{scale * mean:.{digits}f} ± {scale * x["sd"]:.{digits}f}')
  lines.add_row('mean', '', *cells, style='bold')
  mark = [Text(plain(results.partial(missing)), 'bold yellow')]
  whole = units.join([*folds.values()])
  pooled = evaluation_table(whole, _of_samples(folds, thresholds), 'pooled')
  note = Text('mean ± standard deviation of folds', 'dim')
  head = Text(plain(title), 'bold')
  return Group(head, *mark[: len(missing)], lines, note, pooled)


def _hundred(value: float) -> str:
  return '-' if np.isnan(value) else f'{100 * value:.1f}'


def _two(value: float) -> str:
  return '-' if np.isnan(value) else f'{value:.2f}'


# ----- tables of predictions --------------------------------------------------


def prediction_table(
  clip: str,
  probabilities: np.ndarray,
  unit_names: Sequence[str],
  thresholds: Sequence[float],
  about: str = '',
) -> RenderableType:
  """The probability of every unit [A]; those that are shown are bold."""
  lines = table('', '', '', '')
  lines.show_header = False
  for name, value, least in zip(
    unit_names, probabilities, thresholds, strict=True
  ):
    there = value >= least
    style = 'bold' if there else 'dim'
    lines.add_row(
      Text(plain(name), style),
      bar(value, best=bool(there)),
      Text(percent(value), style),
      Text('shown' if there else '', style),
    )
  note = [Text(about, 'dim')] if about else []
  return Group(Text(plain(clip), 'bold', overflow='fold'), *note, lines, '')


def timeline_table(
  clip: str,
  timeline: np.ndarray,
  unit_names: Sequence[str],
  thresholds: Sequence[float],
) -> RenderableType:
  """A line per unit: the seconds that show it, and its highest probability.

  The timeline is [S, A], NaN in seconds without a face.
  """
  lines = table('action unit', 'highest', 'at second')
  lines.add_column('seconds that show it')
  empty = np.isnan(timeline[:, 0])
  for i, name in enumerate(unit_names):
    values = np.where(empty, -1.0, timeline[:, i])
    there, best = values >= thresholds[i], int(values.argmax())
    style = 'bold' if there.any() else 'dim'
    top = '-' if empty.all() else percent(values[best])
    where = '' if empty.all() else f'{best}'
    spans = stretches(there)
    words = ', '.join(f'{a}-{b}' for a, b in spans[:_STRETCHES])
    words += f' and {len(spans) - _STRETCHES} more' * (len(spans) > _STRETCHES)
    lines.add_row(Text(plain(name), style), top, where, words)
  foot = [Text(f'{NO_FACE}: {int(empty.sum())} seconds', 'dim')]
  return Group(Text(plain(clip), 'bold'), lines, *foot[: int(empty.any())])


def stretches(there: np.ndarray) -> list[tuple[int, int]]:
  """Starts and ends of the runs of True in a mask [S]."""
  cuts = [0, *(np.flatnonzero(np.diff(there)) + 1).tolist(), len(there)]
  return [(a, b) for a, b in itertools.pairwise(cuts) if there[a]]
