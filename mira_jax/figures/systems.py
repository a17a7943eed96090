"""What other systems see: maps over the frames of a clip."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mira_jax.figures.style import INK, MUTED, Picture, blank, drawn, text

_SIDE = 1.05  # inches of a frame
_LABEL = 2.2  # inches beside a row


@drawn
def maps_figure(
  maps: Mapping[str, np.ndarray],
  frames: np.ndarray,
  title: str,
  angles: Mapping[str, float] | None = None,
) -> Picture:
  """A row of frames for each map, coloured by it, and the range of its values.

  Args:
    maps: [T, h, w] each, by name.
    frames: uint8 [T, S, S, 3], one of each temporal token.
    title: of the figure.
    angles: degrees of the direction of some maps, drawn as a line: 90 is
      upright.

  Returns:
    A picture whose arrays are the maps.
  """
  count, rows = len(frames), len(maps)
  figure = blank(max(count * _SIDE + _LABEL, 7), rows * _SIDE + 0.9)
  head = {'size': 14, 'weight': 'bold', 'x': 0.01, 'ha': 'left'}
  figure.suptitle(text(title, 90), color=INK, **head)
  side = frames.shape[1]
  axes = figure.subplots(rows, count, squeeze=False)
  for row, (name, values) in zip(axes, maps.items(), strict=True):
    low, high = float(values.min()), float(values.max())
    for panel, frame, one in zip(row, frames, values, strict=True):
      panel.imshow(frame.mean(-1), cmap='gray', vmin=0, vmax=255)
      panel.imshow(
        one,
        cmap='inferno',
        vmin=low,
        vmax=max(high, low + 1e-9),
        alpha=0.55,
        extent=(-0.5, side - 0.5, side - 0.5, -0.5),
      )
      panel.set_xticks([])
      panel.set_yticks([])
      panel.spines[:].set_visible(False)
    label = f'{text(name, 24)}\n{low:.3g} to {high:.3g}'
    row[0].set_ylabel(
      label, rotation=0, ha='right', va='center', size=10, color=MUTED
    )
    if angles and name in angles:
      turn = np.radians(angles[name])
      x, y = np.cos(turn) * side / 2.4, np.sin(turn) * side / 2.4
      middle = side / 2 - 0.5
      row[0].plot(
        [middle - x, middle + x],
        [middle - y, middle + y],
        color='#4fc3f7',
        linewidth=3,
      )
  return Picture(
    figure, {name.replace(' ', '_'): x for name, x in maps.items()}
  )
