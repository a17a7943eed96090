"""The description of a dataset, and helpers that list its clips."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from mira_jax.data.listing import Row
from mira_jax.errors import MiraInputError, data_error
from mira_jax.prepare.builders.tree import Tree


@dataclasses.dataclass(kw_only=True)
class Clips:
  """The clips that a download should hold."""

  rows: list[Row]  # with absolute paths and a clip_id each
  class_names: Sequence[str] = ()  # in label order, if not the builder's
  tables: Sequence[pathlib.Path] = ()  # files that list the clips
  # Number of unwanted clips, by reason.
  dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
  crop: str = 'none'  # one of `face_crop.RULES`
  warnings: Sequence[str] = ()  # possible mistakes
  action_units: Sequence[str] = ()  # of `Row.intensities`


@dataclasses.dataclass(kw_only=True, frozen=True)
class Builder:
  """A dataset as its provider delivers it."""

  name: str  # for `mira prepare`
  title: str  # its own name and year
  class_names: Sequence[str]  # in the label order of the provider
  protocol: str  # of its evaluation
  counts: Mapping[str, int]  # by the keys of `tally`, for the default options
  ask: str  # where to request a copy
  layout: str  # the tree of a download, for help and errors
  list_clips: Callable[[Tree, Mapping[str, str]], Clips]  # by chosen options
  licence: str = 'research only, on request'
  # Values of each option of its own, the default one first.
  options: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  stores_video: bool = False  # clips stay video files
  action_units: Sequence[str] = ()  # that it labels, for `mira datasets`
  positive_from: int = 1  # the intensity from which one of them is shown

  def dataset_name(self, options: Mapping[str, str]) -> str:
    """The name of the prepared dataset; choices that are no default show."""
    chosen = [
      options[key].lower().replace('-', '_')
      for key, values in self.options.items()
      if options[key] != values[0]
    ]
    return '_'.join([self.name, *chosen])

  def is_default(self, options: Mapping[str, str]) -> bool:
    """Whether `counts` are those of these options."""
    return all(options[key] == v[0] for key, v in self.options.items())


def tally(rows: Iterable[Row]) -> dict[str, int]:
  """Clips by 'all', 'subjects', 'SPLIT', 'CLASS', 'SPLIT/CLASS', 'fold K'.

  A fold counts the clips that it tests; 'fold K train' counts the others.
  """
  rows = list(rows)
  found = collections.Counter(all=len(rows))
  for row in rows:
    found[row.label] += 1
    if row.split:
      found[row.split] += 1
      found[f'{row.split}/{row.label}'] += 1
    if row.fold >= 0:
      found[f'fold {row.fold}'] += 1
  in_folds = sum(row.fold >= 0 for row in rows)
  for fold in {row.fold for row in rows if row.fold >= 0}:
    found[f'fold {fold} train'] = in_folds - found[f'fold {fold}']
  found['subjects'] = len({row.subject for row in rows if row.subject})
  return dict(found)


def per_class(
  names: Iterable[str], counts: Iterable[int], prefix: str = ''
) -> dict[str, int]:
  """The counts of classes, or of others in an order, by the keys of `tally`."""
  return {prefix + n: c for n, c in zip(names, counts, strict=True)}


def per_fold(counts: Sequence[int], suffix: str = '') -> dict[str, int]:
  """The counts of folds from 1, by the keys of `tally`."""
  return {f'fold {k}{suffix}': n for k, n in enumerate(counts, 1)}


def by_fold(row: Row) -> Row:
  """The clip in the splits of the first fold, which 'train' and 'test' are."""
  split = 'test' if row.fold == 1 else 'train'
  return dataclasses.replace(row, split=split)


def bad_label(
  path: pathlib.Path, line: int, label: str, known: Iterable[str]
) -> MiraInputError:
  """The error for a class that a dataset does not have."""
  classes = ', '.join(known)
  hint = f'line {line} has the class {label!r}; the classes are {classes}'
  return data_error('bad_label', path, hint)


def leak(path: pathlib.Path, clip: str, why: str) -> MiraInputError:
  """The error for a clip that would be trained on and tested."""
  hint = f'clip {clip} {why}; get the lists from the dataset provider again'
  return data_error('leak', path, hint)
