"""MMEW: 300 micro-expressions of 30 people.

Ben et al., Video-based Facial Micro-Expression Analysis: A Survey of Datasets,
Features and Algorithms, IEEE TPAMI 2021. Its README describes folders by
subject and copies in use have folders by emotion; both are read. 90 frames per
second are the paper's. The macro-expressions beside them are not prepared.
"""

from __future__ import annotations

from collections.abc import Mapping

from mira_jax.data.listing import Row
from mira_jax.prepare.builders import coded
from mira_jax.prepare.builders.builder import Builder, Clips
from mira_jax.prepare.builders.tree import Tree

CLASS_NAMES = (
  'happiness', 'surprise', 'anger', 'disgust', 'fear', 'sadness', 'others',
)  # fmt: skip
LAYOUT = """MMEW_Final/
  MMEW_Micro_Exp.xlsx
  Micro_Expression/happiness/S01-01-001/1.jpg   (or S01/happiness/...)"""


def list_clips(tree: Tree, options: Mapping[str, str]) -> Clips:
  """The clips of the coding sheet."""
  del options
  sheet = tree.need_file(
    r'mmew_micro_exp.*\.(xlsx?|csv)', 'MMEW_Micro_Exp.xlsx'
  )
  clips = tree.need('Micro_Expression')
  tree.check()

  def place(row: Row) -> list[str]:
    person = row.path.split('-')[0]
    return [
      str(clips / row.label / row.path),
      str(clips / person / row.label / row.path),
      str(clips / person / row.path),
    ]

  return coded.list_sheet(
    sheet,
    class_names=CLASS_NAMES,
    place=place,
    subject=lambda text: f'S{int(text):02d}' if text.isdecimal() else text,
    fps=90,
    spellings={'other': 'others', 'happy': 'happiness'},
  )


BUILDER = Builder(
  name='mmew',
  title='MMEW (2021)',
  class_names=CLASS_NAMES,
  protocol='leave one subject out',
  counts={
    'all': 300,
    'subjects': 30,
    **dict(zip(CLASS_NAMES, (36, 89, 8, 72, 16, 13, 66), strict=True)),
  },
  licence='research only, on request',
  ask='http://www.dpailab.com/database.html',
  layout=LAYOUT,
  list_clips=list_clips,
)
