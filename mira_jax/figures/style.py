"""Colours, letters, frames and files that all pictures share."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

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
WIDTH = 16.0  # inches: the clip picture is 1600 pixels wide
TITLE = 88  # letters of a title at most

_P, _R = ParamSpec('_P'), TypeVar('_R')
_drawing = threading.RLock()  # the settings of matplotlib are the process's
# Families of fonts that letters are looked for in, in this order, with one
# font of each. It grows with the scripts of the names that come.
_fonts: dict[str, ft2font.FT2Font] = {}


def drawn(function: Callable[_P, _R]) -> Callable[_P, _R]:
  """Runs a function under our settings, whatever a person has set.

  Text is text in them: a `$` begins no formula.
  """

  @functools.wraps(function)
  def within(*args: _P.args, **kwargs: _P.kwargs) -> _R:
    ours = {'text.parse_math': False, 'font.family': list(_families())}
    with _drawing, matplotlib.style.context(ours, after_reset=True):
      return function(*args, **kwargs)

  return within


def text(name: str, most: int = TITLE) -> str:
  """A name as pictures show it; only under `drawn`.

  Letters that matplotlib's own font lacks are drawn in another one of this
  machine. Where none has them they are escaped, as what `errors.plain` escapes.

  Args:
    name: that people gave.
    most: letters, of which wide ones count twice; left out in the middle.
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


def _cut(letters: list[str], most: int) -> list[str]:
  """The first letters that together are as wide as so many, or less."""
  widths = itertools.accumulate(map(cell_len, letters))
  return letters[: sum(1 for width in widths if width <= most)]


def texts(names: Iterable[str], most: int = TITLE) -> list[str]:
  """See `text`."""
  return [text(name, most) for name in names]


def _families() -> Iterable[str]:
  if not _fonts:
    _fonts['DejaVu Sans'] = ft2font.FT2Font(
      font_manager.findfont(font_manager.FontProperties(family='DejaVu Sans'))
    )
  return _fonts


def _find_fonts(name: str) -> set[str]:
  """Adds fonts for the letters of a name; returns those that none has."""
  missing = set(name)
  for font in _fonts.values():
    missing = _lacking(font, missing)

  def rank(other: tuple[str, ft2font.FT2Font]) -> tuple[int, bool, str]:
    family, font = other
    return len(_lacking(font, missing)), 'Sans' not in family, family

  while missing:
    best = min(_others(), key=rank, default=None)
    if best is None or len(_lacking(best[1], missing)) == len(missing):
      break
    _fonts[best[0]] = best[1]
    missing = _lacking(best[1], missing)
    matplotlib.rcParams['font.family'] = list(_fonts)
  return missing


def _lacking(font: ft2font.FT2Font, letters: Iterable[str]) -> set[str]:
  return {c for c in letters if not font.get_char_index(ord(c))}


def _others() -> Iterator[tuple[str, ft2font.FT2Font]]:
  """The plain font of each family of this machine."""
  own = os.path.join(matplotlib.get_data_path(), '')  # most are for formulas
  for entry in font_manager.fontManager.ttflist:
    upright = entry.style == 'normal' and entry.weight in (400, 'normal')
    if upright and not entry.fname.startswith(own):
      with contextlib.suppress(OSError, RuntimeError):  # damaged, or gone
        yield entry.name, ft2font.FT2Font(entry.fname)


@drawn
def save(
  path: str | os.PathLike[str], figure: Figure, **arrays: np.ndarray
) -> Path:
  """Saves a figure as PNG, and the arrays it shows in a .npz beside it."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=DPI, facecolor='white')
  np.savez_compressed(path.with_suffix('.npz'), **arrays)
  return path


def tidy(axes: Axes, *, grid: str) -> None:
  """Two faint spines, small grey ticks, a grid behind the data."""
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(FAINT)
  axes.tick_params(colors=MUTED, labelsize=10, length=0)
  axes.set_axisbelow(True)
  axes.grid(axis=grid, color=FAINT, linewidth=0.7)


def legend_above(axes: Axes) -> None:
  """A legend on the title's line, where no curve can hide."""
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
