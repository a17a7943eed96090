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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from array_record.python import (
  array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
)

from mira_jax import files
from mira_jax.data import dataset, records
from mira_jax.data.listing import Failure
from mira_jax.data.records import Clip
from mira_jax.errors import MiraInputError, data_error, some
from mira_jax.prepare import report

Job = TypeVar('Job')
Result = tuple[Clip, Sequence[str]] | Failure
_Note = dict[str, Any]
# The fallback of 'DirectRunner', which first downloads a program.
RUNNER = 'FnApiRunner'
_RECORDS = f'incomplete.{records.VERSION}'
_NOTES = 'incomplete.shards'  # `dataset.open` passes it over


class Written(NamedTuple):
  """The result of `write`."""

  folder: pathlib.Path  # the version folder
  failures: list[Failure]  # of the jobs that gave no clip, in order
  counts: dict[str, dict[str, int]]  # clips of each class in each split
  flags: dict[str, int]  # usable clips with an oddity, see `footage.Video`


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
    out: the folder of the dataset, at the same path on every worker.
    name: with `class_names`, `description` and `metadata` as of
      `dataset.write`.
    class_names: in label order.
    splits: for each split its jobs. A split without clips is left out.
    work: runs in a worker; gives a clip and its flags, or a failure. Its
      module must be importable there. Jobs are pickled.
    description: one sentence.
    metadata: JSON values.
    runner: a Beam runner; the default is this machine.
    options: of the runner, such as '--direct_num_workers=4'.
    jobs_per_shard: at most.

  Raises:
    MiraInputError: as `dataset.write`; Beam is not installed ('no_beam') or
      its run failed ('beam_failed').
  """
  try:
    beam = importlib.import_module('apache_beam')
  except ImportError as error:
    hint = "install it with pip install 'mira-jax[beam]'"
    raise MiraInputError('no_beam', 'apache_beam', hint) from error
  out = pathlib.Path(out).absolute()
  with dataset.claimed(out, name), dataset.disk_errors(str(out)):
    settings = [list(class_names), metadata or {}]
    shards = _plan(out / name, splits, settings, jobs_per_shard)
    about = metadata or {}
    units = len(about.get(records.UNITS, ())), about.get(records.POSITIVE_FROM)
    todo = [shard for shard in shards if not shard.note()]
    task = functools.partial(
      _write_shard,
      work=work,
      class_names=tuple(class_names),
      units=units,
    )
    _run(beam, todo, task, runner, options)
    notes: dict[_Shard, _Note] = {}
    for shard in shards:
      if not (note := shard.note()):
        hint = f'shard {shard.number} of {len(shards)} is not there: do all '
        raise data_error('beam_failed', runner, f'{hint}workers see {out}?')
      notes[shard] = note
    written = _written(out / name, notes, class_names)
    info = records.new_info(
      out / name / _RECORDS, name, class_names, description, metadata
    )
    _publish(notes, info, written.folder)
  return written


@dataclasses.dataclass(frozen=True)
class _Shard:
  """The files of a range of jobs in the folder of a dataset."""

  folder: pathlib.Path
  number: int
  split: str

  @property
  def records(self) -> pathlib.Path:
    return self.folder / _RECORDS / f'{self.number}.shard'

  @property
  def jobs(self) -> pathlib.Path:
    return self.folder / _NOTES / f'{self.number}.jobs'

  @property
  def about(self) -> pathlib.Path:
    return self.folder / _NOTES / f'{self.number}.json'

  def note(self) -> _Note | None:
    """The note, if the shard is finished and still whole."""
    try:
      note = json.loads(self.about.read_text())
      whole = self.records.stat().st_size == note['file_size']
      same = note['jobs'] == files.sha256(self.jobs)
    except (OSError, ValueError, KeyError):
      return None
    return note if whole and same else None


def _plan(
  folder: pathlib.Path,
  splits: Mapping[str, Sequence[Job]],
  settings: list,
  size: int,
) -> list[_Shard]:
  """Writes the jobs of every shard for the workers; removes other shards."""
  for part in (_RECORDS, _NOTES):
    (folder / part).mkdir(parents=True, exist_ok=True)
  shards, kept = [], set()
  for split, jobs in splits.items():
    for start in range(0, len(jobs), size):
      shard = _Shard(folder, len(shards), split)
      part = settings, split, list(jobs[start : start + size])
      files.write_bytes(shard.jobs, pickle.dumps(part))
      kept |= {shard.jobs, shard.about, shard.records}
      shards.append(shard)
  for part in (_RECORDS, _NOTES):
    for path in {*(folder / part).iterdir()} - kept:
      path.unlink()
  return shards


def _run(
  beam: types.ModuleType,
  shards: Sequence[_Shard],
  task: Callable[[_Shard], None],
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
  shard: _Shard,
  *,
  work: Callable[[Job], Result],
  class_names: Sequence[str],
  units: tuple[int, int | None],
) -> None:
  """Runs in a worker; safe to run concurrently.

  `units` are the number of action units, and from which intensity they show.
  """
  data = shard.jobs.read_bytes()
  serialize = records.serializer(class_names, units[0])
  rows, failures, num_bytes = [], [], 0
  flags: collections.Counter[str] = collections.Counter()
  with files.atomic(shard.records, shared=True) as part:
    writer = array_record_module.ArrayRecordWriter(str(part), 'group_size:1')
    for result in map(work, pickle.loads(data)[-1]):
      if isinstance(result, Failure):
        failures.append(dataclasses.asdict(result))
        continue
      clip, found = result
      flags.update(map(report.kind, found))
      record = serialize(clip)
      writer.write(record)
      num_bytes += len(record)
      rows.append(dataset.index_row(clip, units[1] or 1))
    writer.close()
  note = dict(
    rows=rows,
    failures=failures,
    flags=flags,
    num_bytes=num_bytes,
    file_size=shard.records.stat().st_size,
    jobs=hashlib.sha256(data).hexdigest(),
  )
  files.write_text(shard.about, json.dumps(note), shared=True)


def _written(
  folder: pathlib.Path,
  notes: Mapping[_Shard, _Note],
  class_names: Sequence[str],
) -> Written:
  """The contents of all shards. Raises MiraInputError('no_clips') for none."""
  failures, counts, flags = [], {}, collections.Counter()
  for shard, note in notes.items():
    count = counts.setdefault(shard.split, dict.fromkeys(class_names, 0))
    failures += [Failure(**fields) for fields in note['failures']]
    flags.update(note['flags'])
    for _, label, *_ in note['rows']:
      count[class_names[label]] += 1
  if not any(note['rows'] for note in notes.values()):
    shutil.rmtree(folder / _NOTES)  # so that every job is tried again
    shutil.rmtree(folder / _RECORDS)
    reasons = some([f'{f.path} ({f.code})' for f in failures], 3)
    raise data_error('no_clips', folder, f'no split has a clip: {reasons}')
  return Written(folder / records.VERSION, failures, counts, dict(flags))


def _publish(
  notes: Mapping[_Shard, _Note], info: Any, final: pathlib.Path
) -> None:
  """Makes a dataset of finished shards; those without clips have no file."""
  index, sizes = {}, {}
  filled = {shard: note for shard, note in notes.items() if note['rows']}
  for split in dict.fromkeys(shard.split for shard in filled):
    own = {s: note for s, note in filled.items() if s.split == split}
    paths = records.record_files(info, split, len(own))
    for shard, path in zip(own, paths, strict=True):
      os.replace(shard.records, path)
    sizes[split] = [(len(n['rows']), n['num_bytes']) for n in own.values()]
    rows = [row for note in own.values() for row in note['rows']]
    index[split] = dataset.index_columns(rows)
  folder = final.with_name(_RECORDS)
  for empty in folder.glob('*.shard'):
    empty.unlink()
  records.write_info(info, sizes)
  (folder / dataset.INDEX).write_text(json.dumps(index))
  folder.rename(final)
  shutil.rmtree(final.with_name(_NOTES), ignore_errors=True)
