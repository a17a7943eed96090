"""A decoded frame as players show it: turned, mirrored, with square pixels."""

from __future__ import annotations

import os
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

from mira_jax.video import container, geometry

_MOST_ASPECT = 8.0  # of a pixel; larger ones are ignored
_Matrix = tuple[int, int, int, int]


def to_rgb(
  frame: av.VideoFrame,
  path: str | os.PathLike[str],
  short_side: int | None,
  square: geometry.Square | None,
  aspect: float,
  converter: VideoReformatter,
) -> np.ndarray:
  """RGB pixels uint8 [H, W, 3], cut and shrunk as by `decode.read_clip`.

  `aspect` is that of a pixel, see `pixel_aspect`; `path` is for errors, and
  `converter` for all frames of a clip. Raises MiraInputError('too_small') for
  the square.
  """
  height, width = _square_pixels(frame, aspect)
  if square is None:  # shrunk while it is converted, which is less work
    height, width = geometry.shrunk((height, width), short_side)
  # Setting up threads takes longer than most frames; clips have theirs.
  options = {'interpolation': 'AREA', 'threads': 1}
  rgb = converter.reformat(frame, width, height, 'rgb24', **options)
  upright = _turned(rgb.to_ndarray(), _matrix(frame))
  if square is None:
    return upright
  return geometry.cut(upright, path, short_side, square)


def upright_size(frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
  """Width and height of a frame as it is shown."""
  height, width = _square_pixels(frame, aspect)
  return (height, width) if _swaps(_matrix(frame)) else (width, height)


def pixel_aspect(stream: av.VideoStream) -> float:
  """Width of a pixel over its height; 1 where a file has no credible one."""
  aspect = float(stream.sample_aspect_ratio or 1)
  return aspect if 1 / _MOST_ASPECT <= aspect <= _MOST_ASPECT else 1.0


def _square_pixels(frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
  """Height and width before any turn; players change the width."""
  width = max(1, round(frame.width * aspect))
  if width * frame.height > container.MAX_PIXELS:
    width = frame.width
  return frame.height, width


def _matrix(frame: av.VideoFrame) -> _Matrix:
  """(a, b, c, d) of x' = a x + c y, y' = b x + d y, which shows a frame."""
  data: Any = frame.side_data.get(Type.DISPLAYMATRIX)  # pyright: ignore
  if data is None:
    return 1, 0, 0, 1
  rows = np.frombuffer(bytes(data), np.int32).tolist()
  return rows[0], rows[1], rows[3], rows[4]


def _swaps(matrix: _Matrix) -> bool:
  """Whether a frame's width becomes its height; odd angles are rounded."""
  a, b, c, d = map(abs, matrix)
  return b + c > a + d


def _turned(image: np.ndarray, matrix: _Matrix) -> np.ndarray:
  """The image in the one of eight orientations that is nearest."""
  a, b, c, d = matrix
  if _swaps(matrix):
    image, a, d = image.swapaxes(0, 1), c, b
  return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
