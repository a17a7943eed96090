"""Lists of labelled clips: annotation tables and folders of classes.

A table is a CSV file, also gzipped, with a header. Columns are found by name
without regard to case, spaces and underscores; `COLUMNS` has the names.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import gzip
import io
import os
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator

from mira_jax.data import container, decode
from mira_jax.errors import MiraInputError

# Names of a column, the preferred one first: where a table has both a path
# and a bare file name (SAMM), the path is what can be found on disk.
COLUMNS = {
  'path': ('filepath', 'path', 'filename', 'file', 'videoname', 'clip'),
  'label': ('annotation', 'label', 'emotion', 'class', '3class', 'expression'),
  'split': ('datasplit', 'split', 'set', 'partition'),
  'subject': ('subject', 'subjectid', 'actor', 'actorid', 'participant'),
  'fold': ('fold', 'testfold'),
  'fps': ('fps', 'framerate'),
  'onset': ('onsetframe', 'onset'),
  'apex': ('apexframe', 'apex'),
  'offset': ('offsetframe', 'offset'),
  'action_units': ('actionunits', 'aus', 'au'),
  'valid': ('boolfile', 'isvalid', 'valid'),
}
_NO_LABEL = {'', '-1', 'false', 'none', 'nan'}
_SPLITS = {'train': 'train', 'test': 'test', 'val': 'val', 'dev': 'val'}
_SPLIT_FOLDERS = (*_SPLITS, 'training', 'testing', 'validation')
_SUBJECT = re.compile(r'(?:s|sub|subject|actor|id)[-_]?\d+(?=$|[-_.])', re.I)


@dataclasses.dataclass(kw_only=True, frozen=True)
class Row:
  """One labelled clip, as a table or a folder names it.

  Attributes:
    path: as written in the table, or relative to the folder.
    label: class name.
    split: 'train', 'test', 'val' or '' when nothing is said.
    subject: '' when unknown.
    fold: the fold that tests it; -1 when unknown.
    fps: 0 when unknown.
    onset: frame number in the source, with `apex` and `offset`; -1 unknown.
    action_units: as written.
    line: of the table; 0 for a folder.
  """

  path: str
  label: str
  split: str = ''
  subject: str = ''
  fold: int = -1
  fps: float = 0.0
  onset: int = -1
  apex: int = -1
  offset: int = -1
  action_units: str = ''
  line: int = 0


@dataclasses.dataclass(kw_only=True)
class Listing:
  """The clips found, and how many were passed over for which reason."""

  rows: list[Row]
  dropped: dict[str, int] = dataclasses.field(default_factory=dict)

  @property
  def class_names(self) -> list[str]:
    """In natural order, so that every fold of a dataset has the same labels."""
    return sorted({row.label for row in self.rows}, key=_natural)


def read_table(path: str | os.PathLike[str]) -> Listing:
  """Reads an annotation table.

  A row is dropped when its file is marked as not valid, its label is no class
  name, or its split starts with another word than train, test, val or dev.

  Raises:
    MiraInputError: the file is no such table ('bad_table'), or a class is
      spelt in two ways ('bad_label').
  """
  text = _text(path)
  records = csv.DictReader(
    io.StringIO(text, newline=''), delimiter=_delimiter(text)
  )
  columns = _columns(records.fieldnames or (), path)
  rows, dropped = [], collections.Counter()
  try:
    for record in records:
      cells = {key: (record[name] or '').strip() for key, name in columns}
      if reason := _why_dropped(cells):
        dropped[reason] += 1
      else:
        rows.append(_row(cells, records.line_num))
  except csv.Error as error:
    raise MiraInputError(
      'bad_table', path, f'not a CSV file: {error}'
    ) from error
  _check_spelling(rows, path)
  return Listing(rows=_with_subjects(rows), dropped=dict(dropped))


def scan_folder(root: str | os.PathLike[str]) -> Listing:
  """Lists the clips of ROOT/CLASS/CLIP or ROOT/SPLIT/CLASS/CLIP.

  A clip is a video file, or a folder with images in it, at any depth below
  its class. Images right in a class folder belong to no clip.
  """
  root = pathlib.Path(root)
  tops = _subfolders(root)
  split_of = {root: ''}
  if tops and all(top.name.lower() in _SPLIT_FOLDERS for top in tops):
    split_of = {top: _split_word(top.name) for top in tops}
  rows, dropped = [], collections.Counter()
  for top, split in split_of.items():
    for folder in _subfolders(top):
      for clip in _clips(folder):
        path = clip.relative_to(root).as_posix()
        if clip == folder:
          dropped['images outside a clip folder'] += 1
        else:
          rows.append(Row(path=path, label=folder.name, split=split))
  return Listing(rows=_with_subjects(rows), dropped=dict(dropped))


def _text(path: str | os.PathLike[str]) -> str:
  try:
    data = pathlib.Path(path).read_bytes()
    if data.startswith(b'\x1f\x8b'):
      data = gzip.decompress(data)
  except FileNotFoundError as error:
    raise MiraInputError('not_found', path, 'there is no such table') from error
  except (OSError, EOFError, zlib.error) as error:
    raise MiraInputError('bad_table', path, str(error)) from error
  if data.startswith((b'PK', b'\xd0\xcf\x11\xe0')):
    raise MiraInputError('bad_table', path, 'save the sheet as CSV first')
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError:  # captions of MAFW
    return data.decode('gb18030', errors='replace')


def _delimiter(text: str) -> str:
  header = text.partition('\n')[0]
  return max(',;\t', key=header.count)


def _columns(
  header: Iterable[str], path: str | os.PathLike[str]
) -> list[tuple[str, str]]:
  """Pairs of a field of `COLUMNS` and the name that the table gives it."""
  plain = {
    re.sub('[^a-z0-9]', '', (name or '').lower()): name for name in header
  }
  found = {}
  for key, aliases in COLUMNS.items():
    if alias := next((a for a in aliases if a in plain), None):
      found[key] = plain[alias]
  for key in ('path', 'label'):
    if key not in found:
      names = ', '.join(COLUMNS[key])
      hint = f'no column for the {key}: call it one of {names}'
      raise MiraInputError('bad_table', path, hint)
  return list(found.items())


def _why_dropped(cells: dict[str, str]) -> str:
  if cells.get('valid', 'true').lower() not in ('true', '1', 'yes'):
    return 'marked as not valid'
  if cells['label'].lower() in _NO_LABEL:
    return 'no label'
  if 'split' in cells and not _split_word(cells['split']):
    return 'another split'
  return '' if cells['path'] else 'no path'


def _row(cells: dict[str, str], line: int) -> Row:
  return Row(
    path=cells['path'],
    label=cells['label'],
    split=_split_word(cells.get('split', '')),
    subject=cells.get('subject', ''),
    fps=_number(cells.get('fps', ''), 0.0),
    action_units=cells.get('action_units', ''),
    line=line,
    **{
      key: int(_number(cells.get(key, ''), -1))
      for key in ('fold', 'onset', 'apex', 'offset')
    },
  )


def _number(cell: str, unknown: float) -> float:
  """The number of a cell, or `unknown` for '' and such marks as '/'."""
  return float(cell) if re.fullmatch(r'\d+(\.\d*)?', cell) else unknown


def _split_word(name: str) -> str:
  name = name.lower()
  return next((s for word, s in _SPLITS.items() if name.startswith(word)), '')


def _check_spelling(rows: list[Row], path: str | os.PathLike[str]) -> None:
  seen: dict[str, str] = {}
  for row in rows:
    known = seen.setdefault(row.label.lower(), row.label)
    if known != row.label:
      hint = f'line {row.line}: {row.label} is spelt {known} above'
      raise MiraInputError('bad_label', path, hint)


def _with_subjects(rows: list[Row]) -> list[Row]:
  """Fills in subjects from the paths, such as S01 of 'S01-02-003/'.

  A chance match must not decide who may be in which split, so this is done
  only where no subject is given and every path shows one.
  """
  if any(row.subject for row in rows):
    return rows
  found = [_subject(row.path) for row in rows]
  if not all(found):
    return rows
  return [
    dataclasses.replace(row, subject=subject)
    for row, subject in zip(rows, found, strict=True)
  ]


def _subject(path: str) -> str:
  matches = map(_SUBJECT.match, reversed(re.split(r'[/\\]', path)))
  return next((match[0] for match in matches if match), '')


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
  try:
    inside = [p for p in folder.iterdir() if p.is_dir() and p.name[0] != '.']
  except OSError as error:
    raise MiraInputError('not_found', folder, 'no such folder') from error
  return sorted(inside, key=lambda p: _natural(p.name))


def _clips(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Video files and folders of images below a folder, itself included."""
  for where, folders, files in os.walk(folder):
    folders.sort(key=_natural)
    if any(name.lower().endswith(decode.FRAME_SUFFIXES) for name in files):
      yield pathlib.Path(where)
    for name in sorted(files, key=_natural):
      if name.lower().endswith(container.SUFFIXES) and name[0] != '.':
        yield pathlib.Path(where, name)


def _natural(name: str) -> list[tuple[int, str]]:
  """A sort key that puts clip2 before clip10."""
  parts = re.split(r'(\d+)', name)
  return [(int(p), '') if p.isdecimal() else (-1, p) for p in parts]
