"""From clips on disk to a prepared dataset.

Clips are listed (`tables`, `builders`), found on disk (`locate`), put into
splits (`splits`), decoded in a pool of processes (`storage`, `parallel`) and
streamed to `dataset.write`. A clip that cannot be used is reported and left
out; it never stops the others. What is done is kept in a `journal`, so that a
second start goes on where the first one was stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any

from mira_jax.data import dataset, holdout, records, trees
from mira_jax.data import workers as parallel
from mira_jax.data.listing import FACTS, Failure, escaped
from mira_jax.errors import MiraInputError, data_error
from mira_jax.prepare import beam, resolve, tables
from mira_jax.prepare import boxes as face_boxes
from mira_jax.prepare.builders import BUILDERS, Builder, Clips, Tree, tally
from mira_jax.prepare.journal import Journal
from mira_jax.prepare.report import REPORT_NAME, Report
from mira_jax.prepare.resolve import Found
from mira_jax.prepare.store import Storage, Stored, store
from mira_jax.video import face_crop

_JOURNAL = '.journal'

__all__ = ['REPORT_NAME', 'Report', 'prepare_dataset', 'prepare_folder']


def prepare_folder(
  root: str | os.PathLike[str],
  out: str | os.PathLike[str],
  *,
  table: str | os.PathLike[str] | None = None,
  encoding: str = '',
  sheet: str = '',
  missing: Collection[str] | None = None,
  size: int = 224,
  cap: int = 96,
  quality: int = 95,
  crop_rule: str = 'none',
  boxes: str | os.PathLike[str] | None = None,
  workers: int | None = None,
  test_fraction: float = 0.2,
  seed: int = 0,
  name: str | None = None,
) -> Report:
  """Prepares the labelled clips below `root`.

  Frames are shrunk to a shorter side of `size` pixels. A clip of more than
  `cap` frames keeps `cap` of them, evenly spaced from its first to its last,
  and its frame rate is lowered to match.

  Args:
    root: folder of the clips.
    out: folder of the prepared dataset.
    table: annotation table; without one the folders name the classes.
    encoding: of the tables, with `sheet` and `missing` see
      `tables.read_table`.
    sheet: of the annotation table.
    missing: labels that are none.
    size: pixels.
    cap: most frames of a clip.
    quality: of the JPEG frames, 1 to 100.
    crop_rule: what is cut out of the frames, one of `crop.RULES`.
    boxes: table of boxes for the rule 'boxes', see `boxes.read_boxes`.
    workers: processes; by default one per core, 0 for this process alone.
    test_fraction: share of the clips that become the test split where
      neither table nor folders name one.
    seed: of that choice.
    name: of the dataset; by default the name of `root`.

  Returns:
    The report, which is also written to `out/PREPARE_REPORT.json`.

  Raises:
    MiraInputError: no clip can be used, a clip is both in train and test, or
      the table or the output folder cannot be used.
  """
  root = pathlib.Path(root)
  reading = {'encoding': encoding, 'sheet': sheet, 'missing': missing}
  clips, report, sources = _wanted_clips(root, table, reading)
  storage = _storage(size, cap, quality, crop_rule, boxes, encoding)
  groups = _split(clips, test_fraction, seed, report, sources)
  name = name or _slug(root.resolve().name)
  _prepare(root, out, name, groups, report, storage, workers)
  return report


def prepare_dataset(
  builder: str,
  root: str | os.PathLike[str],
  out: str | os.PathLike[str],
  *,
  options: Mapping[str, str] | None = None,
  size: int = 224,
  cap: int = 96,
  quality: int = 95,
  crop_rule: str | None = None,
  boxes: str | os.PathLike[str] | None = None,
  max_missing: float = 0.1,
  beam_runner: str = '',
  beam_options: Sequence[str] = (),
  workers: int | None = None,
  test_fraction: float = 0.2,
  seed: int = 0,
) -> Report:
  """Prepares a dataset of `builders.BUILDERS` from its owner's download.

  Arguments as of `prepare_folder`, and:

  Args:
    builder: name of the dataset.
    root: folder of the download.
    out: folder of the prepared dataset.
    options: of the dataset, see `Builder.options`; the first value by default.
    size: pixels.
    cap: most frames of a clip.
    quality: of the JPEG frames.
    crop_rule: by default what the chosen frames call for.
    boxes: table of boxes.
    max_missing: share of the listed clips that may be absent.
    beam_runner: an Apache Beam runner, see `data.beam`; '' for this machine.
    beam_options: of that runner.
    workers: processes.
    test_fraction: held out, by subject, where the owner has no test split.
    seed: of that choice.

  Returns:
    The report, with the owner's counts beside.

  Raises:
    MiraInputError: as `prepare_folder`; a part of the download is not there
      ('wrong_root'), its lists contradict each other ('leak'), name a class
      that there is not ('bad_label'), or too many clips are absent
      ('too_many_missing').
  """
  spec = BUILDERS[builder]
  chosen = {key: values[0] for key, values in spec.options.items()}
  chosen |= options or {}
  listing = spec.list_clips(Tree(root, spec.layout), chosen)
  found, failures = resolve.given(listing.rows, root)
  _check_missing(root, listing, failures, max_missing)
  storage = _storage(size, cap, quality, crop_rule or listing.crop, boxes)
  storage = dataclasses.replace(storage, as_video=spec.stores_video)
  report = _report(spec, chosen, listing, found, failures)
  owner = dict.fromkeys(FACTS, "the owner's names and lists")
  groups = _split(found, test_fraction, seed, report, owner)
  if any(clip.row.fold >= 0 for clip in found):
    report.split_rule = 'fold 1 is the test split; every fold is stored'
  name = spec.dataset_name(chosen)
  root = pathlib.Path(root)
  if beam_runner:
    on = (beam_runner, beam_options)
    _prepare_on_beam(root, out, name, groups, report, storage, *on)
  else:
    _prepare(root, out, name, groups, report, storage, workers)
  return report


def _report(
  spec: Builder,
  options: Mapping[str, str],
  listing: Clips,
  found: Sequence[Found],
  failures: list[Failure],
) -> Report:
  report = Report(
    class_names=list(listing.class_names or spec.class_names),
    dropped=dict(listing.dropped),
    failures=failures,
    warnings=list(listing.warnings),
  )
  report.add_tables(listing.tables)
  if spec.is_default(options):
    report.compare(tally(clip.row for clip in found), spec.counts)
  return report


def _check_missing(
  root: str | os.PathLike[str],
  listing: Clips,
  failures: Sequence[Failure],
  max_missing: float,
) -> None:
  listed, missing = len(listing.rows), len(failures)
  if not listed:
    raise data_error('no_clips', root, 'the folders are there, but empty')
  if missing <= max_missing * listed:
    return
  first = ', '.join(f.path for f in failures[:3])
  hint = f'{missing} of {listed} listed clips are not there, first {first}'
  hint += '; complete the download, or raise --max-missing'
  raise data_error('too_many_missing', root, hint)


def _storage(
  size: int,
  cap: int,
  quality: int,
  rule: str,
  boxes: str | os.PathLike[str] | None,
  encoding: str = '',
) -> Storage:
  if not 1 <= quality <= 100:
    raise MiraInputError('bad_value', f'quality={quality}', 'use 1 to 100')
  if boxes:
    rule = 'boxes'
  if rule not in face_crop.RULES or (rule == 'boxes') != bool(boxes):
    hint = f'use one of {", ".join(face_crop.RULES)}; `boxes` needs a table'
    raise MiraInputError('bad_crop', rule, hint)
  table = face_boxes.read_boxes(boxes, encoding) if boxes else {}
  return Storage(size=size, cap=cap, quality=quality, crop=rule, boxes=table)


def _wanted_clips(
  root: pathlib.Path,
  table: str | os.PathLike[str] | None,
  reading: Mapping[str, Any],
) -> tuple[list[Found], Report, Mapping[str, str]]:
  bases = [root]
  trees.check_root(root)
  if table:
    listing = tables.read_table(table, **reading)
    bases.append(pathlib.Path(table).parent)
  else:
    listing = trees.scan_folder(root)
  dropped, listed = dict(listing.dropped), len(listing.rows)
  listing.rows = [r for r in listing.rows if not trees.is_system(r.path)]
  if hidden := listed - len(listing.rows):
    dropped['of the system, such as __MACOSX'] = hidden
  found, failures = resolve.locate(listing.rows, bases)
  failures = listing.failures + failures
  clips = resolve.unique(found)
  if not clips and table and not failures:
    hint = f'no row is wanted: {dropped}'
    raise data_error('no_clips', table, hint)
  if not clips:
    raise _no_clips(root, failures, dropped)
  if repeats := len(found) - len(clips):
    dropped['listed twice'] = repeats
  report = Report(
    class_names=listing.class_names,
    dropped=dropped,
    failures=failures,
    remarks=listing.remarks,
  )
  report.add_tables([pathlib.Path(table).absolute()] if table else [])
  return clips, report, listing.sources


def _split(
  clips: Sequence[Found],
  test_fraction: float,
  seed: int,
  report: Report,
  sources: Mapping[str, str],
) -> dict[str, list[Found]]:
  rows = [clip.row for clip in clips]
  names, report.split_rule = holdout.assign(
    rows,
    test_fraction,
    seed,
    [clip.row.source_id or os.fspath(clip.path) for clip in clips],
  )
  report.describe(rows, names, sources)
  groups: dict[str, list[Found]] = {'train': [], 'val': [], 'test': []}
  for split, clip in zip(names, clips, strict=True):
    groups[split].append(clip)
  return {split: group for split, group in groups.items() if group}


def _prepare(
  root: pathlib.Path,
  out: str | os.PathLike[str],
  name: str,
  groups: Mapping[str, Sequence[Found]],
  report: Report,
  storage: Storage,
  workers: int | None,
) -> None:
  """Writes the dataset and completes its report."""
  out = pathlib.Path(out)
  labels = {label: i for i, label in enumerate(report.class_names)}
  work = functools.partial(store, labels=labels, storage=storage)
  clips = [clip for group in groups.values() for clip in group]
  report.crop = storage.crop
  with dataset.sole_writer(out, '.prepare.lock'):
    dataset.refuse_existing(out)
    with Journal(out / _JOURNAL, _key(clips, labels, storage)) as journal:
      report.resumed = len(journal)
      with _stored(work, clips, journal, report.class_names, workers) as stored:
        streams = _streams(groups, stored, report)
        report.dataset = _write(out, root, name, streams, report, storage)
      journal.remove()
    report.finish()
    report.write(out)


def _prepare_on_beam(
  root: pathlib.Path,
  out: str | os.PathLike[str],
  name: str,
  groups: Mapping[str, Sequence[Found]],
  report: Report,
  storage: Storage,
  runner: str,
  options: Sequence[str],
) -> None:
  """As `_prepare`, by workers that see the clips and `out` at their places."""
  labels = {label: i for i, label in enumerate(report.class_names)}
  clips = [clip for group in groups.values() for clip in group]
  report.crop = storage.crop
  written = beam.write(
    out,
    name=name,
    class_names=report.class_names,
    splits=groups,
    work=functools.partial(_whole, labels=labels, storage=storage),
    description=f'Prepared from {escaped(root.name)}.',
    metadata=_metadata(report, storage)
    | {'source': _key(clips, labels, storage)},
    runner=runner,
    options=options,
  )
  report.dataset = str(written.folder)
  report.failures += written.failures
  report.counts, report.flags = written.counts, written.flags
  report.finish()
  report.write(out)


def _whole(
  found: Found, *, labels: Mapping[str, int], storage: Storage
) -> tuple[dataset.Clip, tuple[str, ...]] | Failure:
  """As `storage.store`, with all bytes of the clip."""
  result = store(found, labels=labels, storage=storage)
  if isinstance(result, Failure):
    return result
  return result.complete(found.path), result.flags


def _metadata(report: Report, storage: Storage) -> dict[str, Any]:
  return {
    'size': storage.size,
    'cap': storage.cap,
    'crop': storage.crop,
    'split_rule': report.split_rule,
  }


def _key(
  clips: Sequence[Found], labels: Mapping[str, int], storage: Storage
) -> str:
  """What a clip that is done depends on."""
  facts = (
    [(c.clip_id, str(c.path), dataclasses.astuple(c.row)) for c in clips],
    dict(labels),
    dataclasses.asdict(storage)
    | {'boxes': {k: v.tolist() for k, v in storage.boxes.items()}},
  )
  return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@contextlib.contextmanager
def _stored(
  work: Callable[[Found], Stored | Failure],
  clips: Sequence[Found],
  journal: Journal,
  class_names: Sequence[str],
  workers: int | None,
) -> Iterator[Iterator[Stored | Failure]]:
  """Gives what became of each clip, in order; what is new enters the journal.

  Failures are not kept: a second start tries them again.
  """
  serialize = records.serializer(class_names)

  def note(number: int, result: Stored | Failure) -> None:
    if isinstance(result, Stored):
      journal.put(number, result.to_bytes(serialize))

  done = {i for i in range(len(clips)) if i in journal}
  todo = [(i, clip) for i, clip in enumerate(clips) if i not in done]
  job = functools.partial(_numbered, work)
  with parallel.runner(job, len(todo), workers, on_done=note) as run:
    new = run(todo)

    def results() -> Iterator[Stored | Failure]:
      for i in range(len(clips)):
        if i in done:
          yield Stored.from_bytes(journal[i])
        else:
          yield next(new)[1]

    yield results()


def _numbered(
  work: Callable[[Found], Stored | Failure], job: tuple[int, Found]
) -> tuple[int, Stored | Failure]:
  return job[0], work(job[1])


def _streams(
  groups: Mapping[str, Sequence[Found]],
  stored: Iterator[Stored | Failure],
  report: Report,
) -> dict[str, Callable[[], Iterator[dataset.Clip]]]:
  """For each split a function that yields its usable clips, and counts."""

  def clips(split: str, group: Iterable[Found]) -> Iterator[dataset.Clip]:
    counts = report.counts[split] = dict.fromkeys(report.class_names, 0)
    for found in group:
      result = next(stored)
      if isinstance(result, Failure):
        report.failures.append(result)
        continue
      clip = result.complete(found.path)
      counts[report.class_names[clip.label]] += 1
      for kind in (flag.partition(':')[0] for flag in result.flags):
        report.flags[kind] = report.flags.get(kind, 0) + 1
      yield clip

  return {
    split: functools.partial(clips, split, group)
    for split, group in groups.items()
  }


def _write(
  out: pathlib.Path,
  root: pathlib.Path,
  name: str,
  streams: Mapping[str, Callable[[], Iterator[dataset.Clip]]],
  report: Report,
  storage: Storage,
) -> str:
  try:
    folder = dataset.write(
      out,
      name=name,
      class_names=report.class_names,
      splits=streams,
      description=f'Prepared from {escaped(root.name)}.',
      metadata=_metadata(report, storage),
    )
  except MiraInputError as error:
    if error.code == 'no_clips':  # say which clips, and why
      raise _no_clips(root, report.failures, report.dropped) from error
    raise
  return str(folder)


def _no_clips(
  root: pathlib.Path, failures: list[Failure], dropped: Mapping[str, int]
) -> MiraInputError:
  if failures:
    first = ', '.join(f'{f.path} ({f.code})' for f in failures[:3])
    hint = f'none of {len(failures)} clips can be used: {first}'
    if len(failures) > 3:
      hint += f' and {len(failures) - 3} more'
    if any(f.code == 'not_found' for f in failures):
      hint += '; a table has their paths relative to --root or to itself'
  else:
    inside = sorted(escaped(p.name) + '/' * p.is_dir() for p in root.iterdir())
    hint = (
      'expected ROOT/CLASS/CLIP.mp4 or ROOT/CLASS/CLIP/1.jpg, 2.jpg, ... or '
      f'that below ROOT/train and ROOT/test; found {inside[:5] or "nothing"}'
    )
  if dropped:
    passed = ', '.join(f'{n} {why}' for why, n in dropped.items())
    hint += f'; passed over: {passed}'
  return data_error('no_clips', root, hint)


def _slug(name: str) -> str:
  """A dataset name from a folder's name."""
  slug = re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')
  return slug if slug[:1].isalpha() else f'clips_{slug}'.rstrip('_')
