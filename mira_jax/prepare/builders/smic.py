"""SMIC: micro-expressions of 16 people, by three classes and three cameras.

Li et al., A Spontaneous Micro-expression Database: Inducement, collection and
baseline, FG 2013. The layout is inferred from users' code. The class is the
folder's; apex and action units were not coded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mira_jax.data.listing import Row
from mira_jax.prepare.builders.builder import Builder, Clips
from mira_jax.prepare.builders.tree import Tree, subfolders

CLASS_NAMES = ('negative', 'positive', 'surprise')
FPS = {'HS': 100.0, 'VIS': 25.0, 'NIR': 25.0}
LAYOUT = """SMIC/
  SMIC_all_raw/HS/s1/micro/negative/s1_ne_01/*.bmp      (--frames=raw)
  SMIC_all_cropped/HS/s1/micro/negative/s1_ne_01/*.bmp  (--frames=cropped)
  and so for VIS and NIR                                (--camera)"""
_CLIP = re.compile(r'(s\d+)_(ne|po|sur)_?\d+', re.IGNORECASE)
_LABELS = {'ne': 'negative', 'po': 'positive', 'sur': 'surprise'}


def list_clips(tree: Tree, options: Mapping[str, str]) -> Clips:
  """Every clip of one camera."""
  camera, frames = options['camera'], options['frames']
  folder = tree.need(
    f'SMIC_all_{frames}/{camera}', f'{frames}/{camera}', camera
  )
  tree.check()
  rows = []
  for person in subfolders(folder):
    micro = person / 'micro'
    for emotion in subfolders(micro if micro.is_dir() else person):
      for clip in subfolders(emotion):
        if name := _CLIP.fullmatch(clip.name):
          rows.append(
            Row(
              path=str(clip),
              clip_id=clip.name,
              label=_LABELS[name[2].lower()],
              subject=name[1].lower(),
              fps=FPS[camera],
            )
          )
  return Clips(rows=rows, crop='haar' if frames == 'raw' else 'none')


BUILDER = Builder(
  name='smic',
  title='SMIC (2013)',
  class_names=CLASS_NAMES,
  protocol='leave one subject out',
  counts={'all': 164, 'subjects': 16},
  licence='research only, on request',
  ask='http://www.cse.oulu.fi/SMICDatabase',
  layout=LAYOUT,
  list_clips=list_clips,
  options={'camera': tuple(FPS), 'frames': ('raw', 'cropped')},
)
