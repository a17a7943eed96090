"""Timelines of action units: a row for each, over the seconds of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mira_jax.errors import NO_FACE
from mira_jax.figures.charts import draw_stills
from mira_jax.figures.style import (
  GREY,
  INK,
  MUTED,
  VERMILLION,
  Picture,
  blank,
  drawn,
  text,
  texts,
)


@drawn
def unit_timeline_figure(
  timeline: np.ndarray,
  class_names: Sequence[str],
  title: str,
  *,
  thresholds: Sequence[float],
  seconds: float = 0.0,
  stills: np.ndarray | None = None,
) -> Picture:
  """The probability of every action unit in every second.

  A line below a second marks a unit that is shown: whose probability is at or
  above its threshold.

  Args:
    timeline: float [S, A]; NaN in seconds without a face, which are hatched.
    class_names: A names.
    title: of the figure.
    thresholds: [A].
    seconds: where the clip ends; 0: with the last second.
    stills: uint8 [n, s, s, 3], frames from the middles of n equal parts of the
      clip, drawn below.
  """
  end, count = seconds or float(len(timeline)), len(class_names)
  high = 1.4 + 0.32 * count
  figure = blank(10, high if stills is None else high + 0.9)
  if stills is None:
    axes = figure.add_subplot()
  else:
    ratios = high, 0.9
    axes, below = figure.subplots(2, 1, height_ratios=ratios, sharex=True)
    draw_stills(below, stills, end)
  edges = np.minimum(np.arange(len(timeline) + 1), end)
  rows = np.arange(count + 1) - 0.5
  values = np.ma.masked_invalid(timeline.T)
  mesh = axes.pcolormesh(edges, rows, values, cmap='Blues', vmin=0, vmax=1)
  for i, least in enumerate(thresholds):
    for second in np.flatnonzero(timeline[:, i] >= least):
      span = edges[second], edges[second + 1]
      axes.hlines(i + 0.4, *span, color=VERMILLION, lw=3)
  style: dict[str, Any] = {'facecolor': 'none', 'edgecolor': GREY, 'lw': 0}
  for second in np.flatnonzero(np.isnan(timeline[:, 0])):
    axes.axvspan(edges[second], edges[second + 1], hatch='///', **style)
  axes.set(xlim=(0, end), ylim=(count - 0.5, -0.5))
  axes.set_yticks(range(count), texts(class_names, 22))
  axes.tick_params(length=0, labelcolor=INK, labelbottom=True)
  axes.spines[:].set_visible(False)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.set_title(text(title), loc='left', color=INK, fontsize=13)
  note = 'seconds; a line marks an action unit that is shown'
  if np.isnan(timeline).any():
    note += f', hatching: {NO_FACE}'
  axes.set_xlabel(note, color=MUTED, size=10)
  bar = figure.colorbar(mesh, ax=axes, pad=0.02)
  bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
  bar.set_label('probability', color=MUTED, size=10)
  bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
  arrays = {'timeline': timeline, 'thresholds': np.array(thresholds)}
  return Picture(figure, arrays | {'class_names': np.array(list(class_names))})
