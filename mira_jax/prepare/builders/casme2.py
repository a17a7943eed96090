"""CASME II: micro-expressions of 26 people at 200 frames per second.

Yan et al., CASME II: An Improved Spontaneous Micro-Expression Database and the
Baseline Evaluation, PLoS ONE 2014. The layout is inferred from users' code,
five of whose projects agree. The usual five classes are what a table of classes
(`config.data.classes`) leaves of the seven stored here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mira_jax.data.listing import Row
from mira_jax.prepare.builders import coded
from mira_jax.prepare.builders.builder import Builder, Clips
from mira_jax.prepare.builders.tree import Tree

CLASS_NAMES = (
  'happiness', 'disgust', 'repression', 'surprise', 'fear', 'sadness',
  'others',
)  # fmt: skip
LAYOUT = """CASME2/
  CASME2-coding-20140508.xlsx
  CASME2_RAW_selected/sub01/EP02_01f/img46.jpg    (--frames=raw)
  Cropped/sub01/EP02_01f/reg_img46.jpg            (--frames=cropped)"""
FRAMES = {
  'raw': ('CASME2_RAW_selected', 'CASME2-RAW', 'CASME2_RAW', 'RAW_selected'),
  'cropped': ('Cropped', 'CASME2_Cropped'),
}


def list_clips(tree: Tree, options: Mapping[str, str]) -> Clips:
  """The clips of the coding sheet."""
  clips = tree.need(*FRAMES[options['frames']])
  sheet = tree.need_file(
    r'casme2[-_](coding|label).*\.(xlsx?|csv)', 'CASME2-coding-20140508.xlsx'
  )
  tree.check()

  def place(row: Row) -> list[str]:
    return [str(clips / row.subject / row.path)]

  listing = coded.list_sheet(
    sheet,
    class_names=CLASS_NAMES,
    place=place,
    subject=_folder,
    fps=200,
    spellings={'other': 'others'},
  )
  # File names come again with other people: EP01_01 of sub06 and of sub11.
  listing.rows = [_named(row) for row in listing.rows]
  listing.crop = 'haar' if options['frames'] == 'raw' else 'none'
  return listing


def _named(row: Row) -> Row:
  return dataclasses.replace(row, clip_id=f'{row.subject}/{row.clip_id}')


def _folder(subject: str) -> str:
  """'1' of the sheet is the folder 'sub01'."""
  digits = subject.lower().removeprefix('sub')
  return f'sub{int(digits):02d}' if digits.isdecimal() else subject


BUILDER = Builder(
  name='casme2',
  title='CASME II (2014)',
  class_names=CLASS_NAMES,
  protocol='leave one subject out',
  counts={'all': 255, 'subjects': 26, 'others': 99, 'fear': 2},
  licence='research only, on request',
  ask='http://casme.psych.ac.cn/casme/e2',
  layout=LAYOUT,
  list_clips=list_clips,
  options={'frames': tuple(FRAMES)},
)
