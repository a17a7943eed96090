"""Class probabilities over the seconds of a long clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mira_jax.figures.style import (
  CYCLE,
  FAINT,
  INK,
  MUTED,
  Picture,
  drawn,
  text,
  texts,
  tidy,
)

_NAMED = 6  # classes with a colour of their own


@drawn
def timeline_figure(
  timeline: np.ndarray, class_names: Sequence[str], title: str
) -> Picture:
  """The probability of every class in every second, stacked to one.

  Args:
    timeline: float [S, K].
    class_names: K names.
    title: of the figure.
  """
  order = np.argsort(-timeline.mean(0), kind='stable')
  order = [int(i) for i in order]
  named, others = order[:_NAMED], order[_NAMED:]
  layers = [timeline[:, i] for i in named]
  labels = texts([class_names[i] for i in named], 24)
  if len(others):
    layers.append(timeline[:, others].sum(1))
    one = text(class_names[others[0]], 24)
    labels.append(one if len(others) == 1 else f'{len(others)} others')
  figure = Figure(figsize=(10, 3.8), layout='constrained')
  axes = figure.add_subplot()
  axes.stackplot(
    np.arange(len(timeline) + 1),
    *[np.append(layer, layer[-1]) for layer in layers],  # the last second, too
    labels=labels,
    colors=[*CYCLE[: len(named)], FAINT],
    step='post',
    linewidth=0,
  )
  axes.set_xlim(0, len(timeline))
  axes.set_ylim(0, 1)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  axes.yaxis.set_major_formatter(PercentFormatter(1))
  axes.set_xlabel('second', color=MUTED)
  axes.set_title(text(title), loc='left', color=INK, fontsize=13)
  tidy(axes, grid='y')
  axes.legend(
    frameon=False,
    fontsize=10,
    labelcolor=INK,
    loc='center left',
    bbox_to_anchor=(1.0, 0.5),
    reverse=True,
  )
  names = np.array(list(class_names))
  return Picture(figure, {'timeline': timeline, 'class_names': names})
