"""Videos whose frames are labelled with action units: DISFA, BP4D.

A video is stored as clips of at most 64 frames or so, each with the labels of
its own frames, so that a window of training is a part of it. Frames before the
first label and after the last are left out. No folds are stored: the usual
three of whole subjects are `config.data.num_folds=3`; which subjects the
published ones hold differs from paper to paper.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence

from mira_jax.data.listing import Row
from mira_jax.data.table_file import bad_table
from mira_jax.errors import short
from mira_jax.prepare import cells
from mira_jax.prepare.builders.builder import Builder, Clips
from mira_jax.prepare.builders.tree import Tree, matching

Options = Mapping[str, str]
Labels = dict[int, tuple[int, ...]]  # of each labelled frame, by its number
SEGMENTS = ('64', '32', '128', '256')  # frames of a clip, for `--segment`
_UNKNOWN = -1


def _au(numbers: Sequence[int]) -> tuple[str, ...]:
  return tuple(f'AU{number}' for number in numbers)


def segments(labels: Labels, length: int) -> Iterator[tuple[int, int]]:
  """The first and last frames of clips of a length, from label to label.

  A last part of less than a quarter is not worth a clip: it joins the one
  before. A part without any label is left out.
  """
  first, last = min(labels), max(labels)
  starts = [*range(first, last + 1, length)]
  if len(starts) > 1 and last + 1 - starts[-1] < length / 4:
    starts.pop()
  for start, following in zip(starts, [*starts[1:], last + 1], strict=True):
    known = [n for n in range(start, following) if n in labels]
    if known:
      yield known[0], known[-1]


def _rows(
  path: pathlib.Path,
  name: str,
  subject: str,
  labels: Labels,
  *,
  length: int,
  fps: float,
) -> Iterator[Row]:
  """The clips of one video, whose frames are numbered as its labels."""
  unknown = (_UNKNOWN,) * len(next(iter(labels.values()), ()))
  for first, last in segments(labels, length):
    yield Row(
      path=str(path),
      clip_id=f'{name}#{first}-{last}',
      label='face',
      subject=subject,
      source_id=name,
      fps=fps,
      segment=(first, last),
      intensities=tuple(
        labels.get(number, unknown) for number in range(first, last + 1)
      ),
    )


def _whole(cell: str, most: int, path: pathlib.Path, line: int) -> int:
  """The whole number of a cell, 0 to `most`, also written as '3.0'."""
  try:
    value = float(cell)
  except ValueError:
    value = -1.0
  if not (value.is_integer() and 0 <= value <= most):
    hint = f'line {line}: {short(cell)} is no whole number from 0 to {most}; '
    raise bad_table(path, f'{hint}get it from the dataset provider again')
  return int(value)


# ----- DISFA -----------------------------------------------------------------
# Mavadati et al., DISFA: A Spontaneous Facial Action Intensity Database, IEEE
# TAC 2013: 27 subjects, 4845 frames each at 20 a second, 12 units of intensity
# 0 to 5. The layout, and that label 1 is of the first frame of a video, are
# inferred from users' code; so are that a unit counts as shown from 2 on, and
# the usual eight units. Where a video has a frame less than labels, as that of
# SN010 has, its last clip ends with the video.

_DISFA = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
_DISFA_8 = (1, 2, 4, 6, 9, 12, 25, 26)


def _list_disfa(tree: Tree, options: Options) -> Clips:
  """Every segment of the videos of one camera that have labels."""
  side = options['camera'].capitalize()
  numbers = _DISFA if options['units'] == '12' else _DISFA_8
  videos = tree.need(f'Videos_{side}Camera', f'Video_{side}Camera')
  coded = tree.need('ActionUnit_Labels')
  tree.check()
  rows, tables, unlabelled = [], [], 0
  for video, name in matching(videos, 1, rf'({side}Video(SN\d+)_comp)\.avi'):
    subject = name[2].upper()
    files = [coded / subject / f'{subject}_au{n}.txt' for n in numbers]
    labels = _disfa_labels(files) if (coded / subject).is_dir() else {}
    if not labels:
      unlabelled += 1
      continue
    tables += files
    settings = {'length': int(options['segment']), 'fps': 20.0}
    rows += _rows(video, name[1], subject, labels, **settings)
  dropped = {'no labels of action units': unlabelled} if unlabelled else {}
  return Clips(
    rows=rows,
    tables=tables,
    dropped=dropped,
    crop='haar',
    action_units=_au(numbers),
  )


def _disfa_labels(files: Sequence[pathlib.Path]) -> Labels:
  """Lines of 'frame,intensity' from 1 on, a file for each unit; from 0 here."""
  columns: list[dict[int, int]] = []
  for file in files:
    column = {}
    for line, text in enumerate(cells.read_text(file).splitlines(), 1):
      if not text.strip():
        continue
      frame, _, intensity = text.partition(',')
      number = _whole(frame, 10**7, file, line)
      column[number - 1] = _whole(intensity, 5, file, line)
    columns.append(column)
  frames = sorted({frame for column in columns for frame in column})
  return {
    frame: tuple(column.get(frame, _UNKNOWN) for column in columns)
    for frame in frames
  }


# ----- BP4D ------------------------------------------------------------------
# Zhang et al., BP4D-Spontaneous: a high-resolution spontaneous 3D dynamic
# facial expression database, IVC 2014: 41 subjects, 8 tasks, 25 frames a
# second. Layout, file names and the code 9 for what cannot be coded are
# inferred from users' code; so are the usual twelve units.

_BP4D = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
_NOT_CODED = 9


def _list_bp4d(tree: Tree, options: Options) -> Clips:
  """Every segment of the tasks that have occurrence codes."""
  coded = tree.need('AUCoding/AU_OCC', 'AU_OCC', 'AUCoding')
  folders = tree.need('BP4D-training', '2D+3D', 'Sequences')
  tree.check()
  rows, tables, unlabelled = [], [], 0
  for images, name in matching(folders, 2, r'([FM]\d{3})/(T\d)'):
    if not images.is_dir():
      continue
    clip = f'{name[1]}_{name[2]}'.upper()
    table = coded / f'{clip}.csv'
    labels = _bp4d_labels(table) if table.exists() else {}
    if not labels:
      unlabelled += 1
      continue
    tables.append(table)
    settings = {'length': int(options['segment']), 'fps': 25.0}
    rows += _rows(images, clip, name[1].upper(), labels, **settings)
  dropped = {'no codes of action units': unlabelled} if unlabelled else {}
  return Clips(
    rows=rows,
    tables=tables,
    dropped=dropped,
    crop='haar',
    action_units=_au(_BP4D),
  )


def _bp4d_labels(file: pathlib.Path) -> Labels:
  """A header of unit numbers, and lines that begin with a frame's number."""
  lines = cells.read_text(file).splitlines()
  header = [cell.strip() for cell in lines[0].split(',')] if lines else []
  wanted = [str(number) for number in _BP4D]
  if missing := [number for number in wanted if number not in header[1:]]:
    hint = f'its header has no column for AU{missing[0]}'
    raise bad_table(file, f'{hint}; get it from the dataset provider again')
  places = [header.index(number, 1) for number in wanted]
  labels: Labels = {}
  for line, text in enumerate(lines[1:], 2):
    row = text.split(',')
    if not text.strip():
      continue
    if len(row) <= max(places):
      raise bad_table(file, f'line {line} has {len(row)} cells; it is cut off')
    codes = [_whole(row[place], _NOT_CODED, file, line) for place in places]
    values = tuple(_UNKNOWN if x == _NOT_CODED else x for x in codes)
    if max(values) > 1:
      hint = f'line {line} has the code {max(values)}; occurrences are 0, 1, 9'
      raise bad_table(file, hint)
    if max(values) >= 0:
      labels[_whole(row[0], 10**7, file, line)] = values
  return labels


