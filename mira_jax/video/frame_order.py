"""The order in time of a folder's frames, by their names.

A name may hold more numbers than the frame's: scores, boxes, subjects, sizes,
copies. The number that runs has another value in every file and leaves few
gaps; where no number does, names come in natural order, whole.
"""

from __future__ import annotations

import decimal
import itertools
import math
import os
import re
from collections.abc import Sequence

import numpy as np

_Value = int | decimal.Decimal
_Values = list[_Value]
_LEAST_DENSITY = 0.5  # of a number that runs: the share of its range it takes
_MARKS = ('onset', 'apex', 'offset')  # of an expression, in order of time


def in_time(names: Sequence[str]) -> tuple[list[str], np.ndarray | None]:
  """Names of images in the order of time, and the number of each frame.

  Args:
    names: of files, with suffixes.

  Returns:
    The names, and int64 [n]: the whole number of each that rises from frame
    to frame, or None where none does.
  """
  if not names:
    return [], None
  stems = [os.path.splitext(name)[0] for name in names]
  words = _split(stems)
  columns = _columns(words)
  running = _running(columns, words)
  natural = [_natural(word) for word in words]
  keys = running or natural
  order = sorted(
    range(len(names)), key=lambda i: (keys[i], natural[i], names[i])
  )
  candidates = [running] if running else columns
  return [names[i] for i in order], _numbers(candidates, order)


def _split(stems: Sequence[str]) -> list[list[str]]:
  """Text and numbers by turns, text first: ['frame_', '12', ''].

  A dot is a decimal point where fractions are written as Python writes them,
  or are as long in all names; a dash is a minus where others do without it.
  """
  number = r'\d+'
  dotted = [x for stem in stems for x in re.findall(r'(\d+)\.(\d+)', stem)]
  same = len({len(fraction) for _, fraction in dotted}) == 1
  # In shot1.001, shot1.002 the number that runs is a whole one.
  whole = same and len({before for before, _ in dotted}) == 1
  printed = all(f == '0' or f[-1] != '0' for _, f in dotted)
  if (same or printed) and not whole:
    number = r'\d+(?:\.\d+)?'
  shapes = {re.sub(number, '#', stem) for stem in stems}
  if len(shapes) > 1 and len({s.replace('-#', '#') for s in shapes}) == 1:
    number = f'-?{number}'
  return [re.split(f'({number})', stem) for stem in stems]


def _natural(words: Sequence[str]) -> list[_Value | str]:
  """A sort key that puts clip2 before clip10, and Clip1 before clip2."""
  return [
    _value(word) if i % 2 else _marked(word.casefold())
    for i, word in enumerate(words)
  ]


def _marked(text: str) -> str:
  """Text that sorts by the time of marks, where it has any."""
  marks = '|'.join(_MARKS)
  return re.sub(marks, lambda m: chr(_MARKS.index(m[0]) + 1), text)


def _value(word: str) -> _Value:
  return decimal.Decimal(word) if '.' in word else int(word)


def _columns(words: Sequence[Sequence[str]]) -> list[_Values]:
  """The numbers at each place, counted from the left, then from the right."""
  rows = [[_value(word) for word in row[1::2]] for row in words]
  least, most = min(map(len, rows)), max(map(len, rows))
  places = [*range(least), *range(-least, 0)]
  if least == most:  # the same from both sides
    places = places[:least]
  return [[row[place] for row in rows] for place in places]


def _running(
  columns: Sequence[_Values], words: Sequence[Sequence[str]]
) -> _Values | None:
  """The number that runs; None for the natural order of whole names."""
  if len(words) < 2:
    return None
  dense = [_density(column) for column in columns]
  best = int(np.argmax(dense)) if any(dense) else None
  if best is None:
    return None
  others = [x for x, share in zip(columns, dense, strict=True) if share]
  if dense[best] >= _LEAST_DENSITY or all(x == columns[best] for x in others):
    # 12:00:01.000 follows 12:00:00.960: milliseconds alone would mislead.
    fine = columns[best]
    coarser = any(_is_coarser(x, fine) for x in columns[:best])
    sure = dense[best] >= _LEAST_DENSITY and not _starts_again(fine)
    return fine if sure or not coarser else None
  if len({row[0] for row in words}) < 2 or min(map(len, words)) < 2:
    return None
  last = [_value(row[-2]) for row in words]
  return last if _density(last) else None


def _density(values: _Values) -> float:
  """How much of the range between its ends a number takes; 0 if twice."""
  if len(set(values)) < len(values):
    return 0.0
  decimals = [x for x in values if isinstance(x, decimal.Decimal)]
  places = max((-int(x.as_tuple().exponent) for x in decimals), default=0)
  whole = sorted(int(value * 10**places) for value in values)
  steps = [b - a for a, b in itertools.pairwise(whole)]
  return len(steps) * math.gcd(*steps) / sum(steps)


def _is_coarser(coarse: _Values, fine: _Values) -> bool:
  """Whether `coarse` changes at times while `fine` runs, and never back."""
  along = [c for _, c in sorted(zip(fine, coarse, strict=True))]
  changes = sum(a != b for a, b in itertools.pairwise(along))
  return 0 < changes < len(along) - 1 and changes == len(set(along)) - 1


def _starts_again(values: _Values) -> bool:
  """Whether a number takes its last value before 0: of a clock, or digits.

  One that does not counts on while another changes: face1_0005, face0_0006.
  """
  least, *_, most = sorted(values)
  step = (most - least) / max(1, len(values) - 1)
  ends = (24, 60, 10 ** len(str(int(most))))
  return least < step + 1 and any(end - step - 1 <= most < end for end in ends)


def _numbers(
  columns: Sequence[_Values], order: Sequence[int]
) -> np.ndarray | None:
  for column in columns[::-1] if len(order) == 1 else columns:
    values = [column[i] for i in order]
    rises = all(a < b for a, b in itertools.pairwise(values))
    if rises and all(x == int(x) and abs(x) < 2**62 for x in values):
      return np.array([int(x) for x in values], np.int64)
  return None
