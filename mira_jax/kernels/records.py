"""Times of attention that were measured on a device, and which one applies.

A file of them is JSON: {"device": its kind, "jax": version, "kernels": digest
of their source, "date": day, "rows": [fields of `Row`, ...]}. `tuned/` has
those that come with the package.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

SHIPPED = pathlib.Path(__file__).with_name('tuned')
# Rows of other lengths tell nothing of one.
LENGTHS = 1.25  # times longer or shorter
Tunings = tuple[tuple[str, Any], ...]  # (what is tuned, its tuning), hashable


@dataclasses.dataclass(frozen=True)
class Row:
  """What was measured at one shape.

  Attributes:
    shape: (B, L, H, D) of queries.
    dtype: theirs.
    mode: 'plain', 'flashlite' or 'exact'.
    training: whether gradients were computed, too.
    milliseconds: by implementation, the fastest that its tunings reach.
    tunings: by implementation and by what is tuned: fields of a tuning that
      differs from the assumed one.
  """

  shape: tuple[int, int, int, int]
  dtype: str
  mode: str
  training: bool
  milliseconds: Mapping[str, float]
  tunings: Mapping[str, Mapping[str, Mapping[str, Any]]]

  def by_speed(self) -> list[str]:
    """Implementations, the fastest first."""
    return sorted(self.milliseconds, key=self.milliseconds.__getitem__)


class Records(NamedTuple):
  """The rows of a device, and where they are from."""

  device: str
  source: str  # such as 'measured here'
  rows: Sequence[Row] = ()


def parse(text: str, source: str) -> Records:
  """Reads a file of records.

  Raises:
    ValueError: it is none; also KeyError and TypeError.
  """
  fields = json.loads(text)
  rows = [Row(**row) for row in fields['rows']]
  rows = [dataclasses.replace(row, shape=tuple(row.shape)) for row in rows]
  for row in rows:
    numbers = [*row.shape, *dict(row.milliseconds).values()]
    good = all(isinstance(x, int | float) and x > 0 for x in numbers)
    known = all(isinstance(x, dict) for x in dict(row.tunings).values())
    if len(row.shape) != 4 or not (good and known):
      raise ValueError(f'{row} has no times, or no tunings, of [B, L, H, D]')
  return Records(fields['device'], f'{source}, {fields["date"]}', rows)


@functools.cache
def shipped() -> tuple[Records, ...]:
  """The records that come with the package."""
  files = sorted(SHIPPED.glob('*.json'))
  return tuple(
    parse(file.read_text(), 'measured on this kind') for file in files
  )


def nearest(
  rows: Iterable[Row],
  shape: tuple[int, ...],
  dtype: str,
  mode: str,
  training: bool,
) -> Row | None:
  """The row that tells most of a request, if any does.

  Of the same mode, dtype and width, and of nearly the same length; training or
  not first, then length and B x H.
  """
  batch, length, heads, width = shape

  def distance(row: Row) -> tuple[bool, float]:
    work = row.shape[0] * row.shape[2] / (batch * heads)
    apart = abs(math.log(row.shape[1] / length)) + abs(math.log(work)) / 10
    return row.training != training, apart

  alike = [
    row
    for row in rows
    if (row.mode, row.dtype, row.shape[3]) == (mode, dtype, width)
    and 1 / LENGTHS <= row.shape[1] / length <= LENGTHS
  ]
  return min(alike, key=distance, default=None)


@functools.cache
def version() -> str:
  """A digest of the kernels' source."""
  digest = hashlib.sha256()
  folder = pathlib.Path(__file__).parent
  for path in sorted(folder.rglob('*.py')):
    digest.update(path.relative_to(folder).as_posix().encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()[:12]
