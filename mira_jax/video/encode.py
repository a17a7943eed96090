"""Writes frames as a video that every player and browser shows."""

from __future__ import annotations

import contextlib
import fractions
import itertools
import os
import pathlib
from collections.abc import Iterable

import av
import numpy as np

from mira_jax.errors import MiraInputError, not_written

SUFFIXES = ('.mp4', '.m4v', '.mov', '.mkv')  # of containers of H.264


def write_video(
  path: str | os.PathLike[str], frames: Iterable[np.ndarray], fps: float
) -> pathlib.Path:
  """Encodes frames uint8 [H, W, 3] as H.264; H and W must be even.

  The name's suffix chooses the container, such as '.mp4'.

  Raises:
    MiraInputError: the suffix is not one of SUFFIXES ('bad_suffix'), or the
      disk is full or read-only ('not_written'): no part of the file is left.
  """
  path = pathlib.Path(path)
  if path.suffix.lower() not in SUFFIXES:
    hint = f'end the name with one of {", ".join(SUFFIXES)}'
    raise MiraInputError('bad_suffix', path, hint)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as container:
      rate = fractions.Fraction(fps).limit_denominator(1001)
      stream = container.add_stream('libx264', rate=rate)
      stream.pix_fmt = 'yuv420p'
      stream.options = {'crf': '16'}
      coming = iter(frames)
      first = next(coming)
      stream.height, stream.width = first.shape[:2]
      for frame in itertools.chain([first], coming):
        picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
        container.mux(stream.encode(picture))
      container.mux(stream.encode())
  except OSError as error:  # FFmpeg's own are some of these
    with contextlib.suppress(OSError):
      path.unlink()
    hint = f'it has no room there ({error.strerror or error})'
    raise not_written(path, hint) from error
  return path
