"""The page of `mira report`."""

from __future__ import annotations

import csv
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mira_jax import baseline, config, figures, pages, terminal
from mira_jax.cli import report_run, report_runs
from mira_jax.cli.report_run import GroupOf, percent
from mira_jax.cli.report_runs import Group, Run
from mira_jax.data import dataset as prepared
from mira_jax.data import pool, protocol
from mira_jax.errors import MiraInputError
from mira_jax.evaluation import feature_file, metrics, predictions, statistics
from mira_jax.prepare.builders import BUILDERS
from mira_jax.prepare.report import REPORT_NAME
from mira_jax.train import datasets as inputs

_log = logging.getLogger(__name__)
PROJECTIONS = ('pca', 'tsne')
OPEN_LICENCES = ('ODbL',)  # of datasets whose frames may be shown
_TITLE = 100  # letters
_FOOTER = (
  'Written by mira report of mira_jax. WAR is accuracy, UAR the mean recall of '
  'the classes that have clips, ECE the expected calibration error. An '
  'expression is not a feeling: scores are of labels.'
)


def render(
  groups: Sequence[Group],
  *,
  table: str | None,
  features: str | None,
  projection: str,
  publish_safe: bool | None,
) -> str:
  """The page.

  Args:
    groups: of runs.
    table: a CSV file that names groups of clips or subjects.
    features: a file of `mira features`.
    projection: of PROJECTIONS.
    publish_safe: whether frames are left out; None: of datasets on request.

  Raises:
    MiraInputError: a file cannot be read or does not fit.
  """
  columns = _columns(table) if table else {}
  names = [run.name for group in groups for run in group.runs]
  title = f'Report of {", ".join(names)}'
  if len(title) > _TITLE:
    title = f'Report of {len(names)} runs'
  return pages.render(
    'report.html',
    title=title,
    lead='',
    footer=_FOOTER,
    groups=[_group(group, columns, publish_safe) for group in groups],
    features=_features(features, projection) if features else None,
  )


# ----- runs of the same clips -------------------------------------------------


def _group(
  group: Group, columns: Mapping[str, GroupOf], publish_safe: bool | None
) -> dict[str, Any]:
  ranked = [run for run in group.ranked() if run.finished]
  rows = [_scores(x.name, x.counted, x.predictions, x) for x in ranked]
  floor = _floor(group)
  if group.floor:
    folds = f'{len(group.floor.folds)}'
    name = f'baseline: {baseline.words(group.floor)}'
    rows.append(_scores(name, folds, floor, group.floor))
  if publish_safe is None:
    names = [data.name for data in group.datasets]
    publish_safe = any(map(_is_gated, names))
  clips = None if publish_safe else _clips(group, ranked)
  return {
    'title': group.title,
    'rows': rows,
    'sentences': _sentences(ranked, floor),
    'differences': _differences(ranked),
    'datasets': [_dataset(data) for data in group.datasets],
    'runs': [
      report_run.section(run, columns, clips, publish_safe) for run in ranked
    ],
  }


def _is_gated(name: str) -> bool:
  """Whether a dataset is one that its provider gives out on request."""
  return any(
    f'{name}_'.startswith(f'{x.name}_') and x.licence not in OPEN_LICENCES
    for x in BUILDERS.values()
  )


def _scores(
  name: str,
  folds: str,
  found: predictions.Predictions | None,
  source: Run | baseline.Baseline,
) -> dict[str, Any]:
  """A line of the first table."""
  matrix = source.matrix
  assert matrix is not None
  scores = metrics.score(matrix)
  spans = {} if found is None else statistics.intervals(found.by_subject())
  cells = []
  for key in ('war', 'uar', 'macro_f1'):
    cell = percent(getattr(scores, key))
    if key in spans:
      cell += f' ({percent(spans[key][0])} to {percent(spans[key][1])})'
    cells.append(cell)
  seconds = source.seconds
  error = '–'
  if found is not None and isinstance(source, Run):
    error = percent(statistics.calibration(found).error)
  return {
    'name': name,
    'folds': folds,
    'clips': scores.clips,
    'scores': cells,
    'error': error,
    'time': terminal.duration(seconds) if seconds else '–',
  }


def _floor(group: Group) -> predictions.Predictions | None:
  """The predictions of the baseline."""
  if not (group.floor and group.datasets):
    return None
  run = group.runs[0]
  rules, parents = inputs.rules(run.cfg), (None, run.folder)
  beside = [baseline.folder(group.datasets, rules, x) for x in parents]
  found = [x for x in beside if (x / predictions.NAME).is_file()]
  return report_runs.read_predictions(found[:1]) if found else None