BUILDERS = (
  Builder(
    name='disfa',
    title='DISFA (2013)',
    class_names=('face',),
    protocol='3 folds of subjects',
    counts={'all': 27 * 76, 'subjects': 27},
    ask='http://mohammadmahoor.com/disfa',
    layout="""DISFA/
  Videos_LeftCamera/LeftVideoSN001_comp.avi      (--camera=left)
  Video_RightCamera/RightVideoSN001_comp.avi     (--camera=right)
  ActionUnit_Labels/SN001/SN001_au1.txt""",
    list_clips=_list_disfa,
    options={
      'units': ('8', '12'),
      'camera': ('left', 'right'),
      'segment': SEGMENTS,
    },
    action_units=_au(_DISFA_8),
    positive_from=2,
  ),
  Builder(
    name='bp4d',
    title='BP4D-Spontaneous (2014)',
    class_names=('face',),
    protocol='3 folds of subjects',
    counts={'subjects': 41},
    ask='https://www.cs.binghamton.edu/~lijun/Research/3DFE/3DFE_Analysis.html',
    layout="""BP4D/
  BP4D-training/F001/T1/2440.jpg
  AUCoding/AU_OCC/F001_T1.csv      (or right in AUCoding)""",
    list_clips=_list_bp4d,
    options={'segment': SEGMENTS},
    action_units=_au(_BP4D),
  ),
)
