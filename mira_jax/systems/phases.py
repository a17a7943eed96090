"""Phases of an expression as clips of their own, as pure functions.

The apex parts a clip in two: onset to apex, where the expression rises, and
apex to offset, where it fades. Each half is a training sample with the label of
the clip: as frames, or as its dynamic image, one picture that sums up motion.

Frames are counted from 0; T frames, H and W pixels, C channels.

Source: phase-aware temporal augmentation for micro-expressions, arXiv
2510.15466, of which we know the abstract: halves, one dynamic image each, as
additional samples. Which weights its images have is not known to us. Those here
are of Bilen et al.'s dynamic images: 'rank_pool' of CVPR 2016, derived by us,
and 'simple' of arXiv 1612.00738. Halves as clips, and how an apex that nobody
annotated is found, are ours.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Kind = Literal['simple', 'rank_pool']
GREY = 128  # of a dynamic image without motion


def rank_pool_weights(num_frames: int, kind: Kind = 'simple') -> np.ndarray:
  """The weight of each frame in a dynamic image: float64 [T], sums to 0.

  With t from 1 to T, 'simple' weighs frame t by 2 t - T - 1. 'rank_pool' gives
  that weight to the mean of frames 1 to t, so that frame t has
  `2 (T - t + 1) - (T + 1) (H(T) - H(t - 1))`, H(n) = 1 + 1/2 + ... + 1/n.

  Raises:
    ValueError: no frame, or another kind.
  """
  if num_frames < 1:
    raise ValueError(f'num_frames is {num_frames}; use 1 or more')
  t = np.arange(1, num_frames + 1)
  if kind == 'simple':
    return 2.0 * t - num_frames - 1
  if kind == 'rank_pool':
    rest = np.cumsum((1 / t)[::-1])[::-1]  # H(T) - H(t - 1)
    return 2 * (num_frames - t + 1) - (num_frames + 1) * rest
  raise ValueError(f"kind is {kind!r}; use 'simple' or 'rank_pool'")


def dynamic_image(
  clip: np.ndarray,
  start: int = 0,
  end: int | None = None,
  kind: Kind = 'simple',
) -> np.ndarray:
  """The weighted sum of frames, stretched to 0 to 255.

  Args:
    clip: [T, H, W, C], of any real type.
    start: the first frame of the sum.
    end: the last one; None is that of the clip.
    kind: see `rank_pool_weights`.

  Returns:
    uint8 [H, W, C]; GREY where no pixel changes, or one number everywhere.

  Raises:
    ValueError: frames that the clip does not have.
  """
  last = len(clip) - 1 if end is None else end
  if not 0 <= start <= last < len(clip):
    raise ValueError(
      f'frames {start} to {last} are not in a clip of {len(clip)}; '
      'use 0 <= start <= end < T'
    )
  part = np.asarray(clip[start : last + 1], np.float64)
  # Weights sum to 0, so that this changes nothing but the rounding: what does
  # not move is exactly 0.
  moved = part - part[0]
  image = np.tensordot(rank_pool_weights(len(part), kind), moved, axes=1)
  low, high = image.min(), image.max()
  if low == high:
    return np.full(image.shape, GREY, np.uint8)
  return np.round(255 * ((image - low) / (high - low))).astype(np.uint8)


def apex_of(frames: np.ndarray) -> int:
  """The frame that is farthest from the first, the earliest of several.

  Frames [T, ...]; the distance is Euclidean, over all pixels. Light and motion
  of the head count as well as the face: an annotated apex is better.
  """
  flat = np.asarray(frames, np.float32).reshape(len(frames), -1)
  return int(np.square(flat - flat[0]).sum(1).argmax())


def halves(
  num_frames: int, onset: int, apex: int, offset: int
) -> tuple[tuple[int, int], tuple[int, int]]:
  """The first and last frame of both halves, which share the apex.

  A mark outside the clip, as -1 is, counts as its end. Each half has two frames
  or more where the clip has three.
  """
  last = offset if 0 <= offset < num_frames else num_frames - 1
  first = onset if 0 <= onset < last else 0
  apex = max(first, min(max(apex, first + 1), last - 1))
  return (first, apex), (apex, last)
