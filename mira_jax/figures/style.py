"""Colours, fonts, axes and files of all figures."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib import font_manager, ft2font
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.cells import cell_len

from mira_jax.errors import plain

INK, MUTED, FAINT = '#1f2430', '#5f6875', '#d9dde3'
BLUE, VERMILLION, GREY = '#0072b2', '#d55e00', '#a3abb6'
CYCLE = (BLUE, VERMILLION, '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
DPI = 100
WIDTH = 16.0  # inches: the clip figure is 1600 pixels wide
TITLE = 88  # letters of a title at most

_P = ParamSpec('_P')
_R = TypeVar('_R')
_drawing = threading.RLock()  # matplotlib's settings are global
# Font families, in order of preference; it grows with the scripts of names.
_fonts: dict[str, ft2font.FT2Font] = {}


def drawn(function: Callable[_P, _R]) -> Callable[_P, _R]:
  """Runs a function under our settings, in which `$` begins no formula.

  It runs again where `text` found a font that earlier texts do not have.
  """

  @functools.wraps(function)
  def within(*args: _P.args, **kwargs: _P.kwargs) -> _R:
    if not _fonts:
      default = font_manager.FontProperties(family='DejaVu Sans')
      _fonts['DejaVu Sans'] = ft2font.FT2Font(font_manager.findfont(default))
    while True:
      families = list(_fonts)
      ours = {'text.parse_math': False, 'font.family': families}
      with _drawing, matplotlib.style.context(ours, after_reset=True):
        result = function(*args, **kwargs)
      if len(_fonts) == len(families):
        return result

  return within


@dataclasses.dataclass(frozen=True)
class Picture:
  """A figure and the arrays it shows, by name."""

  figure: Figure
  arrays: Mapping[str, Any]

  @drawn
  def save(self, path: str | os.PathLike[str]) -> Path:
    """Writes the figure as PNG, and the arrays to a .npz beside it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    self.figure.savefig(path, dpi=DPI, facecolor='white')
    np.savez_compressed(path.with_suffix('.npz'), **self.arrays)
    return path


def text(name: str, most: int = TITLE) -> str:
  """A name as figures show it; call it under `drawn`.

  Letters that no installed font has are escaped, as `errors.plain` escapes
  control characters. Names longer than `most` letters, of which wide ones count
  twice, are shortened in the middle.
  """
  name = plain(name)
  missing = _find_fonts(name)
  letters = [
    c if c not in missing else ' ' if c.isspace() else ascii(c)[1:-1]
    for c in name
  ]
  if sum(map(cell_len, letters)) <= most:
    return ''.join(letters)
  head = _cut(letters, most // 2)
  tail = _cut(letters[::-1], (most - 1) // 2)[::-1]
  return ''.join([*head, '…', *tail])


def texts(names: Iterable[str], most: int = TITLE) -> list[str]:
  """See `text`."""
  return [text(name, most) for name in names]


def _cut(letters: list[str], most: int) -> list[str]:
  widths = itertools.accumulate(map(cell_len, letters))
  return letters[: sum(width <= most for width in widths)]


def _find_fonts(name: str) -> set[str]:
  """Adds fonts for the letters of a name; returns the letters without one."""
  missing = set(name)
  for font in _fonts.values():
    missing = _lacking(font, missing)

  def rank(other: tuple[str, ft2font.FT2Font]) -> tuple[int, bool, str]:
    family, font = other
    return len(_lacking(font, missing)), 'Sans' not in family, family

  while missing:
    family, font = min(_installed(), key=rank, default=('', None))
    if font is None or len(_lacking(font, missing)) == len(missing):
      break
    _fonts[family] = font
    missing = _lacking(font, missing)
  return missing


def _lacking(font: ft2font.FT2Font, letters: Iterable[str]) -> set[str]:
  return {c for c in letters if not font.get_char_index(ord(c))}


def _installed() -> Iterator[tuple[str, ft2font.FT2Font]]:
  """The regular font of each installed family."""
  own = os.path.join(matplotlib.get_data_path(), '')  # most are for formulas
  for entry in font_manager.fontManager.ttflist:
    regular = entry.style == 'normal' and entry.weight in (400, 'normal')
    if regular and not entry.fname.startswith(own):
      with contextlib.suppress(OSError, RuntimeError):  # damaged, or gone
        yield entry.name, ft2font.FT2Font(entry.fname)


def tidy(axes: Axes, *, grid: Literal['x', 'y']) -> None:
  """Two faint spines, small grey ticks, a grid behind the data."""
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(FAINT)
  axes.tick_params(colors=MUTED, labelsize=10, length=0)
  axes.set_axisbelow(True)
  axes.grid(axis=grid, color=FAINT, linewidth=0.7)


def legend_above(axes: Axes) -> None:
  """A legend on the title's line, where it hides no curve."""
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


def spread(count: int, most: int) -> np.ndarray:
  """At most `most` indices from 0 to `count` - 1, evenly spaced, int [n]."""
  return np.linspace(0, count - 1, min(count, most)).round().astype(int)
