"""Clips and subjects to hold out of training."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Sequence

import numpy as np

from mira_jax.data import people
from mira_jax.data.listing import Row
from mira_jax.errors import MiraInputError


def assign(
  rows: Sequence[Row],
  test_fraction: float,
  seed: int,
  recordings: Sequence[str] | None = None,
) -> tuple[list[str], str]:
  """The split of every row, and in words how it was chosen.

  A named test or validation split is kept. Otherwise a share of the training
  rows is held out, 0 <= share < 1; see `hold_out`.
  """
  if not 0 <= test_fraction < 1:
    hint = 'use a share from 0 up to, not including, 1'
    raise MiraInputError('bad_fraction', str(test_fraction), hint)
  if any(row.split in ('test', 'val') for row in rows):
    return [row.split or 'train' for row in rows], 'as given'
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


def subject_folds(subjects: Sequence[str], count: int, seed: int) -> np.ndarray:
  """Folds of whole subjects with about as many clips each.

  Subjects in random order, those with most clips first, each go to the fold
  that has fewest clips so far.

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
  order = np.random.default_rng(seed).permutation(sorted(groups)).tolist()
  folds, sizes = np.full(len(subjects), -1, np.int64), np.zeros(count)
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
