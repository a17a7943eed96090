"""One clip: its frames, MiRA's gain, attention before and after MiRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mira_jax.figures.sheets import label_row
from mira_jax.figures.style import (
  BLUE,
  GREY,
  INK,
  MUTED,
  VERMILLION,
  WIDTH,
  Picture,
  blank,
  drawn,
  legend,
  spread,
  text,
  texts,
  tidy,
)

_ROWS = ('frames', 'gain', 'before', 'after', 'change')
_COLUMNS = 16  # image columns at most; the curves show every temporal token
_CLASSES = 8  # class bars at most
_TALL = 1.7  # inches of an image at most
_LUMA = np.array([0.299, 0.587, 0.114])


@drawn
def clip_figure(
  *,
  frames: np.ndarray,
  indices: np.ndarray,
  gain: np.ndarray | None,
  before: np.ndarray,
  after: np.ndarray | None,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  title: str,
  scored: int = 1,
  thresholds: Sequence[float] | None = None,
) -> Picture:
  """Frames, gain, attention before MiRA, after it, its change, and classes.

  Args:
    frames: uint8 [F, H, W, 3], the input of the model.
    indices: int [F], their numbers in the clip.
    gain: [blocks, T], of the temporal tokens of F / T frames; of a plain ViT
      None, as is `after`.
    before: [T, h, w], the share of all attention that each token receives
      without MiRA.
    after: [T, h, w], with MiRA.
    probabilities: [K]; K is 0 for a backbone.
    class_names: K names.
    title: of the figure.
    scored: windows that the probabilities are means over.
    thresholds: [K], from which probability on each of K action units is shown;
      None of classes.
  """
  tubelet, count = len(frames) // len(before), len(before)
  shown = spread(count, _COLUMNS)
  stills = frames[::tubelet][shown]
  figure, rows, box = _panels(stills, after is not None)
  top, foot = figure.subfigs
  verdict = ''
  if len(probabilities):
    best = int(np.argmax(probabilities))
    verdict = f'{text(class_names[best], 24)} {probabilities[best]:.0%}'
    if thresholds is not None:
      shown_units = zip(class_names, probabilities >= thresholds, strict=True)
      names = [name for name, there in shown_units if there]
      verdict = text(' + '.join(names) or 'no action unit', 48)
    verdict = f'  →  {verdict}'
  head = {'size': 16, 'weight': 'bold', 'x': 0.01, 'ha': 'left'}
  figure.suptitle(f'{text(title, 72)}{verdict}', color=INK, **head)
  top.suptitle(
    _caption(tubelet, len(shown), count),
    size=11, color=MUTED, x=0.01, ha='left',
  )  # fmt: skip
  _draw_images(rows['frames'], stills, box, 'sampled\nframes')
  labels = [_label(i, indices[i * tubelet :][:tubelet]) for i in shown]
  rows['frames'].set_xticks(range(len(shown)), labels)
  rows['frames'].tick_params(
    colors=MUTED, labelsize=9.5, labeltop=True, labelbottom=False, length=0
  )
  arrays = {
    'frames': frames[::tubelet],
    'indices': indices,
    'before': before,
    'probabilities': probabilities,
    'class_names': np.array(class_names),
  }
  if gain is not None and after is not None:
    arrays |= {'gain': gain, 'after': after}
    _draw_gain(rows['gain'], gain)
  _draw_maps(rows, stills, shown, box, before, after)
  left, right = foot.subplots(1, 2, width_ratios=(3, 2))
  _draw_share(left, before, after)
  if len(probabilities):
    _draw_classes(right, probabilities, class_names, scored, thresholds)
  else:
    right.set_axis_off()
  return Picture(figure, arrays)


def _panels(
  stills: np.ndarray, mira: bool
) -> tuple[Figure, dict[str, Axes], tuple[float, float]]:
  """A figure, its rows of axes by name, and the size of an image in columns.

  Row by row x is the number of a column, so that a bar is under its image.
  """
  count, height, width = stills.shape[:3]
  pitch = 0.84 * WIDTH / count  # inches from image to image
  tall = min(0.94 * pitch * height / width, _TALL)
  heights = {'frames': tall + 0.2, 'before': tall + 0.2}
  if mira:
    heights |= {'gain': 1.3} | dict.fromkeys(('after', 'change'), tall + 0.2)
  heights = {name: heights[name] for name in _ROWS if name in heights}
  inches = sum(heights.values()) + 2
  figure = blank(WIDTH, inches + 2.8)
  figure.subfigures(2, 1, height_ratios=(inches, 2.8))
  panels = figure.subfigs[0].subplots(
    len(heights), 1, height_ratios=[*heights.values()]
  )
  rows = dict(zip(heights, panels, strict=True))
  return figure, rows, (tall * width / height / pitch, tall / pitch)


def _caption(tubelet: int, shown: int, count: int) -> str:
  caption = 'Each column is one frame.'
  if tubelet > 1:
    caption = (
      f'Each column is one temporal token of {tubelet} consecutive '
      'sampled frames, as are its bar and map; the first frame is shown.'
    )
  return caption + f' {shown} of {count} tokens shown.' * (shown < count)


def _label(token: int, numbers: np.ndarray) -> str:
  """A temporal token and its frame numbers, on two lines."""
  ends = ', '.join(map(str, numbers))
  if len(numbers) > 2:
    ends = f'{numbers[0]} … {numbers[-1]}'
  return f'token {token}\n{"frame" if len(numbers) == 1 else "frames"} {ends}'


def _draw_images(
  axes: Axes, images: np.ndarray, box: tuple[float, float], label: str, **style
) -> AxesImage:
  """Images in a row, number i at x = i, in boxes so wide and high."""
  wide, high = box
  for i, image in enumerate(images):
    extent = (i - wide / 2, i + wide / 2, 0, high)
    last = axes.imshow(image, extent=extent, **style)
  axes.set(xlim=(-0.5, len(images) - 0.5), ylim=(0, high))
  label_row(axes, label)
  return last


def _draw_maps(
  rows: Mapping[str, Axes],
  stills: np.ndarray,
  shown: np.ndarray,
  box: tuple[float, float],
  before: np.ndarray,
  after: np.ndarray | None,
) -> None:
  """Attention over the frames; 1 is a token's share if all are equal."""
  grey = 40 + 0.84 * stills @ _LUMA  # the maps' dark end does not drown it
  before = before * before.size
  maps = {'before': (before[shown], 'attention')}
  if after is not None:
    after = after * after.size
    change = (after - before)[shown]
    maps = {
      'before': (before[shown], 'attention\nbefore MiRA'),
      'after': (after[shown], 'attention\nafter MiRA'),
    }
    reach = max(np.quantile(np.abs(change), 0.995), 0.06)
    limits, label = ('RdBu_r', -reach, reach), 'change\nafter − before'
    _draw_heat(rows, grey, box, {'change': (change, label)}, limits)
  # One outlying token (a sink) must not turn every other one black.
  top = max(np.quantile([heat for heat, _ in maps.values()], 0.995), 1e-6)
  _draw_heat(rows, grey, box, maps, ('inferno', 0, top))


