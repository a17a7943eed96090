"""Clips and subjects to hold out of training."""

from __future__ import annotations

import collections
import itertools
import warnings
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from mira_jax.data import people
from mira_jax.data.listing import Row
from mira_jax.errors import MiraInputError

RULES = ('stratified', 'even')  # of folds of subjects
_DRAWS = 10  # of folds, until every class that can be is in every fold
AS_GIVEN = 'as given'  # the rule of splits that the source names


def assign(
  rows: Sequence[Row],
  test_fraction: float,
  seed: int,
  recordings: Sequence[str] | None = None,
) -> tuple[list[str], str]:
  """The split of every row, and in words how it was chosen.

  A named test or validation split is kept. Otherwise the first of several
  stored folds is tested; without them a share of the training rows is held
  out, 0 <= share < 1; see `hold_out`.
  """
  if not 0 <= test_fraction < 1:
    hint = 'use a share from 0 up to, not including, 1'
    raise MiraInputError('bad_fraction', str(test_fraction), hint)
  if any(row.split in ('test', 'val') for row in rows):
    return [row.split or 'train' for row in rows], AS_GIVEN
  folds = sorted({row.fold for row in rows} - {-1})
  if len(folds) > 1:
    splits = ['test' if row.fold == folds[0] else 'train' for row in rows]
    return splits, f'fold {folds[0]} is the test split; every fold is stored'
  subjects = [row.subject for row in rows]
  labels = [row.label for row in rows]
  held_out, rule = hold_out(subjects, labels, test_fraction, seed, recordings)
  return ['test' if i in held_out else 'train' for i in range(len(rows))], rule


def hold_out(
  subjects: Sequence[str],
  labels: Sequence[Hashable],
  fraction: float,
  seed: int,
  recordings: Sequence[str] | None = None,
) -> tuple[set[int], str]:
  """Random clips to hold out, and the rule in words.

  Where any subject is known, whole subjects are held out, and a clip without
  one is a subject of its own; else whole recordings, else the same `fraction`
  of every class, 0 <= fraction < 1. A clip is a recording of its own by
  default. (scikit-learn's splitters would choose other clips than stored runs
  have.)
  """
  rng = np.random.default_rng(seed)
  names = people.one_spelling(subjects)
  recordings = recordings or [*map(str, range(len(names)))]
  several = len({*names}) > 1
  if several or 1 < len({*recordings}) < len(recordings):
    what = 'subject' if several else 'recording'
    pairs = zip(names, recordings, strict=True)
    groups = [(several and name) or f'\0{at}' for name, at in pairs]
    rule = f'{fraction:g} held out by {what}, seed {seed}'
    return _by_group(groups, fraction, rng), rule
  rule = f'{fraction:g} of each class held out, seed {seed}'
  return _by_class(labels, fraction, rng), rule


def subject_folds(
  subjects: Sequence[str],
  labels: Sequence[Hashable],
  count: int,
  seed: int,
  rule: str = RULES[0],
) -> np.ndarray:
  """Folds of whole subjects in random order; of the rules,

    stratified  gives every fold about the same share of every class
                (scikit-learn's StratifiedGroupKFold)
    even        gives every fold about as many clips, of whatever classes;
                runs of earlier versions have it

  Args:
    subjects: of each clip; '' where unknown.
    labels: of each clip.
    count: of folds.
    seed: of the order.
    rule: one of RULES.

  Returns:
    int [C], the fold of each clip, from 0; -1 where the subject is unknown,
    since such a clip may show any of the subjects.

  Raises:
    MiraInputError: fewer than two folds, or fewer known subjects than folds.
  """
  groups = _groups(people.one_spelling(subjects))
  groups.pop('', None)
  if len(groups) < count or count < 2:
    hint = f'{len(groups)} subjects are known'
    hint += '; use 2 or more folds and at most one per subject'
    raise MiraInputError('bad_folds', f'num_folds={count}', hint)
  rng = np.random.default_rng(seed)
  if rule == 'even':
    return _even_folds(groups, len(subjects), count, rng)
  rows = np.array(sorted(itertools.chain.from_iterable(groups.values())))
  person = np.zeros(len(subjects), np.int64)
  for i, name in enumerate(sorted(groups)):
    person[groups[name]] = i
  classes = np.unique([str(x) for x in labels], return_inverse=True)[1]
  folds, known = np.full(len(subjects), -1, np.int64), classes[rows]
  most = sum(
    min(count, len(np.unique(person[rows][known == k])))
    for k in np.unique(known)
  )
  best = 0
  for _ in range(_DRAWS):
    # Its own `shuffle` is not that of all versions of scikit-learn.
    order = rng.permutation(len(groups))[person[rows]]
    drawn = _stratified(known, order, count)
    pairs = len({*zip(known.tolist(), drawn.tolist(), strict=True)})
    if pairs > best:
      folds[rows], best = drawn, pairs
    if best == most:
      break
  return folds


def _stratified(
  labels: np.ndarray, groups: np.ndarray, count: int
) -> np.ndarray:
  """The fold of each clip; ties are broken in the order of the groups."""
  if np.bincount(labels).max() < count:  # which scikit-learn refuses
    labels = np.zeros_like(labels)
  # Slow to import, and most commands make no folds.
  from sklearn.model_selection import StratifiedGroupKFold

  folds = np.zeros(len(labels), np.int64)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', UserWarning)  # a class of few clips
    splitter = StratifiedGroupKFold(count)
    for i, (_, test) in enumerate(splitter.split(labels, labels, groups)):
      folds[test] = i
  return folds


def _even_folds(
  groups: Mapping[str, list[int]],
  clips: int,
  count: int,
  rng: np.random.Generator,
) -> np.ndarray:
  """Subjects with most clips first, each to the fold with fewest clips."""
  order = rng.permutation(sorted(groups)).tolist()
  folds, sizes = np.full(clips, -1, np.int64), np.zeros(count)
  for subject in sorted(order, key=lambda name: -len(groups[name])):
    smallest = int(sizes.argmin())
    folds[groups[subject]] = smallest
    sizes[smallest] += len(groups[subject])
  return folds


def _by_group(
  groups: Sequence[str], fraction: float, rng: np.random.Generator
) -> set[int]:
  """Rows of random groups, added while they bring the share closer."""
  members = _groups(groups)
  wanted = fraction * len(groups)
  held_out: set[int] = set()
  for name in rng.permutation(sorted(members)).tolist():
    count = len(held_out) + len(members[name])
    if abs(count - wanted) < abs(len(held_out) - wanted):
      held_out.update(members[name])
  return held_out


def _by_class(
  labels: Sequence[Hashable], fraction: float, rng: np.random.Generator
) -> set[int]:
  """The same share of every class, but never a whole class."""
  held_out: set[int] = set()
  for _, rows in sorted(_groups(labels).items()):
    count = round(fraction * len(rows))
    if fraction > 0:
      count = min(max(count, 1), len(rows) - 1)
    held_out.update(rng.permutation(rows)[:count].tolist())
  return held_out


def _groups(keys: Sequence[Hashable]) -> dict:
  groups = collections.defaultdict(list)
  for i, key in enumerate(keys):
    groups[key].append(i)
  return groups
