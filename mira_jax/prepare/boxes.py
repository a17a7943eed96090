"""Tables of face boxes: CSV or JSON, one row per clip or frame."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from mira_jax.data.table_file import read_bytes
from mira_jax.errors import MiraInputError
from mira_jax.prepare import cells, tables
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
    path: CSV with a column for the clip, x (or left), y (top), width (w) and
      height (h), and a row for each clip or each of its frames; or JSON, a
      list of objects with these fields, or an object from clip to
      [x, y, width, height] or to a list of these. Also gzipped.
    encoding: of a file that is neither UTF-8 nor UTF-16.

  Returns:
    float [n, 4] by clip, which is named as written, but always with slashes.

  Raises:
    MiraInputError: not_found; the file is no such table ('bad_table'); a box
      is not four numbers with a positive size ('bad_box').
  """
  data = read_bytes(path)
  rows = None
  if not data.startswith(cells.EXCEL):
    content, _ = cells.text(data, path, encoding)
    if content.lstrip().startswith(('{', '[')):
      rows = _json_rows(content, path)
  rows = _csv_rows(path, encoding) if rows is None else rows
  boxes: dict[str, list[np.ndarray]] = {}
  for where, clip, values in rows:
    if not isinstance(clip, str) or not clip:
      raise MiraInputError('bad_table', path, f'{where}: it names no clip')
    boxes.setdefault(_posix(clip), []).append(_box(values, where, path))
  if not boxes:
    raise MiraInputError('bad_table', path, 'it has no box')
  return {clip: np.array(found) for clip, found in boxes.items()}


def look_up(boxes: dict[str, np.ndarray], clip_id: str) -> np.ndarray | None:
  """The boxes of a clip.

  Args:
    boxes: as of `read_boxes`.
    clip_id: path of the clip relative to its dataset.

  Returns:
    Those under this very name. Else those under a name that is this one's end,
    or that this one is the end of, in whole folders and apart from the suffix
    of a video. None when there are none.

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


def _csv_rows(
  path: str | os.PathLike[str], encoding: str
) -> Iterator[tuple[str, str, list[str]]]:
  """Where it is written, the clip and the cells of every box."""
  table = tables.records(path, _FIELDS, _FIELDS, encoding=encoding)
  for line, row in table:
    clip, *values = (row[field] for field in _FIELDS)
    yield f'line {line}', clip, values


def _json_rows(
  text: str, path: str | os.PathLike[str]
) -> Iterator[tuple[str, object, object]]:
  """As `_csv_rows`; what a clip and its box are is still to be checked."""
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:
    hint = f'not a JSON file: {error}'
    raise MiraInputError('bad_table', path, hint) from error
  if isinstance(content, list):
    for number, entry in enumerate(content, 1):
      yield f'entry {number}', *_fields(entry, number, path)
    return
  for clip, value in content.items():
    many = isinstance(value, list) and all(isinstance(v, list) for v in value)
    for box in value if many else [value]:
      yield f'clip {clip}', clip, box


def _fields(
  entry: object, number: int, path: str | os.PathLike[str]
) -> tuple[object, list[object]]:
  """The clip and the box of an object."""
  items = entry.items() if isinstance(entry, dict) else ()
  plain = {tables.plain(key): value for key, value in items}
  found = []
  for field, aliases in _FIELDS.items():
    alias = next((a for a in aliases if a in plain), None)
    if alias is None:
      hint = f'entry {number}: no {field}: call it one of {", ".join(aliases)}'
      raise MiraInputError('bad_table', path, hint)
    found.append(plain[alias])
  return found[0], found[1:]


def _box(
  values: object, where: str, path: str | os.PathLike[str]
) -> np.ndarray:
  try:
    box = np.array(list(map(float, values if isinstance(values, list) else ())))
  except (TypeError, ValueError, OverflowError):
    box = np.zeros(0)
  if len(box) != 4 or not np.isfinite(box).all() or box[2:].min() <= 0:
    hint = (
      f'{where}: x, y, width and height are {str(values)[:80]}, and not four '
      'numbers with a positive size'
    )
    raise MiraInputError('bad_box', path, hint)
  return box


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
