"""Tables of face boxes: one row per clip or frame."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from mira_jax.data.table_file import bad_table
from mira_jax.errors import MiraInputError
from mira_jax.prepare import tables
from mira_jax.video import container

_FIELDS = {
  'clip': (*tables.COLUMNS['path'], 'clipid', 'clipname', 'video'),
  'x': ('x', 'left'),
  'y': ('y', 'top'),
  'width': ('width', 'w'),
  'height': ('height', 'h'),
}


def read_boxes(
  path: str | os.PathLike[str], encoding: str = ''
) -> dict[str, np.ndarray]:
  """Reads a table of face boxes, in pixels of the source frame.

  Args:
    path: a table, see `tables.records`, with a column for the clip, x (or
      left), y (top), width (w) and height (h), and a row for each clip or each
      of its frames.
    encoding: of a file that is neither UTF-8 nor UTF-16.

  Returns:
    float [n, 4] by clip, which is named as written, but always with slashes.

  Raises:
    MiraInputError: not_found; the file is no such table ('bad_table'); a box
      is not four numbers with a positive size ('bad_box').
  """
  boxes: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  for line, row in tables.records(path, _FIELDS, _FIELDS, encoding=encoding):
    clip, *values = (row[field] for field in _FIELDS)
    if not clip:
      raise bad_table(path, f'line {line}: it names no clip')
    try:
      box = np.array([float(value) for value in values])
    except ValueError:
      box = np.zeros(4)
    if not np.isfinite(box).all() or box[2:].min() <= 0:
      hint = f'line {line}: x, y, width and height are {str(values)[:80]}, '
      hint += 'and not four numbers with a positive size'
      raise MiraInputError('bad_box', path, hint)
    boxes[_posix(clip)].append(box)
  if not boxes:
    raise bad_table(path, 'it has no box')
  return {clip: np.array(found) for clip, found in boxes.items()}


def look_up(boxes: dict[str, np.ndarray], clip_id: str) -> np.ndarray | None:
  """The boxes of a clip, whose id is its path relative to its dataset.

  These are those under this very name. Else those under a name that is this
  one's end, or that this one is the end of, in whole folders and apart from the
  suffix of a video. None when there are none.

  Raises:
    MiraInputError: several names fit ('ambiguous').
  """
  if clip_id in boxes:
    return boxes[clip_id]
  parts = _parts(clip_id)
  # Most names are passed over by this cheap test: tables can be long.
  similar = [name for name in boxes if parts[-1] in name]
  names = [name for name in similar if _same_end(_parts(name), parts)]
  if len(names) > 1:
    hint = f'the table has boxes for {names[0]} and {names[1]}: name the clip'
    raise MiraInputError('ambiguous', clip_id, hint)
  return boxes[names[0]] if names else None


def _posix(name: str) -> str:
  return pathlib.PurePosixPath(name.replace('\\', '/')).as_posix()


def _parts(name: str) -> tuple[str, ...]:
  """Folders and stem, as ('happy', 'clip1') of 'happy/clip1.mp4'."""
  path = pathlib.PurePosixPath(_posix(name))
  if path.suffix.lower() in container.SUFFIXES:
    path = path.with_suffix('')
  return path.parts


def _same_end(a: Sequence[str], b: Sequence[str]) -> bool:
  pairs = zip(reversed(a), reversed(b), strict=False)
  return all(x == y for x, y in pairs)
