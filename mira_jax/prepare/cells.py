"""Cells of tables as text, which is never guessed."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import encodings.aliases
import functools
import gzip
import io
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mira_jax.errors import MiraInputError, nearest

MAX_BYTES = 256 << 20  # of a table, packed and unpacked
MAX_ROWS = 2_000_000
MAX_CELLS = 20_000_000  # empty ones between others included
_MAX_LINE = 1 << 20
_BINARY = 'it holds zero bytes: it is neither text nor an Excel file'
EXCEL = (b'PK', b'\xd0\xcf\x11\xe0')  # what its files start with

DELIMITERS = {
  ',': 'commas', ';': 'semicolons', '\t': 'tabs', '|': 'bars', ' ': 'spaces',
}  # fmt: skip
_MARKS = (  # UTF-32 before UTF-16, whose mark it starts with
  (codecs.BOM_UTF8, 'utf-8'),
  (codecs.BOM_UTF32_LE, 'utf-32-le'),
  (codecs.BOM_UTF32_BE, 'utf-32-be'),
  (codecs.BOM_UTF16_LE, 'utf-16-le'),
  (codecs.BOM_UTF16_BE, 'utf-16-be'),
  (b'\x84\x31\x95\x33', 'gb18030'),
)
_LIKELY = ('cp1252', 'cp1251', 'cp932', 'gb18030')  # named in an error only


class Odd(str):
  """A cell that does not hold the text it should have.

  Attributes:
    why: what it is instead, and what to do.
  """

  why: str

  def __new__(cls, text: str, why: str):
    """The text as far as it is known."""
    odd = super().__new__(cls, text)
    odd.why = why
    return odd


@dataclasses.dataclass(kw_only=True, frozen=True)
class Grid:
  """The rows of a table, read in one of the ways that its file allows.

  Attributes:
    name: of the sheet; '' in a text file.
    how: the encoding and delimiter, or the sheet, for people.
    rows: gives line numbers, from 1, and stripped cells; may be called again.
  """

  name: str = ''
  how: str
  rows: Callable[[], Iterator[tuple[int, list[str]]]]


def grids(
  path: str | os.PathLike[str], encoding: str = '', sheet: str = ''
) -> list[Grid]:
  """A grid for each sheet of an Excel file or each delimiter of a text file.

  Args:
    path: CSV, XLSX or XLS; may be gzipped.
    encoding: of a text file that is neither UTF-8 nor UTF-16.
    sheet: name of the only sheet to read; by default all that are visible.

  Raises:
    MiraInputError: not_found, not_regular_file, bad_encoding; or the file is
      damaged, protected by a password or too large ('bad_table').
  """
  data = read_bytes(path)
  if data.startswith(EXCEL):
    from mira_jax.prepare import excel  # its packages load slowly, and rarely

    return _named(excel.grids(data, path), sheet, path)
  if sheet:
    raise bad_table(path, f'it has no sheet {sheet!r}: it is a text file')
  content, encoding = text(data, path, encoding)
  if content.lstrip().startswith('<'):  # programs call such files .xls
    raise bad_table(path, 'it is HTML or XML: save it as .xlsx or as CSV')
  chosen = re.match('"?sep=(.)"?[\r\n]', content)  # Excel's own first line
  return [
    Grid(
      how=f'{encoding}, {DELIMITERS.get(delimiter, delimiter)}',
      rows=functools.partial(limited, _csv, content, delimiter, path),
    )
    for delimiter in (chosen[1] if chosen else DELIMITERS)
  ]


def read_bytes(path: str | os.PathLike[str]) -> bytes:
  """The bytes of a table, unpacked if gzipped.

  Raises:
    MiraInputError: with code not_found, not_regular_file or bad_table.
  """
  try:
    # A FIFO must not be waited for, nor a device read until memory is full.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(file, 'rb') as opened:
      if not stat.S_ISREG(os.fstat(file).st_mode):
        hint = 'it is a pipe or a device; save the table in a file'
        raise MiraInputError('not_regular_file', path, hint)
      data = opened.read(MAX_BYTES + 1)
    if data.startswith(b'\x1f\x8b') and len(data) <= MAX_BYTES:
      with gzip.open(io.BytesIO(data)) as unpacked:
        data = unpacked.read(MAX_BYTES + 1)
  except (FileNotFoundError, ValueError) as error:
    if isinstance(error, MiraInputError):
      raise
    raise MiraInputError('not_found', path, 'there is no such table') from error
  except (OSError, EOFError, zlib.error) as error:
    raise bad_table(
      path, getattr(error, 'strerror', '') or str(error)
    ) from error
  if len(data) > MAX_BYTES:
    raise bad_table(path, f'it has more than {MAX_BYTES >> 20} MiB, unpacked')
  return data


def text(
  data: bytes,
  path: str | os.PathLike[str],
  encoding: str = '',
  fallback: str = '',
) -> tuple[str, str]:
  """The text of a file and the encoding that it was read in.

  That is what its byte order mark says; else `encoding`; else UTF-16 or UTF-32
  where every second byte shows it; else UTF-8, and nothing else.

  Args:
    data: the file.
    path: of the file, for errors.
    encoding: that the user gives; '' for none.
    fallback: for what is no UTF-8, of a dataset that is known to have it.

  Raises:
    MiraInputError: with code bad_encoding, or bad_table for binary data.
  """
  _check_codec(encoding)
  mark, sure = next((m for m in _MARKS if data.startswith(m[0])), (b'', ''))
  first = sure or encoding or _by_zeros(data[:4096]) or 'utf-8'
  for name in (first, fallback if first == 'utf-8' else ''):
    try:
      content = data[len(mark) :].decode(name)
    except UnicodeDecodeError as error:
      if not fallback or name != first:
        raise _not_decoded(data, error, path) from error
      continue
    if '\0' in content:
      raise bad_table(path, _BINARY)
    return content, name
  raise AssertionError('unreachable')


def read_text(path: str | os.PathLike[str], fallback: str = '') -> str:
  """The text of a file, see `text`."""
  return text(read_bytes(path), path, fallback=fallback)[0]


def bad_table(path: str | os.PathLike[str], hint: str) -> MiraInputError:
  """The error of a table that cannot be used."""
  return MiraInputError('bad_table', path, hint)


def short(cell: str, most: int = 40) -> str:
  """A cell as an error quotes it."""
  return repr(str(cell[:most])) + '...' * (len(cell) > most)


def limited(
  read: Callable[..., Iterable[tuple[int, list[str]]]], *args: Any
) -> Iterator[tuple[int, list[str]]]:
  """Stripped rows as `read(*args)` gives them, the last of which is the path.

  Raises:
    MiraInputError: they are more than a table can have ('bad_table').
  """
  path, cells = args[-1], 0
  for count, (line, row) in enumerate(read(*args)):
    cells += len(row)
    if count >= MAX_ROWS or cells > MAX_CELLS:
      most = f'{MAX_ROWS} rows or {MAX_CELLS} cells'
      raise bad_table(path, f'it has more than {most}')
    yield line, [c if isinstance(c, Odd) else c.strip() for c in row]


# Text.


def _check_codec(name: str) -> None:
  try:
    b'a'.decode(name or 'utf-8')
  except UnicodeDecodeError:  # of an encoding with more bytes to a character
    pass
  except (LookupError, ValueError) as error:
    known = encodings.aliases.aliases
    hint = 'it is no encoding of text; use cp1252, gb18030, shift_jis, ...'
    hint += nearest(name, {*known, *known.values()})
    raise MiraInputError('bad_encoding', name[:80], hint) from error


def _by_zeros(head: bytes) -> str:
  """UTF-16 or UTF-32 without a mark, of which ASCII characters show zeros."""
  if b'\0' not in head:
    return ''
  for name in ('utf-32-le', 'utf-32-be', 'utf-16-le', 'utf-16-be'):
    content = head.decode(name, 'ignore')
    ascii_part = sum(c.isascii() for c in content)
    if '\0' not in content and 2 * ascii_part > len(content):
      return name
  return ''


def _not_decoded(
  data: bytes, error: UnicodeDecodeError, path: str | os.PathLike[str]
) -> MiraInputError:
  if b'\0' in data:
    return bad_table(path, _BINARY)
  line = data.count(b'\n', 0, error.start) + 1
  hint = f'line {line} is not {error.encoding}'
  if error.encoding != 'utf-8':
    return MiraInputError('bad_encoding', path, f'{hint}: name another one')
  start, end = error.start, error.start + 1
  while (
    start > max(0, error.start - 20) and data[start - 1] not in b',;\t|\r\n'
  ):
    start -= 1
  while (
    end < min(len(data), error.start + 20) and data[end] not in b',;\t|\r\n'
  ):
    end += 1
  examples = []
  for name in _LIKELY:
    word = data[start:end].decode(name, 'replace')
    if word.isprintable() and '\ufffd' not in word:
      examples.append(f'--encoding={name} reads {word!r}')
  hint += ': save it as UTF-8, or name its encoding to `mira prepare folder`'
  if examples:
    hint += ' (' + ', '.join(examples) + ')'
  return MiraInputError('bad_encoding', path, hint)


def _csv(
  content: str, delimiter: str, path: str | os.PathLike[str]
) -> Iterator[tuple[int, list[str]]]:
  reader = csv.reader(
    _lines(content, path),
    delimiter=delimiter,
    skipinitialspace=delimiter == ' ',
  )
  try:
    for row in reader:
      yield reader.line_num, [_unwrapped(cell) for cell in row]
  except csv.Error as error:
    raise bad_table(path, f'not a CSV file: {error}') from error


def _lines(content: str, path: str | os.PathLike[str]) -> Iterator[str]:
  start, ends = 0, re.compile(r'\r\n|\n|\r')
  while start < len(content):
    found = ends.search(content, start, start + _MAX_LINE)
    end = found.end() if found else min(len(content), start + _MAX_LINE)
    if not found and end < len(content):
      raise bad_table(path, f'a line has more than {_MAX_LINE} characters')
    yield content[start:end]
    start = end


def _unwrapped(cell: str) -> str:
  """The text of ="007", by which Excel is kept from changing it."""
  if cell.startswith('="') and cell.endswith('"'):
    return cell[2:-1]
  return cell


def _named(
  found: Sequence[Grid], sheet: str, path: str | os.PathLike[str]
) -> list[Grid]:
  named = [grid for grid in found if sheet in ('', grid.name)]
  if not named:
    names = ', '.join(short(grid.name) for grid in found[:20]) or 'none'
    raise bad_table(path, f'it has no sheet {sheet!r}; its sheets are {names}')
  return named
