"""Measures of attention on the clips of a dataset: `mira explain DATASET`."""

from __future__ import annotations

import argparse
import collections
import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from mira_jax import figures, files, terminal
from mira_jax.data import dataset as prepared
from mira_jax.data import records, workers
from mira_jax.errors import MiraInputError
from mira_jax.evaluation import explanations, report, statistics
from mira_jax.inference import faithfulness
from mira_jax.inference.predictor import Predictor
from mira_jax.inference.records import Records
from mira_jax.synthetic import dataset as synthetic
from mira_jax.video import footage

# What a measure is of.
COLUMNS = {
  'before': 'attention before MiRA',
  'after': 'attention after MiRA',
  'gain': 'gain',
  'chance': 'chance',
}
_ONE_CLASS = (
  'deletion and insertion follow the probability of one class: they do not '
  'apply to a model of action units'
)
_NUMBERS = ('mean', 'low', 'high')
_FORMATS = {'share': '{:.1%}', 'number': '{:.2f}'}
_MEASURES = {
  'attention from onset to offset, × uniform': 'number',
  'highest at the apex': 'share',
  'distance from the apex, frames': 'number',
  'correlation with the intensity': 'number',
  'attention in the regions of the action units, × uniform': 'number',
  'attention on the expression, × uniform': 'number',
  'deletion of frames, area': 'number',
  'insertion of frames, area': 'number',
  'deletion of patches, area': 'number',
  'insertion of patches, area': 'number',
}
_INSIDE, _HIT, _ERROR, _CORRELATION, _REGION, _PLACE, *_AREAS = _MEASURES
_Values = dict[tuple[str, str], list[float]]  # (measure, column) -> of clips


class Measured(NamedTuple):
  """Of the clips of a split: measure -> what it is of -> its numbers.

  Curves are means [2, K + 1] by 'frames' or 'patches' and order; there are none
  of a model of action units.
  """

  clips: int
  measures: dict[str, dict[str, dict[str, float]]]
  curves: dict[str, np.ndarray]


def explain(
  args: argparse.Namespace, model: Predictor, data: prepared.PreparedDataset
) -> None:
  """Measures the clips of a split, prints a table and writes the results."""
  found = measure(model, data, args.split, most=args.most, seed=args.seed)
  title = f'{data.name} {args.split}, {found.clips} clips'
  terminal.show(_table(found.measures, title))
  terminal.result(found.measures)
  content = {
    'dataset': data.name,
    'fingerprint': prepared.fingerprint(data),
    'split': args.split,
    'clips': found.clips,
    'model': args.weights or args.workdir,
    'measures': found.measures,
  }
  folder = files.open_folder(args.out)
  path = folder / 'measures.json'
  files.write_text(path, terminal.as_json(content, indent=2) + '\n')
  terminal.say(f'measures: {path}')
  if not found.curves:
    terminal.say(_ONE_CLASS)
    return
  picture = figures.faithfulness_figure(found.curves, title)
  terminal.say(f'picture: {picture.save(folder / "measures.png")}')


def measure(
  model: Predictor,
  data: prepared.PreparedDataset,
  split: str,
  *,
  most: int | None = None,
  seed: int = 0,
) -> Measured:
  """Measures the attention of a model on the middle window of clips.

  Args:
    model: with records, of one view.
    data: a prepared dataset.
    split: of it.
    most: clips, spread over the split; None: all.
    seed: of random orders.

  Raises:
    MiraInputError: a clip cannot be read.
  """
  source = data.source(split)
  chosen = footage.spaced(len(source), most or len(source)).tolist()
  truth = None
  with contextlib.suppress(MiraInputError):  # of a real one no pixel is known
    truth = synthetic.Truth(data)
  values: _Values = collections.defaultdict(list)
  curves: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  subjects = []
  with workers.progress_bar(f'explaining {data.name}', len(chosen)) as advance:
    for i in chosen:
      clip = source[i]
      frames = records.read_frames(clip, range(len(clip)))
      shown = model.records(np.stack([frames[k] for k in sorted(frames)]))
      subjects.append(clip.subject or clip.clip_id)
      for key, value in _of_clip(clip, shown, truth):
        values[key].append(value)
      if model.thresholds is None:
        for name, curve in _faithful(model, shown, seed + i):
          curves[name].append(curve)
      advance(1)
  for key, found in curves.items():
    kind, order = key.rsplit(' ', 1)
    for i, name in enumerate(('deletion', 'insertion')):
      areas = [explanations.area(x[i]) for x in found]
      values[f'{name} of {kind}, area', order] = areas
  mean = {key: np.mean(found, axis=0) for key, found in curves.items()}
  return Measured(len(chosen), _summary(values, np.array(subjects)), mean)


