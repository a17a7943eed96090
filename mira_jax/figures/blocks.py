"""What MiRA does in every block, over time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mira_jax.figures.style import INK, MUTED, Picture, blank, drawn, text

_WIDE = 5.3  # inches of a panel
_ROW = 0.22  # inches of a block


class _Panel(NamedTuple):
  """A heat map: its values [blocks, T], and what the colours stand for."""

  name: str
  values: np.ndarray
  unit: str
  low: float
  high: float
  colors: str = 'inferno'
  first: int = 0  # number of the first block


@drawn
def blocks_figure(
  *,
  before: np.ndarray,
  after: np.ndarray | None = None,
  gain: np.ndarray | None = None,
  confidence: np.ndarray | None = None,
  concentration: np.ndarray | None = None,
  title: str,
) -> Picture:
  """Heat maps of blocks (rows) by temporal tokens (columns).

  Args:
    before: [blocks, T], the share of attention that a temporal token receives
      without MiRA.
    after: [blocks, T], with MiRA; None of a plain ViT.
    gain: [MiRA's blocks, T].
    confidence: as `gain`.
    concentration: as `gain`, in 1 / nats.
    title: of the figure.
  """
  rows = [_attention(before, after)]
  if gain is not None:
    first = len(before) - len(gain)  # MiRA is in the last blocks
    panels = _mira(gain, confidence, concentration)
    rows.append([panel._replace(first=first) for panel in panels])
  tall = 1.5 + max(_ROW * len(before), 0.7)
  across = max(map(len, rows))
  figure = blank(max(across, 2) * _WIDE, len(rows) * tall + 0.5)
  head = {'size': 14, 'weight': 'bold', 'x': 0.01, 'ha': 'left'}
  figure.suptitle(text(title, 48 * max(across, 2)), color=INK, **head)
  arrays = {}
  for i, row in enumerate(rows):
    for j, panel in enumerate(row):
      place = i * across + j + 1
      _draw(figure.add_subplot(len(rows), across, place), panel)
      name = panel.name.partition(',')[0].removesuffix(' MiRA')
      arrays[name.replace(' ', '_')] = panel.values
  return Picture(figure, arrays)


def _attention(before: np.ndarray, after: np.ndarray | None) -> list[_Panel]:
  """Attention in units of a uniform share, on one colour scale."""
  count, unit = before.shape[1], '× uniform'
  if after is None:
    return [_Panel('attention', before * count, unit, 0, before.max() * count)]
  top = max(before.max(), after.max()) * count
  change = (after - before) * count
  return [
    _Panel('attention before MiRA', before * count, unit, 0, top),
    _Panel('attention after MiRA', after * count, unit, 0, top),
    _around('difference, after − before', change, unit, 0),
  ]


def _mira(gain: np.ndarray, *others: np.ndarray | None) -> list[_Panel]:
  panels = [_around('gain', gain, 'factor', 1)]
  for (name, unit), values in zip(
    (('confidence', 'share'), ('concentration', '1 / nats')),
    others,
    strict=True,
  ):
    if values is not None:
      low, high = values.min(), values.max()
      panels.append(_Panel(name, values, unit, low, high))
  return panels


def _around(name: str, values: np.ndarray, unit: str, middle: float) -> _Panel:
  """A panel with one colour on either side of a neutral value."""
  reach = max(np.abs(values - middle).max(), 1e-3)
  return _Panel(name, values, unit, middle - reach, middle + reach, 'RdBu_r')


def _draw(axes: Axes, panel: _Panel) -> None:
  """One heat map with its colour bar."""
  blocks, tokens = panel.values.shape
  bottom, top = panel.first + blocks - 0.5, panel.first - 0.5
  image = axes.imshow(
    panel.values,
    aspect='auto',
    cmap=panel.colors,
    vmin=panel.low,
    vmax=panel.high,
    extent=(-0.5, tokens - 0.5, bottom, top),
  )
  axes.set_title(panel.name, loc='left', size=12, color=INK)
  axes.set_xlabel('temporal token', size=10, color=MUTED)
  axes.set_ylabel('block', size=10, color=MUTED)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(MaxNLocator(9, integer=True, min_n_ticks=1))
  axes.tick_params(colors=MUTED, labelsize=9, length=0)
  axes.spines[:].set_visible(False)
  bar = axes.figure.colorbar(image, ax=axes, pad=0.02)
  bar.set_label(panel.unit, color=MUTED, size=10)
  bar.outline.set_visible(False)  # type: ignore[operator]
  bar.ax.tick_params(colors=MUTED, labelsize=9, length=0)
