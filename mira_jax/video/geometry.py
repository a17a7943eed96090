"""Frames as arrays: squares cut out of them, and other sizes."""

from __future__ import annotations

import dataclasses
import os

import cv2
import numpy as np

from mira_jax.errors import MiraInputError

MIN_SIDE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square:
  """A part of a frame that is square in pixels.

  All four are shares, in 0..1, of the frame's width (`left`, `width`) or of
  its height (`top`, `height`), so that it holds at every resolution.
  """

  left: float
  top: float
  width: float
  height: float


def apply(frame: np.ndarray, square: Square) -> np.ndarray:
  """Cuts a square out of a frame [H, W, 3]: [S, S, 3] with S >= 1.

  The square is rounded to whole pixels and kept inside the frame. The result
  is a copy, so that the frame itself can be freed.
  """
  height, width = frame.shape[:2]
  side = round(min(square.width * width, square.height * height))
  side = min(max(1, side), width, height)
  left = min(max(0, round(square.left * width)), width - side)
  top = min(max(0, round(square.top * height)), height - side)
  return frame[top : top + side, left : left + side].copy()


def cut(
  frame: np.ndarray,
  path: str | os.PathLike[str],
  short_side: int | None,
  square: Square | None = None,
) -> np.ndarray:
  """The square of a frame, if any, shrunk; `path` is for errors."""
  if square is not None:
    frame = apply(frame, square)
  check_side(frame.shape[1], frame.shape[0], path)
  return fit_to(frame, shrunk(frame.shape[:2], short_side))


def check_side(width: int, height: int, path: str | os.PathLike[str]) -> None:
  """Raises MiraInputError('too_small') for frames that show nothing."""
  if min(width, height) < MIN_SIDE:
    hint = f'frames have {width}x{height} pixels'
    raise MiraInputError('too_small', path, hint)


def resize(frame: np.ndarray, size: int, fit: str = 'squash') -> np.ndarray:
  """A uint8 frame [H, W, 3] as [size, size, 3].

  With `fit` 'squash' the whole frame is kept and not its aspect; 'crop' keeps
  the aspect and cuts the longer side down to its centre.
  """
  height, width = frame.shape[:2]
  if fit == 'crop':
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    frame = frame[top : top + side, left : left + side]
  elif fit != 'squash':
    raise ValueError(f"fit is {fit!r}: use 'squash' or 'crop'")
  return fit_to(frame, (size, size))


def shrunk(size: tuple[int, ...], short_side: int | None) -> tuple[int, int]:
  """A height and width whose shorter side is at most `short_side`."""
  factor = min(1.0, (short_side or min(size)) / min(size))
  return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def fit_to(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """A frame [H, W, 3] brought to a height and width."""
  if frame.shape[:2] == size:
    return frame
  # The mean over a pixel's area avoids aliasing, but only when shrinking.
  shrinks = size[0] <= frame.shape[0] and size[1] <= frame.shape[1]
  method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  return cv2.resize(frame, size[::-1], interpolation=method)
