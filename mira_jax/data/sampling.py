"""Which frames of a clip a model sees: pure index rules.

T frames are read `rate` apart, so a clip needs `T * rate` frames. Clips that
are shorter than that are spread out, and clips shorter than T repeat their
last frame. These are the rules of the published MiRA fine-tuning runs.
"""

from __future__ import annotations

import numpy as np


def train_indices(
  num_frames: int, T: int, rate: int, rng: np.random.Generator
) -> np.ndarray:
  """Indices [T] of a window that starts anywhere it fits, uniformly."""
  room = num_frames - T * rate
  if room < 0:
    return _short(num_frames, T)
  return int(rng.integers(room + 1)) + rate * np.arange(T)


def pretrain_indices(
  num_frames: int, T: int, rate: int, rng: np.random.Generator
) -> np.ndarray:
  """Indices [T] as the published pre-training cuts them.

  They differ from `train_indices` in clips shorter than `T * rate` frames:
  those are read at `rate` from the start while one frame more would follow,
  and then the last index comes again.
  """
  if num_frames >= T * rate:
    return train_indices(num_frames, T, rate, rng)
  steps = max(0, (num_frames - 2) // rate)
  return rate * np.minimum(np.arange(T), steps)


def test_indices(
  num_frames: int, T: int, rate: int, view: int, views: int
) -> np.ndarray:
  """Indices [T] of view `view` of `views` windows spread over the clip.

  View i is centred on the middle of the i-th of `views` equal parts, as far as
  the clip's ends allow. One view is the centre window.
  """
  room = num_frames - T * rate
  if room < 0:
    return _short(num_frames, T)
  # Python's round: halves go to the even neighbour, as in the reference.
  start = round((view + 0.5) * num_frames / views - T * rate / 2)
  return min(max(start, 0), room) + rate * np.arange(T)


def _short(num_frames: int, T: int) -> np.ndarray:
  """All of a clip that has fewer than T * rate frames."""
  if num_frames < T:
    return np.minimum(np.arange(T), num_frames - 1)
  return np.round(np.linspace(0, num_frames - 1, T)).astype(np.int64)
