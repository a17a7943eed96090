"""Prepared datasets: clips of JPEG frames in TFDS array_record files.

TensorFlow is never imported, neither to write nor to read. Two choices of
TFDS would import it, so neither is used: `GeneratorBasedBuilder` spills every
split above 1000 MiB through `tf.io.gfile`, and `features.Video` needs `tf`
to be constructed. `SequentialWriter` streams clips to disk in order instead.

Layout: `out/<name>/<version>/`, and `out` is what a user names afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from mira_jax import lock
from mira_jax.data import records
from mira_jax.data.records import Clip
from mira_jax.errors import MiraInputError, data_error

VERSION = '1.1.0'  # of the features of a record; a newer major is refused
INDEX = 'index.json'  # split -> fields of ClipIndex, each a list
_NAMES = 'class_names'  # in the metadata, too: TFDS keeps one name per line
_CLIPS_PER_SHARD = 1024
_CLIPS_PER_WRITE = 64  # TFDS rewrites its metadata at every call


@dataclasses.dataclass(kw_only=True, frozen=True)
class PreparedDataset:
  """A prepared dataset on disk; see `open`.

  Attributes:
    directory: the version folder, which holds the record files.
    name: of the dataset.
    class_names: in label order.
    splits: number of clips of each split.
    metadata: what `write` was given.
  """

  directory: pathlib.Path
  name: str
  class_names: tuple[str, ...]
  splits: dict[str, int]
  metadata: dict[str, Any]

  def source(self, split: str) -> ClipSource:
    """Random access to a split. Raises MiraInputError for an unknown one."""
    if split not in self.splits:
      hint = f'the splits are {", ".join(self.splits)}'
      if split == 'test' and 'val' in self.splits:
        hint += '; to test on val, set --config.eval.split=val'
      raise data_error('no_split', split, hint)
    return ClipSource(self.directory, split)

  def index(self, split: str) -> ClipIndex:
    """What is known of every clip of a split, one row per clip.

    A dataset without an index gets one by a pass over its records. There a
    clip that cannot be read has label -1.

    Raises:
      MiraInputError: there is no such split, or its index is damaged.
    """
    count = len(self.source(split))
    path = self.directory / INDEX
    if not path.exists():
      columns = {name: _columns(self.source(name)) for name in self.splits}
      _cache(path, columns)
      return _clip_index(columns[split])
    try:
      index = _clip_index(json.loads(path.read_text())[split])
    except (OSError, ValueError, KeyError, TypeError) as error:
      hint = f'it cannot be read, prepare the dataset again ({error})'
      raise data_error('damaged', path, hint) from error
    if len(index.label) != count:
      hint = f'{len(index.label)} of {count} clips of {split}; prepare it again'
      raise data_error('damaged', path, hint)
    return index


@dataclasses.dataclass(kw_only=True, frozen=True)
class ClipIndex:
  """What is known of the C clips of a split without reading frames.

  Attributes:
    clip_id: str [C].
    label: int [C]; -1 where the clip cannot be read, and all else is unknown.
    subject: str [C]; '' where unknown.
    fold: int [C]; -1 where there are none.
  """

  clip_id: np.ndarray
  label: np.ndarray
  subject: np.ndarray
  fold: np.ndarray


_COLUMNS = tuple(field.name for field in dataclasses.fields(ClipIndex))


def _clip_index(columns: Mapping[str, list]) -> ClipIndex:
  """Raises ValueError or TypeError for columns that are none."""
  index = ClipIndex(**{name: np.array(x) for name, x in columns.items()})
  for name in _COLUMNS:
    column = getattr(index, name)
    kinds = 'U' if name in ('clip_id', 'subject') else 'i'
    if column.shape != index.label.shape or column.ndim != 1:
      raise ValueError(f'{name} has another shape than label')
    if column.size and column.dtype.kind not in kinds:
      raise ValueError(f'{name} is of another type')
  return index


def _columns(source: ClipSource) -> dict[str, list]:
  """The columns of an index, from the records themselves."""
  rows = []
  for i in range(len(source)):
    try:
      rows.append(index_row(source[i]))
    except MiraInputError:
      rows.append(('', -1, '', -1))  # keeps the others in their places
  return index_columns(rows)


def index_row(clip: Clip) -> tuple[str, int, str, int]:
  """What an index keeps of a clip."""
  return clip.clip_id, int(clip.label), clip.subject, int(clip.fold)


def index_columns(rows: Sequence[Sequence]) -> dict[str, list]:
  """The rows of a split as INDEX holds them."""
  return dict(zip(_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))


def _cache(path: pathlib.Path, columns: Mapping[str, dict[str, list]]) -> None:
  """Writes an index whole or, where nothing can be written, not at all."""
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    part.write_text(json.dumps(columns))
    os.replace(part, path)
  except OSError:
    with contextlib.suppress(OSError):
      part.unlink()


class ClipSource:
  """Random access to the clips of one split; it pickles by its path."""

  def __init__(self, directory: pathlib.Path, split: str):
    self.directory = directory
    self.split = split
    self._records = tfds.builder_from_directory(directory).as_data_source(
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
    except (
      RuntimeError,
      OSError,
      LookupError,
      TypeError,
      DecodeError,
    ) as error:
      path = f'{self.directory}: {self.split}[{index}]'
      raise data_error(
        'damaged', path, f'prepare it again ({error})'
      ) from error

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
  nothing that `open` would take for a dataset.

  Args:
    out: the folder that `open` and every command take; made when missing.
    name: lower-case letters, digits and underscores.
    class_names: in label order.
    splits: for each split a function that yields its clips. A split without
      clips is left out.
    description: a sentence for people.
    metadata: JSON values to keep with the dataset.

  Returns:
    The version folder.

  Raises:
    MiraInputError: the folder holds a dataset already, another process writes
      there, the name is bad, the disk is full, or no split has a clip.
  """
  out = pathlib.Path(out)
  with claimed(out, name):
    for stale in out.glob('*/incomplete.*'):
      shutil.rmtree(stale)
    final = out / name / VERSION
    partial = out / name / f'incomplete.{VERSION}'
    partial.mkdir(parents=True)
    try:
      info = new_info(partial, name, class_names, description, metadata)
      index = _write_splits(info, splits)
      if not info.splits:
        raise data_error('no_clips', out, 'no split has a clip')
      with disk_errors(partial):
        (partial / INDEX).write_text(json.dumps(index))
      partial.rename(final)
    finally:
      shutil.rmtree(partial, ignore_errors=True)
  return final


