"""A clip with attention and its curve burnt in, frame by frame."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import matplotlib
import numpy as np
from PIL import Image

from mira_jax.figures.style import (
  DPI,
  GREY,
  MUTED,
  SIDE,
  VERMILLION,
  blank,
  drawn,
  text,
  tidy,
)

_CURVE = 128  # pixels below it
_OPACITY = 0.45


@drawn
def overlay_frames(
  frames: Iterable[np.ndarray],
  maps: np.ndarray,
  number: np.ndarray,
  caption: str,
) -> Iterator[np.ndarray]:
  """Frames of a video: the map over each frame, and below it the curve.

  Args:
    frames: of the clip, uint8 [H, W, 3].
    maps: [M, h, w], attention in units of a uniform share.
    number: int [F], the map of each frame.
    caption: of the curve.

  Yields:
    uint8 [SIDE + 128, SIDE, 3].
  """
  curve = maps.mean((1, 2))[number]
  plot, columns = _plot(curve, caption)
  top = max(float(np.quantile(maps, 0.995)), 1e-6)
  colors = matplotlib.colormaps['inferno'](np.linspace(0, 1, 256))[:, :3] * 255
  for i, frame in enumerate(frames):
    image = np.asarray(Image.fromarray(frame).resize((SIDE, SIDE)), np.float32)
    heat = np.clip(maps[number[i]] / top, 0, 1) * 255
    scaled = Image.fromarray(heat.astype(np.uint8)).resize(
      (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    over = colors[np.asarray(scaled)]
    mixed = (1 - _OPACITY) * image + _OPACITY * over
    below = plot.copy()
    x = columns[i]
    below[:, x : x + 2] = (213, 94, 0)
    yield np.concatenate([mixed.astype(np.uint8), below])


def _plot(curve: np.ndarray, caption: str) -> tuple[np.ndarray, np.ndarray]:
  """The curve as an image, and the column of each of its frames."""
  figure = blank(SIDE / DPI, _CURVE / DPI)
  axes = figure.add_subplot()
  axes.plot(curve, color=VERMILLION, linewidth=1.5)
  axes.axhline(1, color=GREY, linestyle='--', linewidth=0.8)
  axes.set_title(text(caption, 60), loc='left', size=8, color=MUTED)
  axes.set_xlabel('frame', size=7, color=MUTED)
  axes.set_xlim(-0.5, len(curve) - 0.5)
  tidy(axes, grid='y')
  axes.tick_params(labelsize=7)
  file = io.BytesIO()
  figure.savefig(file, format='png', dpi=DPI)
  image = np.array(Image.open(file).convert('RGB'))[:_CURVE, :SIDE]
  where = np.stack([np.arange(len(curve)), curve], -1)
  columns = axes.transData.transform(where)[:, 0]
  return image, np.clip(columns.round().astype(int), 0, SIDE - 2)
