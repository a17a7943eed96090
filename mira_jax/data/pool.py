"""Clips of any splits of any prepared datasets, as one source.

A pool knows the label, subject and fold of every clip without reading frames,
so that protocols (`data.protocol`) are masks over it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mira_jax.data import label_map, people, records
from mira_jax.data.dataset import PreparedDataset
from mira_jax.data.pipeline import Source
from mira_jax.data.records import Clip
from mira_jax.errors import MiraInputError, data_error
from mira_jax.evaluation.predictions import Predictions

_SEGMENT = re.compile(r'#\d+-\d+$')  # see `prepare.resolve.Found.clip_id`


@dataclasses.dataclass(kw_only=True, frozen=True)
class Pool:
  """C clips; a `pipeline.Source` whose labels are those of `class_names`."""

  class_names: tuple[str, ...]
  label: np.ndarray  # int [C]
  clip_id: np.ndarray  # str [C]
  subject: np.ndarray  # str [C], one spelling for each person; '' if unknown
  recording: np.ndarray  # str [C], the same for all segments of one
  fold: np.ndarray  # int [C], the stored fold that tests the clip, or -1
  num_frames: np.ndarray  # int [C]; 0 is unknown, see `dataset.ClipIndex`
  positive: np.ndarray  # int [C, A], see `dataset.ClipIndex`
  known: np.ndarray  # int [C, A]
  dataset: np.ndarray  # str [C], its name
  sources: tuple[Source, ...]  # splits, from which clips are read
  where: np.ndarray  # int [C, 2], the source of a clip and its index in there
  action_units: tuple[str, ...] = ()  # A of them
  positive_from: int = 1  # the intensity from which one counts as shown
  # For each source the column of each unit; and 0, or the intensity from which
  # they become 1, where sources of several levels are joined.
  columns: tuple[tuple[int, ...], ...] = ()
  levels: tuple[int, ...] = ()

  def __len__(self) -> int:
    return len(self.label)

  def __getitem__(self, index: int) -> Clip:
    """One clip, with this pool's label and action units.

    Raises MiraInputError('damaged').
    """
    source, row = self.where[index].tolist()
    clip = self.sources[source][row]
    units = records.no_intensities()
    if self.action_units:
      units = clip.intensities[:, list(self.columns[source])]
      if level := self.levels[source]:
        units = np.where(units < 0, -1, units >= level).astype(np.int8)
    label = int(self.label[index])
    return dataclasses.replace(clip, label=label, intensities=units)

  def with_units(self, names: Sequence[str]) -> Pool:
    """The same clips with these action units, in this order.

    Raises MiraInputError('bad_config') for a unit that there is not.
    """
    places = {name: i for i, name in enumerate(self.action_units)}
    if wrong := [name for name in names if name not in places]:
      known = ', '.join(self.action_units) or 'no action units'
      hint = f'{wrong[0]} is not there; the clips have {known}'
      raise MiraInputError('bad_config', 'config.data.units', hint)
    kept = [places[name] for name in names]
    return dataclasses.replace(
      self,
      action_units=tuple(names),
      positive=self.positive[:, kept],
      known=self.known[:, kept],
      columns=tuple(tuple(own[i] for i in kept) for own in self.columns),
    )

  def take(self, rows: np.ndarray) -> Pool:
    """The clips of a mask [C] or of indices [n], in that order."""
    columns = {name: getattr(self, name)[rows] for name in (*_COLUMNS, 'where')}
    return dataclasses.replace(self, **columns)

  def predicted(self, probability: np.ndarray, fold: str = '') -> Predictions:
    """The predictions of these clips; class probabilities [C, K]."""
    return Predictions(
      class_names=self.class_names,
      clip=self.clip_id,
      subject=self.subject,
      fold=np.full(len(self), fold),
      label=self.label,
      probability=probability,
    )

  @property
  def counts(self) -> list[int]:
    """Clips of each class."""
    return np.bincount(self.label, minlength=len(self.class_names)).tolist()


_COLUMNS = (
  *('label', 'clip_id', 'subject', 'recording', 'fold'),
  *('num_frames', 'dataset', 'positive', 'known'),
)


def of_dataset(
  dataset: PreparedDataset,
  splits: Sequence[str],
  class_names: Sequence[str] | None = None,
  rename: Mapping[str, str] | None = None,
) -> Pool:
  """The clips of some splits of a dataset, in this order.

  `rename` gives the pool's name of each class of the dataset; clips of a class
  that has none in `class_names` are left out.

  Raises:
    MiraInputError: the index of a split is damaged.
  """
  names = tuple(class_names or dataset.class_names)
  rename = rename or {name: name for name in dataset.class_names}
  place = {name: i for i, name in enumerate(names)}
  new = [place.get(rename.get(name, ''), -1) for name in dataset.class_names]
  parts = [dataset.index(split) for split in splits]
  label, subject, clip_id, fold, num_frames, positive, known = (
    np.concatenate([getattr(part, column) for part in parts])
    for column in (
      *('label', 'subject', 'clip_id', 'fold', 'num_frames'),
      *('positive', 'known'),
    )
  )
  recording = [
    f'{dataset.name}/{_SEGMENT.sub("", x)}' for x in clip_id.tolist()
  ]
  sizes = [len(part.label) for part in parts]
  pool = Pool(
    class_names=names,
    label=np.array(new)[label],
    clip_id=clip_id.astype(np.str_),
    subject=np.array(people.one_spelling(subject.tolist()), dtype=np.str_),
    recording=np.array(recording, dtype=np.str_),
    fold=fold,
    num_frames=num_frames,
    positive=positive,
    known=known,
    dataset=np.full(len(label), dataset.name),
    sources=tuple(dataset.source(split) for split in splits),
    where=np.array(
      [(i, row) for i, size in enumerate(sizes) for row in range(size)], int
    ).reshape(-1, 2),
    action_units=dataset.action_units,
    positive_from=dataset.positive_from,
    columns=(tuple(range(len(dataset.action_units))),) * len(splits),
    levels=(0,) * len(splits),
  )
  return pool.take(pool.label >= 0)


def as_named(
  dataset: PreparedDataset, split: str, class_names: Sequence[str]
) -> tuple[Pool, list[str]]:
  """The clips of a split, or of 'all', with the classes of a model.

  Returns:
    The clips, and the dataset's classes that the model does not know, whose
    clips are left out.

  Raises:
    MiraInputError: no class is common ('other_classes'), or see `of_dataset`.
  """
  known = {label_map.common_name(name): name for name in class_names}
  rename = {
    name: known.get(label_map.common_name(name), '')
    for name in dataset.class_names
  }
  if not any(rename.values()):
    hint = f'the model knows {", ".join(class_names)}'
    raise data_error('other_classes', dataset.directory, hint)
  splits = list(dataset.splits) if split == 'all' else [split]
  clips = of_dataset(dataset, splits, class_names, rename)
  return clips, [name for name, ours in rename.items() if not ours]


def join(pools: Sequence[Pool]) -> Pool:
  """All clips of pools that have the same classes.

  Subjects and clips of several are `prefixed`.
  """
  if len(pools) == 1:
    return pools[0]
  return chained([prefixed(pool) for pool in pools])


def prefixed(pool: Pool) -> Pool:
  """The same clips, with their dataset in front of subjects and clips.

  Number 3 of one dataset is not number 3 of another.
  """
  columns = {}
  for name in ('subject', 'clip_id'):
    pairs = zip(pool.dataset, getattr(pool, name), strict=True)
    columns[name] = np.array([x and f'{d}/{x}' for d, x in pairs], np.str_)
  return dataclasses.replace(pool, **columns)


def chained(pools: Sequence[Pool]) -> Pool:
  """All clips of pools that have the same classes, under their own names.

  Of action units the common ones are kept, in the order of the first pool;
  where they count as shown from other intensities on, all intensities become 1
  (shown) and 0.
  """
  pools = _with_common_units(pools)
  columns = {
    name: np.concatenate([getattr(pool, name) for pool in pools])
    for name in (*_COLUMNS, 'where')
  }
  starts = np.cumsum([0] + [len(pool.sources) for pool in pools[:-1]])
  columns['where'][:, 0] += np.repeat(starts, [len(pool) for pool in pools])
  sources = tuple(source for pool in pools for source in pool.sources)
  return Pool(
    class_names=pools[0].class_names,
    sources=sources,
    action_units=pools[0].action_units,
    positive_from=pools[0].positive_from,
    columns=tuple(own for pool in pools for own in pool.columns),
    levels=tuple(own for pool in pools for own in pool.levels),
    **columns,
  )


def _with_common_units(pools: Sequence[Pool]) -> list[Pool]:
  first, *others = pools
  common = [
    name
    for name in first.action_units
    if all(name in pool.action_units for pool in others)
  ]
  pools = [pool.with_units(common) for pool in pools]
  if len({pool.positive_from for pool in pools}) == 1:
    return pools
  return [
    dataclasses.replace(
      pool,
      positive_from=1,
      levels=tuple(level or pool.positive_from for level in pool.levels),
    )
    for pool in pools
  ]
