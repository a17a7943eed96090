"""Stores the clips of a plan as a dataset, here or on Apache Beam."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mira_jax import files
from mira_jax.data import dataset, records, workers
from mira_jax.data.listing import Failure, escaped
from mira_jax.errors import MiraInputError, data_error, some
from mira_jax.prepare import beam
from mira_jax.prepare.journal import Journal
from mira_jax.prepare.report import Report
from mira_jax.prepare.resolve import Found
from mira_jax.prepare.store import Storage, Stored, store


@dataclasses.dataclass(kw_only=True)
class Plan:
  """Clips of each split, and how and where they are stored."""

  root: pathlib.Path
  out: pathlib.Path
  name: str
  groups: Mapping[str, Sequence[Found]]
  report: Report
  storage: Storage
  action_units: Sequence[str] = ()  # see `dataset.write`
  positive_from: int = 1

  def run(self, processes: int | None) -> None:
    """Writes the dataset and its report."""
    with files.lock(self.out / '.prepare.lock'):
      dataset.refuse_existing(self.out)
      with Journal(self.out / '.journal', self._key) as journal:
        with contextlib.closing(self._results(journal, processes)) as results:
          try:
            folder = dataset.write(
              self.out, splits=self._streams(results), **self._settings()
            )
          except MiraInputError as error:
            if error.code != 'no_clips':
              raise
            raise no_clips(self.root, self.report) from error
        journal.remove()
      self._finish(folder)

  def run_on_beam(self, runner: str, options: Sequence[str]) -> None:
    """As `run`, by workers that see the clips and `out` at their places."""
    settings, report = self._settings(), self.report
    settings['metadata'] |= {'source': self._key}
    folder, failures, report.counts, flags = beam.write(
      self.out,
      splits=self.groups,
      work=functools.partial(_complete, work=self._work),
      runner=runner,
      options=options,
      **settings,
    )
    report.failures += failures
    for flag, clips in flags.items():
      report.count(flag, clips)
    self._finish(folder)

  @property
  def _work(self) -> Callable[[Found], Stored | Failure]:
    labels = {label: i for i, label in enumerate(self.report.class_names)}
    return functools.partial(store, labels=labels, storage=self.storage)

  @property
  def _clips(self) -> list[Found]:
    return [clip for group in self.groups.values() for clip in group]

  @functools.cached_property
  def _key(self) -> str:
    """Of everything that a finished clip depends on."""
    boxes = {k: v.tolist() for k, v in self.storage.boxes.items()}
    facts = (
      [
        (clip.clip_id, str(clip.path), dataclasses.astuple(clip.row))
        for clip in self._clips
      ],
      self.report.class_names,
      dataclasses.asdict(self.storage) | {'boxes': boxes},
    )
    return files.json_sha256(facts)

  def _settings(self) -> dict[str, Any]:
    model = self.storage.face_model_sha256
    units = {
      records.UNITS: list(self.action_units),
      records.POSITIVE_FROM: self.positive_from,
    }
    return {
      'name': self.name,
      'class_names': self.report.class_names,
      'description': f'Prepared from {escaped(self.root.name)}.',
      'metadata': {
        'size': self.storage.size,
        'cap': self.storage.max_frames,
        'crop': self.storage.crop,
        'split_rule': self.report.split_rule,
      }
      | ({'face_model': model} if model else {})
      | (units if self.action_units else {}),
    }

  def _results(
    self, journal: Journal, processes: int | None
  ) -> Generator[Stored | Failure]:
    """The result of each clip, in order; new ones enter the journal.

    A failure is an empty entry, which the next run tries again.
    """
    serialize = records.serializer(
      self.report.class_names, len(self.action_units)
    )
    kept = {i for i in range(len(journal)) if not journal.is_empty(i)}
    todo = [clip for i, clip in enumerate(self._clips) if i not in kept]
    self.report.resumed = len(kept)
    new = workers.run(self._work, todo, processes)
    for i in range(len(kept) + len(todo)):
      if i in kept:
        yield Stored.from_bytes(journal[i])
        continue
      result = next(new)
      if i == len(journal):
        is_stored = isinstance(result, Stored)
        journal.append(result.to_bytes(serialize) if is_stored else b'')
      yield result

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
        for flag in result.flags:
          report.count(flag)
        if 'no_face' in result.flags:
          report.no_face.append(clip.clip_id)
        yield clip

    return {split: functools.partial(clips, split) for split in self.groups}

  def _finish(self, folder: pathlib.Path) -> None:
    self.report.dataset, self.report.crop = str(folder), self.storage.crop
    made = dataset.open(folder)
    indices = [made.index(split) for split in made.splits]
    self.report.describe_lengths(
      np.concatenate([index.num_frames for index in indices])
    )
    self.report.action_units = dataset.unit_counts(made)
    self.report.write(self.out)


def _complete(
  found: Found, *, work: Callable[[Found], Stored | Failure]
) -> tuple[dataset.Clip, tuple[str, ...]] | Failure:
  """The result of `work` with all bytes of the clip."""
  result = work(found)
  if isinstance(result, Failure):
    return result
  return result.complete(found.path), result.flags


def no_clips(root: pathlib.Path, report: Report) -> MiraInputError:
  """The error for a source without a clip that can be used."""
  failures, passed = report.failures, report.dropped
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
  if passed:
    reasons = ', '.join(f'{n} {why}' for why, n in passed.items())
    hint += f'; passed over: {reasons}'
  return data_error('no_clips', root, hint)
