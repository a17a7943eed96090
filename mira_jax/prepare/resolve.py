"""From the clips of a table or a folder to files on disk."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from mira_jax.data.listing import Failure, Row, escaped
from mira_jax.errors import MiraInputError, data_error

_Alike = Callable[[str], Mapping[str, Sequence[str]]]
_WHOLE = (0, float('inf'))  # as a segment


@dataclasses.dataclass(kw_only=True, frozen=True)
class Found:
  """A clip on disk."""

  row: Row
  path: pathlib.Path  # without symbolic links
  # Its path below the folder it was found in, see `listing.escaped`; of one of
  # several segments with '#ONSET-OFFSET'.
  clip_id: str
  # The first and last frame of the file, by the table's numbers.
  segment: tuple[int, int] | None = None


def locate(
  rows: Iterable[Row], bases: Sequence[str | os.PathLike[str]]
) -> tuple[list[Found], list[Failure]]:
  """Looks for every row below the bases.

  A row with a clip_id names an absolute path. Tables name paths as they were on
  their author's disk, so leading folders are dropped one by one until something
  exists. Names that differ in the coding of accents (NFC, NFD) are the same,
  and so are names that differ in case where only one fits. Links that leave the
  bases are refused: they could name any file of the machine.
  """
  roots = [pathlib.Path(base).resolve() for base in bases]
  found, failures = [], []
  alike = functools.cache(_names_alike)
  for row in rows:
    if not row.clip_id:
      path = _resolve(row.path, roots, alike)
    else:
      exists = os.path.exists(row.path)
      path = pathlib.Path(row.path).resolve() if exists else None
    inside = [root for root in roots if path and path.is_relative_to(root)]
    if path and inside:
      name = row.clip_id or path.relative_to(inside[0]).as_posix()
      found.append(
        Found(row=row, path=path, clip_id=escaped(name), segment=row.segment)
      )
    else:
      name, code = row.clip_id or row.path, 'not_found'
      hint = f'it is not below {escaped(os.fspath(bases[0]))}'
      if path:
        code, hint = 'outside_root', f'{hint}, where a link leads to it'
      failures.append(Failure(path=escaped(name), code=code, hint=hint))
  return found, failures


def unique(clips: Iterable[Found]) -> list[Found]:
  """Every clip once, as it is listed first.

  Rows of one file with other onsets and offsets are clips of their own.

  Raises:
    MiraInputError: a clip has two labels ('bad_label'), is in two splits
      ('leak'), or is a segment that ends before it starts ('bad_table').
  """
  clips = list(clips)
  marks: dict[pathlib.Path, set] = collections.defaultdict(set)
  for clip in clips:
    marks[clip.path].add((clip.row.onset, clip.row.offset))
  seen: dict[tuple, Found] = {}
  for clip in clips:
    if len(marks[clip.path]) > 1:
      clip = _as_segment(clip)
    first = seen.setdefault((clip.path, clip.segment), clip)
    old, new = first.row, clip.row
    if old.label != new.label:
      hint = f'lines {old.line} and {new.line} call it {old.label} and '
      hint += new.label if old.line else f'{new.label}: a link leads to it'
      raise data_error('bad_label', clip.clip_id, hint)
    if old.split != new.split:
      raise _leak(first, clip)
  _check_segments(seen.values())
  return list(seen.values())


def _as_segment(clip: Found) -> Found:
  onset, offset = clip.row.onset, clip.row.offset
  if 0 <= offset < onset:
    hint = f'line {clip.row.line}: offset {offset} is before onset {onset}, and'
    hint += ' other rows are segments of it: correct it, or leave both empty'
    raise MiraInputError('bad_table', clip.clip_id, hint)
  if not 0 <= onset <= offset:
    return clip
  clip_id = f'{clip.clip_id}#{onset}-{offset}'
  return dataclasses.replace(clip, clip_id=clip_id, segment=(onset, offset))


def _check_segments(clips: Iterable[Found]) -> None:
  """Raises MiraInputError('leak') for frames that are in two splits."""
  by_path: dict[pathlib.Path, list[Found]] = collections.defaultdict(list)
  for clip in clips:
    by_path[clip.path].append(clip)
  for parts in by_path.values():
    furthest: dict[str, Found] = {}  # of each split, so far
    for clip in sorted(parts, key=lambda clip: clip.segment or _WHOLE):
      start, end = clip.segment or _WHOLE
      for split, first in furthest.items():
        last_frame = (first.segment or _WHOLE)[1]
        if split != clip.row.split and start <= last_frame:
          raise _leak(first, clip)
      last = furthest.setdefault(clip.row.split, clip)
      if end > (last.segment or _WHOLE)[1]:
        furthest[clip.row.split] = clip


def _resolve(
  name: str, roots: Sequence[pathlib.Path], alike: _Alike
) -> pathlib.Path | None:
  parts = pathlib.PurePosixPath(name.replace('\\', '/')).parts
  if '\0' in name:
    return None
  places = [(root, parts[i:]) for i in range(len(parts)) for root in roots]
  for root, below in places:
    path = root.joinpath(*below)
    if os.path.exists(path):  # False, too, for a name that is too long
      return path.resolve()
  for root, below in places:
    path = _look_alike(os.fspath(root), below, alike)
    if path and os.path.exists(path):  # False for a link to nothing or itself
      return pathlib.Path(path).resolve()
  return None


def _look_alike(folder: str, parts: Sequence[str], alike: _Alike) -> str:
  """The one path whose names look like `parts`; '' if there is none."""
  for part in parts:
    names = alike(folder).get(_looks(part), ())
    same = [n for n in names if _nfc(n) == _nfc(part)] or names
    if len(same) != 1:
      return ''
    folder = os.path.join(folder, same[0])
  return folder


def _names_alike(folder: str) -> dict[str, list[str]]:
  """Names in a folder, by their appearance."""
  names: dict[str, list[str]] = collections.defaultdict(list)
  with contextlib.suppress(OSError):
    for name in os.listdir(folder):
      names[_looks(name)].append(name)
  return names


def _nfc(name: str) -> str:
  return unicodedata.normalize('NFC', name)


def _looks(name: str) -> str:
  return _nfc(name).casefold()


def _leak(first: Found, clip: Found) -> MiraInputError:
  old, new = first.row, clip.row
  hint = f'lines {old.line} and {new.line} put it in {old.split} and in '
  return data_error('leak', clip.clip_id, hint + new.split)
