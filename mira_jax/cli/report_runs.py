"""The runs that `mira report` compares, read from their folders."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from mira_jax import baseline, config
from mira_jax.data import dataset as prepared
from mira_jax.errors import MiraInputError
from mira_jax.evaluation import predictions, results
from mira_jax.train import datasets as inputs
from mira_jax.train import log, run_folder

_log = logging.getLogger(__name__)
_UNITS = 'it learned action units, not classes; mira eval scores such runs'
Predictions = predictions.Predictions


@dataclasses.dataclass(kw_only=True, frozen=True)
class Run:
  """A run, or the runs of all folds of a protocol.

  Attributes:
    folder: of the run, or of the folders of its folds.
    folds: the latter; [] of a run.
    cfg: the configuration, of the first fold.
  """

  folder: pathlib.Path
  folds: Sequence[pathlib.Path]
  cfg: config.Config

  @property
  def name(self) -> str:
    """Of the folder."""
    return self.folder.resolve().name

  @property
  def parts(self) -> list[pathlib.Path]:
    """The folders of single runs."""
    return [*self.folds] or [self.folder]

  @functools.cached_property
  def finished(self) -> dict[pathlib.Path, results.Result]:
    """The result of the weights of each part that has one."""
    found = {part: results.read(part) for part in self.parts}
    return {part: rows[0] for part, rows in found.items() if rows}

  @property
  def matrix(self) -> np.ndarray | None:
    """Of the tested clips of all finished parts, int [K, K]."""
    if not self.finished:
      return None
    return np.sum([x.matrix for x in self.finished.values()], axis=0)

  @functools.cached_property
  def predictions(self) -> Predictions | None:
    """Of all tested clips; None where a finished part lacks them."""
    return read_predictions([*self.finished]) if self.finished else None

  @property
  def counted(self) -> str:
    """Finished folds, in words."""
    if self.folds:
      return f'{len(self.finished)} of {len(self.folds)}'
    data = self.cfg.data
    return '' if data.protocol == 'split' else f'number {data.fold}'

  @property
  def words(self) -> str:
    """The configuration in a few words."""
    model, mira = self.cfg.model, self.cfg.model.mira
    parts = [
      f'{model.frames} x {model.image_size} px',
      f'{model.depth} x {model.dim}',
      mira.mode if mira else 'plain',
      f'{self.cfg.train.epochs} epochs',
      f'seed {self.cfg.seed}',
    ]
    if self.cfg.train.init_from:
      name = pathlib.PurePath(self.cfg.train.init_from).name
      parts.append(f'from {name}')
    return ', '.join(parts)

  @functools.cached_property
  def seconds(self) -> float:
    """That all parts trained; 0 where it is not known."""
    last = [rows[-1] for part in self.parts if (rows := log.read(part))]
    return sum(row.get('seconds', 0) for row in last)

  def rows(self) -> list[dict[str, float]]:
    """The rows of metrics.jsonl of the first part."""
    return log.read(self.parts[0])


@dataclasses.dataclass(kw_only=True)
class Group:
  """Runs of the same clips and protocol, and the baseline of these."""

  title: str
  datasets: list[prepared.PreparedDataset]  # [] where they are elsewhere now
  floor: baseline.Baseline | None = None
  runs: list[Run] = dataclasses.field(default_factory=list)

  def ranked(self) -> list[Run]:
    """The runs, those of the highest WAR first."""

    def war(run: Run) -> float:
      matrix = run.matrix
      return -1.0 if matrix is None else np.trace(matrix) / matrix.sum()

    return sorted(self.runs, key=war, reverse=True)


def read_predictions(folders: Sequence[pathlib.Path]) -> Predictions | None:
  """All predictions.csv of some folders, None where one has none."""
  found = []
  for folder in folders:
    path = folder / predictions.NAME
    try:
      found.append(predictions.read(path))
    except FileNotFoundError:  # an older version wrote none
      return None
    except (OSError, ValueError) as error:
      _log.warning('%s is damaged and left out (%s)', path, error)
      return None
  return predictions.join(found)


def gather(names: Sequence[str]) -> list[Group]:
  """The runs in or below folders, by clips and protocol.

  Raises:
    MiraInputError: a folder has none ('not_a_run'), or one cannot be read; or
      all runs learned action units ('unsupported').
  """
  groups: dict[str, Group] = {}
  left_out: list[pathlib.Path] = []
  for name in names:
    found = list(_runs(pathlib.Path(name)))
    if not found:
      hint = 'there is no run in or below it; mira train makes one'
      raise MiraInputError('not_a_run', name, hint)
    for folder, folds in found:
      cfg = run_folder.read_config((folds or [folder])[0])
      if cfg.data.labels == results.UNITS and not cfg.pretrain:
        left_out.append(folder)
      else:
        _add(groups, folder, folds, cfg)
  if left_out and not groups:
    raise MiraInputError('unsupported', left_out[0], _UNITS)
  for folder in left_out:
    _log.warning('%s is left out: %s', folder, _UNITS)
  return [*groups.values()]


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
  groups: dict[str, Group],
  folder: pathlib.Path,
  folds: list[pathlib.Path],
  cfg: config.Config,
) -> None:
  """Adds a run to the group of its clips; a pre-training has no scores."""
  if cfg.pretrain:
    return
  for fold in folds:
    run_folder.check_rules(fold, cfg)
  rules = inputs.rules(cfg)
  title = f'{cfg.data.dataset}: {rules.protocol}'
  key, floor, datasets = f'{title} {rules}', None, []
  try:
    datasets = [prepared.open(path) for path in config.datasets(cfg.data)]
    key = baseline.folder(datasets, rules).name
    floor = baseline.find(datasets, rules, folder)
  except (MiraInputError, OSError):  # the dataset is elsewhere now
    pass
  group = groups.setdefault(key, Group(title=title, datasets=datasets))
  group.floor = group.floor or floor
  group.runs.append(Run(folder=folder, folds=folds, cfg=cfg))
