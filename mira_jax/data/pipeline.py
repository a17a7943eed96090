"""Batches of clips: which clip at which step, decoded by threads.

The stream of rows is a pure function of (seed, row number): row k of the run
is clip `order[k]`, cut with a generator seeded by (seed, k). So nothing has
to be saved to resume, and any number of hosts and threads sees the same rows:
a host reads those rows of every batch that its devices hold.

A batch is a dict of arrays, B rows on this host:
  video  uint8 [B, T, size, size, 3]
  label  int32 [B]
  clip   int32 [B], index of the clip in its split
  mask   bool  [B], False for a row that must not be counted
and where action units are asked for, see `train_batches`, and known:
  units  int32 [B, A] or [B, T / tubelet, A], 0 to 5, -1 unknown
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from mira_jax.data import phased, records, sampling
from mira_jax.data.records import Clip
from mira_jax.errors import MiraInputError, data_error
from mira_jax.video import geometry

_log = logging.getLogger(__name__)
Batch = dict[str, np.ndarray]
UNITS = ('none', 'middle', 'token')
See = Callable[[Clip], dict[str, Any]]  # a clip to 'video', and its labels
Window = Callable[[int, int, int, np.random.Generator], np.ndarray]


class Source(Protocol):
  """Random access to the clips of a split, as `PreparedDataset.source`."""

  def __len__(self) -> int: ...
  def __getitem__(self, index: int) -> Clip: ...


def train_batches(
  source: Source,
  *,
  frames: int,
  rate: int,
  size: int,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  rows: Sequence[int] | np.ndarray | None = None,
  threads: int = 16,
  fit: str = 'squash',
  max_damaged: float = 1.0,
  window: Window = sampling.train_indices,
  phases: str = 'none',
  units: str = 'none',
  tubelet: int = 2,
  oracle: Sequence[int] = (),
) -> Iterator[Batch]:
  """Endless shuffled batches; each epoch has an order of its own.

  Epochs run on without a gap, so a batch may end one and begin the next, and
  a split may be smaller than a batch. A damaged clip is replaced by the next
  readable one, and logged.

  Args:
    source: the split.
    frames: T, frames per clip.
    rate: steps between them in the stored clip.
    size: height and width of the video in pixels.
    batch_size: rows of a batch over all hosts.
    seed: of the order and of the cuts.
    start_step: the first batch to give; the same batch as without a restart.
    rows: those of every batch that this host reads; None is all of them.
    threads: clips decoded at the same time.
    fit: see `geometry.resize`.
    max_damaged: largest share of damaged clips. One clip always may be, unless
      it is 0. Every host counts its own.
    window: which frames of a clip; `sampling.train_indices` or a like.
    phases: of `phased.PHASES`; unless 'none', an epoch has every clip three
      times, as it is and as both of its halves, all with its index in 'clip'.
    units: the intensities to give of action units: 'none'; 'middle', those of
      the frame T // 2 of a window; or 'token', those of every temporal token:
      of each unit the largest that is known in one of its frames.
    tubelet: frames of a temporal token.
    oracle: numbers of action units that 'oracle' float32 [B, U] tells of: 1
      where the annotation of a clip names it.

  Raises:
    MiraInputError: while reading, when too many clips are damaged.
  """
  rows = range(batch_size) if rows is None else rows
  samples = phased.samples(phases)
  whole = grain.MapDataset.range(samples * len(source))
  order = whole.seed(seed).shuffle().repeat()
  unit_labels = _Units(units, tubelet, oracle)
  reader = _Reader(source, size, fit, max_damaged, unit_labels)

  def load(i: int) -> dict[str, Any]:
    row = _global_row(i, batch_size, rows)
    rng = np.random.default_rng((seed, row))
    sample: Any = order[row]
    index, part = divmod(sample, samples)

    def see(clip: Clip) -> dict[str, Any]:
      if not part:
        return reader.window(clip, window(len(clip), frames, rate, rng))
      read = functools.partial(reader.pixels, clip)
      video = phased.video(clip, part - 1, frames, phases, read)
      return {'video': video, **unit_labels.of_clip(clip)}

    return reader.first_readable(index, see)

  local = grain.MapDataset.range(start_step * len(rows), sys.maxsize)
  return _batches(local.map(load), len(rows), threads)


def eval_batches(
  source: Source,
  *,
  frames: int,
  rate: int,
  size: int,
  batch_size: int,
  views: int = 1,
  rows: Sequence[int] | np.ndarray | None = None,
  threads: int = 16,
  fit: str = 'squash',
  max_damaged: float = 1.0,
  units: str = 'none',
  tubelet: int = 2,
  oracle: Sequence[int] = (),
) -> Iterator[Batch]:
  """Every (clip, view) once and in order, with 'view' int32 [B] beside.

  With `units` there is 'frame' int32 [B], too: the index in the clip of the
  middle frame of a window.

  All hosts give the same number of batches: the last one is filled with
  repeated rows, whose mask is False, as is that of a clip in place of a damaged
  one. (Rows of zeros would shift MiRA's batch statistics.) Arguments and errors
  as in `train_batches`, and `views`, see `sampling.test_indices`.
  """
  rows = range(batch_size) if rows is None else rows
  unit_labels = _Units(units, tubelet, oracle, of_frames=True)
  reader = _Reader(source, size, fit, max_damaged, unit_labels)
  total = len(source) * views

  def load(i: int) -> dict[str, Any]:
    row = _global_row(i, batch_size, rows)
    index, view = divmod(row % total, views)

    def see(clip: Clip) -> dict[str, Any]:
      indices = sampling.test_indices(len(clip), frames, rate, view, views)
      return reader.window(clip, indices)

    item = reader.first_readable(index, see)
    counts = row < total and item['clip'] == index
    return item | {'mask': np.bool_(counts), 'view': np.int32(view)}

  steps = -(-total // batch_size)
  local = grain.MapDataset.range(steps * len(rows))
  return _batches(local.map(load), len(rows), threads)


def _global_row(
  i: int, batch_size: int, rows: Sequence[int] | np.ndarray
) -> int:
  """The i-th of this host's rows, among those of all batches end to end."""
  step, row = divmod(i, len(rows))
  return step * batch_size + int(rows[row])


@dataclasses.dataclass(frozen=True)
class _Units:
  """What a row tells of action units; see `train_batches`."""

  kind: str
  tubelet: int
  oracle: Sequence[int] = ()
  of_frames: bool = False

  def __post_init__(self) -> None:
    if self.kind not in UNITS:
      hint = f'units is {self.kind!r}; use one of {", ".join(UNITS)}'
      raise ValueError(hint)

  def __call__(self, clip: Clip, indices: Sequence[int]) -> dict[str, Any]:
    """'units', 'frame' and 'oracle', where they are asked for."""
    row = self.of_clip(clip)
    if self.kind == 'none' or not clip.intensities.shape[1]:
      return row
    middle = indices[len(indices) // 2]
    if self.of_frames:
      row['frame'] = np.int32(middle)
    if self.kind == 'middle':
      return row | {'units': clip.units_at([middle])[0]}
    by_frame = clip.units_at(indices)
    tokens = by_frame.reshape(-1, self.tubelet, by_frame.shape[1])
    return row | {'units': tokens.max(1)}

  def of_clip(self, clip: Clip) -> dict[str, Any]:
    """'oracle', where it is asked for."""
    if not self.oracle:
      return {}
    shown = records.unit_numbers(clip.action_units)
    return {'oracle': np.array([x in shown for x in self.oracle], np.float32)}


class _Reader:
  """Reads single clips and remembers the damaged ones."""

  def __init__(
    self,
    source: Source,
    size: int,
    fit: str,
    max_damaged: float,
    units: _Units,
  ):
    self._source = source
    self._units = units
    self._size = size
    self._fit = fit
    self._limit = max_damaged and max(1, max_damaged * len(source))
    self._damaged: set[int] = set()
    self._failure: MiraInputError | None = None
    self._lock = threading.Lock()

  def first_readable(self, index: int, see: See) -> dict[str, Any]:
    """The row of this clip, or of the next one that can be read.

    Raises:
      MiraInputError: too many clips are damaged. Every row that is read from
        then on raises it: rows are read ahead, and this one may not be used.
    """
    count = len(self._source)
    for i in range(index, index + count):
      if self._failure is not None:
        raise self._failure
      try:
        return self._read(i % count, see)
      except MiraInputError as error:
        self._report(i % count, error)
    hint = 'not one clip can be read; prepare the dataset again'
    raise data_error('damaged', 'dataset', hint)

  def window(self, clip: Clip, indices: np.ndarray) -> dict[str, Any]:
    """'video' of some frames of a clip, and what is known of its units."""
    units = self._units(clip, indices.tolist())
    return {'video': self.pixels(clip, indices), **units}

  def pixels(self, clip: Clip, indices: np.ndarray) -> np.ndarray:
    """Frames of a clip at the size of the model: uint8 [n, size, size, 3]."""
    # A short clip names a frame more than once: it is decoded once.
    frames = {
      i: geometry.resize(frame, self._size, self._fit)
      for i, frame in records.read_frames(clip, indices.tolist()).items()
    }
    return np.stack([frames[i] for i in indices.tolist()])

  def _read(self, index: int, see: See) -> dict[str, Any]:
    clip = self._source[index]
    return {
      **see(clip),
      'label': np.int32(clip.label),
      'clip': np.int32(index),
      'mask': np.bool_(True),
    }

  def _report(self, index: int, error: MiraInputError) -> None:
    with self._lock:
      if index in self._damaged:
        return
      self._damaged.add(index)
      count = len(self._damaged)
      _log.warning('clip %d is damaged (%d so far): %s', index, count, error)
      if count > self._limit and self._failure is None:
        hint = (
          f'{count} of {len(self._source)} clips cannot be read; see `mira '
        )
        hint += 'verify`, or raise config.data.max_damaged'
        self._failure = data_error('too_many_damaged', 'dataset', hint)


def _batches(
  rows: grain.MapDataset, batch_size: int, threads: int
) -> Iterator[Batch]:
  # Threads, not processes: OpenCV releases the interpreter while it decodes.
  # Rows are prefetched, not batches, so that memory stays at two batches.
  options = grain.ReadOptions(
    num_threads=threads,
    prefetch_buffer_size=max(threads, 2 * batch_size),
  )
  return iter(rows.to_iter_dataset(options).batch(batch_size))
