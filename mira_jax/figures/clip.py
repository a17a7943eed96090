"""One clip: its frames, MiRA's gain, attention before and after MiRA."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.cells import cell_len

from mira_jax.figures.style import (
  BLUE,
  GREY,
  INK,
  MUTED,
  VERMILLION,
  WIDTH,
  Picture,
  drawn,
  legend_above,
  spread,
  text,
  texts,
  tidy,
)

_EDGE, _LEFT, _RIGHT, _GAP, _TALL = 0.3, 1.75, 1.2, 0.1, 1.9  # inches
_COLUMNS = 16  # image columns at most; the curves show every temporal token
_CLASSES = 8  # class bars at most
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(kw_only=True)
class ClipPicture:
  """The contents of a clip's figure: T temporal tokens of F / T frames each.

  `before` and `after` are key marginals: the share of all attention that each
  token receives, averaged over queries, heads and MiRA's blocks; each sums to
  one. A plain ViT has neither `gain` nor `after`.
  """

  frames: np.ndarray  # uint8 [F, H, W, 3], the input of the model
  gain: np.ndarray | None  # [blocks, T]
  before: np.ndarray  # [T, h, w]
  after: np.ndarray | None  # [T, h, w]
  probabilities: np.ndarray  # [K]
  class_names: Sequence[str]
  title: str
  indices: np.ndarray | None = None  # [F], numbers in the source, or 0..F-1

  def __post_init__(self):
    if self.indices is None:
      self.indices = np.arange(len(self.frames))
    if len(self.frames) % len(self.before):
      text = f'{len(self.frames)} frames are no multiple of the tokens in time'
      raise ValueError(text)

  @property
  def tubelet(self) -> int:
    """Frames per temporal token."""
    return len(self.frames) // len(self.before)

  @property
  def shown(self) -> np.ndarray:
    """The temporal tokens that get a column of images."""
    return spread(len(self.before), _COLUMNS)

  @property
  def stills(self) -> np.ndarray:
    """The first frame of each of these, uint8 [columns, H, W, 3]."""
    return self.frames[:: self.tubelet][self.shown]

  @property
  def cell(self) -> float:
    """Width of an image column in inches."""
    columns = len(self.shown)
    return (WIDTH - _LEFT - _RIGHT - _GAP * (columns - 1)) / columns

  def slot_label(self, slot: int) -> str:
    """The temporal token and its frame numbers, on two lines."""
    mine = np.asarray(self.indices)[slot * self.tubelet :][: self.tubelet]
    ends = f'{mine[0]}' if len(mine) == 1 else f'{mine[0]}, {mine[-1]}'
    if len(mine) > 2:
      ends = f'{mine[0]} … {mine[-1]}'
    word = 'frame' if len(mine) == 1 else 'frames'
    return f'token {slot}\n' + (f'{word} {ends}' if self.cell > 1.2 else ends)


@drawn
def clip_figure(clip: ClipPicture) -> Picture:
  """Frames, gain, attention before MiRA, after it, its change, and classes."""
  figure, grid, row = _clip_grid(clip)
  _headline(figure, clip)
  cells = _image_row(figure, grid, row['frames'], 'sampled\nframes')
  style = {'fontsize': 9.5, 'color': MUTED, 'linespacing': 1.35}
  for axes, still, slot in zip(cells, clip.stills, clip.shown, strict=True):
    axes.imshow(still)
    axes.set_title(clip.slot_label(slot), **style)
  if clip.gain is not None:
    _draw_gain(figure.add_subplot(grid[row['gain'], :]), clip, clip.gain)
  _draw_attention(figure, grid, row, clip)
  foot = grid[row['foot'], :].get_position(figure)
  for left, right, draw in (
    (_LEFT, 0.505 * WIDTH, _draw_share),
    (0.655 * WIDTH, WIDTH - _RIGHT, _draw_classes),
  ):
    box = (left / WIDTH, foot.y0, (right - left) / WIDTH, foot.height)
    draw(figure.add_axes(box), clip)
  arrays = {
    'frames': clip.frames[:: clip.tubelet],
    'class_names': np.array(clip.class_names),
  }
  for name in ('indices', 'before', 'probabilities', 'gain', 'after'):
    if (array := getattr(clip, name)) is not None:
      arrays[name] = array
  return Picture(figure, arrays)


def _clip_grid(clip: ClipPicture) -> tuple[Figure, GridSpec, dict[str, int]]:
  """A grid of rows given in inches, so that all figures are spaced alike."""
  ratio = clip.frames.shape[1] / clip.frames.shape[2]
  tall = min(clip.cell * ratio, _TALL)
  rows = [('head', 1.55), ('frames', tall), ('', 0.3)]
  if clip.gain is not None:
    rows += [('', 0.1), ('gain', 1.3), ('', 0.25)]
  rows += [('before', tall)]
  if clip.after is not None:
    rows += [('', _GAP), ('after', tall), ('', _GAP), ('change', tall)]
  rows += [('', 0.65), ('foot', 2.1), ('', 0.7)]
  names, heights = zip(*rows, strict=True)
  figure = Figure(figsize=(WIDTH, sum(heights)))
  grid = figure.add_gridspec(
    len(rows),
    len(clip.shown),
    height_ratios=heights,
    left=_LEFT / WIDTH,
    right=1 - _RIGHT / WIDTH,
    bottom=0,
    top=1,
    hspace=0,
    wspace=_GAP / clip.cell,
  )
  return figure, grid, {name: i for i, name in enumerate(names) if name}


def _headline(figure: Figure, clip: ClipPicture) -> None:
  """Title, likeliest class, and a caption for the columns."""
  best = int(np.argmax(clip.probabilities))
  verdict = text(clip.class_names[best], 30)
  verdict += f' {clip.probabilities[best]:.0%}'
  title = text(clip.title)
  caption = 'Each column is one frame.'
  if clip.tubelet > 1:
    caption = (
      f'Each column is one temporal token of {clip.tubelet} consecutive '
      'sampled frames, as are its bar and map; the first frame is shown.'
    )
  if len(clip.shown) < len(clip.before):
    caption += f' {len(clip.shown)} of {len(clip.before)} tokens shown.'
  # Title and verdict share a line: 88 characters of 17 points fill it.
  size = 17 * min(1, 88 / (cell_len(title) + cell_len(verdict)))
  bold: dict[str, Any] = {'size': size, 'weight': 'bold'}
  last = bold | {'ha': 'right', 'color': VERMILLION}
  lines: list[tuple[float, float, str, Any]] = [
    (_EDGE, 0.42, title, bold),
    (_EDGE, 0.8, caption, {'size': 11, 'color': MUTED}),
    (WIDTH - _RIGHT, 0.42, verdict, last),
  ]
  for x, drop, line, style in lines:
    y = 1 - drop / figure.get_figheight()
    figure.text(x / WIDTH, y, line, va='center', **style)


def _row_label(axes: Axes, label: str) -> None:
  box = axes.get_position()
  style = {'size': 11, 'color': INK, 'va': 'center', 'linespacing': 1.4}
  axes.figure.text(_EDGE / WIDTH, (box.y0 + box.y1) / 2, label, **style)


def _image_row(
  figure: Figure, grid: GridSpec, row: int, label: str
) -> list[Axes]:
  cells = [figure.add_subplot(grid[row, i]) for i in range(grid.ncols)]
  for axes in cells:
    axes.set_axis_off()
  _row_label(cells[0], label)
  return cells


def _draw_gain(axes: Axes, clip: ClipPicture, gain: np.ndarray) -> None:
  """Bars from the neutral 1.0 to the mean gain, one dot per block."""
  mean, blocks = gain.mean(0), len(gain)
  slots = np.arange(len(mean))
  tidy(axes, grid='y')
  colors = np.where(mean >= 1, VERMILLION, BLUE)
  axes.bar(slots, mean - 1, 0.5, bottom=1, color=colors, alpha=0.85)
  shift = np.linspace(-0.2, 0.2, blocks) if blocks > 1 else np.zeros(1)
  dots = {'s': 9, 'color': INK, 'linewidths': 0, 'zorder': 3}
  axes.scatter(slots + shift[:, None], gain, **dots)
  reach = 1.25 * max(np.abs(gain - 1).max(), 0.05)
  axes.set_ylim(1 - reach, 1 + reach)
  axes.axhline(1, color=INK, linewidth=1)
  style = {'size': 10.5 if len(mean) <= _COLUMNS else 8, 'ha': 'center'}
  above = axes.get_xaxis_transform()
  for slot, value, color in zip(slots, mean, colors, strict=True):
    axes.text(
      float(slot), 1.0, f'{value:.2f}', color=color, transform=above, **style
    )
  # Bar i stands under image column i, unless there are more bars than columns.
  half = clip.cell / (clip.cell + _GAP) / 2
  axes.set_xlim(-half, len(mean) - 1 + half)
  axes.set_xticks([])
  axes.spines['bottom'].set_visible(False)
  _row_label(axes, 'gain of MiRA\nbar: mean\ndots: blocks')


def _draw_attention(
  figure: Figure, grid: GridSpec, row: Mapping[str, int], clip: ClipPicture
) -> None:
  """Heat over the frames; 1 is the value of a token in uniform attention."""
  size = clip.before.size
  maps = {'before': (clip.before * size, 'attention')}
  if clip.after is not None:
    maps = {
      'before': (clip.before * size, 'attention\nbefore MiRA'),
      'after': (clip.after * size, 'attention\nafter MiRA'),
    }
  # One outlying token (a sink) must not turn every other one black.
  top = max(np.quantile([heat for heat, _ in maps.values()], 0.995), 1e-6)
  for name, (heat, label) in maps.items():
    limits = ('inferno', 0, top)
    _heat_row(
      figure, grid, (row['before'], row[name]), clip, heat, label, limits
    )
  if clip.after is not None:
    change = (clip.after - clip.before) * size
    reach = max(np.quantile(np.abs(change), 0.995), 0.06)
    label, at = 'change\nafter − before', row['change']
    limits = ('RdBu_r', -reach, reach)
    _heat_row(figure, grid, (at, at), clip, change, label, limits)


def _heat_row(
  figure: Figure,
  grid: GridSpec,
  rows: tuple[int, int],
  clip: ClipPicture,
  heat: np.ndarray,
  label: str,
  limits: tuple[str, float, float],
) -> None:
  """Maps in the last of `rows`, and a colour bar beside all of them.

  Args:
    figure: to draw on.
    grid: of the figure.
    rows: the first and the last row that share the colours.
    clip: whose frames are below the maps.
    heat: [T, h, w].
    label: of the row.
    limits: colour map, lowest and highest value.
  """
  cmap, low, high = limits
  cells = _image_row(figure, grid, rows[1], label)
  # Lifted, so that the map's dark end does not drown the face.
  grey = 40 + 0.84 * clip.stills @ _LUMA
  height, width = grey.shape[1:]
  extent = (-0.5, width - 0.5, height - 0.5, -0.5)
  style = {'vmin': low, 'vmax': high, 'alpha': 0.6, 'extent': extent}
  images = []
  for axes, still, values in zip(cells, grey, heat[clip.shown], strict=True):
    axes.imshow(still, cmap='gray', vmin=0, vmax=255)
    heat_map = axes.imshow(values, cmap=cmap, interpolation='bilinear', **style)
    images.append(heat_map)
  box = grid[rows[0] : rows[1] + 1, -1].get_position(figure)
  place = (box.x1 + 0.18 / WIDTH, box.y0, 0.14 / WIDTH, box.height)
  axes = figure.add_axes(place)
  figure.colorbar(images[-1], cax=axes).outline.set_visible(False)
  axes.tick_params(colors=MUTED, labelsize=10, length=0)
  axes.yaxis.set_major_locator(MaxNLocator(4))
  axes.set_ylabel('× uniform', color=MUTED, size=10)


def _draw_share(axes: Axes, clip: ClipPicture) -> None:
  """The share of all attention that each temporal token receives."""
  count = len(clip.before)
  tidy(axes, grid='y')
  curves = [('plain ViT', clip.before, BLUE, 'o')]
  if clip.after is not None:
    curves = [
      ('before MiRA', clip.before, BLUE, 'o'),
      ('after MiRA', clip.after, VERMILLION, 's'),
    ]
  for label, marginal, color, marker in curves:
    style = {'ls': '-', 'color': color, 'lw': 2, 'ms': 5, 'label': label}
    axes.plot(np.arange(count), marginal.sum((1, 2)), marker, **style)
  axes.axhline(1 / count, color=GREY, ls='--', lw=1, label='uniform')
  axes.set_xlim(-0.5, count - 0.5)
  ticks = MaxNLocator(_COLUMNS, integer=True, min_n_ticks=1)
  axes.xaxis.set_major_locator(ticks)
  axes.yaxis.set_major_formatter(PercentFormatter(1))
  axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
  axes.set_xlabel('temporal token', color=MUTED, size=10)
  axes.set_title('Attention per token', size=12, loc='left')
  legend_above(axes)


def _draw_classes(axes: Axes, clip: ClipPicture) -> None:
  """The likeliest classes, best on top."""
  count = len(clip.probabilities)
  order = np.argsort(-clip.probabilities, kind='stable')[:_CLASSES]
  values = clip.probabilities[order]
  colors = [VERMILLION, *[GREY] * (len(order) - 1)]
  axes.barh(np.arange(len(order)), values, 0.62, color=colors)
  for place, value in enumerate(values):
    axes.text(value + 0.012, place, f'{value:.1%}', va='center', size=10)
  tidy(axes, grid='x')
  axes.spines['bottom'].set_visible(False)
  names = texts([clip.class_names[int(i)] for i in order], 22)
  axes.set_yticks(range(len(order)), names)
  axes.tick_params(axis='y', labelcolor=INK, labelsize=11)
  axes.set_ylim(max(len(order), 4) - 0.4, -0.6)
  axes.set_xlim(0, 1.08)
  axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
  axes.xaxis.set_major_formatter(PercentFormatter(1))
  more = f' (best {_CLASSES} of {count})' if count > _CLASSES else ''
  axes.set_title(f'Class probabilities{more}', size=12, loc='left')
