"""Colours, frames and files that all pictures share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, FAINT = '#1f2430', '#5f6875', '#d9dde3'
BLUE, VERMILLION, GREY = '#0072b2', '#d55e00', '#a3abb6'
CYCLE = (BLUE, VERMILLION, '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
DPI = 100
WIDTH = 16.0  # inches: the clip picture is 1600 pixels wide


def save(
  path: str | os.PathLike[str], figure: Figure, **arrays: np.ndarray
) -> Path:
  """Saves a figure as PNG, and the arrays it shows in a .npz beside it."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=DPI, facecolor='white')
  np.savez_compressed(path.with_suffix('.npz'), **arrays)
  return path


def tidy(axes: Axes, *, grid: str) -> None:
  """Two faint spines, small grey ticks, a grid behind the data."""
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(FAINT)
  axes.tick_params(colors=MUTED, labelsize=10, length=0)
  axes.set_axisbelow(True)
  axes.grid(axis=grid, color=FAINT, linewidth=0.7)


def legend_above(axes: Axes) -> None:
  """A legend on the title's line, where no curve can hide."""
  axes.legend(
    frameon=False,
    fontsize=10,
    labelcolor=INK,
    ncols=3,
    loc='lower right',
    bbox_to_anchor=(1.0, 0.97),
    columnspacing=1.2,
    handlelength=1.6,
  )
