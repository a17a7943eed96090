"""Folders of clips: which files are clips, classes and splits.

Whatever looks for clips in a folder does it by `walk`: `mira prepare`,
`mira predict`, and builders by `is_hidden`. What is passed over is counted.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
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
from mira_jax.video import container, decode

# Names, in lower case, of what systems put beside people's files. A name that
# starts with a dot is hidden as well: .thumbnails, .ipynb_checkpoints, ._1.mp4.
_SYSTEM = {
  *('__macosx', '@eadir', '@recycle', '#recycle', '#snapshot'),
  *('$recycle.bin', 'system volume information', 'lost+found', 'found.000'),
  *('thumbs.db', 'ehthumbs.db', 'desktop.ini', '__pycache__'),
}
_OTHER_MEDIA = container.OTHER_VIDEOS + container.OTHER_PICTURES
_FEW = 7  # pictures beside a video that are no frames of a clip
_SHOWN = 5
_FOLD = re.compile(r'(?:fold|cv)[-_ ]?\d+', re.IGNORECASE)
_LEVELS_DOWN = 3  # folders above the splits that are looked through


def check_root(root: str | os.PathLike[str]) -> None:
  """Refuses what is no folder.

  Raises:
    MiraInputError: it is a file, or it is not there ('not_found').
  """
  if not os.path.isdir(root):
    hint = 'there is no such folder'
    if os.path.lexists(root):
      hint = 'it is a file; --root takes the folder that holds the clips'
    raise MiraInputError('not_found', root, hint)


@dataclasses.dataclass(kw_only=True)
class Walk:
  """What is in a folder.

  Attributes:
    clips: paths below the folder, '' for itself, in natural order: video files
      and folders of frames.
    frames: those that are folders of frames.
    passed_over: how often each name was passed over, by reason.
    failures: links out of the folder, and folders that cannot be read.
  """

  clips: list[str] = dataclasses.field(default_factory=list)
  frames: set[str] = dataclasses.field(default_factory=set)
  passed_over: dict[str, collections.Counter[str]] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(collections.Counter)
  )
  failures: list[Failure] = dataclasses.field(default_factory=list)

  @property
  def unread(self) -> bool:
    """Whether there may be clips that are not among `clips`."""
    kinds = self.passed_over.get('of another kind', ())
    return bool(self.failures) or any(k.lower() in _OTHER_MEDIA for k in kinds)

  def add(self, other: Walk) -> None:
    """Adds what another one found."""
    self.clips += other.clips
    self.frames |= other.frames
    self.failures += other.failures
    for why, names in other.passed_over.items():
      self.passed_over[why] += names

  def dropped(self) -> dict[str, int]:
    """How much was passed over, by a reason that names it."""
    return {
      f'{why}: {_some(names)}'.removesuffix(': '): names.total()
      for why, names in self.passed_over.items()
    }


def walk(
  root: str | os.PathLike[str],
  suffixes: tuple[str, ...] = container.SUFFIXES,
) -> Walk:
  """Looks for clips in a folder, at any depth.

  A clip is a video file, or a folder with pictures in it. A few pictures beside
  videos, such as a cover, are no clip. Links to folders are followed if they
  stay in the folder and lead to none above them; links in a folder that was
  reached by one are not.

  Args:
    root: the folder.
    suffixes: of video files, in lower case.
  """
  root = os.path.realpath(root)
  found = Walk()
  waiting = [('', False)]
  while waiting:
    at, is_linked = waiting.pop()
    folders, files = _entries(root, at, found)
    for name in folders:
      path = os.path.join(at, name)
      place = os.path.join(root, path)
      if not os.path.islink(place):
        waiting.append((path, is_linked))
      elif _may_follow(place, root, is_linked, found):
        waiting.append((path, True))
    _sort_files(at, files, suffixes, found)
  found.clips.sort(key=lambda clip: [natural(x) for x in clip.split(os.sep)])
  found.failures.sort(key=lambda failure: natural(failure.path))
  return found


def scan_folder(root: str | os.PathLike[str]) -> Listing:
  """Lists the clips of ROOT/CLASS/CLIP, with or without a level of splits.

  Splits are above the classes, ROOT/SPLIT/CLASS/CLIP, or below them,
  ROOT/CLASS/SPLIT/CLIP. Clips are at any depth below; see `walk`. Folders that
  all clips have in common are looked through where splits are below them.

  Raises:
    MiraInputError: there is no such folder, splits and classes cannot be told
      apart ('unclear_tree'), or see `listing.listed`.
  """
  check_root(root)
  found = walk(root)
  clips = [tuple(clip.split(os.sep)) for clip in found.clips]
  layout = _layout(clips, root)
  layout.refuse_others(root, clips)
  rows = []
  for clip in clips:
    path = os.sep.join(clip)
    why, split, label = layout.read(clip, path in found.frames)
    if why:
      found.passed_over[why][label] += 1
    else:
      label = escaped(label, controls=False)
      rows.append(Row(path=path, label=label, split=split))
  for name in layout.empty_folders(root, clips):
    found.passed_over['without clips, beside the splits'][name] += 1
  return listed(
    rows,
    root,
    dropped=found.dropped(),
    failures=found.failures,
    sources=layout.sources(clips),
  )


def is_hidden(name: str) -> bool:
  """Whether a file or folder is none of people's: hidden, or a system's."""
  return name.startswith('.') or name.lower() in _SYSTEM


def is_system(path: str) -> bool:
  """Whether a path leads to such a thing by a name that can be nothing else."""
  parts = re.split(r'[/\\]', path)
  return any(p.startswith('._') or p.lower() in _SYSTEM for p in parts)


@dataclasses.dataclass(kw_only=True, frozen=True)
class _Layout:
  """Which level of folders says what.

  Attributes:
    above: folders that all clips have in common.
    order: 'split' and 'class', or 'class' alone, from above.
  """

  above: tuple[str, ...]
  order: tuple[str, ...]

  def read(self, clip: Sequence[str], is_frames: bool) -> tuple[str, str, str]:
    """Why a clip is passed over, or '', its split, and its class or place."""
    names = clip[len(self.above) : -1]
    named = dict(zip(self.order, names, strict=False))
    split = split_word(named.get('split', ''), of_folder=True)
    if 'split' in named and not split:
      return 'clips beside the splits', '', named['split']
    if 'class' in named and len(named) == len(self.order):
      return '', split, named['class']
    if is_frames:
      return 'images outside a clip folder', '', ''
    return 'videos outside a class folder', '', ''

  def refuse_others(
    self, root: str | os.PathLike[str], clips: Sequence[Sequence[str]]
  ) -> None:
    """Refuses a tree whose classes are below people or folds.

    Raises:
      MiraInputError: with code unclear_tree.
    """
    at = len(self.above) + self.order.index('class')
    inside = [clip for clip in clips if len(clip) > at + 1]
    names = sorted({clip[at] for clip in inside})
    below = any(len(clip) > at + 2 for clip in inside)
    if (
      below
      and len(names) > 1
      and (all(people.of_paths(names)) or all(map(_FOLD.fullmatch, names)))
    ):
      raise _unclear(root, inside, f'{names[0]} looks like a person or a fold')

  def empty_folders(
    self, root: str | os.PathLike[str], clips: Sequence[Sequence[str]]
  ) -> list[str]:
    """Folders beside those of the splits that have no clip."""
    if self.order[0] != 'split':
      return []
    names, _ = _entries(os.path.join(root, *self.above), '', Walk())
    used = self._names(0, clips)
    return [name for name in names if name not in used]

  def sources(self, clips: Sequence[Sequence[str]]) -> dict[str, str]:
    """Which folders said what."""
    levels = '/'.join([*self.above, *map(str.upper, self.order)])
    said = {'classes': f'the folders {escaped(levels)}'}
    if 'split' in self.order:
      names = self._names(self.order.index('split'), clips)
      splits = (name for name in names if split_word(name, of_folder=True))
      said['splits'] = f'the folders {escaped(", ".join(splits))}'
    return said

  def _names(self, level: int, clips: Sequence[Sequence[str]]) -> list[str]:
    """Folders of a level that have clips, in order."""
    at = len(self.above) + level
    return list(dict.fromkeys(clip[at] for clip in clips if len(clip) > at + 1))


def _layout(
  clips: Sequence[Sequence[str]], root: str | os.PathLike[str]
) -> _Layout:
  inside = [clip for clip in clips if len(clip) > 1]
  depth = 0
  while True:
    below = [clip for clip in inside if len(clip) > depth + 1]
    tops = {clip[depth] for clip in below}
    splits = {top: split_word(top, of_folder=True) for top in tops}
    found = {split for split in splits.values() if split}
    is_common = len(splits) == 1 and len(below) == len(inside)
    if found or not is_common or depth == _LEVELS_DOWN:
      break
    depth += 1
  if not found:
    return _classes_above(inside, depth, root)
  if not (all(splits.values()) or _are_splits(found)):
    raise _unclear(root, inside)
  above = tuple(inside[0][:depth])
  no_class = all(len(c) == depth + 2 for c in below if splits[c[depth]])
  if depth and no_class:
    return _Layout(above=above[:-1], order=('class', 'split'))
  return _Layout(above=above, order=('split', 'class'))


def _classes_above(
  clips: Sequence[Sequence[str]], depth: int, root: str | os.PathLike[str]
) -> _Layout:
  """The layout where no folder at a depth is called like a split."""
  names = {clip[depth + 1] for clip in clips if len(clip) > depth + 2}
  found = {split_word(name, of_folder=True) for name in names}
  if not _are_splits(found):
    return _Layout(above=(), order=('class',))
  if '' in found or {len(clip) for clip in clips} != {depth + 3}:
    raise _unclear(root, clips)
  return _Layout(above=tuple(clips[0][:depth]), order=('class', 'split'))


def _are_splits(found: Collection[str]) -> bool:
  return 'train' in found and len({*found} - {''}) > 1


def _unclear(
  root: str | os.PathLike[str], clips: Sequence[Sequence[str]], why: str = ''
) -> MiraInputError:
  folders = collections.Counter('/'.join(clip[:-1][:3]) for clip in clips)
  shown = [f'{name}/ ({n})' for name, n in sorted(folders.items())]
  hint = (
    'it is not clear which folders are splits and which are classes'
    f'{why and ", "}{why}: clips are in {some(shown, 8)}; expected '
    'ROOT/CLASS/CLIP, ROOT/SPLIT/CLASS/CLIP or ROOT/CLASS/SPLIT/CLIP with a '
    'train and another split; name another --root, or say it in a --table'
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
        elif entry.is_dir(follow_symlinks=False) or (
          entry.is_symlink() and os.path.isdir(entry.path)  # not for a loop
        ):
          folders.append(entry.name)
        else:
          files.append(entry.name)
  except OSError as error:
    failure = Failure(
      path=escaped(at), code='not_readable', hint=error.strerror or ''
    )
    found.failures.append(failure)
  return folders, files


def _may_follow(place: str, root: str, is_linked: bool, found: Walk) -> bool:
  """Whether a link to a folder is followed; else it is noted."""
  target = os.path.realpath(place)
  path = os.path.relpath(place, root)
  if not _is_in(target, root):
    hint = 'the link leads out of the folder; copy what it leads to'
    failure = Failure(path=escaped(path), code='outside_root', hint=hint)
    found.failures.append(failure)
  elif is_linked or _is_in(os.path.realpath(os.path.dirname(place)), target):
    why = 'links in circles or in linked folders'
    found.passed_over[why][os.path.basename(path)] += 1
  else:
    return True
  return False


def _is_in(path: str, folder: str) -> bool:
  return os.path.commonpath([path, folder]) == folder


def _sort_files(
  at: str, files: Sequence[str], suffixes: tuple[str, ...], found: Walk
) -> None:
  """Notes what the files of a folder are."""
  videos = [file for file in files if file.lower().endswith(suffixes)]
  others = [file for file in files if not file.lower().endswith(suffixes)]
  frames = [f for f in others if f.lower().endswith(decode.FRAME_SUFFIXES)]
  found.clips += [os.path.join(at, file) for file in videos]
  if frames and (not videos or _are_frames(frames, len(videos))):
    found.clips.append(at)
    found.frames.add(at)
  elif frames:
    found.passed_over['pictures beside videos'][''] += len(frames)
  for file in set(others) - set(frames):
    kind = os.path.splitext(file)[1]
    found.passed_over['of another kind'][kind or 'no suffix'] += 1


def _are_frames(pictures: Sequence[str], videos: int) -> bool:
  """Whether pictures beside videos are a clip: many that a number tells apart.

  Covers are few, and thumbnails are as many as the videos.
  """
  names = collections.Counter(re.sub(r'\d+', '0', name) for name in pictures)
  return max(names.values()) > max(_FEW, 2 * videos)


def _some(names: Mapping[str, int]) -> str:
  shown = sorted(names, key=natural)
  return escaped(some(shown, _SHOWN, ' '))
