"""Datasets whose files carry the class: CREMA-D, RAVDESS, AFEW, CAER."""

from __future__ import annotations

import collections
import functools
import pathlib
from collections.abc import Mapping, Sequence

from mira_jax.data.listing import Row
from mira_jax.errors import data_error
from mira_jax.prepare.builders.builder import (
  Builder,
  Clips,
  by_fold,
  per_class,
  per_fold,
)
from mira_jax.prepare.builders.tree import Tree, matching, plain
from mira_jax.video import container

Options = Mapping[str, str]


# ----- AFEW and CAER: video files in folders SPLIT/CLASS --------------------
# Dhall et al., Collecting Large, Richly Annotated Facial-Expression Databases
# from Movies, IEEE MultiMedia 2012; Lee et al., Context-Aware Emotion
# Recognition Networks, ICCV 2019. The layout of AFEW, whose archives are named
# differently in each year of EmotiW, is inferred from users' code; its test
# clips have no labels. CAER's paper counts 13 201 clips, a user 13 175.

_AFEW = ('Angry', 'Disgust', 'Fear', 'Happy', 'Neutral', 'Sad', 'Surprise')
_CAER = ('Anger', 'Disgust', 'Fear', 'Happy', 'Neutral', 'Sad', 'Surprise')


def _list_scenes(
  tree: Tree,
  options: Options,
  *,
  splits: Mapping[str, Sequence[str]],
  class_names: Sequence[str],
) -> Clips:
  """Every video of a class; `splits` has names of the folder of each split."""
  del options
  # A class is named with its split: 'Train' alone could be any folder.
  folders = {
    split: tree.need(*(f'{n}/{class_names[0]}' for n in names)).parent
    for split, names in splits.items()
  }
  tree.check()
  known = {plain(name): name for name in class_names}
  rows = []
  for split, folder in folders.items():
    for path, name in matching(folder, 2, '(.+)/(.+)'):
      label = known.get(plain(name[1]))
      if label and path.suffix.lower() in container.SUFFIXES:
        clip = f'{split}/{label}/{path.stem}'
        rows.append(Row(path=str(path), clip_id=clip, label=label, split=split))
  return Clips(rows=rows, crop='haar')


# ----- CREMA-D --------------------------------------------------------------
# Cao et al., CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset, IEEE
# TAC 2014. Layout and counts are those of the provider's README. The five folds
# of whole actors are those of MAE-DFER.

_CREMA_D = {
  'ANG': 'anger', 'DIS': 'disgust', 'FEA': 'fear', 'HAP': 'happiness',
  'NEU': 'neutral', 'SAD': 'sadness',
}  # fmt: skip
# The provider's list of bad files has two more, which are only short or lack a
# duration: these show an error picture and a minute of all emotions.
_CREMA_D_WRONG = ('1076_MTI_SAD_XX', '1064_IEO_DIS_MD')
_LAST_ACTORS = (1018, 1036, 1054, 1072, 1091)  # of each fold


def _list_crema_d(tree: Tree, options: Options) -> Clips:
  """All clips by the intended emotion."""
  del options
  videos = tree.need('VideoFlash')
  tree.check()
  rows, dropped = [], collections.Counter()
  for file, name in matching(
    videos, 1, r'(\d{4})_[A-Z]{3}_([A-Z]{3})_[A-Z]{2}\.\w+'
  ):
    actor, label = int(name[1]), _CREMA_D.get(name[2].upper())
    if file.stem in _CREMA_D_WRONG:
      dropped['wrong, says the provider'] += 1
    elif not label:
      dropped['another emotion'] += 1
    else:
      row = Row(
        path=str(file),
        clip_id=file.stem,
        label=label,
        subject=str(actor),
        fold=1 + sum(actor > last for last in _LAST_ACTORS),
      )
      rows.append(by_fold(row))
  return Clips(rows=rows, dropped=dropped, crop='haar')


# ----- RAVDESS --------------------------------------------------------------
# Livingstone & Russo, The Ryerson Audio-Visual Database of Emotional Speech and
# Song, PLoS ONE 2018 (Zenodo record 1188976, which explains the file names).
# The six folds of four actors are those of MAE-DFER. That actor 18 does not
# sing is general knowledge.

