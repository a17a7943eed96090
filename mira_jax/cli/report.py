"""Compare runs, and the baseline of their dataset, in one table.

  mira report RUN...

RUN is a run, the folder of its folds, or a folder of such folders. Scores are
those of the weights that validation chose, on the test clips, of all finished
folds pooled. Runs of the same clips and protocol are one table, with the
baseline that `mira baseline` stored for these.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from mira_jax import baseline, config, terminal
from mira_jax.data import dataset as prepared
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import report, results
from mira_jax.train import datasets as inputs
from mira_jax.train import run_folder


@dataclasses.dataclass(kw_only=True)
class _Group:
  """Runs of the same clips and protocol."""

  title: str
  floor: baseline.Baseline | None
  rows: list[tuple[str, str, np.ndarray | None, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the folders of runs."""
  parser.add_argument('runs', metavar='RUN', nargs='+')


def run(args: argparse.Namespace) -> int:
  """Prints a table of each dataset and protocol."""
  groups: dict[str, _Group] = {}
  for name in args.runs:
    found = list(_runs(pathlib.Path(name)))
    if not found:
      hint = 'there is no run in or below it; mira train makes one'
      raise MiraInputError('not_a_run', name, hint)
    for folder, folds in found:
      _add(groups, folder, folds)
  for group in groups.values():
    rows = sorted(group.rows, key=_war, reverse=True)
    if floor := group.floor:
      words = f'{floor.features} and a linear SVM'
      rows.append(('baseline', f'{len(floor.folds)}', floor.matrix, words))
    terminal.show(report.runs_table(rows, group.title))
  return ExitCode.OK


def _war(row: tuple[str, str, np.ndarray | None, str]) -> float:
  matrix = row[2]
  return -1.0 if matrix is None else np.trace(matrix) / matrix.sum()


def _runs(
  folder: pathlib.Path, deeper: bool = True
) -> Iterator[tuple[pathlib.Path, list[pathlib.Path]]]:
  """Runs in or below a folder; [] for the folds of one without folds."""
  if (folder / run_folder.CONFIG).is_file():
    yield folder, []
    deeper = False
  if folds := run_folder.folds(folder):
    yield folder, [*folds.values()]
  elif deeper and folder.is_dir():
    for inside in sorted(folder.iterdir()):
      yield from _runs(inside, deeper=False)


def _add(
  groups: dict[str, _Group], folder: pathlib.Path, folds: list[pathlib.Path]
) -> None:
  """Adds a run to the group of its clips; a pre-training has no scores."""
  cfg = run_folder.read_config((folds or [folder])[0])
  if cfg.pretrain:
    return
  for fold in folds:
    run_folder.check_rules(fold, cfg)
  rules = inputs.rules(cfg)
  title = f'{cfg.data.dataset}: {rules.protocol}'
  key, floor = f'{title} {rules}', None
  try:
    datasets = [prepared.open(path) for path in config.datasets(cfg.data)]
    key = baseline.folder(datasets, rules).name
    floor = baseline.find(datasets, rules, folder)
  except (MiraInputError, OSError):  # the dataset is elsewhere now
    pass
  group = groups.setdefault(key, _Group(title=title, floor=floor, rows=[]))
  group.floor = group.floor or floor
  finished = filter(None, map(results.read, folds or [folder]))
  found = [rows[0].matrix for rows in finished]
  count = f'{len(found)} of {len(folds)}' if folds else _fold(cfg)
  matrix = np.sum(found, axis=0) if found else None
  group.rows.append((folder.name, count, matrix, _words(cfg)))


def _fold(cfg: config.Config) -> str:
  return '' if cfg.data.protocol == 'split' else f'number {cfg.data.fold}'


def _words(cfg: config.Config) -> str:
  """A configuration in a few words."""
  model, mira = cfg.model, cfg.model.mira
  parts = [
    f'{model.frames} x {model.image_size} px',
    f'{model.depth} x {model.dim}',
    mira.mode if mira else 'plain',
    f'{cfg.train.epochs} epochs',
    f'seed {cfg.seed}',
  ]
  if cfg.train.init_from:
    parts.append(f'from {pathlib.PurePath(cfg.train.init_from).name}')
  return ', '.join(parts)
