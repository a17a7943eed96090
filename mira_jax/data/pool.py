"""Clips of any splits of any prepared datasets, as one source.

A pool knows the label, subject and fold of every clip without reading frames,
so that protocols (`data.protocol`) are masks over it.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mira_jax.data import people
from mira_jax.data.dataset import Clip, ClipIndex, PreparedDataset
from mira_jax.data.pipeline import Source
from mira_jax.errors import ExitCode, MiraInputError

_log = logging.getLogger(__name__)
_SEGMENT = re.compile(r'#\d+-\d+$')  # see `locate.Found.clip_id`


@dataclasses.dataclass(kw_only=True, frozen=True)
class Pool:
  """C clips; a `pipeline.Source` whose labels are those of `class_names`.

  Attributes:
    class_names: K names in label order.
    label: int [C].
    subject: str [C], one spelling for each person; '' where unknown.
    recording: str [C], the same for all segments of one.
    fold: int [C], the stored fold that tests the clip; -1 where there is none.
    dataset: str [C], the name of the dataset that the clip is of.
    sources: where clips are read.
    where: int [C, 2], the source of a clip and its index in there.
  """

  class_names: tuple[str, ...]
  label: np.ndarray
  subject: np.ndarray
  recording: np.ndarray
  fold: np.ndarray
  dataset: np.ndarray
  sources: tuple[Source, ...]
  where: np.ndarray

  def __len__(self) -> int:
    return len(self.label)

  def __getitem__(self, index: int) -> Clip:
    """One clip, with this pool's label. Raises MiraInputError('damaged')."""
    source, row = self.where[index]
    clip = self.sources[source][int(row)]
    return dataclasses.replace(clip, label=int(self.label[index]))

  def take(self, rows: np.ndarray) -> Pool:
    """The clips of a mask [C] or of indices [n], in that order."""
    names = ('label', 'subject', 'recording', 'fold', 'dataset', 'where')
    return dataclasses.replace(
      self, **{n: getattr(self, n)[rows] for n in names}
    )

  @property
  def counts(self) -> list[int]:
    """Clips of each class."""
    return np.bincount(self.label, minlength=len(self.class_names)).tolist()


def of_dataset(
  dataset: PreparedDataset,
  splits: Sequence[str],
  class_names: Sequence[str] | None = None,
  rename: Mapping[str, str] | None = None,
) -> Pool:
  """The clips of some splits of a dataset.

  Args:
    dataset: to read.
    splits: of it, in this order.
    class_names: of the pool; by default the dataset's own.
    rename: the pool's name of each class of the dataset; clips of a class that
      has none in `class_names` are left out.

  Clips that the index knows to be damaged are left out, with a warning.

  Raises:
    MiraInputError: the label of a clip is none of the dataset's classes.
  """
  names = tuple(class_names or dataset.class_names)
  rename = rename or {name: name for name in dataset.class_names}
  place = {name: i for i, name in enumerate(names)}
  new = [place.get(rename.get(name), -1) for name in dataset.class_names]
  new = np.array([*new, -1])  # the last is of label -1, a damaged clip
  parts = [dataset.index(split) for split in splits]
  for split, part in zip(splits, parts, strict=True):
    _check_labels(dataset, split, part)
  label = new[np.concatenate([part.label for part in parts])]
  subjects = np.concatenate([part.subject for part in parts]).tolist()
  ids = np.concatenate([part.clip_id for part in parts]).tolist()
  pool = Pool(
    class_names=names,
    label=label,
    subject=np.array(people.one_spelling(subjects), dtype=np.str_),
    recording=np.array(
      [f'{dataset.name}/{_SEGMENT.sub("", clip_id)}' for clip_id in ids],
      dtype=np.str_,
    ),
    fold=np.concatenate([part.fold for part in parts]),
    dataset=np.full(len(label), dataset.name),
    sources=tuple(dataset.source(split) for split in splits),
    where=np.concatenate(
      [
        np.stack([np.full(len(part.label), i), np.arange(len(part.label))], 1)
        for i, part in enumerate(parts)
      ]
    ),
  )
  return pool.take(label >= 0)


def _check_labels(
  dataset: PreparedDataset, split: str, index: ClipIndex
) -> None:
  """Refuses labels that would be taken for another class, or for none."""
  count = len(dataset.class_names)
  damaged = (index.clip_id == '') & (index.label == -1)
  wrong = (index.label < 0) | (index.label >= count)
  for i in np.flatnonzero(wrong & ~damaged):
    path = f'{dataset.directory}: {split}[{i}] {index.clip_id[i]}'
    hint = f'label {index.label[i]} is none of 0 to {count - 1}; prepare the '
    hint += 'dataset again'
    raise MiraInputError('bad_label', path, hint, exit_code=ExitCode.DATA)
  if damaged.any():
    text = '%d of %d clips of %s are damaged and are left out'
    _log.warning(text, damaged.sum(), len(damaged), dataset.directory)


def join(pools: Sequence[Pool]) -> Pool:
  """All clips of pools that have the same classes.

  Subjects get the name of their dataset in front, because number 3 of one
  dataset is not number 3 of another.
  """
  if len(pools) == 1:
    return pools[0]
  starts = np.cumsum([0] + [len(pool.sources) for pool in pools])
  columns = {
    name: np.concatenate([getattr(pool, name) for pool in pools])
    for name in ('label', 'recording', 'fold', 'dataset')
  }
  subjects = [
    [s and f'{d}/{s}' for d, s in zip(p.dataset, p.subject, strict=True)]
    for p in pools
  ]
  return Pool(
    class_names=pools[0].class_names,
    subject=np.concatenate(subjects),
    sources=sum((pool.sources for pool in pools), ()),
    where=np.concatenate(
      [
        pool.where + np.array([start, 0])
        for pool, start in zip(pools, starts[:-1], strict=True)
      ]
    ),
    **columns,
  )
