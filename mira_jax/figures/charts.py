"""Confusion matrices, training curves and contact sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.cells import cell_len

from mira_jax.figures.style import (
  CYCLE,
  INK,
  MUTED,
  Picture,
  drawn,
  legend_above,
  text,
  texts,
  tidy,
)

_PANELS = {
  'loss': ('loss',),
  'accuracy': ('accuracy', 'war', 'uar'),
  'learning rate': ('lr', 'learning_rate'),
  'gradient norm': ('grad_norm',),
}


@drawn
def confusion_figure(
  matrix: np.ndarray, class_names: Sequence[str], title: str, scores: str
) -> Picture:
  """Row percentages and counts.

  Args:
    matrix: int [K, K], rows = true class.
    class_names: K names.
    title: of the figure.
    scores: a line below the title.
  """
  arrays = {'matrix': matrix, 'class_names': np.array(class_names)}
  clips, count = matrix.sum(1), len(matrix)
  class_names, title = texts(class_names, 40), text(title)
  longest = max(map(cell_len, class_names))
  side, left, bottom = max(0.78 * count, 4.4), 0.75 + 0.1 * longest, 0.9
  bottom += 0.07 * longest
  width, height = left + side + 1.0, 1.25 + side + bottom  # inches
  figure = Figure(figsize=(width, height))
  box = (left / width, bottom / height, side / width, side / height)
  axes = figure.add_axes(box)
  shares = matrix / np.maximum(clips[:, None], 1)
  image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
  _write_cells(axes, image, matrix, shares)
  _label_classes(axes, class_names)
  bar = figure.add_axes((1 - 0.85 / width, box[1], 0.16 / width, box[3]))
  figure.colorbar(image, cax=bar, format=PercentFormatter(1))
  bar.tick_params(length=0, labelsize=10, labelcolor=MUTED)
  bar.spines[:].set_visible(False)
  edge = 0.3 / width
  size = min(16, 115 * (width - 0.6) / max(cell_len(title), 1))
  figure.text(edge, 1 - 0.45 / height, title, size=size, weight='bold')
  figure.text(edge, 1 - 0.85 / height, scores, size=11, color=MUTED)
  return Picture(figure, arrays)


def _write_cells(
  axes: Axes, image: AxesImage, matrix: np.ndarray, shares: np.ndarray
) -> None:
  """Percent above count, in the text colour of the higher contrast."""
  weights = np.array([0.2126, 0.7152, 0.0722])
  luminance = image.to_rgba(shares)[..., :3] ** 2.2 @ weights  # linear light
  empty = matrix.sum(1) == 0
  for (true, guess), count in np.ndenumerate(matrix):
    color = INK if luminance[true, guess] > 0.215 else 'white'
    style: dict[str, Any] = {'color': color, 'ha': 'center'}
    share = '–' if empty[true] else f'{shares[true, guess]:.1%}'
    axes.text(guess, true, share, va='bottom', size=11, **style)
    axes.text(guess, true + 0.08, f'{count}', va='top', size=9, **style)


def _label_classes(axes: Axes, names: Sequence[str]) -> None:
  count = len(names)
  slanted = {'rotation': 40, 'ha': 'right', 'rotation_mode': 'anchor'}
  axes.set_xticks(range(count), names, **slanted)
  axes.set_yticks(range(count), names)
  axes.tick_params(length=0, labelsize=11, labelcolor=INK)
  axes.set_xticks(np.arange(count - 1) + 0.5, minor=True)
  axes.set_yticks(np.arange(count - 1) + 0.5, minor=True)
  axes.grid(which='minor', color='white', linewidth=1.5)
  axes.tick_params(which='minor', length=0)
  axes.spines[:].set_visible(False)
  axes.set_xlabel('predicted', size=12, color=MUTED)
  axes.set_ylabel('true', size=12, color=MUTED)


@drawn
def curves_figure(rows: Sequence[Mapping[str, float]]) -> Picture:
  """One panel per kind of value in the rows of a metrics.jsonl.

  Args:
    rows: each with 'step', and any of the names in `_PANELS`, alone or after a
      prefix ('eval_loss', 'train/loss').

  Returns:
    A picture whose arrays are [n, 2] (step, value) by name.

  Raises:
    ValueError: there is nothing to draw.
  """
  series = _series(rows)
  panels = {
    title: [k for k in series if _panel(k) == title] for title in _PANELS
  }
  panels = {title: keys for title, keys in panels.items() if keys}
  if not panels:
    raise ValueError(f'no curve in {len(rows)} rows')
  across = min(2, len(panels))
  down = -(-len(panels) // across)
  layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12)
  figure = Figure(figsize=(6.4 * across, 3.6 * down), layout=layout)
  for place, (title, keys) in enumerate(panels.items(), 1):
    axes = figure.add_subplot(down, across, place)
    tidy(axes, grid='y')
    for key, color in zip(keys, CYCLE * len(keys), strict=False):
      step, value = series[key].T
      style: dict[str, Any] = {'lw': 1.1}
      if len(step) <= 60:
        style = {'lw': 1.8, 'marker': 'o', 'ms': 4, 'zorder': 3}
      axes.plot(step, value, color=color, label=text(key, 24), **style)
    axes.set_title(title, size=13, loc='left', color=INK)
    axes.set_xlabel('step', color=MUTED, size=10)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if title == 'accuracy':
      axes.yaxis.set_major_formatter(PercentFormatter(1))
    legend_above(axes)
  return Picture(figure, series)


def _panel(key: str) -> str | None:
  """The panel of a metric's name; prefixes end in '/' or '_'."""
  for title, names in _PANELS.items():
    if any(key == n or key.endswith((f'/{n}', f'_{n}')) for n in names):
      return title
  return None


