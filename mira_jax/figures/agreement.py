"""How far two programs are apart, layer by layer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mira_jax.figures.style import (
  BLUE,
  INK,
  MUTED,
  VERMILLION,
  drawn,
  legend_above,
  save,
  text,
  texts,
  tidy,
)

# Number format -> its colour, and its rounding as a share of a number.
FORMATS = {
  'float32': (BLUE, 2.0**-24),
  'bfloat16': (VERMILLION, 2.0**-9),
}


def agreement_figure(
  path: str | os.PathLike[str],
  relative: Mapping[str, Mapping[str, float]],
  title: str,
) -> Path:
  """Saves the picture of `build_agreement_figure`, with its numbers beside."""
  figure = build_agreement_figure(relative, title)
  names = {dtype: np.array(list(rows)) for dtype, rows in relative.items()}
  values = {d: np.array(list(rows.values())) for d, rows in relative.items()}
  arrays = {f'{d}_names': x for d, x in names.items()}
  return save(path, figure, **arrays, **values)


@drawn
def build_agreement_figure(
  relative: Mapping[str, Mapping[str, float]], title: str
) -> Figure:
  """Draws differences on a logarithmic scale.

  Args:
    relative: number format -> name of a layer, 'd ' before it for its
      gradients, -> largest difference over the largest number.
    title: above it.
  """
  parts = [('outputs', False), ('gradients', True)]
  rows = next(iter(relative.values()))
  parts = [p for p in parts if any(n.startswith('d ') == p[1] for n in rows)]
  figure = Figure(figsize=(1.2 + 5.4 * len(parts), 4.6), layout='constrained')
  axes = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
  for panel, (name, gradient) in zip(axes, parts, strict=True):
    _draw(panel, relative, name, gradient)
  axes[0].set_ylabel('largest difference / largest number', color=MUTED)
  legend_above(axes[-1])
  figure.suptitle(text(title, 100), color=INK, fontsize=13, x=0.01, ha='left')
  return figure


def _draw(panel, relative, name: str, gradient: bool) -> None:
  names: Sequence[str] = []
  for dtype, rows in relative.items():
    colour, rounding = FORMATS[dtype]
    own = {n: x for n, x in rows.items() if n.startswith('d ') == gradient}
    names = list(own)
    # Nothing at all is shown on the lower edge.
    values = np.maximum(list(own.values()), 1e-9)
    panel.plot(values, color=colour, marker='o', markersize=4, label=dtype)
    panel.axhline(rounding, color=colour, linewidth=0.8, linestyle=':')
    panel.annotate(
      f'rounding of {dtype}',
      (len(names) - 1, rounding),
      xytext=(0, 3),
      textcoords='offset points',
      ha='right',
      fontsize=8,
      color=colour,
    )
  panel.set_yscale('log')
  panel.yaxis.set_major_formatter('{x:.0e}')
  panel.set_title(name, loc='left', color=INK, fontsize=11)
  panel.set_xticks(
    range(len(names)),
    texts(n.removeprefix('d ').removeprefix('block ') for n in names),
    fontsize=8,
    rotation=60 if len(names) > 16 else 0,
  )
  panel.set_xlabel('block', color=MUTED)
  tidy(panel, grid='y')
