"""The evaluations of folds, kept below their runs, of which tables are made."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from mira_jax import files
from mira_jax.evaluation import predictions, units
from mira_jax.train import run_folder
from mira_jax.weights import weights_file

# The evaluation of a fold, below its run.
_KEPT, _HOW = pathlib.Path('eval', 'fold'), 'how.json'


class Scored(NamedTuple):
  """A fold that is scored: its run, its name and what the model said.

  Attributes:
    predicted: of one kind in all folds of a protocol: `Predictions` of
      classes, or `UnitPredictions`.
  """

  run: pathlib.Path
  name: str
  predicted: Any


def _how(run: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
  """What the evaluation of a fold depends on, beside its clips."""
  digest = files.sha256(run / weights_file.WEIGHTS)
  flags = {name: getattr(args, name) for name in ('views', 'backend', 'dtype')}
  return flags | {'weights_sha256': digest}


def keep(fold: Scored, args: argparse.Namespace) -> None:
  """Writes the evaluation of a fold, for `kept`."""
  folder = files.open_folder(fold.run / _KEPT)
  fold.predicted.write(folder)
  how = json.dumps(_how(fold.run, args), indent=2)
  files.write_text(folder / _HOW, how + '\n')


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
        found[number] = Scored(run, name, _read(run / _KEPT))
    except (OSError, ValueError):  # it was not scored, or not whole
      continue
  return found


def _read(folder: pathlib.Path) -> Any:
  """The predictions of a fold that was scored before."""
  if (path := folder / units.NAME).exists():
    return units.read(path)
  return predictions.read(folder / predictions.NAME)