def _draw_heat(
  rows: Mapping[str, Axes],
  grey: np.ndarray,
  box: tuple[float, float],
  maps: Mapping[str, tuple[np.ndarray, str]],
  limits: tuple[str, float, float],
) -> None:
  """Rows of maps and their label; colours from a map, a low and a high end."""
  name, low, high = limits
  style = {'cmap': name, 'vmin': low, 'vmax': high, 'alpha': 0.6}
  for row, (heat, label) in maps.items():
    _draw_images(rows[row], grey, box, label, cmap='gray', vmin=0, vmax=255)
    image = _draw_images(
      rows[row], heat, box, label, interpolation='bilinear', **style
    )
  axes = [rows[row] for row in maps]
  style = {'pad': 0.01, 'aspect': 12 * len(axes), 'panchor': False}
  bar = axes[0].figure.colorbar(image, ax=axes, **style)
  bar.outline.set_visible(False)
  bar.ax.tick_params(colors=MUTED, labelsize=10, length=0)
  bar.ax.yaxis.set_major_locator(MaxNLocator(4))
  bar.set_label('× uniform', color=MUTED, size=10)


def _draw_gain(axes: Axes, gain: np.ndarray) -> None:
  """Bars from the neutral 1.0 to the mean gain, one dot per block."""
  mean, blocks = gain.mean(0), len(gain)
  slots = range(len(mean))
  label_row(axes, 'gain of MiRA\nbar: mean\ndots: blocks')
  tidy(axes, grid='y')
  colors = np.where(mean >= 1, VERMILLION, BLUE)
  axes.bar(slots, mean - 1, 0.5, bottom=1, color=colors, alpha=0.85)
  shift = np.linspace(-0.2, 0.2, blocks) if blocks > 1 else np.zeros(1)
  axes.scatter(
    np.arange(len(mean)) + shift[:, None], gain, s=9, color=INK, lw=0, zorder=3
  )
  reach = 1.25 * max(np.abs(gain - 1).max(), 0.05)
  axes.set(ylim=(1 - reach, 1 + reach), xlim=(-0.5, len(mean) - 0.5))
  axes.yaxis.set_major_locator(MaxNLocator(4))
  axes.axhline(1, color=INK, linewidth=1)
  style = {'size': 10.5 if len(mean) <= _COLUMNS else 8, 'ha': 'center'}
  above = axes.get_xaxis_transform()
  for slot, value, color in zip(slots, mean, colors, strict=True):
    axes.text(slot, 1.0, f'{value:.2f}', color=color, transform=above, **style)
  axes.spines['bottom'].set_visible(False)


