"""What `mira eval` prints and writes of runs that learned action units."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mira_jax import terminal
from mira_jax.data import dataset as prepared
from mira_jax.data import pool
from mira_jax.errors import data_error
from mira_jax.evaluation import results, unit_report, units
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


def report_run(
  predicted: units.UnitPredictions,
  facts: Mapping[str, Any],
  title: str,
  folder: pathlib.Path,
) -> dict[str, Any]:
  """Prints and writes the scores of one run; returns them.

  `facts` are as in scores.json.
  """
  least = thresholds(facts['card'], predicted.unit_names)
  terminal.show(unit_report.evaluation_table(predicted, least, title))
  path = unit_report.write_evaluation(folder, predicted, least, facts)
  terminal.say(f'scores: {path}')
  return json.loads(path.read_bytes())


def progress(
  name: str, scored: Sequence[units.UnitPredictions], of: int
) -> str:
  """Scores of the last fold, and of all frames so far."""
  whole = units.score(units.join(scored)).mean('f1')
  own = units.score(scored[-1]).mean('f1')
  so_far = f'{len(scored)} of {of} folds pooled: F1 {whole:.1%}'
  return f'{name}: F1 {own:.1%}; {so_far}'


def report_folds(
  workdir: pathlib.Path,
  folds: Mapping[str, tuple[pathlib.Path, units.UnitPredictions]],
  missing: Sequence[str],
  title: str,
  protocol: str,
) -> None:
  """Prints and writes the table of folds, by name their run and samples."""
  parts = {name: predicted for name, (_, predicted) in folds.items()}
  first = next(iter(parts.values()))
  for name, part in parts.items():
    if part.unit_names != first.unit_names:
      hint = f'its units are not those of the others: {first.unit_names}'
      raise data_error('other_classes', name, hint)
  least = {}
  for name, (run, predicted) in folds.items():
    card = weights_file.load_weights(run / weights_file.WEIGHTS)[1]
    least[name] = thresholds(card, predicted.unit_names)
  terminal.show(unit_report.folds_table(parts, least, title, missing))
  path = unit_report.write_folds(
    workdir / 'eval' / 'folds',
    parts,
    least,
    metadata={'protocol': protocol, 'labels': results.UNITS},
    missing=missing,
  )
  terminal.say(f'folds: {path}')
  terminal.result(json.loads(path.read_bytes()))
