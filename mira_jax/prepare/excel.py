"""The cells of Excel files as text.

openpyxl gives the kind of a cell: a date, a truth value, an error, a formula.
calamine ends the process at one cell far out, and pandas, which reads through
openpyxl, drops the kinds.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import openpyxl

from mira_jax.data import table_file
from mira_jax.data.table_file import bad_table
from mira_jax.errors import MiraInputError
from mira_jax.files import Path
from mira_jax.prepare.grid import MAX_ROWS, Grid, Line, Odd

_XML = re.compile(rb'\s*<|\xef\xbb\xbf|\xff\xfe|\xfe\xff|\0')
_ITEM = re.compile(rb'<(?:\w+:)?(?:row|si)\b')
_LONGEST = 4 << 20  # bytes of a row, or of a shared string
_EXACT = 10**15  # Excel keeps 15 digits of a number


def grids(data: bytes, path: Path) -> list[Grid]:
  """The visible sheets of an XLSX file.

  Raises:
    MiraInputError: the file is damaged, of another kind or too large
      ('bad_table').
  """
  with _excel_errors(path), zipfile.ZipFile(io.BytesIO(data)) as parts:
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
      Grid(
        name=sheet.title,
        how=f'sheet {sheet.title!r}',
        path=path,
        read=functools.partial(_rows, sheet, data, path),
      )
      for sheet in _book(data).worksheets
      if sheet.sheet_state == 'visible'
    ]


def _check_part(part: IO[bytes], name: str, path: Path) -> None:
  """Refuses XML that openpyxl would parse for minutes, or hold at once."""
  count = since = 0
  while (chunk := part.read(1 << 20)) and (count or since or _XML.match(chunk)):
    starts = [item.start() for item in _ITEM.finditer(chunk)]
    count += len(starts)
    since = len(chunk) - starts[-1] if starts else since + len(chunk)
    if count > MAX_ROWS or since > _LONGEST:
      hint = f'{name[:80]} has over {MAX_ROWS} rows, or one of over '
      raise bad_table(path, f'{hint}{_LONGEST >> 20} MiB: save it as CSV')


def _book(data: bytes, values: bool = True) -> Any:
  with warnings.catch_warnings():  # of styles and the like, which are not read
    warnings.simplefilter('ignore')
    return openpyxl.load_workbook(
      io.BytesIO(data), read_only=True, data_only=values, keep_links=False
    )


def _cells(sheet: Any) -> Iterator[tuple[int, tuple[Any, ...]]]:
  sheet.reset_dimensions()  # they are often wrong, and rows would be padded
  return enumerate(sheet.iter_rows(), start=1)


def _rows(sheet: Any, data: bytes, path: Path) -> Iterator[Line]:
  @functools.cache
  def formulas() -> set[tuple[int, int]]:
    rows = _cells(_book(data, values=False)[sheet.title])
    return {(n, c.column) for n, row in rows for c in row if c.data_type == 'f'}

  def text(cell: Any, line: int) -> str:
    if cell.value is not None:
      return _value(cell.value, cell.number_format)
    # A formula that was never computed looks like an empty cell with a border.
    blank = not hasattr(cell, 'column') or cell.data_type != 'n'
    if blank or (line, cell.column) not in formulas():
      return ''
    why = 'a formula without its value: open the table in a spreadsheet '
    return Odd('', why + 'program and save it')

  with _excel_errors(path):
    for line, row in _cells(sheet):
      yield line, [text(cell, line) for cell in row]


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
def _excel_errors(path: Path) -> Iterator[None]:
  """Makes every error of a damaged Excel file a MiraInputError.

  openpyxl lets through whatever XML, zip or a wrong type raises.
  """
  try:
    yield
  except MiraInputError:
    raise
  except Exception as error:
    why = str(error).partition('\n')[0][:200] or type(error).__name__
    raise bad_table(path, f'no readable Excel file: {why}') from error
