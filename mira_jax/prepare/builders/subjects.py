"""Datasets with a folder for each subject: SMIC, CK+, VoxCeleb2."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

from mira_jax.data.listing import Row
from mira_jax.prepare.builders.builder import Builder, Clips, bad_label
from mira_jax.prepare.builders.tree import Tree, matching
from mira_jax.video.images import frame_files, frame_numbers

Options = Mapping[str, str]


# ----- SMIC -----------------------------------------------------------------
# Li et al., A Spontaneous Micro-expression Database: Inducement, collection and
# baseline, FG 2013. The layout is inferred from users' code. Apex and action
# units were not coded.

_SMIC = {'ne': 'negative', 'po': 'positive', 'sur': 'surprise'}
_CAMERAS = {'HS': 100.0, 'VIS': 25.0, 'NIR': 25.0}  # frames per second


def _list_smic(tree: Tree, options: Options) -> Clips:
  """Every clip of one camera."""
  camera, frames = options['camera'], options['frames']
  folder = tree.need(
    f'SMIC_all_{frames}/{camera}', f'{frames}/{camera}', camera
  )
  tree.check()
  clip = r'((s\d+)_(ne|po|sur)_?\d+)'
  rows = [
    Row(
      path=str(path),
      clip_id=name[1],
      label=_SMIC[name[3].lower()],
      subject=name[2].lower(),
      fps=_CAMERAS[camera],
    )
    for levels, above in ((4, '[^/]+/micro'), (3, '[^/]+'))
    for path, name in matching(folder, levels, f'{above}/[^/]+/{clip}')
  ]
  return Clips(rows=rows, crop='haar' if frames == 'raw' else 'none')


# ----- CK+ ------------------------------------------------------------------
# Lucey et al., The Extended Cohn-Kanade Dataset (CK+), CVPR Workshops 2010.
# Layout and codes are those of the provider's readme. No folds are stored:
# those of published work need a list of subjects that comes with none of the
# files; use `config.data.num_folds=10`.

_CK_PLUS = (
  'anger', 'contempt', 'disgust', 'fear', 'happiness', 'sadness', 'surprise',
)  # fmt: skip


def _list_ck_plus(tree: Tree, options: Options) -> Clips:
  """The sequences that have an emotion label, 327 of 593."""
  del options
  images = tree.need('cohn-kanade-images', 'extended-cohn-kanade-images')
  emotions = tree.need('Emotion', 'Emotion_labels')
  facs = tree.find('FACS', 'FACS_labels')
  tree.check()
  rows, unlabelled = [], 0
  for clip, name in matching(images, 2, '([^/]+)/[^/]+'):
    labels = sorted((emotions / name[0]).glob('[!.]*.txt'))
    if not labels:
      unlabelled += clip.is_dir()
      continue
    units = sorted((facs / name[0]).glob('[!.]*.txt')) if facs else []
    numbers = frame_numbers(frame_files(clip)).tolist()
    rows.append(
      Row(
        path=str(clip),
        clip_id=name[0],
        label=_ck_plus_label(labels[0]),
        subject=name[1],
        onset=min(numbers, default=-1),
        apex=max(numbers, default=-1),  # sequences end at the peak
        action_units=_ck_plus_units(units[0]) if units else '',
      )
    )
  dropped = {'no emotion label': unlabelled} if unlabelled else {}
  return Clips(rows=rows, dropped=dropped, crop='haar')


def _ck_plus_label(file: pathlib.Path) -> str:
  """The class of a single number such as '   3.0000000e+00'."""
  text = file.read_text(errors='replace').strip()
  known = {float(code): name for code, name in enumerate(_CK_PLUS, 1)}
  try:
    return known[float(text)]
  except (ValueError, KeyError) as error:
    raise bad_label(file, 1, text[:20], ['1 to 7']) from error


def _ck_plus_units(file: pathlib.Path) -> str:
  """'1+2+25' of lines of a unit and its intensity, 0 where that is unknown."""
  lines = file.read_text(errors='replace').splitlines()
  units = [re.search(r'[\d.]+(?:e[+-]?\d+)?', line) for line in lines]
  return '+'.join(f'{float(unit[0]):g}' for unit in units if unit)


# ----- VoxCeleb2 ------------------------------------------------------------
# Chung et al., VoxCeleb2: Deep Speaker Recognition, Interspeech 2018. Layout
# and counts are the provider's; that 283 files of dev have no video stream is
# counted by MAE-DFER. Clips stay the mp4 files that they are: as JPEG frames
# they would take several times the space. They have no expression.


def _list_voxceleb2(tree: Tree, options: Options) -> Clips:
  """Every mp4 file; `source_id` is the recording it was cut from."""
  del options
  folders = {'train': tree.need('dev/mp4'), 'test': tree.find('test/mp4')}
  tree.check()
  rows = [
    Row(
      path=str(file),
      clip_id=name[1],
      label='face',
      split=split,
      subject=name[3],
      source_id=name[2],
    )
    for split, folder in folders.items()
    if folder
    for file, name in matching(folder, 3, r'((([^/]+)/[^/]+)/[^/]+)\.mp4')
  ]
  return Clips(rows=rows)


BUILDERS = (
  Builder(
    name='smic',
    title='SMIC (2013)',
    class_names=tuple(_SMIC.values()),
    protocol='leave one subject out',
    counts={'all': 164, 'subjects': 16},
    ask='http://www.cse.oulu.fi/SMICDatabase',
    layout="""SMIC/
  SMIC_all_raw/HS/s1/micro/negative/s1_ne_01/*.bmp      (--frames=raw)
  SMIC_all_cropped/HS/s1/micro/negative/s1_ne_01/*.bmp  (--frames=cropped)
  and so for VIS and NIR                                (--camera)""",
    list_clips=_list_smic,
    options={'camera': tuple(_CAMERAS), 'frames': ('raw', 'cropped')},
  ),
  Builder(
    name='ck_plus',
    title='CK+ (2010)',
    class_names=_CK_PLUS,
    protocol='10 folds of subjects',
    counts={'all': 327, 'subjects': 118},
    ask='http://www.jeffcohn.net/Resources',
    layout="""CK+/
  cohn-kanade-images/S005/001/S005_001_00000011.png
  Emotion/S005/001/S005_001_00000011_emotion.txt
  FACS/S005/001/S005_001_00000011_facs.txt    (if there, for action units)""",
    list_clips=_list_ck_plus,
  ),
  Builder(
    name='voxceleb2',
    title='VoxCeleb2 (2018)',
    class_names=('face',),
    protocol='pre-training',
    counts={'train': 1_092_009, 'test': 36_237},
    ask='https://www.robots.ox.ac.uk/~vgg/data/voxceleb',
    layout="""VoxCeleb2/      (unpacked: join the pieces, see docs/datasets.md)
  dev/mp4/id00012/21Uxsk56VDQ/00001.mp4
  test/mp4/id00017/01dfn2spqyE/00001.mp4    (if there)""",
    list_clips=_list_voxceleb2,
    stores_video=True,
  ),
)