def _draw_share(
  axes: Axes, before: np.ndarray, after: np.ndarray | None
) -> None:
  """The share of all attention that each temporal token receives."""
  count = len(before)
  curves = [('plain ViT', before, BLUE, 'o')]
  if after is not None:
    curves = [
      ('before MiRA', before, BLUE, 'o'),
      ('after MiRA', after, VERMILLION, 's'),
    ]
  for label, marginal, color, marker in curves:
    axes.plot(marginal.sum((1, 2)), color=color, marker=marker, label=label)
  axes.axhline(1 / count, color=GREY, ls='--', lw=1, label='uniform')
  axes.set_xlim(-0.5, count - 0.5)
  ticks = MaxNLocator(_COLUMNS, integer=True, min_n_ticks=1)
  axes.xaxis.set_major_locator(ticks)
  axes.yaxis.set_major_formatter(PercentFormatter(1))
  axes.set_xlabel('temporal token', color=MUTED, size=10)
  axes.set_title('Attention per token', size=12, loc='left')
  tidy(axes, grid='y')
  legend(axes)


def _draw_classes(
  axes: Axes,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  scored: int,
  thresholds: Sequence[float] | None,
) -> None:
  """The likeliest classes, best on top; of units those shown in colour."""
  count = len(probabilities)
  order = np.argsort(-probabilities, kind='stable')[:_CLASSES]
  colors = [VERMILLION, *[GREY] * (len(order) - 1)]
  if thresholds is not None:
    least = np.asarray(thresholds)
    there = (probabilities >= least)[order]
    colors = [VERMILLION if x else GREY for x in there]
  bars = axes.barh(range(len(order)), probabilities[order], color=colors)
  axes.bar_label(bars, fmt='{:.1%}', padding=3)
  tidy(axes, grid='x')
  names = texts([class_names[int(i)] for i in order], 22)
  axes.set_yticks(range(len(order)), names)
  axes.tick_params(axis='y', labelcolor=INK, labelsize=11)
  axes.set(ylim=(max(len(order), 4) - 0.4, -0.6), xlim=(0, 1.08))
  axes.xaxis.set_major_formatter(PercentFormatter(1))
  more = f' (best {_CLASSES} of {count})' if count > _CLASSES else ''
  mean = f', mean of {scored} windows' if scored > 1 else ''
  what = 'Class probabilities' if thresholds is None else 'Action units'
  axes.set_title(f'{what}{mean}{more}', size=12, loc='left')
