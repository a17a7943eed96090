"""The picture of a clip: frames, gain, attention before and after MiRA."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.cells import cell_len

from mira_jax.figures.style import (
  BLUE,
  GREY,
  INK,
  MUTED,
  VERMILLION,
  WIDTH,
  drawn,
  legend_above,
  save,
  text,
  texts,
  tidy,
)

_EDGE, _LEFT, _RIGHT, _GAP, _TALL = 0.3, 1.75, 1.2, 0.1, 1.9  # inches
_COLUMNS = 16  # image columns at most; the curves always show every slot
_CLASSES = 8  # class bars at most


@dataclasses.dataclass(kw_only=True)
class ClipPicture:
  """What a clip's picture shows: T temporal slots of F / T frames each.

  `before` and `after` are key marginals: the share of all attention that each
  token receives, averaged over queries, heads and MiRA's blocks; each sums to
  one. A plain ViT has neither `gain` nor `after`.
  """

  frames: np.ndarray  # uint8 [F, H, W, 3], the frames that the model saw
  gain: np.ndarray | None  # [blocks, T]
  before: np.ndarray  # [T, h, w]
  after: np.ndarray | None  # [T, h, w]
  probabilities: np.ndarray  # [K]
  class_names: Sequence[str]
  title: str
  indices: np.ndarray | None = None  # [F], numbers in the source, or 0..F-1

  def __post_init__(self):
    slots = len(self.before)
    if self.indices is None:
      self.indices = np.arange(len(self.frames))
    if len(self.frames) % slots or len(self.frames) != len(self.indices):
      raise ValueError(
        f'{len(self.frames)} frames, {len(self.indices)} indices: both must '
        f'be the same multiple of {slots} slots'
      )
    if (self.gain is None) != (self.after is None):
      raise ValueError('gain and after come together, or not at all')
    if self.gain is not None and self.gain.shape[1:] != (slots,):
      raise ValueError(f'gain {self.gain.shape} is not [blocks, {slots}]')
    if self.after is not None and self.after.shape != self.before.shape:
      raise ValueError(f'after {self.after.shape} != {self.before.shape}')
    if len(self.probabilities) != len(self.class_names):
      raise ValueError(
        f'{len(self.probabilities)} probabilities for '
        f'{len(self.class_names)} class names'
      )

  @property
  def tubelet(self) -> int:
    """Frames per temporal slot."""
    return len(self.frames) // len(self.before)

  @property
  def shown(self) -> np.ndarray:
    """The slots that get a column of images."""
    slots = len(self.before)
    return np.linspace(0, slots - 1, min(slots, _COLUMNS)).round().astype(int)

  @property
  def cell(self) -> float:
    """Width of an image column in inches."""
    columns = len(self.shown)
    return (WIDTH - _LEFT - _RIGHT - _GAP * (columns - 1)) / columns

  def slot_label(self, slot: int) -> str:
    """The slot and its frame numbers, on two lines."""
    mine = self.indices[slot * self.tubelet :][: self.tubelet]
    ends = f'{mine[0]}' if len(mine) == 1 else f'{mine[0]}, {mine[-1]}'
    if len(mine) > 2:
      ends = f'{mine[0]} … {mine[-1]}'
    word = 'frame' if len(mine) == 1 else 'frames'
    return f'slot {slot}\n' + (f'{word} {ends}' if self.cell > 1.2 else ends)


def clip_figure(
  path: str | os.PathLike[str],
  frames: np.ndarray,
  gain: np.ndarray | None,
  before: np.ndarray,
  after: np.ndarray | None,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  title: str,
  indices: np.ndarray | None = None,
) -> Path:
  """Saves the picture of one clip; see `ClipPicture` for the shapes.

  Raises:
    ValueError: the shapes disagree.
  """
  picture = ClipPicture(
    frames=frames,
    gain=gain,
    before=before,
    after=after,
    probabilities=probabilities,
    class_names=class_names,
    title=title,
    indices=indices,
  )
  arrays = {
    'frames': frames[:: picture.tubelet],
    'indices': picture.indices,
    'before': before,
    'probabilities': probabilities,
    'class_names': np.array(class_names),
  }
  if gain is not None:
    arrays |= {'gain': gain, 'after': after}
  return save(path, build_clip_figure(picture), **arrays)


@drawn
def build_clip_figure(picture: ClipPicture) -> Figure:
  """Draws frames, gain, attention before / after / change, and classes."""
  figure, grid, row = _clip_grid(picture)
  _headline(figure, picture)
  stills = picture.frames[:: picture.tubelet][picture.shown]
  for axes, still, slot in zip(
    _image_row(figure, grid, row['frames'], 'sampled\nframes'),
    stills,
    picture.shown,
    strict=True,
  ):
    axes.imshow(still)
    axes.set_title(
      picture.slot_label(slot), fontsize=9.5, color=MUTED, linespacing=1.35
    )
  if picture.gain is not None:
    _draw_gain(figure.add_subplot(grid[row['gain'], :]), picture)
  _draw_attention(figure, grid, row, picture, stills)
  foot = grid[row['foot'], :].get_position(figure)
  for left, right, draw in (
    (_LEFT, 0.505 * WIDTH, _draw_share),
    (0.655 * WIDTH, WIDTH - _RIGHT, _draw_classes),
  ):
    box = (left / WIDTH, foot.y0, (right - left) / WIDTH, foot.height)
    draw(figure.add_axes(box), picture)
  return figure


def _clip_grid(picture: ClipPicture) -> tuple[Figure, GridSpec, dict]:
  """A grid of rows given in inches, so that all pictures are spaced alike."""
  ratio = picture.frames.shape[1] / picture.frames.shape[2]
  tall = min(picture.cell * ratio, _TALL)
  rows = [('head', 1.55), ('frames', tall), ('', 0.3)]
  if picture.gain is not None:
    rows += [('', 0.1), ('gain', 1.3), ('', 0.25)]
  rows += [('before', tall)]
  if picture.after is not None:
    rows += [('', _GAP), ('after', tall), ('', _GAP), ('change', tall)]
  rows += [('', 0.65), ('foot', 2.1), ('', 0.7)]
  names, heights = zip(*rows, strict=True)
  figure = Figure(figsize=(WIDTH, sum(heights)))
  grid = figure.add_gridspec(
    len(rows),
    len(picture.shown),
    height_ratios=heights,
    left=_LEFT / WIDTH,
    right=1 - _RIGHT / WIDTH,
    bottom=0,
    top=1,
    hspace=0,
    wspace=_GAP / picture.cell,
  )
  return figure, grid, {name: i for i, name in enumerate(names) if name}


def _headline(figure: Figure, picture: ClipPicture) -> None:
  """Title, verdict, and what a column stands for."""
  best = int(np.argmax(picture.probabilities))
  verdict = text(picture.class_names[best], 30)
  verdict += f' {picture.probabilities[best]:.0%}'
  title = text(picture.title)
  caption = 'Each column is one frame.'
  if picture.tubelet > 1:
    caption = (
      f'Each column is one temporal slot. A slot covers {picture.tubelet} '
      'consecutive sampled frames, and so does its bar and map; the first of '
      'them is shown.'
    )
  if len(picture.shown) < len(picture.before):
    caption += f' {len(picture.shown)} of {len(picture.before)} slots shown.'
  # Title and verdict share a line: 88 characters of 17 points fill it.
  size = 17 * min(1, 88 / (cell_len(title) + cell_len(verdict)))
  for x, drop, line, style in (
    (_EDGE, 0.42, title, {'size': size, 'weight': 'bold'}),
    (_EDGE, 0.8, caption, {'size': 11, 'color': MUTED}),
    (
      WIDTH - _RIGHT,
      0.42,
      verdict,
      {'size': size, 'weight': 'bold', 'color': VERMILLION, 'ha': 'right'},
    ),
  ):
    y = 1 - drop / figure.get_figheight()
    figure.text(x / WIDTH, y, line, va='center', **style)


def _row_label(axes: Axes, label: str) -> None:
  box = axes.get_position()
  x, y = _EDGE / WIDTH, (box.y0 + box.y1) / 2
  style = {'size': 11, 'color': INK, 'va': 'center', 'linespacing': 1.4}
  axes.figure.text(x, y, label, **style)


def _image_row(
  figure: Figure, grid: GridSpec, row: int, label: str
) -> list[Axes]:
  cells = [figure.add_subplot(grid[row, i]) for i in range(grid.ncols)]
  for axes in cells:
    axes.set_axis_off()
  _row_label(cells[0], label)
  return cells


def _draw_gain(axes: Axes, picture: ClipPicture) -> None:
  """Bars from the neutral 1.0 to the mean gain, one dot per block."""
  mean, blocks = picture.gain.mean(0), len(picture.gain)
  slots = np.arange(len(mean))
  tidy(axes, grid='y')
  colors = np.where(mean >= 1, VERMILLION, BLUE)
  axes.bar(slots, mean - 1, 0.5, bottom=1, color=colors, alpha=0.85)
  offsets = np.linspace(-0.2, 0.2, blocks) if blocks > 1 else np.zeros(1)
  axes.scatter(
    slots + offsets[:, None],
    picture.gain,
    s=9,
    color=INK,
    linewidths=0,
    zorder=3,
  )
  reach = 1.25 * max(np.abs(picture.gain - 1).max(), 0.05)
  axes.set_ylim(1 - reach, 1 + reach)
  axes.axhline(1, color=INK, linewidth=1)
  style = {'size': 10.5 if len(mean) <= _COLUMNS else 8, 'ha': 'center'}
  above = axes.get_xaxis_transform()
  for slot, value, color in zip(slots, mean, colors, strict=True):
    axes.text(slot, 1.0, f'{value:.2f}', color=color, transform=above, **style)
  # Slot i stands under image column i (many slots: under none of its own).
  half = picture.cell / (picture.cell + _GAP) / 2
  axes.set_xlim(-half, len(mean) - 1 + half)
  axes.set_xticks([])
  axes.spines['bottom'].set_visible(False)
  _row_label(axes, 'gain of MiRA\nbar: mean\ndots: blocks')


def _draw_attention(
  figure: Figure,
  grid: GridSpec,
  row: Mapping[str, int],
  picture: ClipPicture,
  stills: np.ndarray,
) -> None:
  """Heat over the frames; 1 is what uniform attention would give a token."""
  # Lifted, so that the map's dark end does not drown the face.
  grey = 40 + 0.84 * stills @ np.array([0.299, 0.587, 0.114])
  size = picture.before.size
  maps = {'before': picture.before * size}
  labels = {'before': 'attention'}
  if picture.after is not None:
    labels = {
      'before': 'attention\nbefore MiRA',
      'after': 'attention\nafter MiRA',
    }
    maps['after'] = picture.after * size
  # One outlying token (a sink) must not turn every other one black.
  top = max(np.quantile(list(maps.values()), 0.995), 1e-6)
  for name, heat in maps.items():
    cells = _image_row(figure, grid, row[name], labels[name])
    for axes, still, values in zip(
      cells, grey, heat[picture.shown], strict=True
    ):
      image = _overlay(axes, still, values, 'inferno', 0, top)
  _color_bar(figure, grid, (row['before'], row[name]), image, '× uniform')
  if picture.after is not None:
    change = maps['after'] - maps['before']
    reach = max(np.quantile(np.abs(change), 0.995), 0.06)
    cells = _image_row(figure, grid, row['change'], 'change\nafter − before')
    for axes, still, values in zip(
      cells, grey, change[picture.shown], strict=True
    ):
      image = _overlay(axes, still, values, 'RdBu_r', -reach, reach)
    _color_bar(figure, grid, (row['change'], row['change']), image, '× uniform')


def _overlay(
  axes: Axes,
  still: np.ndarray,
  heat: np.ndarray,
  cmap: str,
  low: float,
  high: float,
) -> AxesImage:
  axes.imshow(still, cmap='gray', vmin=0, vmax=255)
  height, width = still.shape
  return axes.imshow(
    heat,
    cmap=cmap,
    vmin=low,
    vmax=high,
    alpha=0.6,
    extent=(-0.5, width - 0.5, height - 0.5, -0.5),
    interpolation='bilinear',
  )


def _color_bar(
  figure: Figure,
  grid: GridSpec,
  rows: tuple[int, int],
  image: AxesImage,
  label: str,
) -> None:
  box = grid[rows[0] : rows[1] + 1, -1].get_position(figure)
  axes = figure.add_axes(
    (box.x1 + 0.18 / WIDTH, box.y0, 0.14 / WIDTH, box.height)
  )
  bar = figure.colorbar(image, cax=axes)
  bar.outline.set_visible(False)
  axes.tick_params(colors=MUTED, labelsize=10, length=0)
  axes.yaxis.set_major_locator(MaxNLocator(4))
  axes.set_ylabel(label, color=MUTED, size=10)


def _draw_share(axes: Axes, picture: ClipPicture) -> None:
  """The share of all attention that each slot receives."""
  slots = np.arange(len(picture.before))
  tidy(axes, grid='y')
  curves = [('before MiRA', picture.before, BLUE, 'o')]
  if picture.after is None:
    curves = [('plain ViT', picture.before, BLUE, 'o')]
  else:
    curves += [('after MiRA', picture.after, VERMILLION, 's')]
  for label, marginal, color, marker in curves:
    share = marginal.sum((1, 2))
    axes.plot(
      slots, share, marker, ls='-', color=color, lw=2, ms=5, label=label
    )
  axes.axhline(1 / len(slots), color=GREY, ls='--', lw=1, label='uniform')
  axes.set_xlim(-0.5, len(slots) - 0.5)
  axes.xaxis.set_major_locator(
    MaxNLocator(_COLUMNS, integer=True, min_n_ticks=1)
  )
  axes.yaxis.set_major_formatter(PercentFormatter(1))
  axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
  axes.set_xlabel('temporal slot', color=MUTED, size=10)
  axes.set_title('Attention per slot', size=12, loc='left')
  legend_above(axes)


def _draw_classes(axes: Axes, picture: ClipPicture) -> None:
  """The likeliest classes, best on top."""
  count = len(picture.probabilities)
  order = np.argsort(-picture.probabilities, kind='stable')[:_CLASSES]
  values = picture.probabilities[order]
  colors = [VERMILLION, *[GREY] * (len(order) - 1)]
  axes.barh(np.arange(len(order)), values, 0.62, color=colors)
  for place, value in enumerate(values):
    axes.text(value + 0.012, place, f'{value:.1%}', va='center', size=10)
  tidy(axes, grid='x')
  axes.spines['bottom'].set_visible(False)
  names = texts([picture.class_names[i] for i in order], 22)
  axes.set_yticks(range(len(order)), names)
  axes.tick_params(axis='y', labelcolor=INK, labelsize=11)
  axes.set_ylim(max(len(order), 4) - 0.4, -0.6)
  axes.set_xlim(0, 1.08)
  axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
  axes.xaxis.set_major_formatter(PercentFormatter(1))
  more = f' (best {_CLASSES} of {count})' if count > _CLASSES else ''
  axes.set_title(f'Class probabilities{more}', size=12, loc='left')
