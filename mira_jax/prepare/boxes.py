"""Tables of face boxes: one row per clip or frame."""

from __future__ import annotations

import collections
import pathlib

import numpy as np

from mira_jax.data.table_file import bad_table
from mira_jax.errors import MiraInputError
from mira_jax.files import Path
from mira_jax.prepare import tables

_FIELDS = {
  'clip': (*tables.COLUMNS['path'], 'clipid', 'clipname', 'video'),
  'x': ('x', 'left'),
  'y': ('y', 'top'),
  'width': ('width', 'w'),
  'height': ('height', 'h'),
}


def read_boxes(path: Path, encoding: str = '') -> dict[str, np.ndarray]:
  """Reads a table of face boxes, in pixels of the source frame.

  Args:
    path: a table, see `tables.records`, with a column for the clip, x (or
      left), y (top), width (w) and height (h), and a row for each clip or each
      of its frames. Clips are named as in the dataset: by their path below its
      folder.
    encoding: of a file that is neither UTF-8 nor UTF-16.

  Returns:
    float [n, 4] by clip.

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
    name = pathlib.PurePosixPath(clip.replace('\\', '/')).as_posix()
    boxes[name].append(box)
  if not boxes:
    raise bad_table(path, 'it has no box')
  return {clip: np.array(found) for clip, found in boxes.items()}
