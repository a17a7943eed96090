"""Which clips are for training and which are for testing."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Sequence

import numpy as np

from mira_jax.data.tables import Row
from mira_jax.errors import MiraInputError


def assign(
  rows: Sequence[Row], test_fraction: float, seed: int
) -> tuple[list[str], str]:
  """The split of every row, and in words who decided it.

  A named test or validation split is kept. Otherwise a share of the training
  rows is held out: whole subjects where subjects are known, so that no person
  is seen in both splits, else the same share of every class.

  Args:
    rows: labelled clips.
    test_fraction: share of the rows to hold out, 0 <= share < 1.
    seed: of the choice.
  """
  if not 0 <= test_fraction < 1:
    hint = 'use a share from 0 up to, not including, 1'
    raise MiraInputError('bad_fraction', str(test_fraction), hint)
  if any(row.split in ('test', 'val') for row in rows):
    return [row.split or 'train' for row in rows], 'as given'
  rng = np.random.default_rng(seed)
  subjects = [row.subject for row in rows]
  if all(subjects) and len(set(subjects)) > 1:
    rule = f'{test_fraction:g} held out by subject, seed {seed}'
    held_out = _by_subject(subjects, test_fraction, rng)
  else:
    rule = f'{test_fraction:g} of each class held out, seed {seed}'
    held_out = _by_class([row.label for row in rows], test_fraction, rng)
  return ['test' if i in held_out else 'train' for i in range(len(rows))], rule


def _by_subject(
  subjects: Sequence[str], fraction: float, rng: np.random.Generator
) -> set[int]:
  """Rows of random subjects, added while they bring the share closer."""
  groups = _groups(subjects)
  wanted = fraction * len(subjects)
  held_out: set[int] = set()
  for subject in rng.permutation(sorted(groups)):
    rows = groups[str(subject)]
    if abs(len(held_out) + len(rows) - wanted) < abs(len(held_out) - wanted):
      held_out.update(rows)
  return held_out


def _by_class(
  labels: Sequence[str], fraction: float, rng: np.random.Generator
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
