"""The cells of Excel files as text.

openpyxl and xlrd give the kind of a cell: a date, a truth value, an error, a
formula. calamine ends the process at one cell far out, and pandas, which reads
through openpyxl, drops the kinds.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import io
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import openpyxl
import xlrd
import xlrd.compdoc

from mira_jax.data import table_file
from mira_jax.data.table_file import bad_table
from mira_jax.errors import MiraInputError
from mira_jax.prepare import cells
from mira_jax.prepare.cells import EXCEL, Grid, Odd

_XML = re.compile(rb'\s*<|\xef\xbb\xbf|\xff\xfe|\xfe\xff|\0')
_ITEM = re.compile(rb'<(?:\w+:)?(?:row|si)\b')
_LONGEST = 4 << 20  # bytes of a row, or of a shared string
_MOST_XLS = 32 << 20  # bytes; a sheet has at most 65,536 rows
_EXACT = 10**15  # Excel keeps 15 digits of a number


def grids(data: bytes, path: str | os.PathLike[str]) -> list[Grid]:
  """The visible sheets of an XLSX or XLS file.

  Raises:
    MiraInputError: the file is damaged, of another kind, protected by a
      password or too large ('bad_table').
  """
  with _excel_errors(path):
    is_xls = data.startswith(EXCEL[1])
    return _xls(data, path) if is_xls else _xlsx(data, path)


def _xlsx(data: bytes, path: str | os.PathLike[str]) -> list[Grid]:
  with zipfile.ZipFile(io.BytesIO(data)) as parts:
    names = parts.namelist()
    size = sum(part.file_size for part in parts.infolist())
    if size > table_file.MAX_BYTES:
      raise bad_table(path, f'it unpacks to {size >> 20} MiB')
    if '[Content_Types].xml' not in names or 'xl/workbook.bin' in names:
      raise bad_table(path, 'it is no .xlsx file: save it as .xlsx or as CSV')
    for name in names:
      with parts.open(name) as part:
        _check_part(part, name, path)
  return [
    _grid(sheet.title, path, _xlsx_rows, sheet, data)
    for sheet in _book(data).worksheets
    if sheet.sheet_state == 'visible'
  ]


def _check_part(
  part: IO[bytes], name: str, path: str | os.PathLike[str]
) -> None:
  """Refuses XML that openpyxl would parse for minutes, or hold at once."""
  count = since = 0
  while (chunk := part.read(1 << 20)) and (count or since or _XML.match(chunk)):
    starts = [item.start() for item in _ITEM.finditer(chunk)]
    count += len(starts)
    since = len(chunk) - starts[-1] if starts else since + len(chunk)
    if count > cells.MAX_ROWS or since > _LONGEST:
      hint = f'{name[:80]} has over {cells.MAX_ROWS} rows, or one of over '
      raise bad_table(path, f'{hint}{_LONGEST >> 20} MiB: save it as CSV')


def _grid(
  name: str,
  path: str | os.PathLike[str],
  read: Callable[..., Iterator[tuple[int, list[str]]]],
  *args: Any,
) -> Grid:
  def rows() -> Iterator[tuple[int, list[str]]]:
    with _excel_errors(path):
      yield from read(*args)

  return Grid(name=name, how=f'sheet {name!r}', path=path, read=rows)


def _book(data: bytes, values: bool = True) -> Any:
  with warnings.catch_warnings():  # of styles and the like, which are not read
    warnings.simplefilter('ignore')
    return openpyxl.load_workbook(
      io.BytesIO(data), read_only=True, data_only=values, keep_links=False
    )


def _cells(sheet: Any) -> Iterator[tuple[int, tuple[Any, ...]]]:
  sheet.reset_dimensions()  # they are often wrong, and rows would be padded
  return enumerate(sheet.iter_rows(), start=1)


def _xlsx_rows(sheet: Any, data: bytes) -> Iterator[tuple[int, list[str]]]:
  @functools.cache
  def formulas() -> set[tuple[int, int]]:
    rows = _cells(_book(data, values=False)[sheet.title])
    return {(n, c.column) for n, row in rows for c in row if c.data_type == 'f'}

  def text(cell: Any, line: int) -> str:
    if isinstance(cell.value, str):
      return cell.value
    if cell.value is not None:
      return _value(cell.value, cell.number_format)
    # A formula that was never computed looks like an empty cell with a border.
    blank = not hasattr(cell, 'column') or cell.data_type != 'n'
    if blank or (line, cell.column) not in formulas():
      return ''
    why = 'a formula without its value: open the table in a spreadsheet '
    return Odd('', why + 'program and save it')

  for line, row in _cells(sheet):
    yield line, [text(cell, line) for cell in row]


def _xls(data: bytes, path: str | os.PathLike[str]) -> list[Grid]:
  if 'EncryptedPackage'.encode('utf-16-le') in data:
    raise bad_table(path, 'it has a password: save it without one')
  if len(data) > _MOST_XLS:
    hint = f'it has over {_MOST_XLS >> 20} MiB: save it as .xlsx'
    raise bad_table(path, hint)
  _refuse_rings(data, path)
  book = xlrd.open_workbook(
    file_contents=data,
    ragged_rows=True,
    formatting_info=True,
    logfile=io.StringIO(),
  )
  return [
    _grid(sheet.name, path, _xls_rows, book, sheet)
    for sheet in book.sheets()
    if sheet.visibility == 0
  ]


def _refuse_rings(data: bytes, path: str | os.PathLike[str]) -> None:
  """Refuses a file whose short sectors xlrd would follow for ever."""
  parts = xlrd.compdoc.CompDoc(data, logfile=io.StringIO())
  for entry in parts.dirlist:
    sector, steps = entry.first_SID, 0
    while 0 <= sector < len(parts.SSAT):
      sector, steps = parts.SSAT[sector], steps + 1
      if steps > len(parts.SSAT):
        raise bad_table(path, 'no readable Excel file: its sectors form a ring')


def _xls_rows(book: Any, sheet: Any) -> Iterator[tuple[int, list[str]]]:
  for i in range(sheet.nrows):
    yield i + 1, [_xls_cell(cell, book) for cell in sheet.row(i)]


def _xls_cell(cell: Any, book: Any) -> str:
  value = cell.value
  if cell.ctype == xlrd.XL_CELL_BOOLEAN:
    value = bool(value)
  elif cell.ctype == xlrd.XL_CELL_ERROR:
    value = xlrd.error_text_from_code[value]
  elif cell.ctype == xlrd.XL_CELL_DATE:
    value = xlrd.xldate_as_datetime(value, book.datemode)
  style = book.xf_list[cell.xf_index]
  return _value(value, book.format_map[style.format_key].format_str)


def _value(value: object, shown: str | None) -> str:
  """Text of a value that is shown in a number format."""
  if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
    why = f'a date ({value}) that Excel may have made of other text: format '
    return Odd(str(value), why + 'the column as text and write it again')
  if isinstance(value, int | float) and abs(value) >= _EXACT:
    why = 'a number of which Excel keeps 15 digits: write it as text'
    return Odd(str(value), why)
  if isinstance(value, float) and value.is_integer():
    value = int(value)  # all numbers of Excel are floats
  if isinstance(value, int) and re.fullmatch('0+', shown or ''):
    return str(value).zfill(len(shown or ''))  # 7, shown as 007
  return str(value)


@contextlib.contextmanager
def _excel_errors(path: str | os.PathLike[str]) -> Iterator[None]:
  """Makes every error of a damaged Excel file a MiraInputError.

  openpyxl and xlrd let through whatever XML, zip or a wrong type raises.
  """
  try:
    yield
  except MiraInputError:
    raise
  except Exception as error:
    why = str(error).partition('\n')[0][:200] or type(error).__name__
    raise bad_table(path, f'no readable Excel file: {why}') from error
