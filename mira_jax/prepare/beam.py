"""Prepared datasets by Apache Beam: what `dataset.write` makes, on a cluster.

A shard is a range of jobs and one record file, and one worker writes it whole.
Only names of shards travel through Beam; TFDS's own Beam writer, which needs
no TensorFlow either, would send every frame through a shuffle, hold whole
shards in memory, and start again from nothing after a failure.

Jobs reach the workers, and shards the driver, through `out`, which must be a
folder that all of them see. A shard is finished when its note is there: the
next run of the same jobs skips it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import os
import pathlib
import pickle
import shutil
import types
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from mira_jax.data import dataset, records
from mira_jax.data.records import Clip
from mira_jax.errors import MiraInputError, data_error
from mira_jax.prepare.resolve import Failure

Job = TypeVar('Job')
Result = Clip | tuple[Clip, Sequence[str]] | Failure
# What 'DirectRunner' falls back to; that name first downloads a program.
RUNNER = 'FnApiRunner'
_Notes = Mapping[str, Mapping[str, dict[str, Any]]]  # split -> shard -> note
_NOTES_FOLDER = 'incomplete.shards'  # `dataset.open` passes over 'incomplete.*'


class Written(NamedTuple):
  """What `write` wrote.

  Attributes:
    folder: the version folder.
    failures: of the jobs that gave no clip, in order.
    counts: clips of each class in each split.
    flags: usable clips with an oddity, by kind, see `footage.Video`.
  """

  folder: pathlib.Path
  failures: list[Failure]
  counts: dict[str, dict[str, int]]
  flags: dict[str, int]


def write(
  out: str | os.PathLike[str],
  *,
  name: str,
  class_names: Sequence[str],
  splits: Mapping[str, Sequence[Job]],
  work: Callable[[Job], Result],
  description: str,
  metadata: dict[str, Any] | None = None,
  runner: str = RUNNER,
  options: Sequence[str] = (),
  jobs_per_shard: int = 1024,
) -> Written:
  """Writes a dataset below `out`: the clips of all jobs, in their order.

  A run that is stopped leaves its finished shards; the same call goes on from
  them. They are used only if name, classes, metadata and the jobs of the
  shard are the same, so `metadata` should hold what `work` depends on.

  Args:
    out: the folder that `dataset.open` takes, at the same path on every
      worker; made when missing.
    name: lower-case letters, digits and underscores.
    class_names: in label order.
    splits: for each split its jobs. A split without clips is left out.
    work: runs in a worker; gives a clip, a clip and its flags, or a failure.
      Its module must be importable there. Jobs are pickled.
    description: a sentence for people.
    metadata: JSON values to keep with the dataset.
    runner: a Beam runner; the default is this machine.
    options: of the runner, such as '--direct_num_workers=4'.
    jobs_per_shard: at most; what one worker does at a time.

  Returns:
    The version folder, the failures, and how many clips there are.

  Raises:
    MiraInputError: Beam is not installed or its run failed, the folder holds
      a dataset already, another process writes there, the name is bad, the
      disk is full, or no split has a clip.
  """
  out, beam = pathlib.Path(out).absolute(), _import_beam()
  with dataset.claimed(out, name), dataset.disk_errors(str(out)):
    places = _Places(out, name)
    settings = [list(class_names), metadata or {}]
    shards = _plan(places, splits, settings, jobs_per_shard)
    every = itertools.chain.from_iterable(shards.values())
    missing = [shard for shard in every if not places.note(shard)]
    task = functools.partial(
      _write_shard, places=places, work=work, class_names=tuple(class_names)
    )
    _run(beam, missing, task, runner, options)
    _check_all_done(places, missing, runner)
    notes = {
      split: {shard: places.note(shard) for shard in names}
      for split, names in shards.items()
    }
    written = _written(places, notes, class_names)
    info = records.new_info(
      places.records, name, class_names, description, metadata
    )
    _publish(places, notes, info, written.folder)
  return written


@dataclasses.dataclass(frozen=True)
class _Places:
  """Where the files of a run are; workers get it too."""

  out: pathlib.Path
  name: str

  @property
  def records(self) -> pathlib.Path:
    return self.out / self.name / f'incomplete.{records.VERSION}'

  @property
  def notes(self) -> pathlib.Path:
    return self.out / self.name / _NOTES_FOLDER

  def jobs(self, shard: str) -> pathlib.Path:
    return self.notes / f'{shard}.jobs'

  def about(self, shard: str) -> pathlib.Path:
    return self.notes / f'{shard}.json'

  def template(self, split: str) -> tfds.core.ShardedFileTemplate:
    return records.file_template(self.records, self.name, split)

  def note(self, shard: str) -> dict[str, Any] | None:
    """What is known of a shard that is finished and still whole."""
    try:
      note = json.loads(self.about(shard).read_text())
      whole = not note['rows'] or (
        (self.records / shard).stat().st_size == note['file_size']
      )
      same = note['jobs'] == _digest(self.jobs(shard).read_bytes())
    except (OSError, ValueError, KeyError):
      return None
    return note if whole and same else None


def _import_beam() -> types.ModuleType:
  try:
    return importlib.import_module('apache_beam')
  except ImportError as error:
    hint = "install it with pip install 'mira-jax[beam]'"
    raise MiraInputError('no_beam', 'apache_beam', hint) from error


def _plan(
  places: _Places,
  splits: Mapping[str, Sequence[Job]],
  settings: list,
  size: int,
) -> dict[str, list[str]]:
  """Leaves the jobs of every shard for the workers; names the shards."""
  shards = {}
  places.records.mkdir(parents=True, exist_ok=True)
  places.notes.mkdir(exist_ok=True)
  for split, jobs in splits.items():
    starts = range(0, len(jobs), size)
    paths = places.template(split).sharded_filepaths(len(starts))
    shards[split] = [path.name for path in paths]
    for shard, start in zip(shards[split], starts, strict=True):
      part = list(jobs[start : start + size])
      _put(places.jobs(shard), pickle.dumps((settings, part)))
  names = [shard for names in shards.values() for shard in names]
  _keep_only(places.records, names)
  files = [path(n).name for n in names for path in (places.jobs, places.about)]
  _keep_only(places.notes, files)
  return shards


def _run(
  beam: types.ModuleType,
  shards: Sequence[str],
  task: Callable[[str], None],
  runner: str,
  options: Sequence[str],
) -> None:
  if not shards:
    return
  flags = beam.options.pipeline_options.PipelineOptions(list(options))
  try:
    with beam.Pipeline(runner=runner, options=flags) as pipeline:
      names = pipeline | 'Shards' >> beam.Create(shards)
      spread = names | 'Spread' >> beam.Reshuffle()  # else one worker has all
      _ = spread | 'Write' >> beam.Map(task)
  except Exception as error:  # every runner has its own
    hint = 'finished shards are kept, run it again to go on: '
    raise data_error('beam_failed', runner, f'{hint}{error}'[:1000]) from error


def _write_shard(
  shard: str,
  *,
  places: _Places,
  work: Callable[[Job], Result],
  class_names: Sequence[str],
) -> None:
  """Runs in a worker; twice at once does no harm."""
  data = places.jobs(shard).read_bytes()
  part = places.records / f'{shard}.{uuid.uuid4().hex}.part'
  try:
    note = _write_records(part, map(work, pickle.loads(data)[1]), class_names)
    note['jobs'] = _digest(data)
    if note['rows']:
      note['file_size'] = part.stat().st_size
      os.replace(part, places.records / shard)
  finally:
    part.unlink(missing_ok=True)
  _put(places.about(shard), json.dumps(note).encode())


def _write_records(
  path: pathlib.Path, results: Iterable[Result], class_names: Sequence[str]
) -> dict[str, Any]:
  """Writes the clips among the results; says what there was."""
  serialize = records.serializer(class_names)
  rows, failures, num_bytes = [], [], 0
  flags: collections.Counter[str] = collections.Counter()
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for result in results:
    if isinstance(result, Failure):
      failures.append(dataclasses.asdict(result))
      continue
    clip, found = (result, ()) if isinstance(result, Clip) else result
    flags.update(flag.partition(':')[0] for flag in found)
    record = serialize(clip)
    writer.write(record)
    num_bytes += len(record)
    rows.append(dataset.index_row(clip))
  writer.close()
  return dict(rows=rows, failures=failures, flags=flags, num_bytes=num_bytes)


def _check_all_done(
  places: _Places, shards: Sequence[str], runner: str
) -> None:
  if lost := [shard for shard in shards if not places.note(shard)]:
    hint = (
      f'{len(lost)} of {len(shards)} shards are not there, first {lost[0]}: '
      f'do all workers see {places.out}?'
    )
    raise data_error('beam_failed', runner, hint)


def _written(
  places: _Places, notes: _Notes, class_names: Sequence[str]
) -> Written:
  """What all shards hold. Raises MiraInputError('no_clips') for nothing."""
  failures, counts, flags = [], {}, collections.Counter()
  for split, found in notes.items():
    counts[split] = dict.fromkeys(class_names, 0)
    for note in found.values():
      failures += [Failure(**fields) for fields in note['failures']]
      flags.update(note['flags'])
      for _, label, *_ in note['rows']:
        counts[split][class_names[label]] += 1
  if not any(sum(count.values()) for count in counts.values()):
    shutil.rmtree(places.notes)  # so that every job is tried again
    shutil.rmtree(places.records)
    why = ', '.join(f'{f.path} ({f.code})' for f in failures[:3])
    raise data_error('no_clips', places.out, f'no split has a clip: {why}')
  final = places.out / places.name / records.VERSION
  return Written(final, failures, counts, dict(flags))


def _publish(
  places: _Places,
  notes: _Notes,
  info: tfds.core.DatasetInfo,
  final: pathlib.Path,
) -> None:
  """Makes a dataset of finished shards; those without clips have no file."""
  filled = {
    split: {shard: note for shard, note in found.items() if note['rows']}
    for split, found in notes.items()
  }
  filled = {split: found for split, found in filled.items() if found}
  _keep_only(places.records, itertools.chain.from_iterable(filled.values()))
  info.set_file_format('array_record')
  parts = [_number(places, *item) for item in filled.items()]
  info.set_splits(tfds.core.splits.SplitDict(parts))
  info.write_to_directory(places.records)
  index = {
    split: dataset.index_columns(
      [row for note in found.values() for row in note['rows']]
    )
    for split, found in filled.items()
  }
  (places.records / dataset.INDEX).write_text(json.dumps(index))
  places.records.rename(final)
  shutil.rmtree(places.notes, ignore_errors=True)


def _number(
  places: _Places, split: str, notes: Mapping[str, dict[str, Any]]
) -> tfds.core.SplitInfo:
  """Renames the files of a split as if the shards without clips never were."""
  template = places.template(split)
  paths = template.sharded_filepaths(len(notes))
  for shard, path in zip(notes, paths, strict=True):
    os.replace(places.records / shard, path)
  return tfds.core.SplitInfo(
    name=split,
    shard_lengths=[len(note['rows']) for note in notes.values()],
    num_bytes=sum(note['num_bytes'] for note in notes.values()),
    filename_template=template,
  )


def _keep_only(folder: pathlib.Path, names: Iterable[str]) -> None:
  kept = set(names)
  for path in folder.iterdir():
    if path.name not in kept:
      path.unlink()


def _put(path: pathlib.Path, data: bytes) -> None:
  """Writes a file whole or not at all."""
  part = path.with_name(f'{path.name}.{uuid.uuid4().hex}.part')
  part.write_bytes(data)
  os.replace(part, path)


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()
