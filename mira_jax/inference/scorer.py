"""What scores windows of clips, and how clips are cut into windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from mira_jax.data import sampling
from mira_jax.errors import MiraInputError
from mira_jax.video import footage, geometry

MAX_TIMELINE = 7 * 24 * 3600  # seconds
_SECONDS_AT_ONCE = 512


class Scorer:
  """What scores windows, and how a clip is cut into them.

  Attributes:
    frames: T of a window.
    image_size: S of it, in pixels.
    batch_size: windows per call at most.
    buckets: sizes of a batch, rising to `batch_size`; one of another size is
      filled up to the next.
  """

  frames: int
  image_size: int
  batch_size: int
  buckets: tuple[int, ...]

  def probabilities(self, video: np.ndarray) -> np.ndarray:
    """uint8 [B, T, S, S, 3] -> float32 [B, K], any B.

    Raises:
      MiraInputError: windows of another shape.
    """
    self._check(video)
    rows = [
      self._score_padded(video[start : start + self.batch_size])
      for start in range(0, max(1, len(video)), self.batch_size)
    ]
    return np.concatenate(rows)

  def _check(self, video: np.ndarray) -> None:
    size = (self.frames, self.image_size, self.image_size, 3)
    if video.dtype != np.uint8 or video.shape[1:] != size:
      shape = f'{video.dtype} {list(video.shape)}'
      hint = f'the model takes uint8 {["B", *size]}'
      raise MiraInputError('bad_shape', shape, hint)

  def _score_padded(self, video: np.ndarray) -> np.ndarray:
    # Every other size would compile anew. Clips come again because zeros would
    # shift MiRA's batch statistics.
    size = next(n for n in self.buckets if n >= len(video))
    padded = np.resize(video, (size, *video.shape[1:]))
    return self._score_bucket(padded)[: len(video)]

  def _score_bucket(self, video: np.ndarray) -> np.ndarray:
    """`probabilities` of as many windows as a bucket holds."""
    raise NotImplementedError

  def cut_views(
    self,
    frames: np.ndarray | footage.Video,
    *,
    rate: int,
    views: int,
    fit: str,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Windows of a clip as the model takes them.

    Args:
      frames: a clip, whose windows are cut in time; or all frames of one,
        uint8 [F, H, W, 3], whose windows are cut by index.
      rate: one of so many frames is taken.
      views: number of windows V, spread over the clip; 1 is cut where they
        would all be the same.
      fit: how frames become square, see `data.geometry.resize`.

    Returns:
      uint8 [V, T, S, S, 3] and the indices [V, T] of their frames.
    """
    indices = np.stack(
      [
        sampling.test_indices(len(frames), self.frames, rate, view, views)
        for view in range(views)
      ]
    )
    if (indices == indices[0]).all():
      indices = indices[:1]
    cut = footage.resize_windows(frames, indices, self.image_size, fit)
    if isinstance(frames, footage.Video):
      indices = frames.of_ticks(indices)
    return cut, indices

  def timeline(
    self,
    frames: np.ndarray | footage.Video,
    fps: float | None = None,
    *,
    rate: int,
    fit: str,
    stride: float = 0.5,
  ) -> np.ndarray:
    """Class probabilities of every second of a long clip.

    Windows of the model's frames slide over it; a second has the mean of those
    that see it, weighted by how much of it they see. One batch of windows is
    held at a time.

    Args:
      frames: a clip; or all frames of one, uint8 [F, H, W, 3].
      fps: of the frames, per second; by default, as the clip tells, of which
        it otherwise takes the place.
      rate: as in `cut_views`.
      fit: as in `cut_views`.
      stride: seconds between the starts of two windows; at most the length of
        one window is taken, so that every second is seen.

    Returns:
      Float32 [S, K], S seconds of which the last may be a part.

    Raises:
      MiraInputError: the rate is unknown ('no_fps'), or at that rate the clip
        has too many seconds ('too_long').
    """
    name = '<frames>'
    if isinstance(frames, footage.Video):
      frames, name = frames.at(fps) if fps else frames, frames.path
      fps = frames.fps
    seconds = _seconds(len(frames), fps, name)
    span = self.frames * rate
    step = max(1, round(min(stride * fps, span)))
    last = max(0, len(frames) - span)
    starts = np.unique([*range(0, last, step), last])
    windows = self._windows(frames, starts, rate, fit)
    rows = []
    while batch := list(itertools.islice(windows, self.batch_size)):
      rows.append(self.probabilities(np.stack(batch)))
    ends = np.minimum(starts + span, len(frames))
    return _by_second(np.concatenate(rows), starts, ends, seconds, fps)

  def _windows(
    self,
    frames: np.ndarray | footage.Video,
    starts: np.ndarray,
    rate: int,
    fit: str,
  ) -> Iterator[np.ndarray]:
    """Windows uint8 [T, S, S, 3] that begin at rising starts."""
    span = min(len(frames), self.frames * rate)
    inside = sampling.test_indices(span, self.frames, rate, 0, 1)
    wanted = np.unique(starts[:, None] + inside)
    coming = zip(wanted.tolist(), footage.take(frames, wanted), strict=True)
    held: dict[int, np.ndarray] = {}
    for start in starts.tolist():
      held = {i: image for i, image in held.items() if i >= start}
      indices = (start + inside).tolist()
      while indices[-1] not in held:
        i, frame = next(coming)
        held[i] = geometry.resize(frame, self.image_size, fit)
      yield np.stack([held[i] for i in indices])


def _seconds(count: int, fps: float | None, name: Any) -> int:
  """How many seconds so many frames last, the last one perhaps in part."""
  if not fps:
    hint = 'nothing says how many frames are a second; give --fps'
    raise MiraInputError('no_fps', name, hint)
  if count > MAX_TIMELINE * fps:
    hint = (
      f'{count} frames at {fps:g} a second: a timeline has at most '
      f'{MAX_TIMELINE} seconds; give a higher --fps'
    )
    raise MiraInputError('too_long', name, hint)
  return max(1, math.ceil(count / fps))


def _by_second(
  probabilities: np.ndarray,
  starts: np.ndarray,
  ends: np.ndarray,
  seconds: int,
  fps: float,
) -> np.ndarray:
  """Means [S, K] of windows [W, K], weighted by what each sees of a second."""
  rows = []
  for first in range(0, seconds, _SECONDS_AT_ONCE):
    second = np.arange(first, min(first + _SECONDS_AT_ONCE, seconds))[:, None]
    near = (ends > second[0] * fps) & (starts < (second[-1] + 1) * fps)
    begin = np.maximum(second * fps, starts[near])
    end = np.minimum((second + 1) * fps, ends[near])
    seen = np.maximum(0, end - begin)
    rows.append(seen / seen.sum(1, keepdims=True) @ probabilities[near])
  return np.concatenate(rows).astype(np.float32)
