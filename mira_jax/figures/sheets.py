"""Frames side by side: contact sheets, and masked autoencoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from mira_jax.figures.style import (
  INK,
  MUTED,
  WIDTH,
  Picture,
  blank,
  drawn,
  spread,
  text,
)

_FRAMES = 8  # of a clip


@drawn
def contact_sheet(
  clips: Sequence[np.ndarray], titles: Sequence[str]
) -> Picture:
  """Up to eight frames of each uint8 [F, H, W, 3] clip, two clips per row.

  Every strip has the room of the clip with most frames.
  """
  strips = [_strip(clip) for clip in clips]
  most = max(min(len(clip), _FRAMES) for clip in clips)
  widths = [
    s.shape[1] * most / min(len(c), _FRAMES)
    for s, c in zip(strips, clips, strict=True)
  ]
  across, down = min(2, len(strips)), -(-len(strips) // 2)
  shapes = zip(strips, widths, strict=True)
  tall = max(s.shape[0] / width for s, width in shapes) * WIDTH / across
  figure = blank(WIDTH, down * (tall + 0.4))
  grid = [*figure.subplots(down, across, squeeze=False).flat]
  for axes in grid:
    axes.set_axis_off()
  for axes, strip, width, title in zip(
    grid, strips, widths, titles, strict=False
  ):
    axes.imshow(strip)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_anchor('W')
    axes.set_title(text(title, 72), size=11, loc='left', color=INK)
  arrays = {f'clip_{i:03d}': strip for i, strip in enumerate(strips)}
  return Picture(figure, {'titles': np.array(titles), **arrays})


@drawn
def reconstruction_figure(
  video: np.ndarray, masked: np.ndarray, filled: np.ndarray, title: str
) -> Picture:
  """Input, masked input and reconstruction of each clip, of up to 8 frames.

  Args:
    video: uint8 [B, F, H, W, 3], the input.
    masked: float [B, F, H, W, 3] in [0, 1], grey where tokens were masked.
    filled: likewise, the prediction where tokens were masked.
    title: of the figure.
  """
  rows = [
    (name, _strip(frames))
    for clip, hidden, guess in zip(video / 255, masked, filled, strict=True)
    for name, frames in (
      ('input', clip), ('masked', hidden), ('filled in', guess)
    )
  ]  # fmt: skip
  height, width = rows[0][1].shape[:2]
  figure = blank(WIDTH, len(rows) * (height / width * 15 + 0.1) + 0.6)
  figure.suptitle(text(title), color=INK, size=13, x=0.01, ha='left')
  for axes, (name, strip) in zip(figure.subplots(len(rows)), rows, strict=True):
    axes.imshow(strip.clip(0, 1))
    label_row(axes, name)
  return Picture(figure, {'video': video, 'masked': masked, 'filled': filled})


def label_row(axes: Axes, label: str) -> None:
  """Hides the axes of images, and writes a label to the left of them."""
  axes.set(xticks=[], yticks=[])
  axes.set_anchor('W')
  axes.spines[:].set_visible(False)
  style = {'rotation': 0, 'ha': 'right', 'va': 'center', 'linespacing': 1.4}
  axes.set_ylabel(label, size=11, color=MUTED, **style)


def _strip(clip: np.ndarray) -> np.ndarray:
  """Up to eight frames side by side, white between them, [H, W', 3]."""
  frames = clip[spread(len(clip), _FRAMES)]
  edge = max(1, clip.shape[2] // 40)
  margins = ((0, 0), (0, 0), (0, edge), (0, 0))
  white = 255 if clip.dtype == np.uint8 else 1
  padded = np.pad(frames, margins, constant_values=white)
  return np.concatenate(list(padded), axis=1)[:, :-edge]
