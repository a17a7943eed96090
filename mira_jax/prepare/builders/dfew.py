"""DFEW: clips from films, by one of seven expressions, in five folds.

Jiang et al., DFEW: A Large-Scale Database for Recognizing Dynamic Facial
Expressions in the Wild, ACM MM 2020. Layout, label codes and counts are those
of the owners' README of 2020-10-17; names of the lists in copies of users
(set_K.csv, train_set_K.csv, single_trainset_K.csv) are inferred from their
code.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping

from mira_jax.data.listing import Row
from mira_jax.errors import MiraInputError
from mira_jax.prepare import tables
from mira_jax.prepare.builders import folds
from mira_jax.prepare.builders.builder import Builder, Clips, bad_label, by_fold
from mira_jax.prepare.builders.tree import Tree

# Codes 1 to 7; a copy that numbers from 0 is recognised by its 0.
CLASS_NAMES = (
  'Happy', 'Sad', 'Neutral', 'Angry', 'Surprise', 'Disgust', 'Fear',
)  # fmt: skip
LAYOUT = """DFEW/
  Clip/clip_224x224/00001/*.jpg        (--frames=clip_224x224)
  Clip/clip_224x224_16f/00001/*.jpg    (--frames=16f)
  Clip/original/part_1/1.mp4           (--frames=original)
  EmoLabel_DataSplit/train(single-labeled)/set_1.csv ... set_5.csv
  EmoLabel_DataSplit/test(single-labeled)/set_1.csv ... set_5.csv"""
FRAMES = {
  'clip_224x224': ('Clip/clip_224x224', 'clip_224x224'),
  '16f': ('Clip/clip_224x224_16f', 'clip_224x224_16f'),
  'original': ('Clip/original', 'original'),
}


def list_clips(tree: Tree, options: Mapping[str, str]) -> Clips:
  """The single-labelled clips with a face, 11 697 of 16 372."""
  clips = tree.need(*FRAMES[options['frames']])
  splits = tree.need('EmoLabel_DataSplit', 'label')
  tree.check()
  lists = folds.find_lists(splits, ('.csv',))
  if not lists:
    tree.missing.append('EmoLabel_DataSplit/train(single-labeled)/set_1.csv')
    tree.check()
  files = [file for pair in lists.values() for file in pair.values()]
  first = 0 if any(_codes(file) & {'0'} for file in files) else 1
  members = folds.read(lists, functools.partial(_entries, first=first))
  rows = [
    by_fold(
      Row(
        path=str(_path(clips, clip, options['frames'])),
        clip_id=clip,
        label=label,
        fold=fold,
      )
    )
    for clip, (label, fold) in sorted(members.items())
  ]
  crop = 'haar' if options['frames'] == 'original' else 'none'
  return Clips(rows=rows, tables=files, crop=crop)


def _codes(file: pathlib.Path) -> set[str]:
  return {row.label for row in tables.read_table(file).rows}


def _entries(file: pathlib.Path, first: int) -> Iterator[folds.Entry]:
  for row in tables.read_table(file).rows:
    yield _identity(file, row), _class_name(file, row, first)


def _identity(file: pathlib.Path, row: Row) -> str:
  """Five digits, as the folders of frames are called."""
  stem = pathlib.PurePath(row.path).stem
  if not stem.isdecimal():
    hint = f'line {row.line} has the clip {row.path!r}, which is no number'
    raise MiraInputError('bad_table', file, hint)
  return f'{int(stem):05d}'


def _class_name(file: pathlib.Path, row: Row, first: int) -> str:
  known = {str(first + i): name for i, name in enumerate(CLASS_NAMES)}
  known |= {name.lower(): name for name in CLASS_NAMES}
  if name := known.get(row.label.lower()):
    return name
  names = f'{first} to {first + 6}, or {", ".join(CLASS_NAMES)}'
  raise bad_label(file, row.line, row.label, names)


def _path(clips: pathlib.Path, clip: str, frames: str) -> pathlib.Path:
  if frames != 'original':
    return clips / clip
  number = int(clip)  # 1600 clips to a part, named without leading zeros
  return clips / f'part_{(number - 1) // 1600 + 1}' / f'{number}.mp4'


def _counts() -> dict[str, int]:
  tests = (2341, 2341, 2340, 2339, 2336)
  trains = (9356, 9356, 9357, 9358, 9361)
  totals = (2445, 1894, 2669, 2173, 1469, 145, 902)
  return {
    'all': 11697,
    **dict(zip(CLASS_NAMES, totals, strict=True)),
    **{f'fold {k}': n for k, n in enumerate(tests, 1)},
    **{f'fold {k} train': n for k, n in enumerate(trains, 1)},
  }


BUILDER = Builder(
  name='dfew',
  title='DFEW (2020)',
  class_names=CLASS_NAMES,
  protocol='5 folds',
  counts=_counts(),
  licence='research only, on request',
  ask='https://dfew-dataset.github.io',
  layout=LAYOUT,
  list_clips=list_clips,
  options={'frames': tuple(FRAMES)},
)
