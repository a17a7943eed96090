"""Annotation tables: lists of labelled clips.

A table is a CSV file, also gzipped, or a sheet of an XLSX file. Rows above its
header are passed over; the header determines the delimiter or the sheet.
Columns are found by the names of `COLUMNS`, without regard to case, spaces and
underscores.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from mira_jax.data.listing import FACTS, Listing, Row, listed, split_word
from mira_jax.data.table_file import bad_table
from mira_jax.errors import MiraInputError, short
from mira_jax.files import Path
from mira_jax.prepare import cells
from mira_jax.prepare.grid import Grid, Odd

# Names of a column, the preferred one first: where a table has both a path
# and a bare file name (SAMM), the path is what can be found on disk.
COLUMNS = {
  'path': ('filepath', 'path', 'filename', 'file', 'videoname', 'clip'),
  'label': ('annotation', 'label', 'emotion', 'class', '3class', 'expression'),
  'split': ('datasplit', 'split', 'set', 'subset', 'partition', 'usage'),
  'subject': (
    *('subject', 'subjectid', 'actor', 'actorid', 'participant'),
    *('participantid', 'person', 'personid', 'speaker', 'speakerid'),
    *('identity', 'patient', 'patientid', 'subj', 'subjid', 'sub', 'subid'),
  ),
  'fold': ('fold', 'testfold'),
  'fps': ('fps', 'framerate'),
  'onset': ('onsetframe', 'onset'),
  'apex': ('apexframe', 'apex'),
  'offset': ('offsetframe', 'offset'),
  'action_units': ('actionunits', 'aus', 'au'),
  'valid': ('boolfile', 'isvalid', 'valid'),
}
# One column for each action unit. OpenFace writes two that may disagree, AU01_c
# (shown or not) and AU01_r (an intensity); whether it is shown counts.
UNITS = {
  f'AU{k}': tuple(f'au{k:0{width}}{end}' for end in ('', 'c', 'r')
                  for width in (1, 2))
  for k in range(1, 100)
}  # fmt: skip
_ANY_UNIT = tuple(name for names in UNITS.values() for name in names)
NO_CLASS = 'face'  # of clips that have action units and no label
# Missing values of R, pandas, Excel, SQL and manual tables.
MISSING = frozenset(
  {'', 'na', 'n/a', '<na>', 'nan', 'nat', 'null', '\\n', '?', '-', '--', '/'}
  | {'.', '#n/a', '#null!', '#value!', '#ref!', '#div/0!', '#name?', '#num!'}
)
# These may be a class as well: no pain, not smiling, a negative valence.
EITHER = frozenset({'none', 'false', '-1'})
_TRUTH = {
  **dict.fromkeys(('true', 't', 'yes', 'y', '1', '1.0'), True),
  **dict.fromkeys(('false', 'f', 'no', 'n', '0', '0.0'), False),
}
_NUMBER = re.compile(r'[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d{1,3})?', re.I | re.A)
_GROUPED = re.compile(r'\d{1,3}([.,]\d{3})+')  # 1,000 is a thousand, or one
_MOST = {  # the largest value of a number; all but fps are whole
  'fold': 9999,
  'fps': 100_000,
  **dict.fromkeys(('onset', 'apex', 'offset'), 2**31 - 1),
}
_HEADER_ROWS = 40  # SAMM has a dozen rows of text above its header
_CONTROL = re.compile('[\0-\x1f\x7f-\x9f\u2028\u2029]')


@dataclasses.dataclass
class Table:
  """A table whose header is found.

  Iterating gives line numbers, from 1, and cells by field, and raises
  MiraInputError for a row that cannot be read.
  """

  grid: Grid  # the sheet, or the file with the delimiter that fits
  columns: dict[str, tuple[int, str]]  # index and name by field
  header: Sequence[str]
  start: int  # rows to pass over, the header included

  def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
    width = len(self.header)
    for line, row in itertools.islice(self.grid.rows(), self.start, None):
      if any(row) or any(isinstance(cell, Odd) for cell in row):
        # Notes beside the table of a sheet shift nothing.
        if not self.grid.name and any(row[width:]):
          hint = f'line {line} has {len(row)} cells, and its header {width}: '
          hint += 'quote cells that hold the delimiter'
          raise bad_table(self.grid.path, hint)
        row += [''] * (width - len(row))
        yield line, {f: self._cell(f, line, row) for f in self.columns}

  def __str__(self) -> str:
    names = [
      field if plain(field) == plain(name) else f'{field}={name}'
      for field, (_, name) in self.columns.items()
    ]
    return f'{self.grid.how}; columns {", ".join(names)}'

  def _cell(self, field: str, line: int, row: Sequence[str]) -> str:
    at, name = self.columns[field]
    cell, where = row[at], f'line {line}, column {short(name)}'
    if isinstance(cell, Odd):
      raise bad_table(self.grid.path, f'{where}: {cell.why}')
    if field == 'label':
      return cell  # `listing.listed` checks class names
    most = 4096 if field == 'path' else 255
    if len(cell) > most:
      why = f'has more than {most} characters'
    elif _CONTROL.search(cell):
      why = 'has a line break or another control character'
    else:
      return cell
    raise bad_table(self.grid.path, f'{where}: {short(cell)} {why}')


def read_table(
  path: Path,
  *,
  label: Sequence[str] = COLUMNS['label'],
  encoding: str = '',
  missing: Collection[str] | None = None,
) -> Listing:
  """Reads an annotation table.

  A row is dropped when its file is marked as not valid, its label is missing,
  or its split is none of those of `listing.split_word`. A table with columns of
  action units needs no label.

  Args:
    path: CSV, CSV.GZ or XLSX.
    label: names of the column of classes, the preferred one first.
    encoding: see `cells.grids`.
    missing: labels that are none, in any case; the empty one always is. By
      default those of `MISSING`, and an error for those of `EITHER`.

  Raises:
    MiraInputError: the file cannot be read, see `records`; a number, a split
      or a truth value is none ('bad_table'); a class is spelt in two ways
      ('bad_label'); a label may be a class or missing and
      `missing` is not given ('unclear_label').
  """
  names = COLUMNS | {'label': tuple(label)}
  table = records(
    path,
    names | UNITS | {'unit': _ANY_UNIT},
    ('path', 'label'),
    otherwise=('path', 'unit'),
    encoding=encoding,
  )
  table.columns.pop('unit', None)
  units = tuple(name for name in UNITS if name in table.columns)
  known = MISSING if missing is None else {word.lower() for word in missing}
  rows, dropped, splits = [], collections.Counter(), collections.Counter()
  for line, row in table:
    if reason := _why_dropped(row, line, path, known):
      dropped[reason] += 1
    else:
      rows.append(_row(row, line, path, units))
      splits[row.get('split', '')] += 1
  remark = f'{table}; {len(rows) + dropped.total()} rows'
  rows = _in_splits(rows, splits, dropped, path)
  either = {row.label for row in rows if row.label.lower() in EITHER}
  if either and missing is None:
    known = {r[10:-1] for r in dropped if r.startswith('no label (')}
    hint = f'{short(min(either))} may be a class or missing: use --missing='
    hint += ','.join(sorted(known | either)) + ' if it is missing, --missing='
    hint += ','.join(sorted(known)) + ' if it is a class'
    raise MiraInputError('unclear_label', path, hint)
  facts = zip(('label', 'split', 'subject', 'fold'), FACTS, strict=True)
  sources = {
    fact: f'column {table.columns[field][1]}'
    for field, fact in facts
    if field in table.columns
  }
  found = listed(rows, path, dropped=dropped, remarks=[remark], sources=sources)
  return dataclasses.replace(found, action_units=units)


def records(
  path: Path,
  names: Mapping[str, Sequence[str]],
  required: Collection[str],
  *,
  otherwise: Collection[str] = (),
  encoding: str = '',
) -> Table:
  """A table whose header has the required columns.

  The header is the first of the upper rows that has them, with whichever
  delimiter or on whichever sheet.

  Args:
    path: CSV, CSV.GZ or XLSX.
    names: that the column of a field may have, in lower case and without
      other characters than letters and digits, the preferred one first.
    required: fields that the table must have,
    otherwise: or these, if any.
    encoding: see `cells.grids`.

  Raises:
    MiraInputError: the file cannot be read (see `cells.grids`), it has no such
      columns or two of a name, or several sheets have them ('bad_table').
  """
  found: list[Table] = []
  heads: list[list[str]] = []
  for grid in cells.grids(path, encoding):
    head = [row for _, row in itertools.islice(grid.rows(), _HEADER_ROWS + 1)]
    if table := _with_header(grid, head, names, required, otherwise):
      found.append(table)
    heads += head
  if not found:
    raise _no_header(path, heads, names, required)
  if len(found) > 1 and found[0].grid.name:
    fit = ', '.join(short(table.grid.name) for table in found)
    raise bad_table(path, f'several sheets fit: hide all of {fit} but one')
  best = max(found, key=lambda table: len(table.columns))
  seen = collections.Counter(map(plain, best.header))
  for _, name in best.columns.values():
    if seen[plain(name)] > 1:
      hint = f'two columns are called {short(name)}: rename one of them'
      raise bad_table(path, hint)
  return best


def plain(name: str) -> str:
  """A column's name without case, spaces and punctuation."""
  return re.sub('[^a-z0-9]', '', name.lower())


