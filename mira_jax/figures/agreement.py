"""Differences between two implementations, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mira_jax.figures.style import (
  BLUE,
  INK,
  MUTED,
  VERMILLION,
  Picture,
  drawn,
  legend_above,
  text,
  texts,
  tidy,
)

# Number format -> its colour, and its relative rounding error.
FORMATS = {
  'float32': (BLUE, 2.0**-24),
  'bfloat16': (VERMILLION, 2.0**-9),
}
_FLOOR = 1e-9  # where differences of zero are drawn


@drawn
def agreement_figure(
  relative: Mapping[str, Mapping[str, float]], title: str
) -> Picture:
  """Differences on a logarithmic scale.

  Args:
    relative: number format -> name of a layer, 'd ' before it for its
      gradients -> largest difference over the largest value.
    title: of the figure.
  """
  names = [*next(iter(relative.values()))]
  parts = {
    'outputs': [n for n in names if not n.startswith('d ')],
    'gradients': [n for n in names if n.startswith('d ')],
  }
  parts = {part: layers for part, layers in parts.items() if layers}
  figure = Figure(figsize=(1.2 + 5.4 * len(parts), 4.6), layout='constrained')
  panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
  for axes, (part, layers) in zip(panels, parts.items(), strict=True):
    axes.set_title(part, loc='left', color=INK, fontsize=11)
    _draw(axes, relative, layers)
  panels[0].set_ylabel('largest difference / largest value', color=MUTED)
  legend_above(panels[-1])
  figure.suptitle(text(title, 100), color=INK, fontsize=13, x=0.01, ha='left')
  arrays = {f'{d}_names': np.array([*rows]) for d, rows in relative.items()}
  arrays |= {d: np.array([*rows.values()]) for d, rows in relative.items()}
  return Picture(figure, arrays)


def _draw(
  axes: Axes, relative: Mapping[str, Mapping[str, float]], layers: list[str]
) -> None:
  for dtype, rows in relative.items():
    color, rounding = FORMATS[dtype]
    values = np.maximum([rows[layer] for layer in layers], _FLOOR)
    axes.plot(values, color=color, marker='o', markersize=4, label=dtype)
    axes.axhline(rounding, color=color, linewidth=0.8, linestyle=':')
    axes.annotate(
      f'rounding of {dtype}',
      (len(layers) - 1, rounding),
      xytext=(0, 3),
      textcoords='offset points',
      ha='right',
      fontsize=8,
      color=color,
    )
  axes.set_yscale('log')
  axes.yaxis.set_major_formatter('{x:.0e}')
  axes.set_xticks(
    range(len(layers)),
    texts(n.removeprefix('d ').removeprefix('block ') for n in layers),
    fontsize=8,
    rotation=60 if len(layers) > 16 else 0,
  )
  axes.set_xlabel('block', color=MUTED)
  tidy(axes, grid='y')
