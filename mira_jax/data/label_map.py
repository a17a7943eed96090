"""One vocabulary for datasets that name the same expression differently."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence

from mira_jax.data import table_file
from mira_jax.errors import ExitCode, MiraInputError

# Spellings in DFEW, FERV39k, MAFW, CREMA-D, RAVDESS, AFEW, CAER, CASME II,
# SAMM, MMEW, SMIC and CK+ of what is the same class. 'calm' stays apart.
COMMON = {
  'angry': 'anger',
  'ang': 'anger',
  'contemptuous': 'contempt',
  'disgusted': 'disgust',
  'dis': 'disgust',
  'fearful': 'fear',
  'fea': 'fear',
  'happy': 'happiness',
  'hap': 'happiness',
  'joy': 'happiness',
  'neu': 'neutral',
  'sad': 'sadness',
  'surprised': 'surprise',
  'other': 'others',
}
COLUMNS = ('dataset', 'class', 'common')

Table = Mapping[tuple[str, str], str]


def read_table(path: str | os.PathLike[str]) -> dict[tuple[str, str], str]:
  """Reads a CSV with the columns dataset, class and common.

  Returns:
    The common name of each (dataset, class), in lower case; '' leaves the class
    out.

  Raises:
    MiraInputError: see `table_file.read_bytes`; or it is no CSV file with these
      columns ('bad_table').
  """
  data = table_file.read_bytes(path)
  try:
    lines = data.decode('utf-8-sig').splitlines()
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
  except (ValueError, csv.Error) as error:
    hint = f'it cannot be read as CSV in UTF-8 ({error})'
    raise table_file.bad_table(path, hint) from error
  names = [name.lower() for name in rows[0]] if rows else []
  missing = [name for name in COLUMNS if name not in names]
  if missing:
    hint = f'no column for {missing[0]}; it needs {", ".join(COLUMNS)}'
    raise table_file.bad_table(path, hint)
  columns = [names.index(name) for name in COLUMNS]
  table = {}
  for number, row in enumerate(rows[1:], 2):
    if not any(row):
      continue
    if len(row) != len(names):
      hint = f'line {number} has {len(row)} cells, and the header {len(names)}'
      raise table_file.bad_table(path, hint)
    dataset, own, common = (row[column].lower() for column in columns)
    table[dataset, own] = common
  return table


def common_name(
  name: str, dataset: str = '', table: Table | None = None
) -> str:
  """The common name of a class; '' leaves it out."""
  key = name.strip().lower()
  if table and (dataset.lower(), key) in table:
    return table[dataset.lower(), key]
  return COMMON.get(key, key)


def harmonise(
  class_names: Mapping[str, Sequence[str]], table: Table | None = None
) -> tuple[list[str], dict[str, dict[str, str]]]:
  """The classes that all datasets have, and the name of each per dataset.

  Args:
    class_names: of each dataset, in label order.
    table: see `read_table`; what it does not name goes by `COMMON`.

  Returns:
    The common classes, in the order of the first dataset, and for each dataset
    the common name of each of its classes, '' for one that is left out.

  Raises:
    MiraInputError: fewer than two classes are common to all.
  """
  names = {
    dataset: {name: common_name(name, dataset, table) for name in own}
    for dataset, own in class_names.items()
  }
  shared = set.intersection(*(set(own.values()) for own in names.values()))
  first = next(iter(names.values()), {})
  common = list(dict.fromkeys(n for n in first.values() if n and n in shared))
  if len(common) < 2:
    where = '; '.join(
      f'{d}: {", ".join(own)}' for d, own in class_names.items()
    )
    hint = f'they share {len(common)} classes; name them alike in a table with '
    hint += f'the columns {", ".join(COLUMNS)} (config.data.classes)'
    code = ExitCode.DATA
    raise MiraInputError('no_common_classes', where, hint, exit_code=code)
  return common, {
    dataset: {n: c if c in common else '' for n, c in own.items()}
    for dataset, own in names.items()
  }
