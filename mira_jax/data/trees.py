"""Folders of clips: which files are clips, classes and splits."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Iterator

from mira_jax.data import container, decode
from mira_jax.data.listing import (
  SPLITS,
  Listing,
  Row,
  natural,
  split_word,
  with_subjects,
)
from mira_jax.errors import MiraInputError

_SPLIT_FOLDERS = (*SPLITS, 'training', 'testing', 'validation')


def scan_folder(root: str | os.PathLike[str]) -> Listing:
  """Lists the clips of ROOT/CLASS/CLIP or ROOT/SPLIT/CLASS/CLIP.

  A clip is a video file, or a folder with images in it, at any depth below
  its class. Images right in a class folder belong to no clip.
  """
  root = pathlib.Path(root)
  tops = _subfolders(root)
  split_of = {root: ''}
  if tops and all(top.name.lower() in _SPLIT_FOLDERS for top in tops):
    split_of = {top: split_word(top.name) for top in tops}
  rows, dropped = [], collections.Counter()
  for top, split in split_of.items():
    for folder in _subfolders(top):
      for clip in _clips(folder):
        path = clip.relative_to(root).as_posix()
        if clip == folder:
          dropped['images outside a clip folder'] += 1
        else:
          rows.append(Row(path=path, label=folder.name, split=split))
  return Listing(rows=with_subjects(rows), dropped=dict(dropped))


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
  try:
    inside = [p for p in folder.iterdir() if p.is_dir() and p.name[0] != '.']
  except OSError as error:
    raise MiraInputError('not_found', folder, 'no such folder') from error
  return sorted(inside, key=lambda p: natural(p.name))


def _clips(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Video files and folders of images below a folder, itself included."""
  for where, folders, files in os.walk(folder):
    folders.sort(key=natural)
    if any(name.lower().endswith(decode.FRAME_SUFFIXES) for name in files):
      yield pathlib.Path(where)
    for name in sorted(files, key=natural):
      if name.lower().endswith(container.SUFFIXES) and name[0] != '.':
        yield pathlib.Path(where, name)