def _sentences(
  ranked: Sequence[Run], floor: predictions.Predictions | None
) -> list[str]:
  """Paired tests of the first run with the others, and with the baseline."""
  known = [(run.name, run.predictions) for run in ranked]
  if floor is not None:
    known.append(('the baseline', floor))
  first, own = known[0] if known else ('', None)
  if own is None:
    return []
  found = []
  for name, other in known[1:]:
    if other is None:
      continue
    try:
      found.append(statistics.paired(own, other).sentence(first, name))
    except MiraInputError as error:
      found.append(f'{first} and {name} are not compared: {error.hint}.')
  return found


def _differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
  """Fields whose values differ between runs."""
  flat = [dict(_fields(json.loads(config.to_json(x.cfg)))) for x in runs]
  names = dict.fromkeys(name for fields in flat for name in fields)
  rows = [(name, [str(x.get(name, '–')) for x in flat]) for name in names]
  return [row for row in rows if len({*row[1]}) > 1]


def _fields(value: Any, name: str = '') -> list[tuple[str, Any]]:
  if not isinstance(value, dict):
    return [(name, value)]
  return [
    pair
    for key, inner in value.items()
    for pair in _fields(inner, f'{name}.{key}' if name else key)
  ]


def _dataset(data: prepared.PreparedDataset) -> dict[str, str]:
  found = {}
  for folder in (data.directory, *data.directory.parents[:2]):
    try:
      found = json.loads((folder / REPORT_NAME).read_bytes())
      break
    except (OSError, ValueError):
      continue
  counts = found.get('published') or {}
  same = [f'{k} {a} of {b}' for k, (a, b) in counts.items()]
  return {
    'name': data.name,
    'fingerprint': prepared.fingerprint(data),
    'splits': ', '.join(f'{n} {k}' for n, k in data.splits.items()),
    'classes': ', '.join(data.class_names),
    'published': ', '.join(same),
  }


def _clips(group: Group, runs: Sequence[Run]) -> pool.Pool | None:
  """All clips of the datasets, None where they cannot be read."""
  if not (group.datasets and runs):
    return None
  classes = runs[0].cfg.data.classes
  try:
    return pool.join(protocol.pooled(group.datasets, classes))
  except (MiraInputError, OSError) as error:
    _log.warning('no frames are shown (%s)', error)
    return None


# ----- files ------------------------------------------------------------------


def _columns(path: str) -> dict[str, GroupOf]:
  """The columns of a table of groups, as functions of a clip and subject.

  Raises:
    MiraInputError: it cannot be read, or has no column clip or subject
      ('bad_table').
  """
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      rows = list(csv.DictReader(file))
  except (OSError, ValueError) as error:
    raise MiraInputError('bad_table', path, str(error)) from error
  head = [*rows[0]] if rows else []
  key = next((name for name in ('clip', 'subject') if name in head), '')
  if not key:
    hint = 'it needs a row for each clip or subject, and a column of that name'
    raise MiraInputError('bad_table', path, hint)

  def column(name: str) -> GroupOf:
    values = {row[key]: row[name] or '' for row in rows}
    if key == 'clip':
      return lambda clip, _: values.get(clip, '')
    return lambda _, subject: values.get(subject, '')

  return {name: column(name) for name in head if name not in ('clip', key)}


def _features(path: str, projection: str) -> dict[str, Any]:
  """A file of features as points of two dimensions."""
  data = feature_file.read(path)
  values, label = data['features'], data['label']
  names = [str(x) for x in data['class_names']]
  if projection == 'tsne':
    from sklearn import manifold

    perplexity = min(30.0, max(2.0, (len(values) - 1) / 3))
    points = manifold.TSNE(
      perplexity=perplexity, random_state=0, init='pca'
    ).fit_transform(values)
    title = f't-SNE of {len(values)} clips, perplexity {perplexity:g}, seed 0'
  else:
    from sklearn import decomposition

    pca = decomposition.PCA(2, random_state=0)
    points = pca.fit_transform(values)
    share = pca.explained_variance_ratio_.sum()
    title = f'PCA of {len(values)} clips: {share:.0%} of the variance'
  picture = figures.features_figure(points, label, names, title)
  name = pathlib.Path(path).name
  alt = f'Features of {len(values)} clips of {len(names)} classes.'
  return pages.figure(picture, 'Features', alt, f'{title}; {name}.')
