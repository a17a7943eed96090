"""CK+: posed expressions of 123 people, from neutral to their peak.

Lucey et al., The Extended Cohn-Kanade Dataset (CK+), CVPR Workshops 2010.
Layout and codes are those of the owners' readme. No folds are stored: those of
published work need a list of subjects that comes with none of the files; use
`config.data.num_folds=10`.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

from mira_jax.data.listing import Row
from mira_jax.prepare.builders.builder import Builder, Clips, bad_label
from mira_jax.prepare.builders.tree import Tree, subfolders
from mira_jax.video.images import frame_files, frame_numbers

CODES = {
  1: 'anger',
  2: 'contempt',
  3: 'disgust',
  4: 'fear',
  5: 'happiness',
  6: 'sadness',
  7: 'surprise',
}
CLASS_NAMES = tuple(CODES.values())
LAYOUT = """CK+/
  cohn-kanade-images/S005/001/S005_001_00000011.png
  Emotion/S005/001/S005_001_00000011_emotion.txt
  FACS/S005/001/S005_001_00000011_facs.txt    (if there, for action units)"""


def list_clips(tree: Tree, options: Mapping[str, str]) -> Clips:
  """The sequences that have an emotion label, 327 of 593."""
  del options
  images = tree.need('cohn-kanade-images', 'extended-cohn-kanade-images')
  emotions = tree.need('Emotion', 'Emotion_labels')
  facs = tree.find('FACS', 'FACS_labels')
  tree.check()
  rows, unlabelled = [], 0
  for person in subfolders(images):
    for clip in subfolders(person):
      place = f'{person.name}/{clip.name}'
      files = _texts(emotions / place)
      if not files:
        unlabelled += 1
        continue
      rows.append(_row(clip, place, files[0], facs))
  dropped = {'no emotion label': unlabelled} if unlabelled else {}
  return Clips(rows=rows, dropped=dropped, crop='haar')


def _row(
  clip: pathlib.Path,
  place: str,
  emotion: pathlib.Path,
  facs: pathlib.Path | None,
) -> Row:
  numbers = frame_numbers(frame_files(clip)).tolist()
  return Row(
    path=str(clip),
    clip_id=place,
    label=_label(emotion),
    subject=place.split('/')[0],
    onset=min(numbers, default=-1),
    apex=max(numbers, default=-1),  # sequences end at the peak
    action_units=_action_units(facs / place) if facs else '',
  )


def _label(file: pathlib.Path) -> str:
  """A single number such as '   3.0000000e+00'."""
  text = file.read_text(errors='replace').strip()
  try:
    return CODES[int(float(text))]
  except (ValueError, KeyError) as error:
    raise bad_label(file, 1, text[:20], '1 to 7') from error


def _action_units(folder: pathlib.Path) -> str:
  """Lines of a unit and its intensity, 0 where that was not coded: '1+2+25'."""
  units = []
  for file in _texts(folder)[:1]:
    for line in file.read_text(errors='replace').splitlines():
      if numbers := re.findall(r'[\d.]+(?:e[+-]?\d+)?', line):
        units.append(f'{float(numbers[0]):g}')
  return '+'.join(units)


def _texts(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(folder.glob('[!.]*.txt')) if folder.is_dir() else []


BUILDER = Builder(
  name='ck_plus',
  title='CK+ (2010)',
  class_names=CLASS_NAMES,
  protocol='10 folds of subjects',
  counts={'all': 327, 'subjects': 118},
  licence='research only, on request',
  ask='http://www.jeffcohn.net/Resources',
  layout=LAYOUT,
  list_clips=list_clips,
)
