"""Masked autoencoding of clips: input, masked input, reconstruction."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from mira_jax.figures.style import (
  INK,
  MUTED,
  WIDTH,
  Picture,
  drawn,
  spread,
  text,
)

_FRAMES = 8  # of a clip
_ROWS = ('input', 'masked', 'filled in')


@drawn
def reconstruction_figure(
  video: np.ndarray, masked: np.ndarray, filled: np.ndarray, title: str
) -> Picture:
  """Three rows for each clip, of up to eight frames spread over it.

  Args:
    video: uint8 [B, F, H, W, 3], the input.
    masked: float [B, F, H, W, 3] in [0, 1], grey where tokens were masked.
    filled: likewise, the prediction where tokens were masked.
    title: of the figure.
  """
  clips, frames = video.shape[:2]
  shown = spread(frames, _FRAMES)
  left, gap, head = 1.3, 0.12, 0.5  # inches
  side = (WIDTH - left) / _FRAMES
  width, height = left + side * len(shown), head + clips * (3 * side + gap)
  figure = Figure(figsize=(width, height))
  figure.text(
    0.01, 1 - 0.3 / height, text(title), color=INK, size=13, va='center'
  )
  for clip in range(clips):
    strips = (video[clip] / 255, masked[clip].clip(0, 1), filled[clip])
    for row, (name, strip) in enumerate(zip(_ROWS, strips, strict=True)):
      bottom = height - head - clip * (3 * side + gap) - (row + 1) * side
      axes = figure.add_axes(
        (left / width, bottom / height, 1 - left / width, 0.98 * side / height)
      )
      axes.imshow(np.concatenate(list(strip[shown]), axis=1), aspect='auto')
      axes.set_axis_off()
      middle = (bottom + side / 2) / height
      figure.text(0.01, middle, name, color=MUTED, size=11, va='center')
  return Picture(figure, {'video': video, 'masked': masked, 'filled': filled})
