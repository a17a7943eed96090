"""Confusion matrices, training curves and timelines."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mira_jax.errors import NO_FACE
from mira_jax.figures.style import (
  BLUE,
  CYCLE,
  FAINT,
  GREY,
  INK,
  MUTED,
  VERMILLION,
  Picture,
  blank,
  class_color,
  drawn,
  legend,
  text,
  texts,
  tidy,
)

_PANELS = {
  'loss': ('loss',),
  'accuracy': ('accuracy', 'war', 'uar', 'f1'),
  'learning rate': ('lr', 'learning_rate'),
  'gradient norm': ('grad_norm',),
  'skipped steps': ('skipped',),
  'angle of each block, degrees': ('angle',),
}
_CLASSES = 14  # of a timeline that have a colour
_STYLES = (('o', '-'), ('s', '--'), ('^', '-.'), ('D', ':'))  # of curves


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

  Curves that coincide differ in markers and dashes; legends give last values.
  Skipped steps have a panel where there are some.

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
  skipped = panels['skipped steps']
  if not any(value for points in skipped.values() for _, value in points):
    skipped.clear()
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
    for (key, points), (marker, line) in zip(
      curves.items(), itertools.cycle(_STYLES), strict=False
    ):
      series[key] = np.array(points)
      style: dict[str, Any] = {'marker': marker, 'linestyle': line}
      style['markevery'] = max(1, len(points) // 12)
      label = f'{text(key, 24)} {points[-1][1]:.3g}'
      axes.plot(*series[key].T, label=label, markersize=4, **style)
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
def reliability_figure(
  confidence: np.ndarray,
  accuracy: np.ndarray,
  count: np.ndarray,
  title: str,
) -> Picture:
  """Accuracy over confidence, and the number of clips, of B bins.

  Args:
    confidence: [B], the mean in each bin; NaN of an empty one.
    accuracy: [B], likewise.
    count: int [B], clips.
    title: of the figure.
  """
  figure = blank(5.6, 5.6)
  top, low = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
  top.plot([0, 1], [0, 1], color=GREY, linestyle='--', label='calibrated')
  known = count > 0
  style = {'color': BLUE, 'marker': 'o', 'label': 'clips'}
  top.plot(confidence[known], accuracy[known], **style)
  top.set(xlim=(0, 1), ylim=(0, 1.02))
  top.set_ylabel('accuracy', color=MUTED, size=10)
  top.yaxis.set_major_formatter(PercentFormatter(1))
  top.set_title(text(title, 60), loc='left', color=INK, size=12)
  middles = (np.arange(len(count)) + 0.5) / len(count)
  low.bar(middles, count, 0.9 / len(count), color=BLUE)
  low.set_ylabel('clips', color=MUTED, size=10)
  low.xaxis.set_major_formatter(PercentFormatter(1))
  tidy(top, grid='y')
  _finish(low, 'confidence: probability of the predicted class', percent=False)
  top.legend(frameon=False, loc='upper left', fontsize=10, labelcolor=INK)
  arrays = {'confidence': confidence, 'accuracy': accuracy, 'count': count}
  return Picture(figure, arrays)


@drawn
def faithfulness_figure(
  curves: Mapping[str, np.ndarray], title: str
) -> Picture:
  """Deletion and insertion curves.

  Args:
    curves: [2, K + 1], deletion and insertion, by 'KIND ORDER'; the last word
      is 'before', 'after' or 'chance'.
    title: of the figure.
  """
  kinds = list(dict.fromkeys(key.rsplit(' ', 1)[0] for key in curves))
  figure = blank(6.0 * len(kinds), 7.6)
  head = {'size': 14, 'weight': 'bold', 'x': 0.01, 'ha': 'left'}
  figure.suptitle(text(title, 96), color=INK, **head)
  panels = figure.subplots(2, len(kinds), squeeze=False)
  looks = {
    'before': ('before MiRA', BLUE, *_STYLES[1]),
    'after': ('after MiRA', VERMILLION, *_STYLES[0]),
    'chance': ('random order', GREY, *_STYLES[2]),
  }
  for (row, column), axes in np.ndenumerate(panels):
    for key, values in curves.items():
      kind, order = key.rsplit(' ', 1)
      if kind != kinds[column]:
        continue
      name, color, marker, line = looks[order]
      shares = np.linspace(0, 1, values.shape[1])
      style: dict[str, Any] = {'marker': marker, 'linestyle': line}
      area = np.trapezoid(values[row], shares)
      label = f'{name} {area:.3f}'
      axes.plot(shares, values[row], color=color, label=label, **style)
    what = ('deletion', 'insertion')[row]
    axes.set_title(f'{what} of {kinds[column]}', loc='left', color=INK, size=12)
    axes.set_ylabel('probability of the class', color=MUTED, size=10)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    verb = 'blurred' if row == 0 else 'shown'
    axes.set_xlabel(f'share of {kinds[column]} {verb}', color=MUTED, size=10)
    tidy(axes, grid='y')
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, title='area')
  return Picture(figure, {k.replace(' ', '_'): v for k, v in curves.items()})


@drawn
def features_figure(
  points: np.ndarray, label: np.ndarray, class_names: Sequence[str], title: str
) -> Picture:
  """Clips as points [C, 2] in the colours of their classes int [C]."""
  figure = blank(7.6, 5.6)
  axes = figure.add_subplot()
  for i, name in enumerate(class_names):
    own = points[label == i]
    marker = 'osD^vP*'[i // len(CYCLE) % 7]
    style: dict[str, Any] = {'color': CYCLE[i % len(CYCLE)], 'marker': marker}
    axes.scatter(*own.T, s=14, alpha=0.75, lw=0, label=text(name, 24), **style)
  axes.set_title(text(title, 72), loc='left', color=INK, size=12)
  axes.set(xticks=[], yticks=[])
  axes.spines[:].set_color(FAINT)
  legend(axes, loc='center left', bbox_to_anchor=(1.0, 0.5))
  names = np.array(list(class_names))
  return Picture(
    figure, {'points': points, 'label': label, 'class_names': names}
  )


@drawn
def timeline_figure(
  timeline: np.ndarray,
  class_names: Sequence[str],
  title: str,
  *,
  seconds: float = 0.0,
  stills: np.ndarray | None = None,
) -> Picture:
  """The probability of every class in every second, stacked to one.

  A class has the colour of its index, in every picture of a model.

  Args:
    timeline: float [S, K]; NaN in seconds without a face, which are hatched.
    class_names: K names.
    title: of the figure.
    seconds: where the clip ends; 0: with the last second.
    stills: uint8 [n, s, s, 3], frames from the middles of n equal parts of the
      clip, drawn below the axis.
  """
  end = seconds or float(len(timeline))
  empty = np.isnan(timeline[:, 0])
  shown = np.where(empty[:, None], 0, timeline)
  rank = np.argsort(-shown.mean(0), kind='stable')
  named = sorted(rank[:_CLASSES].tolist())
  layers = [shown[:, i] for i in named]
  labels = [text(class_names[int(i)], 24) for i in named]
  colors = [class_color(i) for i in named]
  if len(rank) > _CLASSES:
    layers.append(shown[:, rank[_CLASSES:]].sum(1))
    labels.append(f'{len(rank) - _CLASSES} more')
    colors.append(FAINT)
  figure = blank(10, 3.8 if stills is None else 4.6)
  if stills is None:
    axes = figure.add_subplot()
  else:
    axes, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    draw_stills(below, stills, end)
  edges = np.minimum(np.arange(len(timeline) + 1), end)
  axes.stackplot(
    edges,
    *[np.append(layer, layer[-1]) for layer in layers],  # the last second, too
    labels=labels,
    colors=colors,
    step='post',
    linewidth=0,
  )
  style: dict[str, Any] = {'facecolor': 'white', 'edgecolor': GREY, 'lw': 0}
  for i, second in enumerate(np.flatnonzero(empty).tolist()):
    label = '' if i else NO_FACE
    span = edges[second], edges[second + 1]
    axes.axvspan(*span, hatch='///', label=label, **style)
  axes.set(xlim=(0, end), ylim=(0, 1))
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.set_title(text(title), loc='left', color=INK, fontsize=13)
  axes.set_ylabel('probability', color=MUTED, size=10)
  _finish(axes, 'seconds', percent=True)
  axes.tick_params(labelbottom=True)
  legend(axes, loc='center left', bbox_to_anchor=(1.0, 0.5), reverse=True)
  names = np.array(list(class_names))
  arrays = {'timeline': timeline, 'class_names': names}
  return Picture(figure, arrays)


def draw_stills(axes: Axes, stills: np.ndarray, end: float) -> None:
  """Frames in a row, in the middles of equal parts of the clip."""
  width = end / len(stills)
  for i, still in enumerate(stills):
    axes.imshow(still, extent=(i * width, (i + 1) * width, 0, 1), aspect='auto')
  axes.set_axis_off()
  axes.set(xlim=(0, end), ylim=(0, 1))


def _finish(axes: Axes, label: str, *, percent: bool) -> None:
  axes.set_xlabel(label, color=MUTED, size=10)
  if percent:
    axes.yaxis.set_major_formatter(PercentFormatter(1))
  tidy(axes, grid='y')