def refuse_existing(out: str | pathlib.Path) -> None:
  """Raises MiraInputError('exists') where there is a dataset already."""
  if found := _find(pathlib.Path(out)):
    hint = 'name another folder, or remove this one first'
    raise data_error('exists', found[0], hint)


@contextlib.contextmanager
def claimed(out: pathlib.Path, name: str) -> Iterator[None]:
  """Holds a folder for one writer of a new dataset.

  Raises:
    MiraInputError: it holds a dataset already, another process writes there,
      or the name is bad.
  """
  if not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise MiraInputError('bad_name', name, 'use a-z, 0-9 and _ only')
  with sole_writer(out):
    refuse_existing(out)
    yield


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


def fingerprint(dataset: PreparedDataset) -> str:
  """Tells datasets apart without reading frames.

  By names, counts, the sizes of their files and what is known of each clip.
  """
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


def _load(folder: pathlib.Path) -> PreparedDataset:
  try:
    made, missing, version = _read_metadata(folder)
  except Exception as error:  # TFDS raises bare errors of many kinds here
    hint = f'its metadata cannot be read, prepare it again ({error})'
    raise data_error('damaged', folder, ' '.join(hint.split())) from error
  if version > int(VERSION.split('.')[0]):
    hint = f'version {version} is newer than {VERSION}: update mira_jax'
    raise data_error('too_new', folder, hint)
  if missing:
    hint = f'record files are missing, copy it again: {", ".join(missing[:3])}'
    raise data_error('damaged', folder, hint)
  _check_names(made)
  return made


