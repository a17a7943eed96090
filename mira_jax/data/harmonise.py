"""One vocabulary for datasets that name the same expression differently."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from mira_jax.data import tables
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
    MiraInputError: see `tables.records`.
  """
  names = {name: [name] for name in COLUMNS}
  rows = [[*row.values()] for _, row in tables.records(path, names, COLUMNS)]
  return {(dataset.lower(), own.lower()): c.lower() for dataset, own, c in rows}


def common_name(
  name: str, dataset: str = '', table: Table | None = None
) -> str:
  """What a class is called in every dataset; '' leaves it out."""
  key = name.strip().lower()
  if table and (dataset.lower(), key) in table:
    return table[dataset.lower(), key]
  return COMMON.get(key, key)


def harmonise(
  class_names: Mapping[str, Sequence[str]], table: Table | None = None
) -> tuple[list[str], dict[str, dict[str, str]]]:
  """The classes that all datasets have, and how each dataset calls them.

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
    told = '; '.join(f'{d}: {", ".join(own)}' for d, own in class_names.items())
    hint = f'they share {len(common)} classes; name them alike in a table with '
    hint += f'the columns {", ".join(COLUMNS)} (config.data.classes)'
    code = ExitCode.DATA
    raise MiraInputError('no_common_classes', told, hint, exit_code=code)
  return common, {
    dataset: {n: c if c in common else '' for n, c in own.items()}
    for dataset, own in names.items()
  }
