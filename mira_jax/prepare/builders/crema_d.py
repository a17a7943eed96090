"""CREMA-D: 91 actors say twelve sentences with six expressions.

Cao et al., CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset, IEEE TAC
2014. Layout and counts are those of the owners' README. The five folds of whole
actors are those of MAE-DFER. That `FaceVote` of summaryTable.csv holds letters,
with ':' between those of a tie, is inferred from users' code.
"""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Mapping

from mira_jax.data.listing import Row
from mira_jax.prepare import tables
from mira_jax.prepare.builders.builder import Builder, Clips, by_fold
from mira_jax.prepare.builders.tree import Tree

CODES = {
  'ANG': 'anger',
  'DIS': 'disgust',
  'FEA': 'fear',
  'HAP': 'happiness',
  'NEU': 'neutral',
  'SAD': 'sadness',
}
CLASS_NAMES = tuple(CODES.values())
# The owners' list of bad files has two more, which are only short or lack a
# duration: these show something else than their names say.
WRONG = {
  '1076_MTI_SAD_XX': 'an error picture, says the owner',
  '1064_IEO_DIS_MD': 'a minute of all emotions, says the owner',
}
LAST_ACTORS = (1018, 1036, 1054, 1072, 1091)  # of each fold
LAYOUT = """CREMA-D/
  VideoFlash/1001_DFA_ANG_XX.flv       (with Git LFS: git lfs pull)
  processedResults/summaryTable.csv    (--label=perceived)"""
_NAME = re.compile(r'(\d{4})_([A-Z]{3})_([A-Z]{3})_([A-Z]{2})\.\w+')


def list_clips(tree: Tree, options: Mapping[str, str]) -> Clips:
  """All clips by what the actor was to show or by what viewers saw."""
  videos = tree.need('VideoFlash')
  votes = {}
  read = []
  if options['label'] == 'perceived':
    read = [
      tree.need_file('summarytable.csv', 'processedResults/summaryTable.csv')
    ]
  tree.check()
  if read:
    votes = _votes(read[0])
  rows, dropped = [], collections.Counter()
  for file in sorted(videos.iterdir()):
    if not (name := _NAME.fullmatch(file.name)):
      continue
    label = votes.get(file.stem, '') if read else CODES.get(name[3], '')
    if file.stem in WRONG:
      dropped[WRONG[file.stem]] += 1
    elif not label:
      dropped['no majority of votes' if read else 'another emotion'] += 1
    else:
      rows.append(_row(file, int(name[1]), label))
  return Clips(rows=rows, dropped=dropped, tables=read, crop='haar')


def _row(file: pathlib.Path, actor: int, label: str) -> Row:
  fold = next((k for k, a in enumerate(LAST_ACTORS, 1) if actor <= a), -1)
  row = Row(
    path=str(file),
    clip_id=file.stem,
    label=label,
    subject=str(actor),
    fold=fold,
  )
  return by_fold(row)


def _votes(file: pathlib.Path) -> dict[str, str]:
  """What most viewers saw in the face alone; ties are left out."""
  names = {'clip': ['filename'], 'vote': ['facevote']}
  rows = [row for _, row in tables.records(file, names, names)]
  letters = {name[0].upper(): label for name, label in CODES.items()}
  return {row['clip']: letters.get(row['vote'].upper(), '') for row in rows}


BUILDER = Builder(
  name='crema_d',
  title='CREMA-D (2014)',
  class_names=CLASS_NAMES,
  protocol='5 folds of actors',
  counts={
    'all': 7440,  # without the two of WRONG
    'anger': 1271,
    'disgust': 1270,
    'fear': 1271,
    'happiness': 1271,
    'neutral': 1087,
    'sadness': 1270,
    'subjects': 91,
  },
  licence='ODbL',
  ask='https://github.com/CheyneyComputerScience/CREMA-D',
  layout=LAYOUT,
  list_clips=list_clips,
  options={'label': ('intended', 'perceived')},
)
