"""One run on the page of `mira report`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mira_jax import config, figures, pages, terminal
from mira_jax.cli.report_runs import Run
from mira_jax.data import pool, records
from mira_jax.errors import MiraInputError
from mira_jax.evaluation import metrics, predictions, results, statistics
from mira_jax.train import run_folder
from mira_jax.video import footage, geometry, images

_log = logging.getLogger(__name__)
GroupOf = Callable[[str, str], str]  # of a clip and its subject
_MISTAKES, _FRAMES = 8, 8
_STRIP = 96  # pixels, high


def section(
  run: Run,
  columns: Mapping[str, GroupOf],
  clips: pool.Pool | None,
  publish_safe: bool,
) -> dict[str, Any]:
  """What the template shows of a run.

  Args:
    run: finished.
    columns: names of groups, as functions of a clip and its subject.
    clips: of its datasets, for strips of mistakes; None draws none.
    publish_safe: whether that is so because the page is to be published.
  """
  matrix, found = run.matrix, run.predictions
  assert matrix is not None
  names = _class_names(run)
  scores = metrics.score(matrix)
  drawn = [
    pages.figure(
      figures.confusion_figure(matrix, names, run.name, str(scores)),
      'Confusion matrix',
      f'Rows are true classes. WAR {scores.war:.1%}, UAR {scores.uar:.1%}.',
      'Row percentages and counts.',
    )
  ]
  if found is not None:
    drawn.append(_reliability(run.name, found))
  if any('loss' in row for row in run.rows()):
    drawn.append(_curves(run))
  return {
    'name': run.name,
    'facts': _facts(run),
    'classes': _classes(scores, names),
    'tables': [*_folds(run), *_groups(found, columns)],
    'figures': drawn,
    'mistakes': _mistakes(found, clips) if found and clips else [],
    'left_out': 'Frames of clips are left out: the page is safe to publish.'
    if publish_safe
    else '',
    'configuration': config.to_json(run.cfg),
  }


def _class_names(run: Run) -> list[str]:
  part = next(iter(run.finished))
  return json.loads((part / results.NAME).read_bytes())['class_names']


def _facts(run: Run) -> str:
  """Configuration, steps, time, memory and versions in a line."""
  rows = run.rows()
  words = [run.words]
  if rows:
    words.append(f'{rows[-1]["step"]} steps')
    words.append(f'{rows[-1].get("skipped", 0):g} updates skipped')
    if peak := rows[-1].get('peak_gb'):
      words.append(f'{peak:.2f} GB of memory at most')
  if run.seconds:
    words.append(f'trained in {terminal.duration(run.seconds)}')
  try:
    about = json.loads((run.parts[0] / run_folder.METADATA).read_bytes())
  except (OSError, ValueError):
    about = {}
  used = about.get('environment') or {}
  words += [f'{name} {value}' for name, value in used.items()]
  return '; '.join(words)


def _classes(
  scores: metrics.Scores, names: Sequence[str]
) -> list[dict[str, Any]]:
  return [
    {
      'name': name,
      'recall': percent(scores.recall[i]),
      'width': f'{100 * np.nan_to_num(scores.recall[i]):.1f}',
      'precision': percent(scores.precision[i]),
      'f1': percent(scores.f1[i]),
      'clips': int(scores.support[i]),
    }
    for i, name in enumerate(names)
  ]


def _folds(run: Run) -> list[dict[str, Any]]:
  """Scores of each fold and their spread."""
  if len(run.finished) < 2:
    return []
  names = ('war', 'uar', 'macro_f1')
  each = [metrics.score(x.matrix) for x in run.finished.values()]
  rows: list[list[Any]] = [
    [part.name, s.clips, *(percent(getattr(s, n)) for n in names)]
    for part, s in zip(run.finished, each, strict=True)
  ]
  spread: list[Any] = ['mean ± standard deviation', '']
  for name in names:
    values = [getattr(s, name) for s in each]
    deviation = float(np.std(values, ddof=1))
    spread.append(f'{percent(float(np.mean(values)))} ± {percent(deviation)}')
  head = ['fold', 'clips', 'WAR, %', 'UAR, %', 'macro F1, %']
  return [{'name': 'Folds', 'head': head, 'rows': [*rows, spread]}]


def _groups(
  found: predictions.Predictions | None, columns: Mapping[str, GroupOf]
) -> list[dict[str, Any]]:
  """Scores of each group of clips, with intervals."""
  if found is None:
    return []
  tables = []
  for name, group_of in columns.items():
    rows = []
    for group in statistics.by_group(found, group_of):
      cells: list[Any] = [group.name, group.scores.clips, group.subjects]
      for key in ('war', 'uar', 'macro_f1'):
        low, high = group.intervals[key]
        value = percent(getattr(group.scores, key))
        cells.append(f'{value} ({percent(low)} to {percent(high)})')
      rows.append(cells)
    head = ['group', 'clips', 'subjects', 'WAR, %', 'UAR, %', 'macro F1, %']
    tables.append({'name': f'Groups: {name}', 'head': head, 'rows': rows})
  return tables


def _reliability(name: str, found: predictions.Predictions) -> dict[str, Any]:
  made = statistics.calibration(found)
  picture = figures.reliability_figure(
    made.confidence,
    made.accuracy,
    made.count,
    f'{name}: expected calibration error {made.error:.1%}',
  )
  alt = f'Accuracy over confidence; calibration error {made.error:.1%}.'
  caption = f'{len(made.count)} bins of equal width.'
  return pages.figure(picture, 'Reliability', alt, caption)


def _curves(run: Run) -> dict[str, Any]:
  picture = figures.curves_figure(run.rows())
  last = {n: x[-1, 1] for n, x in picture.arrays.items()}
  alt = 'Last values: ' + ', '.join(f'{n} {x:.3g}' for n, x in last.items())
  caption = f'Of {run.parts[0].name}.' if run.folds else ''
  return pages.figure(picture, 'Training curves', f'{alt}.', caption)


def _mistakes(
  found: predictions.Predictions, clips: pool.Pool
) -> list[dict[str, str]]:
  """Strips of the clips that are misclassified with most confidence."""
  where = {name: i for i, name in enumerate(clips.clip_id.tolist())}
  top = found.probability.max(-1)
  wrong = np.flatnonzero(found.predicted != found.label)
  shown = []
  for i in wrong[np.argsort(-top[wrong], kind='stable')][:_MISTAKES].tolist():
    name = str(found.clip[i])
    if name not in where:
      continue
    try:
      strip = _strip(clips[where[name]])
    except MiraInputError as error:
      _log.warning('%s', error)
      continue
    true, guess = (
      found.class_names[k] for k in (found.label[i], found.predicted[i])
    )
    text = f'{true}, predicted {guess} with {top[i]:.0%}'
    address = pages.image(images.encode_jpeg(strip, 85), 'jpeg')
    shown.append({'clip': name, 'text': text, 'image': address})
  return shown


def _strip(clip: records.Clip) -> np.ndarray:
  """Frames spread over a clip, side by side, uint8 [H, W, 3]."""
  chosen = footage.spaced(len(clip), _FRAMES).tolist()
  frames = records.read_frames(clip, chosen)
  small = []
  for i in chosen:
    height, width = frames[i].shape[:2]
    size = (_STRIP, max(1, round(width * _STRIP / height)))
    small.append(geometry.fit_to(frames[i], size))
  return np.concatenate(small, axis=1)


def percent(value: float) -> str:
  """A fraction in percent; – for NaN."""
  return '–' if np.isnan(value) else f'{100 * value:.1f}'