def _read_metadata(
  folder: pathlib.Path,
) -> tuple[PreparedDataset, list[str], int]:
  """The dataset, names of files that are missing, and its major version."""
  info = tfds.builder_from_directory(folder).info
  files = [f for split in info.splits.values() for f in split.filepaths]
  made = PreparedDataset(
    directory=folder,
    name=info.name,
    class_names=tuple(info.features['label'].names),
    splits={key: split.num_examples for key, split in info.splits.items()},
    metadata=dict(json.loads((folder / 'metadata.json').read_text())),
  )
  for split in made.splits:
    ClipSource(folder, split)
  missing = [file.name for file in files if not file.exists()]
  return made, missing, info.version.major


def _check_names(made: PreparedDataset) -> None:
  """Holds the class names against those that were written."""
  written = made.metadata.pop(_NAMES, None)
  if written is None or tuple(written) == made.class_names:
    return  # datasets before this version have no second copy
  pairs = itertools.zip_longest(written, made.class_names)
  i, (old, new) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
  hint = f'class {i} was written as {old!r} and is read as {new!r}; prepare '
  raise data_error('damaged', made.directory, f'{hint}it again')


def _find(root: pathlib.Path) -> list[pathlib.Path]:
  """Folders of finished datasets at most two levels below `root`."""
  patterns = (f'{level}dataset_info.json' for level in ('', '*/', '*/*/'))
  hits = itertools.chain.from_iterable(root.glob(p) for p in patterns)
  folders = (hit.parent for hit in hits)
  return sorted(f for f in folders if not f.name.startswith('incomplete.'))


def new_info(
  folder: pathlib.Path,
  name: str,
  class_names: Sequence[str],
  description: str,
  metadata: dict[str, Any] | None,
) -> tfds.core.DatasetInfo:
  """The metadata of a dataset that is to be written to `folder`."""
  identity = tfds.core.dataset_info.DatasetIdentity(
    name=name,
    version=tfds.core.Version(VERSION),
    data_dir=str(folder),
    module_name=__name__,
  )
  return tfds.core.DatasetInfo(
    builder=identity,
    description=description,
    features=records.features(class_names),
    metadata=tfds.core.MetadataDict(
      (metadata or {}) | {_NAMES: list(class_names)}
    ),
    disable_shuffling=True,
  )


def _write_splits(
  info: tfds.core.DatasetInfo,
  splits: Mapping[str, Callable[[], Iterable[Clip]]],
) -> dict[str, dict[str, list]]:
  """Streams clips to disk; returns what INDEX holds."""
  rows = {}
  writer = tfds.core.SequentialWriter(
    info, _CLIPS_PER_SHARD, file_format='array_record'
  )
  for split, clips in splits.items():
    stream = iter(clips())
    while batch := list(itertools.islice(stream, _CLIPS_PER_WRITE)):
      rows.setdefault(split, []).extend(map(index_row, batch))
      with disk_errors(info.data_dir):
        writer.initialize_splits([split], fail_if_exists=False)
        writer.add_examples({split: [records.example(c) for c in batch]})
  with disk_errors(info.data_dir):
    writer.close_all()
  return {split: index_columns(found) for split, found in rows.items()}


@contextlib.contextmanager
def disk_errors(path: str | pathlib.Path) -> Iterator[None]:
  """Turns what a full disk raises into MiraInputError('not_written')."""
  try:
    yield
  except (OSError, RuntimeError) as error:  # the latter from array_record
    raise data_error('not_written', path, str(error)) from error


@contextlib.contextmanager
def sole_writer(out: pathlib.Path, lock_name: str = '.lock') -> Iterator[None]:
  """Holds a lock that the system drops when the process ends in any way.

  Raises:
    MiraInputError: another process holds it ('locked'), or the folder cannot
      be made or written to ('not_written').
  """
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise data_error('not_written', out, str(error)) from error
  with lock.hold(out / lock_name):
    yield
