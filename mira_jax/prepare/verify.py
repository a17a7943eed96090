"""Reads every record and every frame of a prepared dataset."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator

from mira_jax.data import records, workers
from mira_jax.data.dataset import PreparedDataset, unit_counts_of
from mira_jax.data.records import Clip
from mira_jax.errors import MiraInputError
from mira_jax.video import images

_BLOCK = 32  # clips of one job


@dataclasses.dataclass(kw_only=True)
class Verdict:
  """The result of reading a dataset."""

  clips: dict[str, int]  # read in each split
  frames: int  # decoded in all
  problems: list[str]  # one sentence each, with the place of the record


def verify(dataset: PreparedDataset, processes: int | None = None) -> Verdict:
  """Reads all of a dataset; for `processes` see `workers.run`."""
  jobs = [
    (split, start)
    for split, count in dataset.splits.items()
    for start in range(0, count, _BLOCK)
  ]
  clips = dict.fromkeys(dataset.splits, 0)
  verdict = Verdict(clips=clips, frames=0, problems=[])
  places: dict[str, list[str]] = collections.defaultdict(list)
  work = functools.partial(_block, dataset)
  results = workers.run(work, jobs, processes, 'reading clips')
  for (split, _), result in zip(jobs, results, strict=True):
    ids, frames, problems = result
    verdict.clips[split] += len(ids)
    verdict.frames += frames
    verdict.problems += problems
    for name in ids:
      places[name].append(split)
  verdict.problems += [
    f'{name} is stored {len(where)} times, in {", ".join(sorted(set(where)))}'
    for name, where in places.items()
    if len(where) > 1
  ]
  return verdict


def _block(
  dataset: PreparedDataset, job: tuple[str, int]
) -> tuple[list[str], int, list[str]]:
  """Names, number of frames and problems of some clips."""
  split, start = job
  source, index = dataset.source(split), dataset.index(split)
  ids, frames, problems = [], 0, []
  for i in range(start, min(start + _BLOCK, len(source))):
    try:
      clip = source[i]
      found = [*_frame_problems(clip), *_problems(clip, dataset)]
    except MiraInputError as error:
      problems.append(f'{split}[{i}]: {error.hint}')
      continue
    known = ('clip_id', 'label', 'subject', 'fold')
    same = all(getattr(clip, n) == getattr(index, n)[i] for n in known)
    if not same or index.num_frames[i] not in (0, len(clip)):
      found.append('the index differs')
    counts = unit_counts_of(clip, dataset.positive_from)
    stored = index.positive[i].tolist(), index.known[i].tolist()
    if counts != stored:
      found.append('the counts of its action units differ')
    problems += [f'{split}[{i}] {clip.clip_id}: {text}' for text in found]
    ids.append(clip.clip_id)
    frames += len(clip)
  return ids, frames, problems


def _frame_problems(clip: Clip) -> Iterator[str]:
  if not len(clip):
    yield 'it has no frames'
  elif clip.video:
    try:
      records.read_frames(clip, [len(clip) - 1])
    except MiraInputError as error:
      yield error.hint
  pictures = [images.whole_image(data) for data in clip.frames]
  if broken := [i for i, image in enumerate(pictures) if image is None]:
    yield f'frames {broken[:5]} are damaged, {len(broken)} in all'
  shapes = {image.shape for image in pictures if image is not None}
  if len(shapes) > 1:
    yield f'its frames have {len(shapes)} sizes'


def _problems(clip: Clip, dataset: PreparedDataset) -> Iterator[str]:
  classes = len(dataset.class_names)
  if not 0 <= clip.label < classes:
    yield f'label {clip.label} of {classes} classes'
  for name in ('onset', 'apex', 'offset'):
    if not -1 <= getattr(clip, name) < len(clip):
      yield f'{name} {getattr(clip, name)} of {len(clip)} frames'
  rows, units = clip.intensities.shape
  if units != len(dataset.action_units):
    yield f'{units} of {len(dataset.action_units)} action units'
  elif units and rows not in (1, len(clip)):
    yield f'{rows} rows of action units for {len(clip)} frames'
  if units and not ((clip.intensities >= -1) & (clip.intensities <= 5)).all():
    yield 'an intensity that is none of -1 to 5'
  if not 0 <= clip.fps < float('inf'):  # nor NaN
    yield f'{clip.fps:g} frames per second'
