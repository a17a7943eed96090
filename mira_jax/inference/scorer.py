"""Windows of a clip and their class probabilities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from mira_jax.data import sampling
from mira_jax.errors import MiraInputError, data_error
from mira_jax.evaluation.metrics import average_views
from mira_jax.models.vivit import ViViT
from mira_jax.video import footage, geometry

Batch = Mapping[str, np.ndarray]  # of `data.pipeline.eval_batches`
# Numbers in the tokens of a batch, above which a CPU takes windows one by one:
# caches and memory are better off, and ViT-B gains 2 % by four at once.
_BATCH = 2**21
MAX_TIMELINE = 7 * 24 * 3600  # seconds


def bucket_sizes(least: int, most: int) -> tuple[int, ...]:
  """`least` times 1, 2, 4, ... below `most`, and `most`."""
  sizes = (least << i for i in range(most.bit_length()))
  return (*(size for size in sizes if size < most), most)


def is_independent(model: ViViT) -> bool:
  """Whether no window's result depends on the others of its batch."""
  return model.mira is None or model.mira.statistics == 'instance'


def most_at_once(model: ViViT, batch_size: int) -> int:
  """How many windows a CPU takes at once, of a batch."""
  if not is_independent(model):
    return batch_size
  return max(1, min(batch_size, _BATCH // (math.prod(model.grid) * model.dim)))


class Scorer:
  """Base class: cuts a clip into windows and scores them in batches.

  Attributes:
    frames: T of a window.
    image_size: S of a window, in pixels.
    batch_size: the most windows per call.
    buckets: batch sizes that are compiled, rising to `batch_size` or to what
      is as fast; a smaller batch is padded to the next one.
    rows: the rows of every batch that this host reads.
  """

  frames: int
  image_size: int
  batch_size: int
  buckets: tuple[int, ...]
  rows: np.ndarray | None = None  # all

  def probabilities(self, windows: np.ndarray) -> np.ndarray:
    """uint8 [B, T, S, S, 3] -> float32 [B, K], any B.

    Raises:
      MiraInputError: windows of another shape ('bad_shape').
    """
    return self._in_batches(windows)['probabilities']

  def logits(self, windows: np.ndarray) -> np.ndarray:
    """uint8 [B, T, S, S, 3] -> float32 [B, K]; features without a head."""
    return self._in_batches(windows)['logits']

  def _scores(self, windows: np.ndarray) -> dict[str, np.ndarray]:
    """Logits and probabilities of exactly as many windows as a bucket holds."""
    raise NotImplementedError

  def _score_batch(self, batch: Batch) -> dict[str, np.ndarray]:
    """The fields of a batch but the video, logits and probabilities."""
    rest = {name: x for name, x in batch.items() if name != 'video'}
    return self._in_batches(batch['video']) | rest

  def _in_batches(self, windows: np.ndarray) -> dict[str, np.ndarray]:
    self._check(windows)
    parts = []
    for start in range(0, max(1, len(windows)), self.buckets[-1]):
      batch = windows[start : start + self.buckets[-1]]
      size = next(n for n in self.buckets if n >= len(batch))
      # Padded with repeats: zeros would shift MiRA's batch statistics.
      padded = np.resize(batch, (size, *batch.shape[1:]))
      found = self._scores(padded)
      parts.append({name: x[: len(batch)] for name, x in found.items()})
    return {n: np.concatenate([x[n] for x in parts]) for n in parts[0]}

  def _check(self, windows: np.ndarray) -> None:
    size = (self.frames, self.image_size, self.image_size, 3)
    if windows.dtype != np.uint8 or windows.shape[1:] != size:
      shape = f'{windows.dtype} {list(windows.shape)}'
      hint = f'the model takes uint8 {["B", *size]}'
      raise MiraInputError('bad_shape', shape, hint)

  def cut_views(
    self, clip: footage.Video, *, views: int, rate: int, fit: str
  ) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spread windows of a clip, as the model takes them.

    There is one where all `views` would be the same. `rate` is the frame
    stride, and `fit` that of `geometry.resize`.

    Returns:
      uint8 [V, T, S, S, 3] and the indices [V, T] of their frames.
    """
    args = len(clip), self.frames, rate
    rows = [sampling.test_indices(*args, view, views) for view in range(views)]
    ticks = np.stack(rows)
    if (ticks == ticks[0]).all():
      ticks = ticks[:1]
    windows = footage.resize_windows(clip, ticks, self.image_size, fit)
    return windows, clip.of_ticks(ticks)

  def cut_tiles(
    self, clip: footage.Video, *, rate: int, fit: str, most: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Windows side by side that cover a clip, the last of which ends with it.

    Of more than `most` such windows some are left out, evenly. Arguments and
    results are those of `cut_views`.
    """
    span = min(len(clip), self.frames * rate)
    inside = sampling.test_indices(span, self.frames, rate, 0, 1)
    starts = np.unique([*range(0, len(clip) - span, span), len(clip) - span])
    starts = starts[footage.spaced(len(starts), most)]
    ticks = starts[:, None] + inside
    windows = footage.resize_windows(clip, ticks, self.image_size, fit)
    return windows, clip.of_ticks(ticks)

  def timeline(
    self, clip: footage.Video, *, rate: int, fit: str, stride: float = 0.5
  ) -> np.ndarray:
    """Class probabilities of every second of a long clip.

    Windows slide over the clip, and a second has the mean of the windows that
    cover it, weighted by how much of it they cover. One batch of windows is
    in memory at a time.

    Args:
      clip: the clip.
      rate: as in `cut_views`.
      fit: as in `cut_views`.
      stride: seconds between the starts of two windows; at most the length of
        one window is used, so that every second is covered.

    Returns:
      Float32 [S, K], S seconds, of which the last may be partial.

    Raises:
      MiraInputError: the frame rate is unknown ('no_fps'), or the clip has too
        many seconds ('too_long').
    """
    seconds = _seconds(clip)
    span = self.frames * rate
    step = max(1, round(min(stride * clip.fps, span)))
    last = max(0, len(clip) - span)
    starts = np.unique([*range(0, last, step), last])
    windows = self._windows(clip, starts, rate, fit)
    rows = []
    while batch := list(itertools.islice(windows, self.batch_size)):
      rows.append(self.probabilities(np.stack(batch)))
    found = np.concatenate(rows)
    ends = np.minimum(starts + span, len(clip))
    if found.ndim == 3:  # each temporal token is of its part of a window
      cuts = np.linspace(starts, ends, found.shape[1] + 1, axis=1)
      starts, ends = cuts[:, :-1].ravel(), cuts[:, 1:].ravel()
      found = found.reshape(-1, found.shape[2])
    return _by_second(found, starts, ends, seconds, clip.fps)

  def _windows(
    self, clip: footage.Video, starts: np.ndarray, rate: int, fit: str
  ) -> Iterator[np.ndarray]:
    """Windows uint8 [T, S, S, 3] that begin at rising starts."""
    span = min(len(clip), self.frames * rate)
    inside = sampling.test_indices(span, self.frames, rate, 0, 1)
    wanted = np.unique(starts[:, None] + inside)
    coming = zip(wanted.tolist(), clip.take(wanted), strict=True)
    held: dict[int, np.ndarray] = {}
    for start in starts.tolist():
      held = {i: image for i, image in held.items() if i >= start}
      indices = (start + inside).tolist()
      while indices[-1] not in held:
        i, frame = next(coming)
        held[i] = geometry.resize(frame, self.image_size, fit)
      yield np.stack([held[i] for i in indices])

  def score_rows(self, batches: Iterable[Batch]) -> dict[str, np.ndarray]:
    """Fields of batches, logits and probabilities of all rows that count."""
    pieces = []
    for batch in batches:
      scored = self._score_batch(batch)
      pieces.append({n: x[scored['mask']] for n, x in scored.items()})
    return {n: np.concatenate([p[n] for p in pieces]) for n in pieces[0]}

  def score_split(
    self,
    batches: Iterable[Batch],
    clips: int,
    views: int,
    field: str = 'probabilities',
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores the readable clips of a split; the same result on every host.

    Args:
      batches: of `data.pipeline.eval_batches`, this host's part.
      clips: number of clips in the split.
      views: number of views of every clip.
      field: or 'logits', which are features of a model without a head.

    Returns:
      The field float64 [C, K], averaged over views, and labels int [C] of the
      C readable clips, and the indices of the damaged ones.

    Raises:
      MiraInputError: no clip is readable ('damaged').
    """
    rows = self.score_rows(batches)
    whole = np.bincount(rows['clip'], minlength=clips) >= views
    if not whole.any():
      hint = 'no clip is readable; prepare the dataset again'
      raise data_error('damaged', 'dataset', hint)
    rows = {name: x[whole[rows['clip']]] for name, x in rows.items()}
    clip = (np.cumsum(whole) - 1)[rows['clip']]
    labels = np.zeros(whole.sum(), np.int64)
    labels[clip] = rows['label']
    mean = average_views(rows[field], clip, len(labels), views)
    return mean, labels, np.flatnonzero(~whole)


def _seconds(clip: footage.Video) -> int:
  """Length of a clip in seconds, rounded up."""
  if not clip.fps:
    raise MiraInputError('no_fps', clip.path, 'give its frame rate by --fps')
  if len(clip) > MAX_TIMELINE * clip.fps:
    hint = f'a timeline has at most {MAX_TIMELINE} seconds; give a higher --fps'
    raise MiraInputError('too_long', clip.path, hint)
  return max(1, math.ceil(len(clip) / clip.fps))


def _by_second(
  probabilities: np.ndarray,
  starts: np.ndarray,
  ends: np.ndarray,
  seconds: int,
  fps: float,
) -> np.ndarray:
  """Means [S, K] of windows [W, K], weighted by their overlap of a second."""
  total = np.zeros((seconds, probabilities.shape[1]))
  weight = np.zeros((seconds, 1))
  for row, start, end in zip(probabilities, starts, ends, strict=True):
    second = np.arange(int(start / fps), min(seconds, math.ceil(end / fps)))
    seen = np.minimum((second + 1) * fps, end) - np.maximum(second * fps, start)
    seen = np.maximum(seen, 1e-9)[:, None]  # a rounded end is not negative
    total[second] += seen * row
    weight[second] += seen
  return (total / weight).astype(np.float32)
