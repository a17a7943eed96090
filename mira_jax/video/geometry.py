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
  """Cuts a square out of a frame.

  Args:
    frame: [H, W, 3].
    square: rounded to whole pixels and kept inside the frame.

  Returns:
    [S, S, 3] with S >= 1; a copy, so that the frame itself can be freed.
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
  square: Square | None,
) -> np.ndarray:
  """The square of a frame, if any, shrunk; `path` is for errors."""
  if square is not None:
    frame = apply(frame, square)
  check_side(frame.shape[1], frame.shape[0], path)
  return shrink(frame, short_side)


def check_side(width: int, height: int, path: str | os.PathLike[str]) -> None:
  """Raises MiraInputError('too_small') for frames that show nothing."""
  if min(width, height) < MIN_SIDE:
    raise MiraInputError(
      'too_small', path, f'frames have {width}x{height} pixels'
    )


def resize(frame: np.ndarray, size: int, fit: str = 'squash') -> np.ndarray:
  """A frame [H, W, 3] as [size, size, 3].

  Args:
    frame: uint8.
    size: side of the result in pixels.
    fit: 'squash' keeps the whole frame and not its aspect; 'crop' keeps the
      aspect and cuts the longer side down to its centre.
  """
  height, width = frame.shape[:2]
  if fit == 'crop':
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    frame = frame[top : top + side, left : left + side]
  elif fit != 'squash':
    raise ValueError(f"fit is {fit!r}: use 'squash' or 'crop'")
  return scale(frame, size, size)


def shrink(frame: np.ndarray, short_side: int | None) -> np.ndarray:
  """The frame with a shorter side of at most `short_side`, same aspect."""
  height, width = shrunk(frame.shape[:2], short_side)
  return scale(frame, width, height)


def fit_to(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """A frame [H, W, 3] brought to a height and width."""
  return scale(frame, size[1], size[0])


def shrunk(size: tuple[int, int], short_side: int | None) -> tuple[int, int]:
  """The height and width that `shrink` gives a frame of this size."""
  factor = min(1.0, (short_side or min(size)) / min(size))
  return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def scale(frame: np.ndarray, width: int, height: int) -> np.ndarray:
  """A frame of another size; smaller ones are means over areas."""
  if frame.shape[:2] == (height, width):
    return frame
  # The mean over a pixel's area avoids aliasing, but only when shrinking.
  shrinks = width <= frame.shape[1] and height <= frame.shape[0]
  method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  return cv2.resize(frame, (width, height), interpolation=method)
