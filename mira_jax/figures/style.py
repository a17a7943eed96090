"""Colours, fonts, axes and files of all figures."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib import font_manager, ft2font
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from rich.cells import cell_len, set_cell_size

from mira_jax import files
from mira_jax.errors import MiraInputError, plain

INK, MUTED, FAINT = '#1f2430', '#5f6875', '#d9dde3'
BLUE, VERMILLION, GREY = '#0072b2', '#d55e00', '#a3abb6'
CYCLE = (
  BLUE, VERMILLION, '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#f0e442',
)  # fmt: skip
DPI = 100
WIDTH = 16.0  # inches: wide figures are 1600 pixels wide
SIDE = 448  # pixels of a frame of an overlay
# Of fonts, by preference; the first comes with matplotlib.
FAMILIES = (
  'DejaVu Sans', 'Noto Sans CJK SC', 'Noto Sans CJK JP', 'Noto Sans SC',
  'Source Han Sans SC', 'WenQuanYi Zen Hei', 'Microsoft YaHei', 'SimHei',
  'PingFang SC', 'Hiragino Sans GB', 'Arial Unicode MS',
  'Noto Sans Devanagari', 'Noto Sans Bengali', 'Noto Sans Thai',
)  # fmt: skip

_P = ParamSpec('_P')
_R = TypeVar('_R')
_drawing = threading.RLock()  # matplotlib's settings are global


@functools.cache
def _fonts() -> dict[str, ft2font.FT2Font]:
  """The installed ones of FAMILIES."""
  here = set(font_manager.get_font_names()).intersection(FAMILIES)
  return {
    family: font_manager.get_font(font_manager.findfont(family))
    for family in FAMILIES
    if family in here
  }


def drawn(function: Callable[_P, _R]) -> Callable[_P, _R]:
  """Runs a function under our settings, in which `$` begins no formula."""

  @functools.wraps(function)
  def within(*args: _P.args, **kwargs: _P.kwargs) -> _R:
    ours = {'text.parse_math': False, 'font.family': list(_fonts())}
    with _drawing, matplotlib.style.context(ours, after_reset=True):
      return function(*args, **kwargs)

  return within


@dataclasses.dataclass(frozen=True)
class Picture:
  """A figure and the arrays it shows, by name."""

  figure: Figure
  arrays: Mapping[str, Any]

  @drawn
  def save(self, path: str | os.PathLike[str], *, numbers: bool = True) -> Path:
    """Writes the figure, and unless without `numbers` a .npz of its arrays.

    A process that is killed leaves no half of a file.

    Raises:
      MiraInputError: a suffix of no kind of picture ('bad_suffix').
    """
    path = Path(path)
    kinds = self.figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
      raise MiraInputError('bad_suffix', path, 'name it .png')
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, self.encode(path.suffix[1:].lower()))
    if numbers:
      arrays = io.BytesIO()
      np.savez_compressed(arrays, **self.arrays)
      files.write_bytes(path.with_suffix('.npz'), arrays.getvalue())
    return path

  @drawn
  def encode(self, kind: str = 'png') -> bytes:
    """The figure as a file of a kind."""
    image = io.BytesIO()
    if kind == 'png':  # savefig draws twice, and compresses 5 % for 0.1 s
      fast = {'compress_level': 4}
      FigureCanvasAgg(self.figure).print_png(image, pil_kwargs=fast)
    else:
      self.figure.savefig(image, format=kind, dpi=DPI)
    return image.getvalue()


def blank(width: float, height: float) -> Figure:
  """An empty figure, in inches, which makes room for all that is put there."""
  layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1)
  size = (width, height)
  return Figure(size, dpi=DPI, facecolor='white', layout=layout)


def text(name: str, most: int = 88) -> str:
  """A name as figures show it, of at most so many columns.

  Letters without a font are escaped, as `errors.plain` escapes control
  characters.
  """
  fonts = _fonts().values()

  def letter(c: str) -> str:
    if any(font.get_char_index(ord(c)) for font in fonts):
      return c
    return ' ' if c.isspace() else ascii(c)[1:-1]

  name = ''.join(map(letter, plain(name)))
  if cell_len(name) > most:
    return set_cell_size(name, most - 1) + '…'
  return name


def texts(names: Iterable[str], most: int) -> list[str]:
  """See `text`."""
  return [text(name, most) for name in names]


def tidy(axes: Axes, *, grid: Literal['x', 'y']) -> None:
  """Two faint spines, small grey ticks, a grid behind the data."""
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(FAINT)
  axes.tick_params(colors=MUTED, labelsize=10, length=0)
  axes.set_axisbelow(True)
  axes.grid(axis=grid, color=FAINT, linewidth=0.7)


def legend(axes: Axes, **place: Any) -> None:
  """A legend outside the axes; above them, unless `place` says otherwise."""
  above = {'ncols': 3, 'loc': 'lower right', 'bbox_to_anchor': (1.0, 0.97)}
  style = {'frameon': False, 'fontsize': 10, 'labelcolor': INK}
  axes.legend(handlelength=1.6, columnspacing=1.2, **style, **(place or above))


def spread(count: int, most: int) -> np.ndarray:
  """At most `most` indices from 0 to `count` - 1, evenly spaced, int [n]."""
  return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def class_color(index: int) -> str:
  """The colour of a class, the same in every picture; 14 of them."""
  color = CYCLE[index % len(CYCLE)]
  if index // len(CYCLE) % 2 == 0:
    return color
  channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
  return '#' + ''.join(f'{(x + 255) // 2:02x}' for x in channels)


def color_table(name: str) -> list[int]:
  """256 colours of a map, such as 'inferno': red, green, blue, red, ..."""
  rows = matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3]
  return (255 * rows).round().astype(int).ravel().tolist()
