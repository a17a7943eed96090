"""One vocabulary for datasets that name the same expression differently."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from mira_jax.data import table_file
from mira_jax.errors import data_error

# Spellings in the datasets of `prepare` of what is the same class. 'calm' stays
# apart.
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
    MiraInputError: see `table_file.read_rows`.
  """
  table = {}
  for row in table_file.read_rows(path, COLUMNS):
    dataset, own, common = (row[name].lower() for name in COLUMNS)
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
  """The classes that all datasets have, in the order of the first one.

  And the common name of each class of each dataset, '' for one that is left
  out. What the `table` does not name goes by `COMMON`.

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
    where = '; '.join(f'{d}: {", ".join(x)}' for d, x in class_names.items())
    hint = f'they share {len(common)} classes; name them alike in a table'
    raise data_error('no_common_classes', where, f'{hint} config.data.classes')
  return common, {
    dataset: {n: c if c in common else '' for n, c in own.items()}
    for dataset, own in names.items()
  }
