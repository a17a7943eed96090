"""From the clips that a table or a folder names to files on disk."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence

from mira_jax.data.listing import Row
from mira_jax.errors import ExitCode, MiraInputError


@dataclasses.dataclass(kw_only=True, frozen=True)
class Failure:
  """A clip that was left out, with the code and hint of its error."""

  path: str
  code: str
  hint: str


@dataclasses.dataclass(kw_only=True, frozen=True)
class Found:
  """A clip on disk.

  Attributes:
    row: what is said about it.
    path: its file or folder, without symbolic links.
    clip_id: its path relative to the folder it was looked for in.
  """

  row: Row
  path: pathlib.Path
  clip_id: str


def locate(
  rows: Iterable[Row], bases: Sequence[str | os.PathLike[str]]
) -> tuple[list[Found], list[Failure]]:
  """Looks for every row below the bases.

  Tables name paths as they were on their author's disk, so leading folders
  are dropped one by one until something exists. A link that leaves the bases
  is refused: it could name any file of the machine.
  """
  roots = [pathlib.Path(base).resolve() for base in bases]
  found, failures = [], []
  for row in rows:
    path = _resolve(row.path, roots)
    inside = [root for root in roots if path and path.is_relative_to(root)]
    if inside:
      clip_id = path.relative_to(inside[0]).as_posix()
      found.append(Found(row=row, path=path, clip_id=clip_id))
    else:
      code = 'outside_root' if path else 'not_found'
      hint = f'it is not below {bases[0]}'
      failures.append(Failure(path=row.path, code=code, hint=hint))
  return found, failures


def given(
  rows: Iterable[Row], root: str | os.PathLike[str]
) -> tuple[list[Found], list[Failure]]:
  """Looks for rows that name their place and their clip_id themselves.

  A link that leaves the download is refused, as in `locate`. A download may be
  named by a folder in it, so its own folder is that of all rows in common.
  """
  rows = list(rows)
  folders = [os.path.dirname(row.path) for row in rows]
  base = os.path.realpath(os.path.commonpath([os.fspath(root), *folders]))
  inside: dict[str, set[str]] = {}
  found, failures = [], []
  for row, folder in zip(rows, folders, strict=True):
    if folder not in inside:  # one listing is cheaper than a call per clip
      inside[folder] = (
        set(os.listdir(folder)) if os.path.isdir(folder) else set()
      )
    path = os.path.realpath(row.path)
    if os.path.basename(row.path) not in inside[folder]:
      failure = Failure(path=row.clip_id, code='not_found', hint=row.path)
      failures.append(failure)
    elif os.path.commonpath([path, base]) != base:
      hint = 'a link leads out of the download; copy the files instead'
      failure = Failure(path=row.clip_id, code='outside_root', hint=hint)
      failures.append(failure)
    else:
      place = pathlib.Path(path)
      found.append(Found(row=row, path=place, clip_id=row.clip_id))
  return found, failures


def unique(clips: Iterable[Found]) -> list[Found]:
  """Every clip once, as it is listed first.

  Raises:
    MiraInputError: a clip has two labels ('bad_label') or is in two splits
      ('leak').
  """
  seen: dict[pathlib.Path, Found] = {}
  for clip in clips:
    _check_agree(seen.setdefault(clip.path, clip), clip)
  return list(seen.values())


def _resolve(name: str, roots: Sequence[pathlib.Path]) -> pathlib.Path | None:
  parts = pathlib.PurePosixPath(name.replace('\\', '/')).parts
  for start in range(len(parts)):
    for root in roots:
      path = root.joinpath(*parts[start:])
      if os.path.exists(path):  # False, too, for a name that is too long
        return path.resolve()
  return None


def _check_agree(first: Found, clip: Found) -> None:
  old, new = first.row, clip.row
  lines = f'lines {old.line} and {new.line}'
  if old.label != new.label:
    code, hint = 'bad_label', f'{lines} call it {old.label} and {new.label}'
  elif old.split != new.split:
    code, hint = 'leak', f'{lines} put it in {old.split} and in {new.split}'
  else:
    return
  raise MiraInputError(code, clip.clip_id, hint, exit_code=ExitCode.DATA)
