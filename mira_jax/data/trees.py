"""Trees of clips: which files are clips, classes and splits.

`walk` finds the clips of a folder for every command, and counts what it passes
over. `scan_folder` reads classes and splits from the names of folders.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence

from mira_jax.data import people
from mira_jax.data.listing import (
  Failure,
  Listing,
  Row,
  escaped,
  listed,
  natural,
  split_word,
)
from mira_jax.errors import MiraInputError, data_error, some
from mira_jax.video import container, images

# Names, in lower case, that operating systems write beside the user's files.
# Names with a leading dot are hidden as well: .thumbnails, ._1.mp4.
_SYSTEM = {
  *('__macosx', '@eadir', '@recycle', '#recycle', '#snapshot'),
  *('$recycle.bin', 'system volume information', 'lost+found', 'found.000'),
  *('thumbs.db', 'ehthumbs.db', 'desktop.ini', '__pycache__'),
}
_OTHER_MEDIA = container.OTHER_VIDEOS + container.OTHER_PICTURES
_SHOWN = 5
_LINK = 'it is a link to a folder; copy the folder instead'
_LOOSE = 'pictures right in a class folder, not in a folder per clip'
# What frames of one clip share, what separates their number, and the number.
_FRAME = re.compile(r'(.*[^\W_])([-_. ])\d+')
_FOLD = re.compile(r'(?:fold|cv)[-_ ]?\d+', re.IGNORECASE)

_Path = str | os.PathLike[str]
_Clip = tuple[str, ...]  # the parts of a clip's path


def check_root(root: _Path) -> None:
  """Raises MiraInputError('not_found') for a root that is no folder."""
  if not os.path.isdir(root):
    hint = 'there is no such folder'
    if os.path.lexists(root):
      hint = 'it is a file; --root takes the folder that holds the clips'
    raise MiraInputError('not_found', root, hint)


@dataclasses.dataclass(kw_only=True)
class Walk:
  """The contents of a folder."""

  # Paths below the folder, '' for itself, in natural order.
  clips: list[str] = dataclasses.field(default_factory=list)
  # How often each name was passed over, by reason.
  passed_over: dict[str, collections.Counter[str]] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(collections.Counter)
  )
  # Links out of the folder, and folders that cannot be read.
  failures: list[Failure] = dataclasses.field(default_factory=list)

  @property
  def unread(self) -> bool:
    """Whether there may be clips that are not among `clips`."""
    kinds = self.passed_over.get('of another kind', ())
    return bool(self.failures) or any(k.lower() in _OTHER_MEDIA for k in kinds)

  def add(self, other: Walk) -> None:
    """Adds the contents of another folder."""
    self.clips += other.clips
    self.failures += other.failures
    for why, names in other.passed_over.items():
      self.passed_over[why] += names

  def fail(self, path: str, code: str, hint: str) -> None:
    """Adds a failure."""
    self.failures.append(Failure(path=escaped(path), code=code, hint=hint))

  def dropped(self) -> dict[str, int]:
    """How much was passed over, by reason and names."""
    return {
      f'{why}: {_some(names)}'.removesuffix(': '): names.total()
      for why, names in self.passed_over.items()
    }


def walk(root: _Path, suffixes: tuple[str, ...] = container.SUFFIXES) -> Walk:
  """Finds the clips of a folder, at any depth.

  A clip is a video file of one of the `suffixes`, in lower case, or a folder of
  pictures without videos. Links to folders are failures: their clips would be
  outside the root, in circles, or listed twice.
  """
  root = os.path.realpath(root)
  found = Walk()
  waiting = ['']
  while waiting:
    at = waiting.pop()
    folders, files = _entries(root, at, found)
    waiting += [os.path.join(at, name) for name in folders]
    _sort_files(at, files, suffixes, found)
  found.clips.sort(key=lambda clip: [natural(x) for x in clip.split(os.sep)])
  found.failures.sort(key=lambda failure: natural(failure.path))
  return found


def scan_folder(root: _Path) -> Listing:
  """Lists the clips of ROOT/CLASS/CLIP, with or without a level of splits.

  Splits are above the classes, ROOT/SPLIT/CLASS/CLIP, or below them,
  ROOT/CLASS/SPLIT/CLIP. Clips are at any depth below; see `walk`. Splits may be
  below folders that all clips have in common.

  Raises:
    MiraInputError: there is no such folder, splits and classes are ambiguous
      ('unclear_tree'), all pictures are right in the class folders
      ('no_clips'), or see `listing.listed`.
  """
  check_root(root)
  found = walk(root)
  clips = [tuple(clip.split(os.sep)) for clip in found.clips]
  above, order = _layout(clips, root)
  _refuse_subjects(clips, len(above) + order.index('class'), root)
  depth = len(above) + len(order)  # of class folders
  rows, loose = [], {}
  for path, clip in zip(found.clips, clips, strict=True):
    level = dict(zip(order, clip[len(above) : -1], strict=False))
    split = split_word(level.get('split', ''), of_folder=True)
    if 'split' in level and not split:
      found.passed_over['clips beside the splits'][level['split']] += 1
    elif len(clip) == depth and (names := _loose_pictures(root, path)):
      loose[path] = names
      found.passed_over[_LOOSE][clip[-1]] += len(names)
    elif len(level) < len(order):
      found.passed_over['clips outside a class folder'][''] += 1
    else:
      label = escaped(level['class'], controls=False)
      rows.append(Row(path=path, label=label, split=split))
  if loose and not rows:
    raise _no_folder_per_clip(root, loose)
  levels = escaped('/'.join([*above, *map(str.upper, order)]))
  return listed(
    rows,
    root,
    dropped=found.dropped(),
    failures=found.failures,
    sources=dict.fromkeys(('classes', 'splits'), f'the folders {levels}'),
  )


def _loose_pictures(root: _Path, folder: str) -> list[str]:
  """Names of the pictures of a folder below ROOT, in time order."""
  path = os.path.join(root, folder)
  if not folder or not os.path.isdir(path):
    return []
  return [file.name for file in images.frame_files(path)]


def _no_folder_per_clip(
  root: _Path, loose: Mapping[str, Sequence[str]]
) -> MiraInputError:
  """The error for pictures of several clips in one folder."""
  folder, names = next(iter(loose.items()))
  suffix = os.path.splitext(names[0])[1]
  clip = os.path.join(folder, 'clip1')
  hint = (
    f'{folder}/ holds {len(names)} pictures and no clip: put the frames of '
    f'each clip into a folder of its own, as {clip}/0001{suffix}, '
    f'{clip}/0002{suffix}, ...'
  )
  parts = [_FRAME.fullmatch(os.path.splitext(name)[0]) for name in names]
  shared = collections.Counter(part[1] for part in parts if part)
  if 1 < len(shared) < len(names) and (part := parts[0]):
    mark, levels = part[2], '*/' * (1 + folder.count(os.sep))
    files = f'{shlex.quote(os.fspath(root))}/{levels}*'
    to = f'"${{f%{mark}*}}"'
    hint += (
      f'. {names[0]} looks like a frame of clip {part[1]}: for f in {files}'
      f'{shlex.quote(mark)}*{suffix}; do mkdir -p {to} && mv "$f" {to}; done'
    )
  return data_error('no_clips', root, escaped(hint))


def is_hidden(name: str) -> bool:
  """Whether a file or folder is hidden, or written by the system."""
  return name.startswith('.') or name.lower() in _SYSTEM


def is_system(path: str) -> bool:
  """Whether a path leads to a file of the system by an unmistakable name."""
  parts = re.split(r'[/\\]', path)
  return any(p.startswith('._') or p.lower() in _SYSTEM for p in parts)


def _layout(
  clips: Sequence[_Clip], root: _Path
) -> tuple[_Clip, tuple[str, ...]]:
  """Folders above the splits, and the order of levels: 'split', 'class'."""
  inside = [clip for clip in clips if len(clip) > 1]
  depth = 0  # of the first level that is no folder of all clips
  for names in zip(*(clip[:-1] for clip in inside), strict=False):
    if len({*names}) > 1 or split_word(names[0], of_folder=True):
      break
    depth += 1
  upper, lower = (
    {split_word(c[at], of_folder=True) for c in inside if len(c) > at + 1}
    for at in (depth, depth + 1)
  )
  if upper - {''}:
    if '' in upper and not _are_splits(upper):
      raise _unclear(root, inside)
    return inside[0][:depth], ('split', 'class')
  if not _are_splits(lower):
    return (), ('class',)
  if '' in lower or {len(clip) for clip in inside} != {depth + 3}:
    raise _unclear(root, inside)
  return inside[0][:depth], ('class', 'split')


def _are_splits(found: Collection[str]) -> bool:
  return 'train' in found and len({*found} - {''}) > 1


def _refuse_subjects(clips: Sequence[_Clip], at: int, root: _Path) -> None:
  """Refuses classes, the folders of level `at`, below subjects or folds."""
  inside = [clip for clip in clips if len(clip) > at + 1]
  names = sorted({clip[at] for clip in inside})
  are_others = all(people.of_paths(names)) or all(map(_FOLD.fullmatch, names))
  are_above = any(len(clip) > at + 2 for clip in inside)
  if are_others and are_above and len(names) > 1:
    raise _unclear(root, inside, f', {names[0]} looks like a subject or fold')


def _unclear(
  root: _Path, clips: Sequence[_Clip], why: str = ''
) -> MiraInputError:
  folders = collections.Counter('/'.join(clip[:-1][:3]) for clip in clips)
  shown = [f'{name}/ ({n})' for name, n in sorted(folders.items())]
  hint = (
    f'splits or classes{why}? Clips are in {some(shown, 8)}; expected '
    'ROOT/CLASS/CLIP, ROOT/SPLIT/CLASS/CLIP or ROOT/CLASS/SPLIT/CLIP; name '
    'another --root, or list the clips in a --table'
  )
  return data_error('unclear_tree', root, escaped(hint))


def _entries(root: str, at: str, found: Walk) -> tuple[list[str], list[str]]:
  """Names of the folders and of the other files in a folder."""
  folders, files = [], []
  try:
    with os.scandir(os.path.join(root, at)) as entries:
      for entry in entries:
        if is_hidden(entry.name):
          found.passed_over['hidden or of the system'][entry.name] += 1
        elif entry.is_dir(follow_symlinks=False):
          folders.append(entry.name)
        elif entry.is_symlink() and os.path.isdir(entry.path):
          found.fail(os.path.join(at, entry.name), 'outside_root', _LINK)
        else:
          files.append(entry.name)
  except OSError as error:
    found.fail(at, 'not_readable', error.strerror or '')
  return folders, files


def _sort_files(
  at: str, files: Sequence[str], suffixes: tuple[str, ...], found: Walk
) -> None:
  """Adds the clips among the files of a folder, and counts the others."""
  videos = [file for file in files if file.lower().endswith(suffixes)]
  others = {*files} - {*videos}
  frames = [f for f in others if f.lower().endswith(images.SUFFIXES)]
  found.clips += [os.path.join(at, file) for file in videos]
  if frames and videos:
    found.passed_over['pictures beside videos'][''] += len(frames)
  elif frames:
    found.clips.append(at)
  for file in others - {*frames}:
    kind = os.path.splitext(file)[1]
    found.passed_over['of another kind'][kind or 'no suffix'] += 1


def _some(names: Mapping[str, int]) -> str:
  return escaped(some(sorted(names, key=natural), _SHOWN, ' '))
