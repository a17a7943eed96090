"""Training, validation and test clips: the protocols of the field.

  split  the datasets' own train and test splits
  folds  k folds, stored with the clips or made of whole subjects, each with
         clips of every class where that can be
  loso   leave one subject out: as many folds as there are subjects
  lodo   leave one dataset out: as many folds as there are datasets

Validation clips are carved from the training ones, whole subjects where they
are known, and never from the tested ones, so that selecting a checkpoint leaks
nothing of the test.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from mira_jax.data import holdout, label_map
from mira_jax.data.dataset import PreparedDataset
from mira_jax.data.pool import Pool, join, of_dataset
from mira_jax.errors import MiraInputError, data_error

_log = logging.getLogger(__name__)
PROTOCOLS = ('split', 'folds', 'loso', 'lodo')


@dataclasses.dataclass(kw_only=True, frozen=True)
class Rules:
  """How clips are chosen to train, to validate and to test.

  Attributes:
    protocol: one of PROTOCOLS.
    num_folds: makes so many folds of subjects for 'folds'; 0: stored ones.
    fold_rule: how, see `holdout.RULES`.
    fold_seed: of these folds, the validation clips and `train_fraction`.
    classes: a table of class names, see `label_map`.
    test_split: the one that 'split' tests.
    val_fraction: of the training clips, unless there is a split 'val'; 0: none.
    train_fraction: of the remaining training clips, drawn from each class.
    units: action units that are learned in place of classes, () for all; None
      where classes are learned.
  """

  protocol: str = 'split'
  num_folds: int = 0
  fold_rule: str = holdout.RULES[0]
  fold_seed: int = 0
  classes: str = ''
  test_split: str = 'test'
  val_fraction: float = 0.1
  train_fraction: float = 1.0
  units: tuple[str, ...] | None = None


@dataclasses.dataclass(kw_only=True, frozen=True)
class Parts:
  """The clips of one fold."""

  train: Pool
  val: Pool | None  # clips that select a checkpoint
  test: Pool
  fold_name: str = ''  # such as 'fold 1' or a subject; '' with 'split'
  rule: str = ''  # how validation clips were chosen, in words
  # Training clips that are test clips, with predicted labels: `pseudo_labels`.
  pseudo: int = 0


def pooled(
  datasets: Sequence[PreparedDataset],
  classes: str = '',
  units: Sequence[str] | None = None,
) -> list[Pool]:
  """All clips of each dataset under common class names.

  One dataset keeps its own class names and their order, unless `classes` is a
  table for `label_map.read_table`. Where action `units` are learned, several
  datasets need no common class, and all clips have one.

  Raises:
    MiraInputError: see `label_map`; two datasets of the same name, or one
      without these action units.
  """
  if units is not None:
    return _of_units(datasets, units)
  if len(datasets) == 1 and not classes:
    return [of_dataset(datasets[0], list(datasets[0].splits))]
  _check_names(datasets)
  own = {dataset.name: dataset.class_names for dataset in datasets}
  table = label_map.read_table(classes) if classes else None
  common, rename = label_map.harmonise(own, table)
  return [
    of_dataset(d, list(d.splits), common, rename[d.name]) for d in datasets
  ]


def _of_units(
  datasets: Sequence[PreparedDataset], units: Sequence[str]
) -> list[Pool]:
  """`pooled` of datasets whose action units are learned."""
  _check_names(datasets)
  pools = []
  for dataset in datasets:
    if not dataset.action_units:
      hint = (
        f'{dataset.name} has no action units: prepare it anew if it should '
      )
      hint += 'have, or use --config.data.labels=classes'
      raise MiraInputError('bad_config', 'config.data.labels', hint)
    splits, names = list(dataset.splits), dataset.class_names
    one_label = dict.fromkeys(names, names[0])
    if len(datasets) > 1:
      pool = of_dataset(dataset, splits, names[:1], one_label)
    else:
      pool = of_dataset(dataset, splits)
    pools.append(pool.with_units(units) if units else pool)
  return pools


def _check_names(datasets: Sequence[PreparedDataset]) -> None:
  names = [dataset.name for dataset in datasets]
  if len({*names}) < len(names):
    hint = 'two datasets have the same name; prepare one under another --name'
    raise data_error('same_name', ', '.join(names), hint)


def fold_names(datasets: Sequence[PreparedDataset], rules: Rules) -> list[str]:
  """The names of a protocol's folds; [''] for 'split'; raises as `parts`."""
  return _folds(pooled(datasets, rules.classes, rules.units), rules)[0]


def parts(
  datasets: Sequence[PreparedDataset], rules: Rules, fold: int = 0
) -> Parts:
  """The parts of one fold of a protocol, the same for all that ask.

  Args:
    datasets: opened, in the order that 'lodo' counts.
    rules: of the protocol.
    fold: its index; 0 for 'split'.

  Raises:
    MiraInputError: the clips lack the subjects or folds of the protocol, there
      is no such fold or split, or a part would be empty.
  """
  pools = pooled(datasets, rules.classes, rules.units)
  names, tests = _folds(pools, rules)
  _warn_of_unknown(tests)
  return _parts(datasets, pools, rules, names, tests, fold)


def all_parts(datasets: Sequence[PreparedDataset], rules: Rules) -> list[Parts]:
  """`parts` of every fold of a protocol."""
  pools = pooled(datasets, rules.classes, rules.units)
  names, tests = _folds(pools, rules)
  _warn_of_unknown(tests)
  return [
    _parts(datasets, pools, rules, names, tests, fold)
    for fold in range(len(names))
  ]


def _warn_of_unknown(tests: np.ndarray) -> None:
  if unknown := int((tests < 0).sum()):
    text = '%d of %d clips are in no fold: their subjects are unknown'
    _log.warning(text, unknown, len(tests))


