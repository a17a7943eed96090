"""Micro-expressions listed in the sheet of a FACS coder: CASME II, SAMM, MMEW.

Their sheets have the columns Subject, Filename, Onset, Apex, Offset, Action
Units and Estimated Emotion; each clip is a folder of frames, whose file names
end with the numbers that the sheet counts by.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

from mira_jax.data.listing import Row
from mira_jax.prepare import tables
from mira_jax.prepare.builders.builder import (
  Builder,
  Clips,
  bad_label,
  per_class,
)
from mira_jax.prepare.builders.tree import Tree

# The column is 'Emotion' in some copies, beside unnamed ones.
_LABEL = ('estimatedemotion', 'emotion', 'expression')


def _list_clips(
  tree: Tree,
  options: Mapping[str, str],
  *,
  class_names: Sequence[str],
  file: tuple[str, str],
  clips: Mapping[str, Sequence[str]],
  places: Sequence[str],
  clip_id: str = '{path}',
  subject: str,
  fps: float,
  spellings: Mapping[str, str],
  crop: str,
) -> Clips:
  """The clips of a coder's sheet.

  Args:
    tree: the download.
    options: `frames`, if any.
    class_names: of the dataset.
    file: names of the sheet as a regular expression, and its usual name.
    clips: names of the folder of clips, by the option `frames`; '' without.
    places: of a clip in that folder; the first that exists counts.
    clip_id: the name of a clip, with the same fields as `places`.
    subject: format of a subject's number, as the folders have it.
    fps: of the camera.
    spellings: other spellings of classes, in lower case.
    crop: see `Clips`; frames that are cropped already get 'none'.
  """
  frames = options.get('frames', '')
  folder = tree.need(*clips[frames])
  sheet = tree.need_file(*file)
  tree.check()
  if folder.name == '006':  # SAMM, found by its first subject
    folder = folder.parent
  listing = tables.read_table(sheet, label=_LABEL)
  known = {name.lower(): name for name in class_names} | {**spellings}
  rows, warnings = [], []
  for row in listing.rows:
    if row.label.lower() not in known:
      raise bad_label(sheet, row.line, row.label, class_names)
    label, who = known[row.label.lower()], row.subject
    number = who.lower().removeprefix('sub')
    who = subject.format(int(number)) if number.isdecimal() else who
    fields = {'subject': who, 'label': label, 'path': row.path}
    found = [folder / place.format_map(fields) for place in places]
    row, wrong = _possible(row)
    warnings += [f'line {row.line} of the sheet: {wrong}'] if wrong else []
    rows.append(
      dataclasses.replace(
        row,
        path=str(next((p for p in found if p.is_dir()), found[0])),
        clip_id=clip_id.format_map(fields),
        label=label,
        subject=who,
        fps=fps,
      )
    )
  return Clips(
    rows=rows,
    tables=[sheet],
    dropped=listing.dropped,
    crop='none' if frames == 'cropped' else crop,
    warnings=warnings,
  )


def _possible(row: Row) -> tuple[Row, str]:
  """The row without marks that contradict each other, and which these were.

  They are known mistakes of these sheets.
  """
  if 0 <= row.offset < row.onset:
    wrong = f'offset {row.offset} lies before onset {row.onset}'
    return dataclasses.replace(row, offset=-1), wrong
  if 0 <= row.apex < row.onset or 0 <= row.offset < row.apex:
    wrong = f'apex {row.apex} lies outside {row.onset} to {row.offset}'
    return dataclasses.replace(row, apex=-1), wrong
  return row, ''


# Yan et al., CASME II: An Improved Spontaneous Micro-Expression Database and
# the Baseline Evaluation, PLoS ONE 2014. The layout is inferred from users'
# code, five of whose projects agree. A table of classes (`config.data.classes`)
# leaves the usual five classes of the seven stored here.
_CASME2 = (
  'happiness', 'disgust', 'repression', 'surprise', 'fear', 'sadness',
  'others',
)  # fmt: skip
# Davison et al., SAMM: A Spontaneous Micro-Facial Movement Dataset, IEEE TAC
# 2018. The layout is inferred from users' code; counts are those of the MiRA
# authors' table.
_SAMM = (
  'Anger', 'Contempt', 'Disgust', 'Fear', 'Happiness', 'Sadness', 'Surprise',
  'Other',
)  # fmt: skip
# Ben et al., Video-based Facial Micro-Expression Analysis: A Survey of
# Datasets, Features and Algorithms, IEEE TPAMI 2021. Its README describes
# folders by subject and copies in use have folders by emotion; both are read.
# The macro-expressions beside them are not prepared.
_MMEW = (
  'happiness', 'surprise', 'anger', 'disgust', 'fear', 'sadness', 'others',
)  # fmt: skip

BUILDERS = (
  Builder(
    name='casme2',
    title='CASME II (2014)',
    class_names=_CASME2,
    protocol='leave one subject out',
    counts={'all': 255, 'subjects': 26, 'others': 99, 'fear': 2},
    ask='http://casme.psych.ac.cn/casme/e2',
    layout="""CASME2/
  CASME2-coding-20140508.xlsx      (save CASME2_label_Ver_2.xls as .xlsx)
  CASME2_RAW_selected/sub01/EP02_01f/img46.jpg    (--frames=raw)
  Cropped/sub01/EP02_01f/reg_img46.jpg            (--frames=cropped)""",
    list_clips=functools.partial(
      _list_clips,
      class_names=_CASME2,
      file=(
        r'casme2[-_](coding|label).*\.(xlsx|csv)',
        'CASME2-coding-20140508.xlsx',
      ),
      clips={
        'raw': ('CASME2_RAW_selected', 'CASME2-RAW', 'RAW_selected'),
        'cropped': ('Cropped', 'CASME2_Cropped'),
      },
      places=['{subject}/{path}'],
      clip_id='{subject}/{path}',  # EP01_01 is one of sub06 and one of sub11
      subject='sub{:02d}',
      fps=200,
      spellings={'other': 'others'},
      crop='haar',
    ),
    options={'frames': ('raw', 'cropped')},
  ),
  Builder(
    name='samm',
    title='SAMM (2018)',
    class_names=_SAMM,
    protocol='leave one subject out',
    counts={
      'all': 159,
      'subjects': 29,
      **per_class(_SAMM, (57, 12, 9, 8, 26, 6, 15, 26)),
    },
    ask='https://helward.mmu.ac.uk/STAFF/M.Yap/dataset.php',
    layout="""SAMM/
  SAMM_Micro_FACS_Codes_v2.xlsx
  SAMM/006/006_1_2/006_05562.jpg""",
    list_clips=functools.partial(
      _list_clips,
      class_names=_SAMM,
      file=(r'samm_micro_facs.*\.(xlsx|csv)', 'SAMM_Micro_FACS_Codes_v2.xlsx'),
      clips={'': ('SAMM', '006')},
      places=['{subject}/{path}'],
      subject='{:03d}',
      fps=200,
      spellings={'others': 'Other'},
      crop='haar',
    ),
  ),
  Builder(
    name='mmew',
    title='MMEW (2021)',
    class_names=_MMEW,
    protocol='leave one subject out',
    counts={
      'all': 300,
      'subjects': 30,
      **per_class(_MMEW, (36, 89, 8, 72, 16, 13, 66)),
    },
    ask='http://www.dpailab.com/database.html',
    layout="""MMEW_Final/
  MMEW_Micro_Exp.xlsx
  Micro_Expression/happiness/S01-01-001/1.jpg   (or S01/happiness/...)""",
    list_clips=functools.partial(
      _list_clips,
      class_names=_MMEW,
      file=(r'mmew_micro_exp.*\.(xlsx|csv)', 'MMEW_Micro_Exp.xlsx'),
      clips={'': ('Micro_Expression',)},
      places=['{label}/{path}', '{subject}/{label}/{path}', '{subject}/{path}'],
      subject='S{:02d}',
      fps=90,  # the paper's
      spellings={'other': 'others', 'happy': 'happiness'},
      crop='none',
    ),
  ),
)
