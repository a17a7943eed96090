"""The cells of table files as text, without guesses.

pandas would infer types, headers and missing values; what is read here stays
the text that was written.
"""

from __future__ import annotations

import codecs
import dataclasses
import encodings.aliases
import os
from collections.abc import Callable, Iterable, Iterator

from mira_jax.data.table_file import bad_table, read_bytes
from mira_jax.errors import MiraInputError, nearest

MAX_ROWS = 2_000_000
MAX_CELLS = 20_000_000  # empty ones between others included
EXCEL = (b'PK', b'\xd0\xcf\x11\xe0')  # first bytes of .xlsx and .xls

_MARKS = {  # byte order marks
  codecs.BOM_UTF8: 'utf-8',
  codecs.BOM_UTF16_LE: 'utf-16-le',
  codecs.BOM_UTF16_BE: 'utf-16-be',
}
_LIKELY = ('cp1252', 'cp1251', 'cp932', 'gb18030')  # suggested in errors only


class Odd(str):
  """A cell that does not hold the text it should have.

  Attributes:
    why: the kind of its content, and how to mend it.
  """

  why: str

  def __new__(cls, text: str, why: str) -> Odd:
    """Keeps the text as far as it is known."""
    odd = super().__new__(cls, text)
    odd.why = why
    return odd


@dataclasses.dataclass(kw_only=True, frozen=True)
class Grid:
  """The rows of a table, read in one of the ways that its file allows.

  Attributes:
    name: of the sheet; '' in a text file.
    how: the encoding and delimiter, or the sheet, for reports.
    path: of the file.
    read: gives line numbers, from 1, and cells; may be called again.
  """

  name: str = ''
  how: str
  path: str | os.PathLike[str]
  read: Callable[[], Iterable[tuple[int, list[str]]]]

  def rows(self) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and stripped cells.

    Raises:
      MiraInputError: there are more than a table can have ('bad_table').
    """
    cells = 0
    for count, (line, row) in enumerate(self.read()):
      cells += len(row)
      if count >= MAX_ROWS or cells > MAX_CELLS:
        most = f'{MAX_ROWS} rows or {MAX_CELLS} cells'
        raise bad_table(self.path, f'it has more than {most}')
      yield line, [c if isinstance(c, Odd) else c.strip() for c in row]


def text(
  data: bytes,
  path: str | os.PathLike[str],
  encoding: str = '',
  fallback: str = '',
) -> tuple[str, str]:
  """The text of a file and its encoding.

  The encoding is that of the byte order mark; else `encoding`; else UTF-8.

  Args:
    data: the file.
    path: of the file, for errors.
    encoding: given by the user; '' for none.
    fallback: tried after UTF-8, for datasets that are known to need it.

  Raises:
    MiraInputError: with code bad_encoding, or bad_table for binary data.
  """
  _check_codec(encoding)
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
      return text(data, path, fallback)
    raise _not_decoded(data, error, path) from error
  if '\0' in content:
    raise binary
  return content, first


def read_text(path: str | os.PathLike[str], fallback: str = '') -> str:
  """The text of a file, see `text`."""
  return text(read_bytes(path), path, fallback=fallback)[0]


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


def _not_decoded(
  data: bytes, error: UnicodeDecodeError, path: str | os.PathLike[str]
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
