"""A grid of cells, as the readers of table files give it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from mira_jax.data.table_file import bad_table
from mira_jax.files import Path

MAX_ROWS = 2_000_000
MAX_CELLS = 20_000_000  # empty ones between others included
Line = tuple[int, list[str]]  # its number, from 1, and its cells


class Odd(str):
  """A cell that does not hold the text it should have."""

  why: str  # the kind of its content, and how to mend it

  def __new__(cls, text: str, why: str) -> Odd:
    """Keeps the text as far as it is known."""
    odd = super().__new__(cls, text)
    odd.why = why
    return odd


@dataclasses.dataclass(kw_only=True, frozen=True)
class Grid:
  """The rows of a table, read in one of the ways that its file allows."""

  name: str = ''  # of the sheet; none in a text file
  how: str  # the encoding and delimiter, or the sheet, for reports
  path: Path
  read: Callable[[], Iterable[Line]]  # may be called again

  def rows(self) -> Iterator[Line]:
    """Lines of stripped cells; 'bad_table' for more than a table can have."""
    cells = 0
    for count, (line, row) in enumerate(self.read()):
      cells += len(row)
      if count >= MAX_ROWS or cells > MAX_CELLS:
        most = f'{MAX_ROWS} rows or {MAX_CELLS} cells'
        raise bad_table(self.path, f'it has more than {most}')
      yield line, [c if isinstance(c, Odd) else c.strip() for c in row]