def _parts(
  datasets: Sequence[PreparedDataset],
  pools: Sequence[Pool],
  rules: Rules,
  names: Sequence[str],
  tests: np.ndarray,
  fold: int,
) -> Parts:
  """See `parts`; names of the folds, and the fold that tests each clip."""
  if not 0 <= fold < len(names):
    hint = f'the folds of {rules.protocol!r} are 0 to {len(names) - 1}'
    raise data_error('no_fold', f'config.data.fold={fold}', hint)
  pool, val = join(pools), np.zeros(len(tests), bool)
  if rules.protocol == 'split':
    splits = _splits(datasets, pools, rules.test_split)
    train, test = splits == 'train', splits == rules.test_split
    val = (splits == 'val') & ~test
  else:
    train, test = (tests >= 0) & (tests != fold), tests == fold
  rule = 'the split val' if val.any() else 'none'
  if not val.any() and rules.val_fraction:
    rows = np.flatnonzero(train)
    held, rule = carve(pool.take(rows), rules.val_fraction, rules.fold_seed)
    val[rows[held]] = True
    train &= ~val
  if rules.train_fraction < 1:
    train = _thinned(pool, train, rules.train_fraction, rules.fold_seed)
  for name, mask in (('train', train), ('test', test)):
    if not mask.any():
      hint = f'no clip would be left to {name}'
      where = f'{rules.protocol} {names[fold]}'.strip()
      raise data_error('no_clips', where, hint)
  return Parts(
    train=pool.take(train),
    val=pool.take(val) if val.any() else None,
    test=pool.take(test),
    fold_name=names[fold],
    rule=rule,
  )


def unlabelled(
  datasets: Sequence[PreparedDataset], rules: Rules, fold: int = 0
) -> Pool:
  """The clips to pre-train on, under one class: no test clip of the fold.

  With 'split' those of the splits 'train', else the training clips of the fold
  with its validation clips; a `train_fraction` is of labels, and left out.

  Raises:
    MiraInputError: see `parts`.
  """
  if rules.protocol != 'split':
    whole = dataclasses.replace(rules, val_fraction=0.0, train_fraction=1.0)
    return parts(datasets, whole, fold).train
  names, pools = datasets[0].class_names, []
  for dataset in datasets:
    one_label = dict.fromkeys(dataset.class_names, names[0])
    pools.append(of_dataset(dataset, ['train'], names, one_label))
  return join(pools)


def carve(pool: Pool, fraction: float, seed: int) -> tuple[np.ndarray, str]:
  """A mask [C] of clips to hold out, see `holdout.hold_out`; and the rule."""
  held, rule = holdout.hold_out(
    pool.subject.tolist(),
    pool.label.tolist(),
    fraction,
    seed,
    pool.recording.tolist(),
  )
  mask = np.zeros(len(pool), bool)
  mask[sorted(held)] = True
  return mask, rule


def _folds(pools: Sequence[Pool], rules: Rules) -> tuple[list[str], np.ndarray]:
  """Names of the folds, and the fold that tests each clip of all pools.

  A clip whose subject is unknown is in no fold of subjects (-1), neither to
  train nor to test: it may show any of them.
  """
  pool, protocol = join(pools), rules.protocol
  if protocol == 'split':
    return [''], np.zeros(len(pool), np.int64)
  if protocol == 'lodo':
    if len(pools) < 2:
      hint = "name two datasets or more with commas: config.data.dataset='a,b'"
      raise data_error('one_dataset', 'lodo', hint)
    names = [str(p.dataset[0]) if len(p) else '' for p in pools]
    return names, np.repeat(np.arange(len(pools)), [len(p) for p in pools])
  if protocol == 'loso':
    known = pool.subject != ''
    if not known.any():
      hint = 'no subject is known; prepare it with a table that has a column '
      raise data_error('no_subjects', 'loso', f'{hint}subject')
    tests = np.full(len(pool), -1)
    names, tests[known] = np.unique(pool.subject[known], return_inverse=True)
    return names.tolist(), tests
  if count := rules.num_folds:
    tests = holdout.subject_folds(
      pool.subject.tolist(),
      pool.label.tolist(),
      count,
      rules.fold_seed,
      rules.fold_rule,
    )
    return [f'fold {i + 1}' for i in range(count)], tests
  if len(pool) == 0 or (pool.fold < 0).any():
    without = int((pool.fold < 0).sum())
    hint = 'its clips have no stored folds'
    if without < len(pool):
      hint = f'without a stored fold: {without} of {len(pool)} clips'
    hint += '; set config.data.num_folds to make folds of subjects'
    raise data_error('no_folds', 'folds', hint)
  stored, tests = np.unique(pool.fold, return_inverse=True)
  return [f'fold {number}' for number in stored], tests


def _splits(
  datasets: Sequence[PreparedDataset], pools: Sequence[Pool], test_split: str
) -> np.ndarray:
  """The split of each clip of all pools, str [C]."""
  names = []
  for dataset, pool in zip(datasets, pools, strict=True):
    for split in ('train', test_split):
      dataset.source(split)  # raises for a missing split
    names.append(np.array(list(dataset.splits))[pool.where[:, 0]])
  return np.concatenate(names)


def _thinned(
  pool: Pool, train: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
  """A share of the training clips of every class, one or more of each."""
  rng = np.random.default_rng(seed)
  kept = np.zeros_like(train)
  for label in np.unique(pool.label[train]):
    rows = rng.permutation(np.flatnonzero(train & (pool.label == label)))
    kept[rows[: max(1, round(fraction * len(rows)))]] = True
  return kept
