"""What `mira eval` prints and writes of runs that learned action units."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mira_jax import config, terminal
from mira_jax.cli.kept_folds import Scored
from mira_jax.data import dataset as prepared
from mira_jax.data import pool
from mira_jax.errors import data_error
from mira_jax.evaluation import results, unit_report, units
from mira_jax.train import datasets as inputs
from mira_jax.weights import weights_file
from mira_jax.weights.metadata import unit_thresholds

Card = Mapping[str, Any]


def clips_with(
  dataset: prepared.PreparedDataset, split: str, names: Sequence[str]
) -> tuple[pool.Pool, list[str]]:
  """The clips of a split, or of 'all', with the units that a model knows.

  Returns:
    The clips, and the dataset's units that the model does not know.

  Raises:
    MiraInputError: no unit is common ('other_classes').
  """
  own = dataset.action_units
  common = [name for name in names if name in own]
  if not common:
    hint = f'the model knows the action units {", ".join(names)}'
    raise data_error('other_classes', dataset.directory, hint)
  splits = list(dataset.splits) if split == 'all' else [split]
  clips = pool.of_dataset(dataset, splits).with_units(common)
  return clips, [name for name in own if name not in names]


def thresholds(card: Card, names: Sequence[str]) -> list[float]:
  """The thresholds of some units of a model."""
  own = unit_thresholds(card) or []
  of_unit = dict(zip(card['class_names'], own, strict=True))
  return [of_unit[name] for name in names]


def score(
  scorer: inputs.Scorer,
  source: pool.Pool,
  cfg: config.Config,
  views: int,
  fold: str,
  class_names: Sequence[str],
) -> units.UnitPredictions:
  """The samples of clips; `class_names` are the units that the model knows."""
  return inputs.score_units(scorer, source, cfg, views, fold, class_names)


def report_run(
  predicted: units.UnitPredictions,
  facts: Mapping[str, Any],
  title: str,
  folder: pathlib.Path,
) -> pathlib.Path:
  """Prints and writes the scores of one run; returns scores.json.

  `facts` are as in scores.json.
  """
  least = thresholds(facts['card'], predicted.unit_names)
  terminal.show(unit_report.evaluation_table(predicted, least, title))
  path = unit_report.write_evaluation(folder, predicted, least, facts)
  return path


def progress(scored: Sequence[Scored], of: int) -> str:
  """Scores of the last fold, and of all frames so far."""
  parts = [fold.predicted for fold in scored]
  own, so_far = (
    units.score(x).mean('f1') for x in (parts[-1], units.join(parts))
  )
  pooled = f'{len(parts)} of {of} folds pooled: F1 {so_far:.1%}'
  return f'{scored[-1].name}: F1 {own:.1%}; {pooled}'


def report_folds(
  workdir: pathlib.Path,
  scored: Sequence[Scored],
  missing: Sequence[str],
  title: str,
  protocol: str,
) -> pathlib.Path:
  """Prints and writes the table of folds; returns folds.json.

  Raises:
    MiraInputError: folds of different units ('other_classes').
  """
  parts = {fold.name: fold.predicted for fold in scored}
  unit_names = scored[0].predicted.unit_names
  least = {}
  for run, name, predicted in scored:
    if predicted.unit_names != unit_names:
      hint = f'its units are not those of the others: {unit_names}'
      raise data_error('other_classes', name, hint)
    card = weights_file.load_weights(run / weights_file.WEIGHTS)[1]
    least[name] = thresholds(card, unit_names)
  terminal.show(unit_report.folds_table(parts, least, title, missing))
  path = unit_report.write_folds(
    workdir / 'eval' / 'folds',
    parts,
    least,
    metadata={'protocol': protocol, 'labels': results.UNITS},
    missing=missing,
  )
  return path


def below_baseline(
  cfg: config.Config,
  datasets: Sequence[prepared.PreparedDataset],
  workdir: pathlib.Path,
  scored: Sequence[Scored],
) -> str:
  """Nothing: no baseline knows action units."""
  del cfg, datasets, workdir, scored
  return ''