def _series(rows: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
  series: dict[str, list] = {}
  for row in rows:
    for key, value in row.items():
      if value is not None and _panel(key):
        series.setdefault(key, []).append((row['step'], value))
  return {key: np.array(values) for key, values in series.items()}


@drawn
def contact_sheet(
  clips: Sequence[np.ndarray], titles: Sequence[str]
) -> Picture:
  """Eight frames of each uint8 [F, H, W, 3] clip, two clips per row."""
  if not clips or len(clips) != len(titles):
    raise ValueError(f'{len(clips)} clips for {len(titles)} titles')
  strips = [_strip(clip) for clip in clips]
  wide, gap, head = 7.6, 0.8 / 3, 0.45  # 16 inches in all
  across, down = min(2, len(strips)), -(-len(strips) // 2)
  tall = wide * max(s.shape[0] / s.shape[1] for s in strips)
  width = across * wide + (across + 1) * gap
  height = down * (tall + head) + gap
  figure = Figure(figsize=(width, height))
  for place, (strip, title) in enumerate(zip(strips, titles, strict=True)):
    left = gap + (place % across) * (wide + gap)
    bottom = height - (place // across + 1) * (tall + head)
    axes = figure.add_axes(
      (left / width, bottom / height, wide / width, tall / height)
    )
    axes.imshow(strip)
    axes.set_anchor('W')
    axes.set_axis_off()
    axes.set_title(text(title, 72), size=11, loc='left', color=INK, pad=5)
  arrays = {f'clip_{i:03d}': strip for i, strip in enumerate(strips)}
  return Picture(figure, {'titles': np.array(titles), **arrays})


def _strip(clip: np.ndarray) -> np.ndarray:
  """Eight frames side by side, white between them, [H, W', 3]."""
  frames = clip[np.linspace(0, len(clip) - 1, 8).round().astype(int)]
  edge = max(1, clip.shape[2] // 40)
  margins = ((0, 0), (0, 0), (0, edge), (0, 0))
  padded = np.pad(frames, margins, constant_values=255)
  return np.concatenate(list(padded), axis=1)[:, :-edge]
