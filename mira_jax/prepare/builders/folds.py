"""Folds that are delivered as pairs of lists, one to train and one to test."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

from mira_jax.data.listing import natural
from mira_jax.prepare.builders.builder import leak
from mira_jax.prepare.builders.tree import visible

Entry = tuple[str, str]  # clip and class, as `read` gives them
Lists = Mapping[int, Mapping[str, pathlib.Path]]


def find_lists(folder: pathlib.Path, suffixes: tuple[str, ...]) -> Lists:
  """Lists of every fold, {fold: {'train' or 'test': file}}.

  The fold is the last number of a file's path below `folder`, and the part is
  the last of 'train' and 'test' in it, as in 'test(single-labeled)/set_3.csv'
  and 'set_3/test.txt'.
  """
  lists: dict[int, dict[str, pathlib.Path]] = {}
  files = (f for f in folder.rglob('*') if f.suffix.lower() in suffixes)
  for file in sorted(files, key=lambda f: natural(str(f))):
    inside = file.relative_to(folder)
    if len(visible(inside.parts)) < len(inside.parts):
      continue
    name = inside.with_suffix('').as_posix().lower()
    parts = re.findall('train|test', name)
    numbers = re.findall(r'\d+', name)
    if parts and numbers:
      lists.setdefault(int(numbers[-1]), {}).setdefault(parts[-1], file)
  return {fold: pair for fold, pair in sorted(lists.items()) if len(pair) == 2}


def read(
  lists: Lists,
  entries: Callable[[pathlib.Path], Iterator[Entry]],
) -> dict[str, tuple[str, int]]:
  """Class and testing fold of every clip of some lists.

  A clip that only one of the given folds trains on has fold -1.

  Raises:
    MiraInputError: a clip is listed twice, is trained on and tested in one
      fold, is tested in two folds, or has two classes ('leak').
  """
  labels: dict[str, str] = {}
  tested: dict[str, int] = {}
  for fold, pair in lists.items():
    members: dict[str, str] = {}
    for part in ('train', 'test'):
      file = pair[part]
      for clip, label in entries(file):
        if clip in members:
          raise leak(file, clip, _twice(members[clip], part, fold))
        members[clip] = part
        if labels.setdefault(clip, label) != label:
          raise leak(file, clip, f'is {labels[clip]} and {label}')
        if part == 'test' and tested.setdefault(clip, fold) != fold:
          raise leak(file, clip, f'is tested in folds {tested[clip]}, {fold}')
  return {clip: (label, tested.get(clip, -1)) for clip, label in labels.items()}


def _twice(first: str, second: str, fold: int) -> str:
  if first == second:
    return f'is listed twice to {first} in fold {fold}'
  return f'is in train and test of fold {fold}'
