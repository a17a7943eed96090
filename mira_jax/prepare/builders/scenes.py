"""AFEW and CAER: video files in folders SPLIT/CLASS.

Dhall et al., Collecting Large, Richly Annotated Facial-Expression Databases
from Movies, IEEE MultiMedia 2012; Lee et al., Context-Aware Emotion Recognition
Networks, ICCV 2019. The layout of AFEW, whose archives are named differently in
each year of EmotiW, is inferred from users' code; its test clips have no
labels. CAER's paper counts 13 201 clips, a user 13 175.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence

from mira_jax.data.listing import Row, natural
from mira_jax.prepare.builders.builder import Builder, Clips
from mira_jax.prepare.builders.tree import Tree, plain, subfolders, visible
from mira_jax.video import container

AFEW_CLASSES = (
  'Angry', 'Disgust', 'Fear', 'Happy', 'Neutral', 'Sad', 'Surprise',
)  # fmt: skip
CAER_CLASSES = (
  'Anger', 'Disgust', 'Fear', 'Happy', 'Neutral', 'Sad', 'Surprise',
)  # fmt: skip


def list_clips(
  tree: Tree,
  options: Mapping[str, str],
  *,
  splits: Mapping[str, Sequence[str]],
  class_names: Sequence[str],
) -> Clips:
  """Every video file of a class; names may come again in another split.

  Args:
    tree: to look in.
    options: none.
    splits: names of the folder of each split.
    class_names: names of the folders in it.
  """
  del options
  # A class is named with its split: 'Train' alone could be any folder.
  folders = {
    split: tree.need(*(f'{n}/{class_names[0]}' for n in names)).parent
    for split, names in splits.items()
  }
  tree.check()
  rows, warnings = [], []
  for split, folder in folders.items():
    known = {plain(f.name): f for f in subfolders(folder)}
    for name in class_names:
      if plain(name) in known:
        rows += _rows(known[plain(name)], split, name)
      else:
        warnings.append(f'there is no folder {folder.name}/{name}')
  return Clips(rows=rows, warnings=warnings, crop='haar')


def _rows(folder: pathlib.Path, split: str, label: str) -> list[Row]:
  names = sorted(visible(os.listdir(folder)), key=natural)
  files = [
    folder / name for name in names if name.lower().endswith(container.SUFFIXES)
  ]
  return [
    Row(
      path=str(file),
      clip_id=f'{split}/{label}/{file.stem}',
      label=label,
      split=split,
    )
    for file in files
  ]


def _afew_counts() -> dict[str, int]:
  train = (133, 74, 81, 150, 144, 117, 74)
  test = (64, 40, 46, 63, 63, 61, 46)
  return {
    'train': 773,
    'test': 383,
    **{f'train/{c}': n for c, n in zip(AFEW_CLASSES, train, strict=True)},
    **{f'test/{c}': n for c, n in zip(AFEW_CLASSES, test, strict=True)},
  }


AFEW = Builder(
  name='afew',
  title='AFEW (EmotiW)',
  class_names=AFEW_CLASSES,
  protocol='train, tested on Val',
  counts=_afew_counts(),
  licence='research only, on request',
  ask='https://users.cecs.anu.edu.au/~few_group/AFEW.html',
  layout="""AFEW/
  Train/Angry/000046280.avi
  Val/Angry/000149120.avi""",
  list_clips=functools.partial(
    list_clips,
    splits={
      'train': ('Train', 'train_afew', 'Train_AFEW'),
      'test': ('Val', 'val_afew', 'Val_AFEW'),
    },
    class_names=AFEW_CLASSES,
  ),
)
CAER = Builder(
  name='caer',
  title='CAER (2019)',
  class_names=CAER_CLASSES,
  protocol='train, validation and test',
  counts={'all': 13201},
  licence='research only',
  ask='https://caer-dataset.github.io',
  layout="""CAER/
  train/Anger/0001.avi
  validation/Anger/0001.avi
  test/Anger/0001.avi""",
  list_clips=functools.partial(
    list_clips,
    splits={
      'train': ('train',),
      'val': ('validation', 'val'),
      'test': ('test',),
    },
    class_names=CAER_CLASSES,
  ),
)
