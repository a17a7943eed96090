"""Prepared datasets: clips of JPEG or PNG frames in TFDS array_record files.

Layout: `out/<name>/<version>/`, and `out` is the dataset's path for users.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mira_jax import files
from mira_jax.data import records
from mira_jax.data.records import Clip
from mira_jax.errors import MiraInputError, data_error, not_written

INDEX = 'index.json'  # split -> fields of ClipIndex, each a list
_CLIPS_PER_WRITE = 64


@dataclasses.dataclass(kw_only=True, frozen=True)
class PreparedDataset:
  """A prepared dataset on disk; see `open`."""

  directory: pathlib.Path  # the version folder, which holds the record files
  name: str
  class_names: tuple[str, ...]  # in label order
  splits: dict[str, int]  # number of clips of each split
  metadata: dict[str, Any]  # as given to `write`

  @property
  def action_units(self) -> tuple[str, ...]:
    """Of `Clip.intensities`, such as 'AU1'; none in most datasets."""
    return tuple(self.metadata.get(records.UNITS, ()))

  @property
  def positive_from(self) -> int:
    """The intensity from which an action unit counts as shown."""
    return self.metadata.get(records.POSITIVE_FROM, 1)

  def source(self, split: str) -> ClipSource:
    """Random access to a split. Raises MiraInputError for an unknown one."""
    if split not in self.splits:
      hint = f'the splits are {", ".join(self.splits)}'
      if split == 'test' and 'val' in self.splits:
        hint += '; to test on val, set --config.eval.split=val'
      raise data_error('no_split', split, hint)
    return ClipSource(self.directory, split)

  def index(self, split: str) -> ClipIndex:
    """Annotations and numbers of frames of the clips of a split.

    Raises MiraInputError: there is no such split, or its index is damaged.
    """
    count, path = len(self.source(split)), self.directory / INDEX
    try:
      columns = json.loads(path.read_text())[split]
      columns = {'num_frames': [0] * count} | columns  # of version 1.1.0
      columns = dict.fromkeys(_COUNTS, [()] * count) | columns
      index = ClipIndex(
        **{
          name: np.array(columns[name], int if name in _COUNTS else None)
          for name in _COLUMNS
        }
      )
      index.check(count, len(self.class_names), len(self.action_units))
    except Exception as error:  # a damaged index has errors of many kinds
      hint = f'it cannot be read, prepare the dataset again ({error})'
      raise data_error('damaged', path, hint) from error
    return index


@dataclasses.dataclass(kw_only=True, frozen=True)
class ClipIndex:
  """Annotations of the C clips of a split without reading frames."""

  clip_id: np.ndarray  # str [C]
  label: np.ndarray  # int [C]
  subject: np.ndarray  # str [C]; '' where unknown
  fold: np.ndarray  # int [C]; -1 where there are none
  num_frames: np.ndarray  # int [C]; 0 where an older version wrote the dataset
  # Frames that show each action unit, and those where that is known.
  positive: np.ndarray  # int [C, A]; [C, 0] without units
  known: np.ndarray  # int [C, A]

  def check(self, count: int, num_classes: int, num_units: int) -> None:
    """Raises ValueError for columns of another shape or type, and labels."""
    for name, column in vars(self).items():
      width = (num_units,) if name in _COUNTS else ()
      if column.shape != (count, *width):
        raise ValueError(f'{name} is not of {count} clips')
      kind = 'U' if name in ('clip_id', 'subject') else 'i'
      if count and column.dtype.kind != kind:
        raise ValueError(f'{name} is of another type')
    if wrong := {*self.label.tolist()} - {*range(num_classes)}:
      most = num_classes - 1
      raise ValueError(f'label {min(wrong)} is none of 0 to {most}')


_COLUMNS = tuple(field.name for field in dataclasses.fields(ClipIndex))
_COUNTS = ('positive', 'known')


def index_row(clip: Clip, positive_from: int = 1) -> tuple:
  """The row of a clip in INDEX."""
  own = clip.clip_id, int(clip.label), clip.subject, int(clip.fold)
  return (*own, len(clip), *unit_counts_of(clip, positive_from))


def unit_counts_of(
  clip: Clip, positive_from: int
) -> tuple[list[int], list[int]]:
  """`positive` and `known` of a clip, see `ClipIndex`."""
  frames = len(clip) if len(clip.intensities) == 1 else 1  # of one row
  shown, known = clip.intensities >= positive_from, clip.intensities >= 0
  return (frames * shown.sum(0)).tolist(), (frames * known.sum(0)).tolist()


def index_columns(rows: Sequence[Sequence]) -> dict[str, list]:
  """The rows of a split as INDEX holds them."""
  columns = zip(_COLUMNS, zip(*rows, strict=True), strict=True)
  return {n: list(c) for n, c in columns if n not in _COUNTS or c[0]}


def unit_counts(dataset: PreparedDataset) -> dict[str, tuple[int, int]]:
  """Frames of all splits that show a unit, and those where that is known."""
  indices = [dataset.index(split) for split in dataset.splits]
  shown, known = (
    np.concatenate([getattr(index, name) for index in indices]).sum(0).tolist()
    for name in _COUNTS
  )
  pairs = zip(shown, known, strict=True)
  return dict(zip(dataset.action_units, pairs, strict=True))


def describe_units(counts: Mapping[str, tuple[int, int]]) -> str:
  """`unit_counts` in words: 'AU1 5.1%, AU2 never known'."""
  return ', '.join(
    f'{name} {100 * shown / known:.1f}%' if known else f'{name} never known'
    for name, (shown, known) in counts.items()
  )


class ClipSource:
  """Random access to the clips of one split; it pickles by its path."""

  def __init__(self, directory: pathlib.Path, split: str):
    self.directory = directory
    self.split = split
    builder: Any = tfds.builder_from_directory(directory)
    self._records = builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Clip:
    """One clip. Raises MiraInputError('damaged') for an unreadable record."""
    if not 0 <= index < len(self):
      raise IndexError(f'clip {index} of {len(self)} in split {self.split}')
    try:
      return records.parse(self._records[index])
    except Exception as error:  # so does a damaged record
      path = f'{self.directory}: {self.split}[{index}]'
      hint = f'prepare it again ({error})'
      raise data_error('damaged', path, hint) from error

  def __reduce__(self):
    return ClipSource, (self.directory, self.split)


def write(
  out: str | pathlib.Path,
  *,
  name: str,
  class_names: Sequence[str],
  splits: Mapping[str, Callable[[], Iterable[Clip]]],
  description: str,
  metadata: dict[str, Any] | None = None,
) -> pathlib.Path:
  """Writes a dataset below `out`, keeping the order of the clips.

  Clips are streamed, so memory does not grow with a split. The files are
  written to `incomplete.*` and renamed at the end: a run that is killed leaves
  no partial dataset behind.

  Args:
    out: the folder that `open` and every command take; made when missing.
    name: lower-case letters, digits and underscores.
    class_names: in label order.
    splits: for each split a function that yields its clips; one without clips
      is left out.
    description: one sentence.
    metadata: JSON values to keep with the dataset. A list 'action_units' names
      those of `Clip.intensities`, and 'positive_from' (1 by default) is the
      intensity from which one counts as shown.

  Returns:
    The version folder.

  Raises:
    MiraInputError: see `claimed`; the disk is full, or no split has a clip.
  """
  out = pathlib.Path(out)
  with claimed(out, name):
    for stale in out.glob('*/incomplete.*'):
      shutil.rmtree(stale)
    partial = out / name / f'incomplete.{records.VERSION}'
    partial.mkdir(parents=True)
    try:
      info = records.new_info(partial, name, class_names, description, metadata)
      index = _write_splits(records.Writer(info), splits, partial, metadata)
      if not index:
        raise data_error('no_clips', out, 'no split has a clip')
      with disk_errors(partial):
        (partial / INDEX).write_text(json.dumps(index))
      return partial.rename(out / name / records.VERSION)
    finally:
      shutil.rmtree(partial, ignore_errors=True)


def _write_splits(
  writer: records.Writer,
  splits: Mapping[str, Callable[[], Iterable[Clip]]],
  folder: pathlib.Path,
  metadata: dict[str, Any] | None,
) -> dict[str, dict[str, list]]:
  """Streams clips to disk; returns the contents of INDEX."""
  rows, about = {}, metadata or {}
  names, least = (
    about.get(records.UNITS, ()),
    about.get(records.POSITIVE_FROM, 1),
  )
  for split, clips in splits.items():
    stream = (records.with_units_named(clip, names, least) for clip in clips())
    while batch := list(itertools.islice(stream, _CLIPS_PER_WRITE)):
      found = (index_row(clip, least) for clip in batch)
      rows.setdefault(split, []).extend(found)
      with disk_errors(folder):
        writer.add(split, batch)
  with disk_errors(folder):
    writer.close()
  return {split: index_columns(found) for split, found in rows.items()}


def refuse_existing(out: str | pathlib.Path) -> None:
  """Raises MiraInputError('exists') where there is a dataset already."""
  if found := _find(pathlib.Path(out)):
    hint = 'name another folder, or remove this one first'
    raise data_error('exists', found[0], hint)


@contextlib.contextmanager
def claimed(out: pathlib.Path, name: str) -> Iterator[None]:
  """Locks a folder for one writer of a new dataset.

  Raises MiraInputError: it holds a dataset already, another process writes
  there, or the name is bad.
  """
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise MiraInputError('bad_name', name, 'use a-z, 0-9 and _ only')
  with files.lock(out / '.lock'):
    refuse_existing(out)
    yield


@contextlib.contextmanager
def disk_errors(path: str | pathlib.Path) -> Iterator[None]:
  """Turns the errors of a full disk into MiraInputError('not_written')."""
  try:
    yield
  except (OSError, RuntimeError) as error:  # the latter from array_record
    raise not_written(path, str(error)) from error


def open(directory: str | pathlib.Path) -> PreparedDataset:
  """Finds the one prepared dataset in or below a folder.

  Raises:
    MiraInputError: there is none, there are several, its files are damaged or
      missing, or a newer version of this package wrote it.
  """
  root = pathlib.Path(directory)
  found = _find(root)
  if not found:
    hint = 'no prepared dataset here; make one with `mira prepare`'
    raise data_error('not_a_dataset', root, hint)
  if len(found) > 1:
    hint = f'name one of {", ".join(map(str, found))}'
    raise data_error('several_datasets', root, hint)
  return _load(found[0])


def _find(root: pathlib.Path) -> list[pathlib.Path]:
  """Folders of finished datasets at most two levels below `root`."""
  patterns = (f'{level}dataset_info.json' for level in ('', '*/', '*/*/'))
  hits = itertools.chain.from_iterable(root.glob(p) for p in patterns)
  folders = (hit.parent for hit in hits)
  return sorted(f for f in folders if not f.name.startswith('incomplete.'))


def _load(folder: pathlib.Path) -> PreparedDataset:
  try:
    info = tfds.builder_from_directory(folder).info
    files = [f for split in info.splits.values() for f in split.filepaths]
    names = list(records.class_names(info))
    prepared = PreparedDataset(
      directory=folder,
      name=info.name,
      class_names=tuple(names),
      splits={key: split.num_examples for key, split in info.splits.items()},
      metadata=dict(json.loads((folder / 'metadata.json').read_text())),
    )
    if not isinstance(prepared.positive_from, int):
      raise ValueError(f'{records.POSITIVE_FROM} is no whole number')
    for split in prepared.splits:
      ClipSource(folder, split)
  except Exception as error:  # TFDS raises bare errors of many kinds here
    hint = f'its metadata cannot be read, prepare it again ({error})'
    raise data_error('damaged', folder, ' '.join(hint.split())) from error
  if int(info.version.major) > int(records.VERSION.split('.')[0]):
    hint = f'version {info.version} is newer than {records.VERSION}: update '
    raise data_error('too_new', folder, f'{hint}mira_jax')
  if missing := [file.name for file in files if not file.exists()]:
    hint = f'record files are missing, copy it again: {", ".join(missing[:3])}'
    raise data_error('damaged', folder, hint)
  # Datasets before this version have no second copy of their class names.
  written = prepared.metadata.pop(records.NAMES, names)
  if written != names:
    hint = f'classes {written} were written, and {names} are read; prepare '
    raise data_error('damaged', folder, f'{hint}it again')
  return prepared


def fingerprint(dataset: PreparedDataset) -> str:
  """A digest of names, counts, sizes of files and annotations."""
  files = sorted(dataset.directory.glob('*.array_record*'))
  index = dataset.directory / INDEX
  facts = (
    dataset.name,
    dataset.class_names,
    sorted(dataset.splits.items()),
    [(file.name, file.stat().st_size) for file in files],
    hashlib.sha256(index.read_bytes()).hexdigest() if index.exists() else '',
  )
  return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
