"""Annotation tables: lists of labelled clips.

A table is a CSV file, also gzipped, or the first sheet of an Excel file. Rows
above its header are passed over. Columns are found by name without regard to
case, spaces and underscores; `COLUMNS` has the names.
"""

from __future__ import annotations

import collections
import csv
import gzip
import io
import itertools
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import openpyxl
import xlrd

from mira_jax.data.listing import (
  Listing,
  Row,
  check_spelling,
  split_word,
  with_subjects,
)
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
MAX_ROWS = 2_000_000
MAX_TABLE_BYTES = 1 << 30
_HEADER_ROWS = 40  # SAMM has a dozen rows of text above its header


def read_table(
  path: str | os.PathLike[str], *, label: Sequence[str] = COLUMNS['label']
) -> Listing:
  """Reads an annotation table.

  A row is dropped when its file is marked as not valid, its label is no class
  name, or its split starts with another word than train, test, val or dev.

  Args:
    path: CSV, CSV.GZ, XLSX or XLS.
    label: names of the column of classes, the preferred one first.

  Raises:
    MiraInputError: the file is no such table ('bad_table'), or a class is
      spelt in two ways ('bad_label').
  """
  rows, dropped = [], collections.Counter()
  names = COLUMNS | {'label': tuple(label)}
  for line, cells in records(path, names, ('path', 'label')):
    if reason := _why_dropped(cells):
      dropped[reason] += 1
    else:
      rows.append(_row(cells, line))
  check_spelling(rows, path)
  return Listing(rows=with_subjects(rows), dropped=dict(dropped))


def records(
  path: str | os.PathLike[str],
  names: Mapping[str, Sequence[str]],
  required: Collection[str],
) -> Iterator[tuple[int, dict[str, str]]]:
  """Line numbers, from 1, and cells of a table by field.

  The header is the first of the upper rows that has the required columns.

  Args:
    path: CSV, CSV.GZ, XLSX or XLS.
    names: that the column of a field may have, in lower case and without
      other characters than letters and digits, the preferred one first.
    required: fields that the table must have.

  Raises:
    MiraInputError: the file is no such table ('bad_table').
  """
  rows = cells(path)
  header = list(itertools.islice(rows, _HEADER_ROWS))
  found = [_columns(row, names) for _, row in header]
  start = next(
    (i for i, have in enumerate(found) if set(required) <= have.keys()), None
  )
  if start is None:
    best = max(found, key=len, default={})
    missing = next(field for field in required if field not in best)
    hint = f'no column for the {missing}: call it one of '
    raise _bad_table(path, hint + ', '.join(names[missing]))
  columns = found[start]
  for line, row in itertools.chain(header[start + 1 :], rows):
    if any(row):
      yield (
        line,
        {key: row[at] if at < len(row) else '' for key, at in columns.items()},
      )


