"""Does attention find the moment and the place, and is it faithful?

Measures of one clip, as numbers: T temporal tokens of n frames each. `frames`
int [T, n] are the numbers of these in the clip; `values` [T] are a gain, or the
share of attention of each token. NaN is where a clip has no answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def inside(
  values: np.ndarray, frames: np.ndarray, onset: int, offset: int
) -> float:
  """The share of `values` from onset to offset, over that of uniform ones.

  NaN where none or all of the frames are in there.
  """
  if not 0 <= onset <= offset:
    return np.nan
  weight = ((frames >= onset) & (frames <= offset)).mean(-1)
  if weight.max() == 0 or weight.min() == 1:
    return np.nan
  return float((values * weight).sum() / values.sum() / weight.mean())


class Apex(NamedTuple):
  """How well the highest value finds the apex; by chance, any token does."""

  hit: float  # 1 where it is the token next to the apex, else 0
  error: float  # frames from the middle of the token to the apex
  chance_hit: float
  chance_error: float


def apex(values: np.ndarray, frames: np.ndarray, number: int) -> Apex:
  """Compares the highest value with the frame of the apex."""
  if number < 0:
    return Apex(*[np.nan] * 4)
  middle = frames.mean(-1)
  apart = np.abs(middle - number)
  best = int(values.argmax())
  return Apex(
    hit=float(apart[best] == apart.min()),
    error=float(apart[best]),
    chance_hit=float((apart == apart.min()).mean()),
    chance_error=float(apart.mean()),
  )


def correlation(
  values: np.ndarray, frames: np.ndarray, intensity: np.ndarray
) -> float:
  """Pearson's, of values and the intensity [F] of the expression."""
  strength = intensity[frames].mean(-1)
  if values.std() == 0 or strength.std() == 0:
    return np.nan
  return float(np.corrcoef(values, strength)[0, 1])


def place(attention: np.ndarray, change: np.ndarray) -> float:
  """The share of attention where the expression shows, over that of uniform.

  Args:
    attention: [T, h, w], of each token.
    change: [T, h, w], what the expression changes there; it weighs the tokens,
      so that the uniform share is 1.
  """
  if change.max() <= 0:
    return np.nan
  share = attention / attention.sum()
  return float((share * change).sum() / change.mean())


def to_grid(
  change: np.ndarray, frames: np.ndarray, grid: tuple[int, int, int]
) -> np.ndarray:
  """Pixels [F, S, S] as means of tokens [T, h, w]."""
  count, height, width = grid
  chosen = change[frames].mean(1)
  rows = np.array_split(chosen, height, axis=1)
  cells = [
    [part.mean((1, 2)) for part in np.array_split(row, width, axis=2)]
    for row in rows
  ]
  return np.moveaxis(np.array(cells), -1, 0).reshape(count, height, width)


def area(curve: np.ndarray) -> float:
  """The mean height of a curve [K + 1] over evenly spaced shares."""
  return float(np.trapezoid(curve) / (len(curve) - 1))


# ----- regions of action units ------------------------------------------------

# Left, top, right and bottom, as shares of a square that a face fills, of where
# the skin moves most. Ekman, Friesen and Hager (Facial Action Coding System,
# 2002) name the muscles; the boxes are ours, tests hold them to drawn faces.
_BROWS, _LIDS = (0.12, 0.15, 0.88, 0.50), (0.12, 0.35, 0.88, 0.58)
_NOSE, _CHEEKS = (0.25, 0.35, 0.75, 0.72), (0.10, 0.45, 0.90, 0.75)
_MOUTH, _CHIN = (0.20, 0.60, 0.80, 0.92), (0.20, 0.62, 0.80, 1.0)
REGIONS = {
  **dict.fromkeys((1, 2, 4), _BROWS),
  **dict.fromkeys((5, 7, 43, 45, 46), _LIDS),
  6: _CHEEKS,
  9: _NOSE,
  11: _CHEEKS,
  **dict.fromkeys((10, 12, 13, 14, 15, 16, 18, 20, 22, 23, 24, 25, 28), _MOUTH),
  **dict.fromkeys((17, 26, 27), _CHIN),
}


def region(units: Sequence[int], height: int, width: int) -> np.ndarray | None:
  """How much of each position [h, w] is in a region of these action units.

  None where there is no known one.
  """
  boxes = [REGIONS[unit] for unit in units if unit in REGIONS]
  if not boxes:
    return None
  fine = 32  # points of a position, each way
  y, x = (
    (np.arange(count * fine) + 0.5) / (count * fine)
    for count in (height, width)
  )
  inside = np.zeros((height * fine, width * fine))
  for left, top, right, bottom in boxes:
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    inside[np.ix_(rows, columns)] = 1
  return inside.reshape(height, fine, width, fine).mean((1, 3))
