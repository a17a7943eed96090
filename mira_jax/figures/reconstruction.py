"""The picture of a masked autoencoder: what it saw, and what it made of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mira_jax.figures.style import INK, MUTED, WIDTH, drawn, save, text

_SHOWN = 8  # frames of a clip
_ROWS = ('input', 'masked', 'filled in')


def reconstruction_figure(
  path: str | os.PathLike[str],
  video: np.ndarray,
  masked: np.ndarray,
  filled: np.ndarray,
  title: str,
) -> Path:
  """Saves `build_reconstruction_figure`, and its arrays beside it."""
  figure = build_reconstruction_figure(video, masked, filled, title)
  return save(path, figure, video=video, masked=masked, filled=filled)


@drawn
def build_reconstruction_figure(
  video: np.ndarray, masked: np.ndarray, filled: np.ndarray, title: str
) -> Figure:
  """Three rows for each clip, of up to eight frames spread over it.

  Args:
    video: uint8 [B, F, H, W, 3], the input.
    masked: float [B, F, H, W, 3] in [0, 1], grey where tokens were hidden.
    filled: likewise, the prediction where tokens were hidden.
    title: of the picture.
  """
  clips, frames = video.shape[:2]
  shown = np.linspace(0, frames - 1, min(frames, _SHOWN)).round().astype(int)
  left, gap, head = 1.3, 0.12, 0.5  # inches
  side = (WIDTH - left) / _SHOWN
  height = head + clips * (3 * side + gap)
  figure = Figure(figsize=(left + side * len(shown), height))
  title = text(title)
  figure.text(0.01, 1 - 0.3 / height, title, color=INK, size=13, va='center')
  for clip in range(clips):
    strips = (video[clip] / 255, masked[clip].clip(0, 1), filled[clip])
    for row, (name, strip) in enumerate(zip(_ROWS, strips, strict=True)):
      bottom = height - head - clip * (3 * side + gap) - (row + 1) * side
      box = (
        left / figure.get_figwidth(),
        bottom / height,
        1 - left / figure.get_figwidth(),
        0.98 * side / height,
      )
      axes = figure.add_axes(box)
      axes.imshow(np.concatenate(list(strip[shown]), axis=1), aspect='auto')
      axes.set_axis_off()
      middle = (bottom + side / 2) / height
      figure.text(0.01, middle, name, color=MUTED, size=11, va='center')
  return figure
