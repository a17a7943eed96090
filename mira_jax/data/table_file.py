"""The bytes of a table file, whoever wrote it."""

from __future__ import annotations

import csv
import gzip
import io
import os
import stat
import zlib
from collections.abc import Sequence

from mira_jax.errors import MiraInputError

MAX_BYTES = 256 << 20  # of a table, packed and unpacked


def bad_table(path: str | os.PathLike[str], hint: str) -> MiraInputError:
  """The error of a table that cannot be used."""
  return MiraInputError('bad_table', path, hint)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
  """The bytes of a table, unpacked if gzipped.

  Raises:
    MiraInputError: with code not_found, not_regular_file or bad_table.
  """
  try:
    # Reading a FIFO would wait, and a device would fill the memory.
    if not stat.S_ISREG(os.stat(path).st_mode):
      hint = 'it is a folder, a pipe or a device; give the file of a table'
      raise MiraInputError('not_regular_file', path, hint)
    with open(path, 'rb') as file:
      data = file.read(MAX_BYTES + 1)
    if data.startswith(b'\x1f\x8b'):
      with gzip.open(io.BytesIO(data)) as unpacked:
        data = unpacked.read(MAX_BYTES + 1)
  except MiraInputError:
    raise
  except (FileNotFoundError, ValueError) as error:  # '\0' is a ValueError
    raise MiraInputError('not_found', path, 'there is no such table') from error
  except (OSError, EOFError, zlib.error) as error:
    raise bad_table(path, str(error)) from error
  if len(data) > MAX_BYTES:
    raise bad_table(path, f'it has more than {MAX_BYTES >> 20} MiB, unpacked')
  return data


def read_rows(
  path: str | os.PathLike[str], columns: Sequence[str]
) -> list[dict[str, str]]:
  """The rows of a CSV by column, without spaces around; others are left out.

  Raises:
    MiraInputError: see `read_bytes`; or it is no CSV file in UTF-8 with these
      columns ('bad_table').
  """
  data, found = read_bytes(path), []
  try:
    rows = csv.DictReader(data.decode('utf-8-sig').splitlines())
    rows.fieldnames = [x.strip().lower() for x in rows.fieldnames or ()]
    if missing := [name for name in columns if name not in rows.fieldnames]:
      raise ValueError(f'no column for {missing[0]} of {", ".join(columns)}')
    for row in rows:
      if None in row or None in row.values():
        raise ValueError(f'line {rows.line_num} has other cells than line 1')
      found.append({name: row[name].strip() for name in columns})
  except (ValueError, csv.Error) as error:
    hint = f'it cannot be read as CSV in UTF-8 ({error})'
    raise bad_table(path, hint) from error
  return found
