"""Table files as grids of text, without guesses.

pandas would infer types, headers and missing values; what is read here stays
the text that was written.
"""

from __future__ import annotations

import codecs
import csv
import functools
import io
import re
from collections.abc import Iterator

from mira_jax.data.table_file import bad_table, read_bytes
from mira_jax.errors import MiraInputError
from mira_jax.files import Path
from mira_jax.prepare.grid import Grid, Line

_MAX_LINE = 1 << 20  # characters of a text file
_DELIMITERS = {',': 'commas', ';': 'semicolons', '\t': 'tabs', '|': 'bars'}
_MARKS = {  # byte order marks
  codecs.BOM_UTF8: 'utf-8',
  codecs.BOM_UTF16_LE: 'utf-16-le',
  codecs.BOM_UTF16_BE: 'utf-16-be',
}
_LIKELY = ('cp1252', 'cp1251', 'cp932', 'gb18030')  # suggested in errors only
_OLD_EXCEL = b'\xd0\xcf\x11\xe0'  # and new ones that are encrypted


def grids(path: Path, encoding: str = '') -> list[Grid]:
  """A grid for each sheet of an Excel file or each delimiter of a text file.

  Args:
    path: CSV or XLSX; may be gzipped.
    encoding: of a text file that is not UTF-8 and has no byte order mark.

  Raises:
    MiraInputError: not_found, not_regular_file, bad_encoding; or the file is
      damaged, protected by a password, too large or an .xls ('bad_table').
  """
  data = read_bytes(path)
  if data.startswith(b'PK'):
    from mira_jax.prepare import excel  # its packages load slowly

    return excel.grids(data, path)
  if data.startswith(_OLD_EXCEL):
    hint = 'it is an .xls file or has a password: save it as .xlsx or as CSV'
    raise bad_table(path, hint)
  content, encoding = _text(data, path, encoding)
  if content.lstrip().startswith('<'):  # some programs name HTML .xls
    raise bad_table(path, 'it is HTML or XML: save it as .xlsx or as CSV')
  return [
    Grid(
      how=f'{encoding}, {name}',
      path=path,
      read=functools.partial(_csv, content, delimiter, path),
    )
    for delimiter, name in _DELIMITERS.items()
  ]


def read_text(path: Path, fallback: str = '') -> str:
  """The text of a file in UTF-8, or else in the encoding `fallback`."""
  return _text(read_bytes(path), path, fallback=fallback)[0]


def _csv(content: str, delimiter: str, path: Path) -> Iterator[Line]:
  reader = csv.reader(_lines(content, path), delimiter=delimiter)
  try:
    for row in reader:
      # Excel writes ="007" to keep a text from changing.
      yield reader.line_num, [re.sub('^="(.*)"$', r'\1', c) for c in row]
  except csv.Error as error:
    raise bad_table(path, f'not a CSV file: {error}') from error


def _lines(content: str, path: Path) -> Iterator[str]:
  for line in io.StringIO(content, newline=''):
    if len(line) > _MAX_LINE:
      raise bad_table(path, f'a line has more than {_MAX_LINE} characters')
    yield line


# Text.


def _text(
  data: bytes, path: Path, encoding: str = '', fallback: str = ''
) -> tuple[str, str]:
  """The text of a file and its encoding.

  The encoding is that of the byte order mark; else `encoding`; else UTF-8;
  else `fallback`, for datasets that are known to need it.
  """
  mark = next((m for m in _MARKS if data.startswith(m)), b'')
  first = _MARKS.get(mark) or encoding or 'utf-8'
  hint = 'it holds zero bytes: it is no text, no Excel file, or UTF-16 without '
  binary = bad_table(path, hint + 'a byte order mark (--encoding=utf-16-le)')
  try:
    content = data[len(mark) :].decode(first)
  except UnicodeDecodeError as error:
    if b'\0' in data:
      raise binary from error
    if first == 'utf-8' and fallback:
      return _text(data, path, fallback)
    raise _not_decoded(data, error, path) from error
  except (LookupError, ValueError) as error:
    hint = 'it is no encoding of text; use cp1252, gb18030, shift_jis, ...'
    raise MiraInputError('bad_encoding', first[:80], hint) from error
  if '\0' in content:
    raise binary
  return content, first


def _not_decoded(
  data: bytes, error: UnicodeDecodeError, path: Path
) -> MiraInputError:
  """Names the line, and shows it in likely encodings."""
  number = data.count(b'\n', 0, error.start)
  hint = f'line {number + 1} is not {error.encoding}: '
  if error.encoding != 'utf-8':
    return MiraInputError('bad_encoding', path, f'{hint}name another one')
  line = data.split(b'\n')[number].strip()[:60]
  shown = {name: line.decode(name, 'replace') for name in _LIKELY}
  examples = [
    f'--encoding={name} reads {text!r}'
    for name, text in shown.items()
    if text.isprintable() and '\ufffd' not in text
  ]
  hint += 'save it as UTF-8, or name its encoding to `mira prepare folder`'
  hint += f' ({", ".join(examples)})' * bool(examples)
  return MiraInputError('bad_encoding', path, hint)