def cells(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
  """Line numbers, from 1, and stripped cells of a CSV or Excel file.

  Raises:
    MiraInputError: there is no such file ('not_found'), or it is damaged,
      protected by a password or too large ('bad_table').
  """
  data = read_bytes(path)
  if data.startswith(b'PK'):
    rows = _xlsx(data, path)
  elif data.startswith(b'\xd0\xcf\x11\xe0'):
    rows = _xls(data, path)
  else:
    rows = _csv(text(data), path)
  for count, (line, row) in enumerate(rows):
    if count >= MAX_ROWS:
      raise _bad_table(path, f'it has more than {MAX_ROWS} rows')
    yield line, [cell.strip() for cell in row]


def text(data: bytes) -> str:
  """Text of bytes in UTF-8, or else in GB18030 as the captions of MAFW."""
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError:
    return data.decode('gb18030', errors='replace')


def plain(name: str) -> str:
  """A column's name without case, spaces and punctuation."""
  return re.sub('[^a-z0-9]', '', name.lower())


def read_bytes(path: str | os.PathLike[str]) -> bytes:
  """The bytes of a table, unpacked if gzipped.

  Raises:
    MiraInputError: with code not_found or bad_table.
  """
  try:
    if os.path.getsize(path) > MAX_TABLE_BYTES:
      raise _bad_table(path, f'it has more than {MAX_TABLE_BYTES >> 20} MiB')
    data = pathlib.Path(path).read_bytes()
    if data.startswith(b'\x1f\x8b'):
      with gzip.open(io.BytesIO(data)) as file:
        data = file.read(MAX_TABLE_BYTES + 1)
  except FileNotFoundError as error:
    raise MiraInputError('not_found', path, 'there is no such table') from error
  except (OSError, EOFError, zlib.error) as error:
    raise _bad_table(path, str(error)) from error
  if len(data) > MAX_TABLE_BYTES:
    raise _bad_table(path, f'it unpacks to over {MAX_TABLE_BYTES >> 20} MiB')
  return data


def _csv(
  content: str, path: str | os.PathLike[str]
) -> Iterator[tuple[int, list[str]]]:
  header = content.partition('\n')[0]
  delimiter = max(',;\t', key=header.count)
  reader = csv.reader(io.StringIO(content, newline=''), delimiter=delimiter)
  try:
    for row in reader:
      yield reader.line_num, row
  except csv.Error as error:
    raise _bad_table(path, f'not a CSV file: {error}') from error


def _xlsx(
  data: bytes, path: str | os.PathLike[str]
) -> Iterator[tuple[int, list[str]]]:
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as parts:
      size = sum(part.file_size for part in parts.infolist())
    if size > MAX_TABLE_BYTES:
      raise _bad_table(path, f'it unpacks to {size >> 20} MiB')
    book = openpyxl.load_workbook(
      io.BytesIO(data), read_only=True, data_only=True
    )
    rows = book.worksheets[0].iter_rows(values_only=True)
    for line, row in enumerate(rows, start=1):
      yield line, [_cell(value) for value in row]
  except MiraInputError:
    raise
  except Exception as error:  # openpyxl lets errors of XML and zip through
    raise _bad_table(path, f'no readable Excel file: {error}') from error


def _xls(
  data: bytes, path: str | os.PathLike[str]
) -> Iterator[tuple[int, list[str]]]:
  if 'EncryptedPackage'.encode('utf-16-le') in data:
    raise _bad_table(path, 'it has a password: save it without one')
  try:
    sheet = xlrd.open_workbook(file_contents=data).sheet_by_index(0)
  except Exception as error:  # xlrd raises bare errors on damaged files
    raise _bad_table(path, f'no readable Excel file: {error}') from error
  for i in range(sheet.nrows):
    yield i + 1, [_cell(value) for value in sheet.row_values(i)]


def _cell(value: object) -> str:
  """Text of a cell of a sheet, where all numbers are floats."""
  if value is None:
    return ''
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  return str(value)


def _columns(
  header: Sequence[str], names: Mapping[str, Sequence[str]]
) -> dict[str, int]:
  """Where a header has the fields of `names`."""
  places = {plain(name): i for i, name in enumerate(header)}
  found = {
    key: next((places[a] for a in aliases if a in places), None)
    for key, aliases in names.items()
  }
  return {key: at for key, at in found.items() if at is not None}


def _bad_table(path: str | os.PathLike[str], hint: str) -> MiraInputError:
  return MiraInputError('bad_table', path, hint)


def _why_dropped(cells: dict[str, str]) -> str:
  if cells.get('valid', 'true').lower() not in ('true', '1', 'yes'):
    return 'marked as not valid'
  if cells['label'].lower() in _NO_LABEL:
    return 'no label'
  if 'split' in cells and not split_word(cells['split']):
    return 'another split'
  return '' if cells['path'] else 'no path'


def _row(cells: dict[str, str], line: int) -> Row:
  return Row(
    path=cells['path'],
    label=cells['label'],
    split=split_word(cells.get('split', '')),
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
