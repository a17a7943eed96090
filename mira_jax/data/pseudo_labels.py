"""Tables of predicted labels, and training clips that have them.

A table is a CSV with the columns clip_id, label (a class name) and confidence,
see `mira adapt`. The labels that a dataset has of its own are not read.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence

import numpy as np

from mira_jax import files
from mira_jax.data import label_map, pool, protocol, table_file
from mira_jax.data.dataset import PreparedDataset
from mira_jax.errors import nearest

COLUMNS = ('clip_id', 'label', 'confidence')


def write(
  path: str | os.PathLike[str], rows: Iterable[tuple[str, str, float]]
) -> None:
  """Writes a table of (clip id, class name, confidence)."""
  lines = ((clip, name, f'{share:.6g}') for clip, name, share in rows)
  files.write_csv(path, COLUMNS, lines)


def read(
  path: str | os.PathLike[str], class_names: Sequence[str]
) -> dict[str, int]:
  """The label of each clip of a table, among these classes.

  Classes are matched as `label_map.common_name` does.

  Raises:
    MiraInputError: no CSV with these columns, without a clip, with a clip
      twice, or with a class that there is not ('bad_table').
  """
  known = {label_map.common_name(x): i for i, x in enumerate(class_names)}
  labels: dict[str, int] = {}
  for row in table_file.read_rows(path, COLUMNS[:2]):
    clip, name = row['clip_id'], row['label']
    if (label := known.get(label_map.common_name(name))) is None:
      hint = f'clip {clip} has the label {name!r}; the classes are '
      raise table_file.bad_table(path, hint + ', '.join(class_names))
    if clip in labels:
      raise table_file.bad_table(path, f'it has clip {clip} twice; remove one')
    labels[clip] = label
  if not labels:
    raise table_file.bad_table(path, 'it has no clip; write it by mira adapt')
  return labels


def add(
  parts: protocol.Parts,
  target: PreparedDataset,
  path: str | os.PathLike[str],
) -> protocol.Parts:
  """Adds the clips of a table to the training clips of a fold.

  Args:
    parts: of a fold of 'lodo'.
    target: the dataset that it tests, whose clips the table names.
    path: of the table.

  Raises:
    MiraInputError: see `read`; or the target has no such clip ('bad_table').
  """
  names = parts.train.class_names
  labels = read(path, names)
  one_label = dict.fromkeys(target.class_names, names[0])
  whole = pool.of_dataset(target, [*target.splits], names, one_label)
  place = {clip: row for row, clip in enumerate(whole.clip_id.tolist())}
  if unknown := [clip for clip in labels if clip not in place]:
    hint = f'{target.name}, which is tested, has no clip {unknown[0]}'
    near = nearest(unknown[0], place) or '; make a table of this dataset'
    raise table_file.bad_table(path, hint + near)
  found = whole.take(np.array([place[clip] for clip in labels]))
  found = dataclasses.replace(found, label=np.array([*labels.values()]))
  train = pool.chained([parts.train, pool.prefixed(found)])
  return dataclasses.replace(parts, train=train, pseudo=len(labels))