# Headers.


def _with_header(
  grid: Grid,
  head: Sequence[Sequence[str]],
  names: Mapping[str, Sequence[str]],
  required: Collection[str],
  otherwise: Collection[str],
) -> Table | None:
  """The table of a grid, if its header is among its upper rows."""
  for i, row in enumerate(head[:_HEADER_ROWS]):
    columns = _columns(row, names)
    for fields in filter(None, (required, otherwise)):
      if not set(fields) <= columns.keys():
        continue
      # A sentence with these words is no header: the row below is shorter.
      last = max(columns[field][0] for field in fields)
      following = next((r for r in head[i + 1 :] if any(r)), row)
      if len(following) > last:
        return Table(grid, columns, row, i + 1)
  return None


def _columns(
  header: Sequence[str], names: Mapping[str, Sequence[str]]
) -> dict[str, tuple[int, str]]:
  """Index and name of the column of each field of `names`."""
  shown = [n if n.isprintable() else repr(n)[1:-1] for n in header]
  places = {plain(name): (i, shown[i]) for i, name in enumerate(header)}
  return {
    field: places[next(alias for alias in aliases if alias in places)]
    for field, aliases in names.items()
    if not places.keys().isdisjoint(aliases)
  }


def _no_header(
  path: Path,
  rows: Sequence[Sequence[str]],
  names: Mapping[str, Sequence[str]],
  required: Collection[str],
) -> MiraInputError:
  by_cells = sorted(rows, key=len, reverse=True)
  best = max(by_cells, key=lambda row: len(_columns(row, names)), default=())
  found = _columns(best, names)
  lacking = [field for field in required if field not in found] or [*required]
  hint = f'no column for the {lacking[0]}: call it one of '
  hint += ', '.join(names[lacking[0]])
  if there := [short(name) for name in best[:12] if name]:
    hint += f'; found {", ".join(there)}'
  return bad_table(path, hint)