def _of_clip(
  clip: records.Clip, shown: Records, truth: synthetic.Truth | None
) -> Iterator[tuple[tuple[str, str], float]]:
  """The measures of a clip that need no further pass of the model.

  They are the same ones for each clip, NaN where it has no answer.
  """
  maps = {'before': shown.before}
  if shown.after is not None:
    maps['after'] = shown.after
  count = len(shown.before)
  frames = shown.indices.reshape(count, -1)
  values = {name: x.sum((1, 2)) for name, x in maps.items()}
  if shown.gain is not None:
    values['gain'] = shown.gain.mean(0)
  intensity, change = (None, None)
  if truth is not None:
    intensity, pixels = truth(clip.clip_id)
    change = explanations.to_grid(pixels, frames, shown.before.shape)
  chance = explanations.apex(np.zeros(count), frames, clip.apex)
  yield (_INSIDE, 'chance'), 1.0
  yield (_HIT, 'chance'), chance.chance_hit
  yield (_ERROR, 'chance'), chance.chance_error
  yield (_CORRELATION, 'chance'), 0.0
  for name, x in values.items():
    marks = clip.onset, clip.offset
    yield (_INSIDE, name), explanations.inside(x, frames, *marks)
    best = explanations.apex(x, frames, clip.apex)
    yield (_HIT, name), best.hit
    yield (_ERROR, name), best.error
    if intensity is not None:
      found = explanations.correlation(x, frames, intensity)
      yield (_CORRELATION, name), found
  shape = shown.before.shape
  shown_units = records.unit_numbers(clip.action_units)
  area = explanations.region(shown_units, *shape[1:])
  yield (_REGION, 'chance'), np.nan if area is None else 1.0
  for name, x in maps.items():
    share = np.nan
    if area is not None:
      share = explanations.place(x, np.broadcast_to(area, shape))
    yield (_REGION, name), share
  if change is not None:
    yield (_PLACE, 'chance'), 1.0
    for name, x in maps.items():
      yield (_PLACE, name), explanations.place(x, change)


def _faithful(
  model: Predictor, shown: Records, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
  """Curves [2, K + 1] of frames and patches, by kind and order."""
  rng = np.random.default_rng(seed)
  maps = {'before': shown.before}
  if shown.after is not None:
    maps['after'] = shown.after
  for kind in ('frames', 'patches'):
    orders = {
      name: x.mean((1, 2), keepdims=True) if kind == 'frames' else x
      for name, x in maps.items()
    }
    orders['chance'] = rng.permutation(orders['before'].ravel()).reshape(
      orders['before'].shape
    )
    _, found = faithfulness.curves(model.scorer, shown.window, orders)
    for name, curve in found.items():
      yield f'{kind} {name}', curve


def _summary(values: _Values, subjects: np.ndarray) -> dict[str, Any]:
  """Means and 95 % intervals by subject: measure -> column -> numbers."""
  found: dict[str, Any] = {}
  for (measure, column), each in values.items():
    array = np.array(each, float)
    mean, (low, high) = statistics.mean_interval(array, subjects)
    if not np.isnan(mean):
      clips = int((~np.isnan(array)).sum())
      row = {'mean': mean, 'low': low, 'high': high, 'clips': clips}
      found.setdefault(measure, {})[column] = row
  return {name: found[name] for name in _MEASURES if name in found}


def _table(table: Mapping[str, Any], title: str) -> RenderableType:
  """The measures in lines."""
  lines = report.table('measure', 'of', 'mean', '95 % interval')
  for measure, row in table.items():
    form = _FORMATS[_MEASURES[measure]]
    for place, column in enumerate(x for x in COLUMNS if x in row):
      mean, low, high = (form.format(row[column][n]) for n in _NUMBERS)
      span = '' if column == 'chance' else f'{low} to {high}'
      name = '' if place else measure
      lines.add_row(name, COLUMNS[column], mean, span)
  notes = 'intervals: a bootstrap over subjects. Deletion: lower is better; '
  notes += 'insertion: higher. Chance: any token, or a random order.'
  return Group(Text(title, 'bold'), lines, Text(notes, 'dim'))


def is_dataset(name: str) -> prepared.PreparedDataset | None:
  """The prepared dataset of a folder, None where it is none.

  Raises:
    MiraInputError: a prepared dataset that cannot be read.
  """
  if not pathlib.Path(name).is_dir():
    return None
  try:
    return prepared.open(name)
  except MiraInputError as error:
    if error.code == 'not_a_dataset':
      return None
    raise
