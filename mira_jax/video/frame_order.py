"""The order in time of a folder's frames, by their names.

A name may hold more numbers than the frame's: scores, boxes, subjects, sizes,
copies. The number that runs has another value in every file and leaves few
gaps; where no number does, names come in natural order, whole.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import statistics
from collections.abc import Sequence

import numpy as np

_LEAST_DENSITY = 0.5  # of a number that runs: the share of its range it takes
_MARKS = ('onset', 'apex', 'offset')  # of an expression, in order of time


def in_time(names: Sequence[str]) -> tuple[list[str], np.ndarray | None]:
  """Names of images in the order of time, and the number of each frame.

  The numbers int64 [n] rise from frame to frame; None where no number in the
  names does.
  """
  if not names:
    return [], None
  words = _split([os.path.splitext(name)[0] for name in names])
  columns = _columns(words)
  keys = [(_natural(row), name) for row, name in zip(words, names, strict=True)]
  order = sorted(range(len(names)), key=keys.__getitem__)
  running = _running(columns, order)
  if running:
    order, columns = sorted(order, key=running.__getitem__), [running]
  return [names[i] for i in order], _numbers(columns, order)


def _split(stems: Sequence[str]) -> list[list[str]]:
  """Text and numbers by turns, text first: ['frame_', '12', ''].

  A dash is a minus where other names do without it. Fractions that are written
  as Python writes them (0.5, 0.25) get the same length, to compare as numbers.
  """
  point = re.compile(r'(?<=\d\.)\d+')
  fractions = [x for stem in stems for x in point.findall(stem)]
  if all(x == '0' or x[-1] != '0' for x in fractions):
    length = max(map(len, fractions), default=0)
    stems = [point.sub(lambda m: m[0].ljust(length, '0'), x) for x in stems]
  number = r'\d+'
  shapes = {re.sub(number, '#', stem) for stem in stems}
  if len(shapes) > 1 and len({s.replace('-#', '#') for s in shapes}) == 1:
    number = f'-?{number}'
  return [re.split(f'({number})', stem) for stem in stems]


def _natural(words: Sequence[str]) -> list[int | str]:
  """Sorts clip2 before clip10, Clip1 before clip2, and marks by their time."""
  marks = '|'.join(_MARKS)
  return [
    int(word)
    if i % 2
    else re.sub(marks, lambda m: f'{_MARKS.index(m[0])}', word.casefold())
    for i, word in enumerate(words)
  ]


def _columns(words: Sequence[Sequence[str]]) -> list[list[int]]:
  """The numbers at each place, counted from the left, then from the right."""
  rows = [[int(word) for word in row[1::2]] for row in words]
  least, most = min(map(len, rows)), max(map(len, rows))
  places = [*range(least), *range(-least, 0)]
  if least == most:  # the same from both sides
    places = places[:least]
  return [[row[place] for row in rows] for place in places]


def _running(
  columns: Sequence[list[int]], order: Sequence[int]
) -> list[int] | None:
  """The number that runs; None for the natural `order` of whole names."""
  dense = [_density(column) for column in columns]
  if not any(dense):
    return None
  best = columns[int(np.argmax(dense))]
  others = [x for x, share in zip(columns, dense, strict=True) if share]
  if max(dense) < _LEAST_DENSITY and any(x != best for x in others):
    return None
  return None if _is_clock([best[i] for i in order]) else best


def _density(values: Sequence[int]) -> float:
  """How much of the range between its ends a number takes; 0 if twice."""
  if len(set(values)) < len(values) or len(values) < 2:
    return 0.0
  steps = [b - a for a, b in itertools.pairwise(sorted(values))]
  return len(steps) * math.gcd(*steps) / sum(steps)


def _is_clock(values: Sequence[int]) -> bool:
  """Whether a number starts again from 0 where it ends: 12:59, 13:00.

  Another number goes on then, so that this one alone would mislead.
  """
  most = max(values)
  end = min(x for x in (24, 60, 10 ** max(2, len(str(most)))) if x > most)
  if most - min(values) < len(values) < end:
    return False  # a count without gaps
  pairs = [*itertools.pairwise(values)]
  rises = [b - a for a, b in pairs if a < b]
  falls = [max(end - a, b) for a, b in pairs if a > b]
  if not (rises and falls):
    return False
  return max(falls) <= 2 * statistics.median(rises)


def _numbers(
  columns: Sequence[Sequence[int]], order: Sequence[int]
) -> np.ndarray | None:
  for column in columns[::-1] if len(order) == 1 else columns:
    values = [column[i] for i in order]
    rises = all(a < b for a, b in itertools.pairwise(values))
    if rises and all(abs(x) < 2**62 for x in values):
      return np.array(values, np.int64)
  return None