# Rows.


def _why_dropped(
  row: Mapping[str, str], line: int, path: Path, missing: Collection[str]
) -> str:
  valid = row.get('valid', 'true').lower()
  if valid in MISSING | {'none'}:
    return 'not marked as valid or not'
  if valid not in _TRUTH:
    hint = f'line {line}: valid is {short(valid)}: use true and false'
    raise bad_table(path, hint)
  if not _TRUTH[valid]:
    return 'marked as not valid'
  if not (label := row.get('label', NO_CLASS)):
    return 'no label'
  if label.lower() in missing:
    return f'no label ({label})'
  return '' if row['path'] else 'no path'


def _row(
  row: Mapping[str, str], line: int, path: Path, units: Sequence[str]
) -> Row:
  def whole(field: str) -> int:
    number = _number(row, field, line, path)
    return -1 if number is None else int(number)

  return Row(
    path=row['path'],
    label=row.get('label', NO_CLASS),
    split=split_word(row.get('split', '')),
    subject=row.get('subject', ''),
    fold=whole('fold'),
    fps=_number(row, 'fps', line, path) or 0.0,
    onset=whole('onset'),
    apex=whole('apex'),
    offset=whole('offset'),
    action_units=row.get('action_units', ''),
    intensities=(tuple(_intensity(row, unit, line, path) for unit in units),)
    if units
    else (),
    line=line,
  )


def _intensity(row: Mapping[str, str], unit: str, line: int, path: Path) -> int:
  """The nearest whole intensity of a cell, 0 to 5; -1 where it is unknown."""
  cell = row[unit].lower()
  if cell in MISSING | EITHER | {'9', '9.0', '-1.0'}:
    return -1
  value = float(cell.replace(',', '.')) if _NUMBER.fullmatch(cell) else -1.0
  if 0 <= value <= 5:
    return int(value + 0.5)
  hint = f'line {line}: {unit} is {short(cell)}, and no intensity from 0 to 5; '
  hint += 'use 9 or nothing where it is unknown'
  raise bad_table(path, hint)


def _number(
  row: Mapping[str, str], field: str, line: int, path: Path
) -> float | None:
  """The number of a cell; None where it is missing."""
  cell, whole = row.get(field, ''), field != 'fps'
  if cell.lower() in MISSING | {'-1', '-1.0', 'none'}:
    return None
  if _NUMBER.fullmatch(cell) and not (whole and _GROUPED.fullmatch(cell)):
    value = float(cell.replace(',', '.'))
    if 0 <= value <= _MOST[field] and (value.is_integer() or not whole):
      return value
  hint = f'line {line}: {field} is {short(cell)}, and no {"whole " * whole}'
  hint += f'number from 0 to {_MOST[field]}; leave it empty where it is unknown'
  raise bad_table(path, hint)


def _in_splits(
  rows: list[Row],
  words: collections.Counter[str],
  dropped: collections.Counter[str],
  path: Path,
) -> list[Row]:
  """Rows of a known split; all where no row names a split."""
  other = {word: n for word, n in words.items() if not split_word(word)}
  if all(word.lower() in MISSING for word in words):
    return rows
  if len(other) == len(words):
    counts = ', '.join(f'{short(w)} {n}' for w, n in words.most_common(5))
    hint = 'a split is train, training, trn, test, testing, val, valid, '
    hint += 'validation, dev or eval, with a number or word behind; found '
    raise bad_table(path, f'{hint}{counts}: change them, or rename the column')
  for i, (word, n) in enumerate(sorted(other.items(), key=lambda x: -x[1])):
    reason = f'another split ({short(word) if i < 3 else "others"})'
    dropped[reason if word.lower() not in MISSING else 'no split'] += n
  return [row for row in rows if row.split]
