"""The grids of cells of a table file: sheets of Excel, delimiters of text."""

from __future__ import annotations

import csv
import functools
import io
import os
import re
from collections.abc import Iterator
from typing import Any

from mira_jax.data.table_file import bad_table, read_bytes
from mira_jax.errors import short
from mira_jax.prepare.cells import EXCEL, Grid, text

_MAX_LINE = 1 << 20  # characters of a text file
DELIMITERS = {
  ',': 'commas', ';': 'semicolons', '\t': 'tabs', '|': 'bars', ' ': 'spaces',
}  # fmt: skip


def grids(
  path: str | os.PathLike[str], encoding: str = '', sheet: str = ''
) -> list[Grid]:
  """A grid for each sheet of an Excel file or each delimiter of a text file.

  Args:
    path: CSV, XLSX or XLS; may be gzipped.
    encoding: of a text file that is not UTF-8 and has no byte order mark.
    sheet: name of the only sheet to read; by default all that are visible.

  Raises:
    MiraInputError: not_found, not_regular_file, bad_encoding; or the file is
      damaged, protected by a password or too large ('bad_table').
  """
  data = read_bytes(path)
  if data.startswith(EXCEL):
    from mira_jax.prepare import excel  # its packages load slowly

    found = excel.grids(data, path)
    named = [grid for grid in found if sheet in ('', grid.name)]
    if not named:
      names = ', '.join(short(grid.name) for grid in found[:20]) or 'none'
      hint = f'it has no sheet {sheet!r}; its sheets are {names}'
      raise bad_table(path, hint)
    return named
  if sheet:
    raise bad_table(path, f'it has no sheet {sheet!r}: it is a text file')
  content, encoding = text(data, path, encoding)
  if content.lstrip().startswith('<'):  # some programs name HTML .xls
    raise bad_table(path, 'it is HTML or XML: save it as .xlsx or as CSV')
  chosen = re.match('"?sep=(.)"?[\r\n]', content)  # Excel's own first line
  return [
    Grid(
      how=f'{encoding}, {DELIMITERS.get(delimiter, delimiter)}',
      path=path,
      read=functools.partial(_csv, content, delimiter, path),
    )
    for delimiter in (chosen[1] if chosen else DELIMITERS)
  ]


def _csv(
  content: str, delimiter: str, path: str | os.PathLike[str]
) -> Iterator[tuple[int, list[str]]]:
  spaces: dict[str, Any] = {'skipinitialspace': delimiter == ' '}
  reader = csv.reader(_lines(content, path), delimiter=delimiter, **spaces)
  try:
    for row in reader:
      # Excel writes ="007" to keep a text from changing.
      yield reader.line_num, [re.sub('^="(.*)"$', r'\1', c) for c in row]
  except csv.Error as error:
    raise bad_table(path, f'not a CSV file: {error}') from error


def _lines(content: str, path: str | os.PathLike[str]) -> Iterator[str]:
  for line in io.StringIO(content, newline=''):
    if len(line) > _MAX_LINE:
      raise bad_table(path, f'a line has more than {_MAX_LINE} characters')
    yield line
