"""From clips on disk to a prepared dataset.

Clips are listed (`tables`, `trees`, `builders`), found on disk (`resolve`), put
into splits (`holdout`), decoded by a pool of processes (`store`, `workers`) and
streamed to `dataset.write`. A clip that cannot be used is reported and left
out; it never stops the others. A `journal` keeps finished clips, so that a
second run resumes an interrupted one.
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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from mira_jax.data import (
  dataset,
  holdout,
  records,
  trees,
  workers,
)
from mira_jax.data.listing import FACTS, Failure, escaped
from mira_jax.errors import MiraInputError, data_error, some
from mira_jax.prepare import beam, resolve, tables
from mira_jax.prepare import boxes as face_boxes
from mira_jax.prepare.builders import BUILDERS, Clips, Tree, tally
from mira_jax.prepare.journal import Journal
from mira_jax.prepare.report import REPORT_NAME, Report
from mira_jax.prepare.resolve import Found
from mira_jax.prepare.store import Storage, Stored, store
from mira_jax.video import face_crop

_JOURNAL = '.journal'

__all__ = ['REPORT_NAME', 'Options', 'prepare_dataset', 'prepare_folder']


@dataclasses.dataclass(kw_only=True, frozen=True)
class Options:
  """How clips are stored and split.

  Attributes:
    size: pixels of a frame's shorter side; smaller frames stay as they are.
    max_frames: of a clip. A longer one keeps so many, evenly spaced from its
      first to its last, and its frame rate is lowered to match.
    quality: of the JPEG frames, 1 to 100.
    crop: one of `face_crop.RULES`; '' for the default of the source.
    boxes: table of boxes for the rule 'boxes', see `boxes.read_boxes`.
    workers: processes; None for one per core, 0 for this process alone.
    test_fraction: share of the clips that become the test split where the
      source names none.
    seed: of that choice.
  """

  size: int = 224
  max_frames: int = 96
  quality: int = 95
  crop: str = ''
  boxes: str | os.PathLike[str] | None = None
  workers: int | None = None
  test_fraction: float = 0.2
  seed: int = 0

  def storage(self, default_crop: str, encoding: str = '') -> Storage:
    """What a worker needs of it; `encoding` is that of the table of boxes."""
    if not 1 <= self.quality <= 100:
      value = f'quality={self.quality}'
      raise MiraInputError('bad_value', value, 'use 1 to 100')
    rule = 'boxes' if self.boxes else self.crop or default_crop
    if rule not in face_crop.RULES or (rule == 'boxes') != bool(self.boxes):
      hint = f'use one of {", ".join(face_crop.RULES)}; `boxes` needs a table'
      raise MiraInputError('bad_crop', rule, hint)
    return Storage(
      size=self.size,
      max_frames=self.max_frames,
      quality=self.quality,
      crop=rule,
      boxes=face_boxes.read_boxes(self.boxes, encoding) if self.boxes else {},
    )


def prepare_folder(
  root: str | os.PathLike[str],
  out: str | os.PathLike[str],
  *,
  table: str | os.PathLike[str] | None = None,
  encoding: str = '',
  sheet: str = '',
  missing: Collection[str] | None = None,
  name: str | None = None,
  **options: Any,
) -> Report:
  """Prepares the labelled clips below `root`.

  Args:
    root: folder of the clips.
    out: folder of the prepared dataset.
    table: annotation table; without one the folders name the classes.
    encoding: of the tables, with `sheet` and `missing` see
      `tables.read_table`.
    sheet: of the annotation table.
    missing: labels that count as missing.
    name: of the dataset; by default the name of `root`.
    **options: fields of `Options`.

  Returns:
    The report, which is also written to `out/PREPARE_REPORT.json`.

  Raises:
    MiraInputError: no clip can be used, a clip is both in train and test, or
      the table or the output folder cannot be used.
  """
  root, chosen = pathlib.Path(root), Options(**options)
  reading = {'encoding': encoding, 'sheet': sheet, 'missing': missing}
  clips, report, sources = _wanted_clips(root, table, reading)
  plan = _Plan(
    root=root,
    out=pathlib.Path(out),
    name=name or _slug(root.resolve().name),
    groups=_split(clips, chosen, report, sources),
    report=report,
    storage=chosen.storage('none', encoding),
  )
  plan.run(chosen.workers)
  return report


def prepare_dataset(
  builder: str,
  root: str | os.PathLike[str],
  out: str | os.PathLike[str],
  *,
  choices: Mapping[str, str] | None = None,
  max_missing: float = 0.1,
  beam_runner: str = '',
  beam_options: Sequence[str] = (),
  **options: Any,
) -> Report:
  """Prepares a dataset of `builders.BUILDERS` from its provider's download.

  Args:
    builder: name of the dataset.
    root: folder of the download.
    out: folder of the prepared dataset.
    choices: of the dataset, see `Builder.options`; the first value by default.
    max_missing: share of the listed clips that may be absent.
    beam_runner: an Apache Beam runner, see `beam`; '' for this machine.
    beam_options: of that runner.
    **options: fields of `Options`.

  Returns:
    The report, with the published counts.

  Raises:
    MiraInputError: as `prepare_folder`; a part of the download is not there
      ('wrong_root'), its lists contradict each other ('leak'), name an unknown
      class ('bad_label'), or too many clips are absent ('too_many_missing').
  """
  spec, root, chosen = BUILDERS[builder], pathlib.Path(root), Options(**options)
  values = {key: first for key, (first, *_) in spec.options.items()}
  values |= choices or {}
  listing = spec.list_clips(Tree(root, spec.layout), values)
  found, failures = resolve.given(listing.rows, root)
  _check_missing(root, listing, failures, max_missing)
  report = Report(
    class_names=list(listing.class_names or spec.class_names),
    dropped=dict(listing.dropped),
    failures=failures,
    warnings=list(listing.warnings),
  )
  report.add_tables(listing.tables)
  if spec.is_default(values):
    report.compare(tally(clip.row for clip in found), spec.counts)
  sources = dict.fromkeys(FACTS, 'the names and lists of the download')
  groups = _split(found, chosen, report, sources)
  if any(clip.row.fold >= 0 for clip in found):
    report.split_rule = 'fold 1 is the test split; every fold is stored'
  storage = chosen.storage(listing.crop)
  plan = _Plan(
    root=root,
    out=pathlib.Path(out),
    name=spec.dataset_name(values),
    groups=groups,
    report=report,
    storage=dataclasses.replace(storage, as_video=spec.stores_video),
  )
  if beam_runner:
    plan.run_on_beam(beam_runner, beam_options)
  else:
    plan.run(chosen.workers)
  return report


def _check_missing(
  root: pathlib.Path,
  listing: Clips,
  failures: Sequence[Failure],
  max_missing: float,
) -> None:
  listed, missing = len(listing.rows), len(failures)
  if not listed:
    raise data_error('no_clips', root, 'the folders are there, but empty')
  if missing > max_missing * listed:
    first = some([failure.path for failure in failures], 3)
    hint = f'{missing} of {listed} listed clips are not there, first {first}'
    hint += '; complete the download, or raise --max-missing'
    raise data_error('too_many_missing', root, hint)


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
  options: Options,
  report: Report,
  sources: Mapping[str, str],
) -> dict[str, list[Found]]:
  rows = [clip.row for clip in clips]
  recordings = [clip.row.source_id or os.fspath(clip.path) for clip in clips]
  names, report.split_rule = holdout.assign(
    rows, options.test_fraction, options.seed, recordings
  )
  report.describe(rows, names, sources)
  groups: dict[str, list[Found]] = {'train': [], 'val': [], 'test': []}
  for split, clip in zip(names, clips, strict=True):
    groups[split].append(clip)
  return {split: group for split, group in groups.items() if group}


@dataclasses.dataclass(kw_only=True)
class _Plan:
  """Clips of each split, and how and where they are stored."""

  root: pathlib.Path
  out: pathlib.Path
  name: str
  groups: Mapping[str, Sequence[Found]]
  report: Report
  storage: Storage

  def run(self, processes: int | None) -> None:
    """Writes the dataset and its report."""
    with dataset.sole_writer(self.out, '.prepare.lock'):
      dataset.refuse_existing(self.out)
      with Journal(self.out / _JOURNAL, self._key) as journal:
        with self._results(journal, processes) as results:
          try:
            folder = dataset.write(
              self.out, splits=self._streams(results), **self._settings()
            )
          except MiraInputError as error:
            if error.code != 'no_clips':
              raise
            report = self.report  # it names the clips, and why
            raise _no_clips(
              self.root, report.failures, report.dropped
            ) from error
        journal.remove()
      self._finish(folder)

  def run_on_beam(self, runner: str, options: Sequence[str]) -> None:
    """As `run`, by workers that see the clips and `out` at their places."""
    settings = self._settings()
    settings['metadata'] |= {'source': self._key}
    written = beam.write(
      self.out,
      splits=self.groups,
      work=functools.partial(_complete, work=self._work),
      runner=runner,
      options=options,
      **settings,
    )
    self.report.failures += written.failures
    self.report.counts, self.report.flags = written.counts, written.flags
    self._finish(written.folder)

  @property
  def _work(self) -> Callable[[Found], Stored | Failure]:
    labels = {label: i for i, label in enumerate(self.report.class_names)}
    return functools.partial(store, labels=labels, storage=self.storage)

  @functools.cached_property
  def _key(self) -> str:
    """Of everything that a finished clip depends on."""
    clips = [clip for group in self.groups.values() for clip in group]
    boxes = {k: v.tolist() for k, v in self.storage.boxes.items()}
    facts = (
      [(c.clip_id, str(c.path), dataclasses.astuple(c.row)) for c in clips],
      self.report.class_names,
      dataclasses.asdict(self.storage) | {'boxes': boxes},
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

  def _settings(self) -> dict[str, Any]:
    metadata = {
      'size': self.storage.size,
      'cap': self.storage.max_frames,
      'crop': self.storage.crop,
      'split_rule': self.report.split_rule,
    }
    return {
      'name': self.name,
      'class_names': self.report.class_names,
      'description': f'Prepared from {escaped(self.root.name)}.',
      'metadata': metadata,
    }

  @contextlib.contextmanager
  def _results(
    self, journal: Journal, processes: int | None
  ) -> Iterator[Iterator[Stored | Failure]]:
    """Gives the result of each clip, in order; new ones enter the journal.

    A failure is an empty entry, which the next run tries again.
    """
    serialize = records.serializer(self.report.class_names)
    clips = [clip for group in self.groups.values() for clip in group]
    kept = {i for i in range(len(journal)) if not journal.is_empty(i)}
    todo = [clip for i, clip in enumerate(clips) if i not in kept]
    self.report.resumed = len(kept)
    with workers.runner(self._work, len(todo), processes) as run:
      new = run(todo)

      def results() -> Iterator[Stored | Failure]:
        for i in range(len(clips)):
          if i in kept:
            yield Stored.from_bytes(journal[i])
            continue
          result = next(new)
          if i == len(journal):
            is_stored = isinstance(result, Stored)
            journal.append(result.to_bytes(serialize) if is_stored else b'')
          yield result

      yield results()

  def _streams(
    self, results: Iterator[Stored | Failure]
  ) -> dict[str, Callable[[], Iterator[dataset.Clip]]]:
    """For each split a function that yields its usable clips, and counts."""
    report = self.report

    def clips(split: str) -> Iterator[dataset.Clip]:
      counts = report.counts[split] = dict.fromkeys(report.class_names, 0)
      for found in self.groups[split]:
        result = next(results)
        if isinstance(result, Failure):
          report.failures.append(result)
          continue
        clip = result.complete(found.path)
        counts[report.class_names[clip.label]] += 1
        for kind in (flag.partition(':')[0] for flag in result.flags):
          report.flags[kind] = report.flags.get(kind, 0) + 1
        yield clip

    return {split: functools.partial(clips, split) for split in self.groups}

  def _finish(self, folder: pathlib.Path) -> None:
    self.report.dataset, self.report.crop = str(folder), self.storage.crop
    self.report.write(self.out)


def _complete(
  found: Found, *, work: Callable[[Found], Stored | Failure]
) -> tuple[dataset.Clip, tuple[str, ...]] | Failure:
  """The result of `work` with all bytes of the clip."""
  result = work(found)
  if isinstance(result, Failure):
    return result
  return result.complete(found.path), result.flags


def _no_clips(
  root: pathlib.Path, failures: list[Failure], dropped: Mapping[str, int]
) -> MiraInputError:
  if failures:
    first = some([f'{f.path} ({f.code})' for f in failures], 3)
    hint = f'none of {len(failures)} clips can be used: {first}'
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
