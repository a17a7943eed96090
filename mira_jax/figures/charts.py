"""Confusion matrices, training curves and timelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mira_jax.errors import NO_FACE
from mira_jax.figures.style import (
  CYCLE,
  FAINT,
  INK,
  MUTED,
  Picture,
  blank,
  drawn,
  legend,
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
  clips, count, names = matrix.sum(1), len(matrix), texts(class_names, 40)
  side = max(0.78 * count, 4.6) + 2.2  # inches
  figure = blank(side, side)
  axes = figure.add_subplot()
  style = {'color': INK, 'x': 0.02, 'ha': 'left', 'size': 14, 'weight': 'bold'}
  figure.suptitle(text(title, int(7 * side)), **style)
  axes.set_title(scores, size=10, color=MUTED, pad=10)
  shares = matrix / np.maximum(clips[:, None], 1)
  axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
  for (true, guess), number in np.ndenumerate(matrix):
    color = INK if shares[true, guess] < 0.55 else 'white'  # the more readable
    share = f'{shares[true, guess]:.1%}' if clips[true] else '–'
    cell: dict[str, Any] = {'color': color, 'ha': 'center'}
    axes.text(guess, true, share, va='bottom', size=11, **cell)
    axes.text(guess, true + 0.08, f'{number}', va='top', size=9, **cell)
  axes.set_xticks(
    range(count), names, rotation=40, ha='right', rotation_mode='anchor'
  )
  axes.set_yticks(range(count), names)
  axes.tick_params(length=0, labelsize=11, labelcolor=INK)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_ticks(np.arange(count - 1) + 0.5, minor=True)
  axes.grid(which='minor', color='white', linewidth=1.5)
  axes.tick_params(which='minor', length=0)
  axes.spines[:].set_visible(False)
  axes.set_xlabel('predicted', size=12, color=MUTED)
  axes.set_ylabel('true', size=12, color=MUTED)
  return Picture(figure, arrays)


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
  panels: dict[str, dict[str, list]] = {title: {} for title in _PANELS}
  for row in rows:
    for key, value in row.items():
      if value is not None and (title := _panel(key)):
        panels[title].setdefault(key, []).append((row['step'], value))
  panels = {title: curves for title, curves in panels.items() if curves}
  if not panels:
    raise ValueError(f'no curve in {len(rows)} rows')
  across = min(2, len(panels))
  down = -(-len(panels) // across)
  figure = blank(6.4 * across, 3.6 * down)
  series: dict[str, np.ndarray] = {}
  for place, (title, curves) in enumerate(panels.items(), 1):
    axes = figure.add_subplot(down, across, place)
    axes.set_prop_cycle(color=CYCLE)
    for key, points in curves.items():
      series[key] = np.array(points)
      axes.plot(*series[key].T, marker='.', label=text(key, 24))
    axes.set_title(title, size=13, loc='left', color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _finish(axes, 'step', percent=title == 'accuracy')
    legend(axes)
  return Picture(figure, series)


def _panel(key: str) -> str | None:
  """The panel of a metric's name; prefixes end in '/' or '_'."""
  for title, names in _PANELS.items():
    if any(f'_{key}'.endswith((f'/{n}', f'_{n}')) for n in names):
      return title
  return None


@drawn
def timeline_figure(
  timeline: np.ndarray, class_names: Sequence[str], title: str
) -> Picture:
  """The probability of every class in every second, stacked to one.

  Args:
    timeline: float [S, K]; NaN in seconds without a face.
    class_names: K names.
    title: of the figure.
  """
  empty = np.isnan(timeline[:, 0])
  shown = np.where(empty[:, None], 0, timeline)
  order = [*map(int, np.argsort(-shown.mean(0), kind='stable'))]
  named, others = order[: len(CYCLE)], order[len(CYCLE) :]
  layers = [shown[:, i] for i in named]
  labels = texts([class_names[i] for i in named], 24)
  if others:
    layers.append(shown[:, others].sum(1))
    labels.append(f'{len(others)} more')
  colors = [*CYCLE[: len(named)], FAINT][: len(layers)]
  if empty.any():
    layers.append(empty.astype(float))
    labels.append(NO_FACE)
    colors.append('white')
  figure = blank(10, 3.8)
  axes = figure.add_subplot()
  axes.stackplot(
    np.arange(len(timeline) + 1),
    *[np.append(layer, layer[-1]) for layer in layers],  # the last second, too
    labels=labels,
    colors=colors,
    step='post',
    linewidth=0,
  )
  axes.set(xlim=(0, len(timeline)), ylim=(0, 1))
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.set_title(text(title), loc='left', color=INK, fontsize=13)
  _finish(axes, 'second', percent=True)
  legend(axes, loc='center left', bbox_to_anchor=(1.0, 0.5), reverse=True)
  names = np.array(list(class_names))
  return Picture(figure, {'timeline': timeline, 'class_names': names})


def _finish(axes: Axes, label: str, *, percent: bool) -> None:
  axes.set_xlabel(label, color=MUTED, size=10)
  if percent:
    axes.yaxis.set_major_formatter(PercentFormatter(1))
  tidy(axes, grid='y')
