"""SAMM: micro-expressions of 29 people at 200 frames per second.

Davison et al., SAMM: A Spontaneous Micro-Facial Movement Dataset, IEEE TAC
2018. The layout is inferred from users' code; counts are those of the MiRA
authors' table.
"""

from __future__ import annotations

from collections.abc import Mapping

from mira_jax.data.listing import Row
from mira_jax.prepare.builders import coded
from mira_jax.prepare.builders.builder import Builder, Clips
from mira_jax.prepare.builders.tree import Tree

CLASS_NAMES = (
  'Anger', 'Contempt', 'Disgust', 'Fear', 'Happiness', 'Sadness', 'Surprise',
  'Other',
)  # fmt: skip
LAYOUT = """SAMM/
  SAMM_Micro_FACS_Codes_v2.xlsx
  SAMM/006/006_1_2/006_05562.jpg"""


def list_clips(tree: Tree, options: Mapping[str, str]) -> Clips:
  """The clips of the coding sheet."""
  del options
  sheet = tree.need_file(
    r'samm_micro_facs.*\.(xlsx?|csv)', 'SAMM_Micro_FACS_Codes_v2.xlsx'
  )
  people = tree.find('SAMM', '006')
  if people is None:
    tree.missing.append('SAMM/006')
  tree.check()
  if people.name == '006':
    people = people.parent

  def place(row: Row) -> list[str]:
    return [str(people / row.subject / row.path)]

  listing = coded.list_sheet(
    sheet,
    class_names=CLASS_NAMES,
    place=place,
    subject=lambda text: text.zfill(3),  # sheets drop leading zeros
    fps=200,
    spellings={'others': 'Other'},
  )
  listing.crop = 'haar'
  return listing


BUILDER = Builder(
  name='samm',
  title='SAMM (2018)',
  class_names=CLASS_NAMES,
  protocol='leave one subject out',
  counts={
    'all': 159,
    'subjects': 29,
    **dict(zip(CLASS_NAMES, (57, 12, 9, 8, 26, 6, 15, 26), strict=True)),
  },
  licence='research only, on request',
  ask='https://helward.mmu.ac.uk/STAFF/M.Yap/dataset.php',
  layout=LAYOUT,
  list_clips=list_clips,
)