_RAVDESS = (
  'neutral', 'calm', 'happy', 'sad', 'angry', 'fearful', 'disgust',
  'surprised',
)  # fmt: skip


def _list_ravdess(tree: Tree, options: Options) -> Clips:
  """Each spoken performance once, though it comes with and without sound."""
  del options
  found: dict[str, pathlib.Path] = {}
  dropped = collections.Counter()
  files = tree.files(r'0[12]-01(-\d\d){5}\.mp4')
  for file in sorted(files, key=lambda file: file.name):
    if file.stem[3:] in found:
      dropped['the same without sound'] += 1
    found.setdefault(file.stem[3:], file)
  if not found:
    tree.missing.append('Actor_01/01-01-01-01-01-01-01.mp4')
    tree.check()
  rows = []
  for performance, file in sorted(found.items()):
    _, emotion, _, _, _, actor = performance.split('-')
    if not 1 <= int(emotion) <= len(_RAVDESS):
      hint = f'its name has the class {emotion!r}; the classes are 01 to 08'
      raise data_error('bad_label', file, hint)
    row = Row(
      path=str(file),
      clip_id=file.stem,
      label=_RAVDESS[int(emotion) - 1],
      subject=actor,
      fold=(int(actor) - 1) // 4 + 1,
    )
    rows.append(by_fold(row))
  return Clips(rows=rows, dropped=dropped, crop='haar')


# ----- the datasets ---------------------------------------------------------

BUILDERS = (
  Builder(
    name='crema_d',
    title='CREMA-D (2014)',
    class_names=tuple(_CREMA_D.values()),
    protocol='5 folds of actors',
    counts={
      'all': 7440,  # without the two of _CREMA_D_WRONG
      'subjects': 91,
      **per_class(_CREMA_D.values(), (1271, 1270, 1271, 1271, 1087, 1270)),
    },
    licence='ODbL',
    ask='https://github.com/CheyneyComputerScience/CREMA-D',
    layout="""CREMA-D/
  VideoFlash/1001_DFA_ANG_XX.flv       (with Git LFS: git lfs pull)""",
    list_clips=_list_crema_d,
  ),
  Builder(
    name='ravdess',
    title='RAVDESS (2018)',
    class_names=_RAVDESS,
    protocol='6 folds of actors',
    counts={
      'all': 1440,
      'subjects': 24,
      'neutral': 96,  # has no strong version
      **dict.fromkeys(_RAVDESS[1:], 192),
      **per_fold([240] * 6),
    },
    licence='CC BY-NC-SA 4.0',
    ask='https://zenodo.org/records/1188976',
    layout="""RAVDESS/
  [Video_Speech_Actor_01/]Actor_01/01-01-01-01-01-01-01.mp4 ... Actor_24""",
    list_clips=_list_ravdess,
  ),
  Builder(
    name='afew',
    title='AFEW (EmotiW)',
    class_names=_AFEW,
    protocol='train, tested on Val',
    counts={
      'train': 773,
      'test': 383,
      **per_class(_AFEW, (133, 74, 81, 150, 144, 117, 74), 'train/'),
      **per_class(_AFEW, (64, 40, 46, 63, 63, 61, 46), 'test/'),
    },
    ask='https://users.cecs.anu.edu.au/~few_group/AFEW.html',
    layout="""AFEW/
  Train/Angry/000046280.avi
  Val/Angry/000149120.avi""",
    list_clips=functools.partial(
      _list_scenes,
      splits={
        'train': ('Train', 'train_afew', 'Train_AFEW'),
        'test': ('Val', 'val_afew', 'Val_AFEW'),
      },
      class_names=_AFEW,
    ),
  ),
  Builder(
    name='caer',
    title='CAER (2019)',
    class_names=_CAER,
    protocol='train, validation and test',
    counts={'all': 13201},
    licence='research only',
    ask='https://caer-dataset.github.io',
    layout="""CAER/
  train/Anger/0001.avi
  validation/Anger/0001.avi
  test/Anger/0001.avi""",
    list_clips=functools.partial(
      _list_scenes,
      splits={
        'train': ('train',),
        'val': ('validation', 'val'),
        'test': ('test',),
      },
      class_names=_CAER,
    ),
  ),
)
