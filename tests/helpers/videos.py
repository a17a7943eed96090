"""Video files that tests write."""

from __future__ import annotations

import fractions
import pathlib

import av
import numpy as np


def make_video(
  path: pathlib.Path,
  *,
  count: int = 24,
  width: int = 96,
  height: int = 64,
  codec: str = 'libx264',
  pixels: str = 'yuv420p',
  fps: int = 25,
  aspect: tuple[int, int] = (1, 1),
  **options: str,
) -> pathlib.Path:
  """Gray frames that brighten by 8, with a red quarter at the top left.

  `aspect` is that of a pixel; `options` are of the codec.
  """
  with av.open(str(path), 'w') as file:
    stream = file.add_stream(codec, rate=fps, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, pixels
    stream.codec_context.sample_aspect_ratio = fractions.Fraction(*aspect)
    for i in range(count):
      image = np.full((height, width, 3), 8 * i % 256, np.uint8)
      image[: height // 2, : width // 2] = (255, 0, 0)
      frame = av.VideoFrame.from_ndarray(image, 'rgb24')
      file.mux(stream.encode(frame))
    file.mux(stream.encode())
  return path


def make_sound(path: pathlib.Path) -> None:
  """A second of silence, and no pictures."""
  with av.open(str(path), 'w') as file:
    stream = file.add_stream('aac', rate=44100)
    frame = av.AudioFrame.from_ndarray(
      np.zeros((1, 44100), np.float32), 'fltp', 'mono'
    )
    frame.sample_rate = 44100
    file.mux(stream.encode(frame))
    file.mux(stream.encode())
