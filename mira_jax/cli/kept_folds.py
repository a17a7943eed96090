"""The evaluations of folds, kept below their runs, of which tables are made."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mira_jax import files
from mira_jax.evaluation import predictions, results, units
from mira_jax.train import run_folder
from mira_jax.weights import weights_file

# The evaluation of a fold, below its run.
_KEPT, _HOW = pathlib.Path('eval', 'fold'), 'how.json'
Predicted = predictions.Predictions | units.UnitPredictions
Scored = tuple[results.Fold, Predicted]


def as_fold(run: pathlib.Path, name: str, predicted: Predicted) -> results.Fold:
  """A fold with its run's results; of action units the name is all."""
  if isinstance(predicted, units.UnitPredictions):
    return results.Fold(name=name, matrix=np.zeros((0, 0), int))
  found = results.read(run)
  return results.Fold(name=name, matrix=predicted.matrix, results=found)


def _how(run: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
  """What the evaluation of a fold depends on, beside its clips."""
  digest = files.sha256(run / weights_file.WEIGHTS)
  flags = {name: getattr(args, name) for name in ('views', 'backend', 'dtype')}
  return flags | {'weights_sha256': digest}


def keep(
  run: pathlib.Path,
  predicted: Predicted,
  args: argparse.Namespace,
) -> None:
  """Writes the evaluation of a fold, for `_kept`."""
  folder = files.open_folder(run / _KEPT)
  predicted.write(folder)
  files.write_text(folder / _HOW, json.dumps(_how(run, args), indent=2) + '\n')


def kept(
  workdir: pathlib.Path, names: Sequence[str], args: argparse.Namespace
) -> dict[int, Scored]:
  """The evaluations of folds by the same weights and flags, by number."""
  found = {}
  for number, name in enumerate(names):
    run = run_folder.fold(workdir, number)
    try:
      how = json.loads((run / _KEPT / _HOW).read_bytes())
      if how == _how(run, args):
        predicted = _readkept(run / _KEPT)
        found[number] = as_fold(run, name, predicted), predicted
    except (OSError, ValueError):  # it was not scored, or not whole
      continue
  return found


def _readkept(folder: pathlib.Path) -> Predicted:
  """The predictions of a fold that was scored before."""
  if (path := folder / units.NAME).exists():
    return units.read(path)
  return predictions.read(folder / predictions.NAME)
