"""Prepared datasets by Apache Beam: the same as by `dataset.write`.

A shard is a range of jobs and one record file, and one worker writes it whole.
Only numbers of shards travel through Beam; TFDS's own Beam writer would send
every frame through a shuffle, hold whole shards in memory, and start again
after a failure.

Jobs reach the workers, and shards the driver, through `out`, a folder that all
of them see. A shard is finished when its note is there: the next run of the
same jobs skips it.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib
import json
import os
import pathlib
import pickle
import shutil
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from array_record.python import (
  array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
)

from mira_jax import files
from mira_jax.data import dataset, records
from mira_jax.data.listing import Failure
from mira_jax.data.records import Clip
from mira_jax.errors import MiraInputError, data_error, some

Job = TypeVar('Job')
Result = Clip | tuple[Clip, Sequence[str]] | Failure
_Note = dict[str, Any]
# The fallback of 'DirectRunner', which first downloads a program.
RUNNER = 'FnApiRunner'


class Written(NamedTuple):
  """The result of `write`.

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

  A run that is interrupted leaves its finished shards; the same call resumes.
  Shards are used again only if classes, metadata and jobs are the same, so
  `metadata` should hold everything that `work` depends on.

  Args:
    out: the folder of the dataset, at the same path on every worker; made
      when missing.
    name: lower-case letters, digits and underscores.
    class_names: in label order.
    splits: for each split its jobs. A split without clips is left out.
    work: runs in a worker; gives a clip, a clip and its flags, or a failure.
      Its module must be importable there. Jobs are pickled.
    description: one sentence.
    metadata: JSON values to keep with the dataset.
    runner: a Beam runner; the default is this machine.
    options: of the runner, such as '--direct_num_workers=4'.
    jobs_per_shard: at most.

  Raises:
    MiraInputError: Beam is not installed or its run failed, the folder holds
      a dataset already, another process writes there, the name is bad, the
      disk is full, or no split has a clip.
  """
  out, beam = pathlib.Path(out).absolute(), _import_beam()
  with dataset.claimed(out, name), dataset.disk_errors(str(out)):
    places = _Places(out / name)
    settings = [list(class_names), metadata or {}]
    shards = _plan(places, splits, settings, jobs_per_shard)
    todo = [i for i in range(len(shards)) if not places.note(i)]
    task = functools.partial(
      _write_shard, places=places, work=work, class_names=tuple(class_names)
    )
    _run(beam, todo, task, runner, options)
    notes: dict[str, list[tuple[int, _Note]]] = {split: [] for split in splits}
    for number, split in enumerate(shards):
      if not (note := places.note(number)):
        hint = f'shard {number} of {len(shards)} is not there: '
        raise data_error(
          'beam_failed', runner, f'{hint}do all workers see {out}?'
        )
      notes[split].append((number, note))
    written = _written(places, notes, class_names)
    info = records.new_info(
      places.records, name, class_names, description, metadata
    )
    _publish(places, notes, info, written.folder)
  return written


@dataclasses.dataclass(frozen=True)
class _Places:
  """The files of a run, by the number of a shard; workers get it too."""

  folder: pathlib.Path

  @property
  def records(self) -> pathlib.Path:
    return self.folder / f'incomplete.{records.VERSION}'

  @property
  def notes(self) -> pathlib.Path:
    return self.folder / 'incomplete.shards'  # `dataset.open` passes it over

  def shard(self, number: int) -> pathlib.Path:
    return self.records / f'{number}.shard'

  def jobs(self, number: int) -> pathlib.Path:
    return self.notes / f'{number}.jobs'

  def about(self, number: int) -> pathlib.Path:
    return self.notes / f'{number}.json'

  def note(self, number: int) -> _Note | None:
    """The note of a shard that is finished and still whole."""
    try:
      note = json.loads(self.about(number).read_text())
      whole = self.shard(number).stat().st_size == note['file_size']
      same = note['jobs'] == _digest(self.jobs(number).read_bytes())
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
) -> list[str]:
  """Writes the jobs of every shard for the workers; gives their splits."""
  places.records.mkdir(parents=True, exist_ok=True)
  places.notes.mkdir(exist_ok=True)
  shards, kept = [], set()
  for split, jobs in splits.items():
    for start in range(0, len(jobs), size):
      number, part = len(shards), list(jobs[start : start + size])
      data = pickle.dumps((settings, split, part))
      files.write_bytes(places.jobs(number), data)
      kept |= {
        path(number) for path in (places.jobs, places.about, places.shard)
      }
      shards.append(split)
  for path in (*places.records.iterdir(), *places.notes.iterdir()):
    if path not in kept:
      path.unlink()
  return shards


def _run(
  beam: types.ModuleType,
  shards: Sequence[int],
  task: Callable[[int], None],
  runner: str,
  options: Sequence[str],
) -> None:
  if not shards:
    return
  flags = beam.options.pipeline_options.PipelineOptions(list(options))
  try:
    with beam.Pipeline(runner=runner, options=flags) as pipeline:
      numbers = pipeline | 'Shards' >> beam.Create(shards)
      spread = numbers | 'Spread' >> beam.Reshuffle()  # else one worker has all
      _ = spread | 'Write' >> beam.Map(task)
  except Exception as error:  # every runner has its own
    hint = f'finished shards are kept, the same command resumes: {error}'
    raise data_error('beam_failed', runner, hint[:1000]) from error


def _write_shard(
  number: int,
  *,
  places: _Places,
  work: Callable[[Job], Result],
  class_names: Sequence[str],
) -> None:
  """Runs in a worker; safe to run concurrently."""
  data = places.jobs(number).read_bytes()
  results = map(work, pickle.loads(data)[-1])
  shard = places.shard(number)
  with files.atomic(shard, shared=True) as part:
    note = _write_records(part, results, class_names)
  note['jobs'], note['file_size'] = _digest(data), shard.stat().st_size
  files.write_text(places.about(number), json.dumps(note), shared=True)


def _write_records(
  path: pathlib.Path, results: Iterable[Result], class_names: Sequence[str]
) -> _Note:
  """Writes the clips among the results."""
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


def _written(
  places: _Places,
  notes: Mapping[str, Sequence[tuple[int, _Note]]],
  class_names: Sequence[str],
) -> Written:
  """The contents of all shards. Raises MiraInputError('no_clips') for none."""
  failures, counts, flags = [], {}, collections.Counter()
  for split, found in notes.items():
    counts[split] = dict.fromkeys(class_names, 0)
    for _, note in found:
      failures += [Failure(**fields) for fields in note['failures']]
      flags.update(note['flags'])
      for _, label, *_ in note['rows']:
        counts[split][class_names[label]] += 1
  if not any(sum(count.values()) for count in counts.values()):
    shutil.rmtree(places.notes)  # so that every job is tried again
    shutil.rmtree(places.records)
    reasons = some([f'{f.path} ({f.code})' for f in failures], 3)
    hint = f'no split has a clip: {reasons}'
    raise data_error('no_clips', places.folder, hint)
  final = places.folder / records.VERSION
  return Written(final, failures, counts, dict(flags))


def _publish(
  places: _Places,
  notes: Mapping[str, Sequence[tuple[int, _Note]]],
  info: Any,
  final: pathlib.Path,
) -> None:
  """Makes a dataset of finished shards; those without clips have no file."""
  index, sizes = {}, {}
  for split, found in notes.items():
    filled = [(number, note) for number, note in found if note['rows']]
    if not filled:
      continue
    paths = records.record_files(info, split, len(filled))
    for (number, _), path in zip(filled, paths, strict=True):
      os.replace(places.shard(number), path)
    sizes[split] = [(len(n['rows']), n['num_bytes']) for _, n in filled]
    rows = [row for _, note in filled for row in note['rows']]
    index[split] = dataset.index_columns(rows)
  for empty in places.records.glob('*.shard'):
    empty.unlink()
  records.write_info(info, sizes)
  (places.records / dataset.INDEX).write_text(json.dumps(index))
  places.records.rename(final)
  shutil.rmtree(places.notes, ignore_errors=True)


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()
