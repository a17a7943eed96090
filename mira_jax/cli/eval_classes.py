"""What `mira eval` prints and writes of runs that learned classes.

Functions are those of `eval_units`, with the same arguments.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mira_jax import config, terminal
from mira_jax.cli.kept_folds import Scored
from mira_jax.data import dataset as prepared
from mira_jax.data import pool
from mira_jax.errors import data_error
from mira_jax.evaluation import metrics, predictions, report, results
from mira_jax.train import datasets as inputs

clips_with = pool.as_named
Predictions = predictions.Predictions


def score(
  scorer: inputs.Scorer,
  source: pool.Pool,
  cfg: config.Config,
  views: int,
  fold: str,
  class_names: Sequence[str],
) -> Predictions:
  """The predictions of clips, whose classes are `class_names`, the model's.

  Raises:
    MiraInputError: they are others, or in another order ('other_classes').
  """
  if list(source.class_names) != list(class_names):
    own, theirs = ', '.join(source.class_names), ', '.join(class_names)
    hint = f'the model learned {theirs}, in this order; restore the dataset '
    hint += 'and config.data.classes of its run'
    raise data_error('other_classes', own, hint)
  return inputs.score_source(scorer, source, cfg, views, fold)


def report_run(
  predicted: Predictions,
  facts: Mapping[str, Any],
  title: str,
  folder: pathlib.Path,
) -> pathlib.Path:
  """Prints and writes the scores of one run; returns scores.json."""
  matrix, names = predicted.matrix, predicted.class_names
  terminal.show(report.evaluation_table(matrix, names, title))
  path = report.write_evaluation(
    folder,
    matrix=matrix,
    class_names=names,
    metadata=facts,
    title=title,
    predicted=predicted,
  )
  return path


def progress(scored: Sequence[Scored], of: int) -> str:
  """Scores of the last fold, and of all clips so far."""
  folds = _folds(scored)
  own, so_far = (
    f'WAR {x.war:.1%}, UAR {x.uar:.1%}'
    for x in map(metrics.score, (folds[-1].matrix, results.pooled(folds)))
  )
  pooled = f'{len(folds)} of {of} folds pooled: {so_far}'
  return f'{folds[-1].name}: {own}; {pooled}'


def report_folds(
  workdir: pathlib.Path,
  scored: Sequence[Scored],
  missing: Sequence[str],
  title: str,
  protocol: str,
) -> pathlib.Path:
  """Prints and writes the table of folds; returns folds.json.

  Raises:
    MiraInputError: folds of different classes ('other_classes').
  """
  folds, parts = _folds(scored), [fold.predicted for fold in scored]
  class_names = parts[0].class_names
  for fold, part in zip(folds, parts, strict=True):
    if part.class_names != class_names:
      hint = f'its classes are not those of {folds[0].name}: {class_names}'
      raise data_error('other_classes', fold.name, hint)
  terminal.show(report.folds_table(folds, class_names, title, missing))
  path = report.write_folds(
    workdir / 'eval' / 'folds',
    folds,
    class_names,
    metadata={'protocol': protocol},
    title=f'{title}, pooled',
    missing=missing,
    predicted=predictions.join(parts),
  )
  return path


def below_baseline(
  cfg: config.Config,
  datasets: Sequence[prepared.PreparedDataset],
  workdir: pathlib.Path,
  scored: Sequence[Scored],
) -> str:
  """`baseline.below` of folds and the stored baseline; '' without one."""
  return inputs.below_baseline(cfg, datasets, workdir, _folds(scored))


def _folds(scored: Sequence[Scored]) -> list[results.Fold]:
  """Folds as tables have them, with the results of their runs."""
  return [
    results.Fold(name=name, matrix=predicted.matrix, results=results.read(run))
    for run, name, predicted in scored
  ]
