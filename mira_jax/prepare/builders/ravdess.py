"""RAVDESS: 24 actors speak and sing with eight expressions.

Livingstone & Russo, The Ryerson Audio-Visual Database of Emotional Speech and
Song, PLoS ONE 2018 (Zenodo record 1188976, which says what file names mean).
The six folds of four actors are those of MAE-DFER. That actor 18 does not sing
is general knowledge.
"""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Mapping

from mira_jax.data.listing import Row
from mira_jax.prepare.builders.builder import Builder, Clips, by_fold
from mira_jax.prepare.builders.tree import Tree

CLASS_NAMES = (
  'neutral', 'calm', 'happy', 'sad', 'angry', 'fearful', 'disgust',
  'surprised',
)  # fmt: skip
CHANNELS = {'speech': ('01',), 'song': ('02',), 'both': ('01', '02')}
LAYOUT = """RAVDESS/
  [Video_Speech_Actor_01/]Actor_01/01-01-01-01-01-01-01.mp4 ... Actor_24"""
_NAME = re.compile(r'(0[1-3])((?:-\d\d){6})\.mp4')


def list_clips(tree: Tree, options: Mapping[str, str]) -> Clips:
  """Each performance once, though it comes with (01) and without sound (02)."""
  found: dict[str, tuple[str, pathlib.Path]] = {}
  dropped = collections.Counter()
  for file in tree.files(r'0[12](-\d\d){6}\.mp4'):
    name = _NAME.fullmatch(file.name)
    modality, performance = name[1], name[2]
    if performance[1:3] not in CHANNELS[options['channel']]:
      dropped['another channel'] += 1
      continue
    if performance in found:
      dropped['the same with or without sound'] += 1
    if modality <= found.get(performance, ('99',))[0]:
      found[performance] = (modality, file)
  if not found:
    tree.missing.append('Actor_01/01-01-01-01-01-01-01.mp4')
    tree.check()
  rows = [_row(file) for _, (_, file) in sorted(found.items())]
  return Clips(rows=rows, dropped=dropped, crop='haar')


def _row(file: pathlib.Path) -> Row:
  _, _, emotion, _, _, _, actor = file.stem.split('-')
  if not 1 <= int(emotion) <= len(CLASS_NAMES):
    label = emotion
  else:
    label = CLASS_NAMES[int(emotion) - 1]
  row = Row(
    path=str(file),
    clip_id=file.stem,
    label=label,
    subject=actor,
    fold=(int(actor) - 1) // 4 + 1,
  )
  return by_fold(row)


BUILDER = Builder(
  name='ravdess',
  title='RAVDESS (2018)',
  class_names=CLASS_NAMES,
  protocol='6 folds of actors',
  counts={
    'all': 1440,
    'subjects': 24,
    'neutral': 96,  # has no strong version
    **dict.fromkeys(CLASS_NAMES[1:], 192),
    **{f'fold {k}': 240 for k in range(1, 7)},
  },
  licence='CC BY-NC-SA 4.0',
  ask='https://zenodo.org/records/1188976',
  layout=LAYOUT,
  list_clips=list_clips,
  options={'channel': tuple(CHANNELS)},
)
