"""The halves of a clip before and after its apex, as samples of training.

See `mira_jax.systems.phases` for what they are, and where they come from.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mira_jax.data.records import Clip
from mira_jax.systems import phases

PHASES = ('none', 'clips', 'images')
_MOST = 32  # frames that are read to find an apex, or for a dynamic image
Read = Callable[[np.ndarray], np.ndarray]  # indices [n] to uint8 [n, S, S, 3]


def samples(kind: str) -> int:
  """Samples that each clip gives in an epoch: itself, and its halves."""
  return 1 if kind == 'none' else 3


def video(
  clip: Clip, half: int, frames: int, kind: str, read: Read
) -> np.ndarray:
  """One half of a clip as the model sees it: uint8 [T, S, S, 3].

  Args:
    clip: with onset, apex and offset where they are known.
    half: 0 up to the apex, 1 from there.
    frames: T.
    kind: 'clips' spreads T frames over the half; 'images' repeats its dynamic
      image.
    read: gives the pixels of frames of the clip.
  """
  first, last = phases.halves(
    len(clip), clip.onset, _apex(clip, read), clip.offset
  )[half]
  if kind == 'clips':
    return read(_spread(first, last, frames))
  some = read(_spread(first, last, min(_MOST, last - first + 1)))
  return np.repeat(phases.dynamic_image(some)[None], frames, axis=0)


def _apex(clip: Clip, read: Read) -> int:
  """The annotated apex, or the farthest of frames spread over the clip."""
  if 0 <= clip.apex < len(clip):
    return clip.apex
  (first, _), (_, last) = phases.halves(len(clip), clip.onset, -1, clip.offset)
  some = _spread(first, last, min(_MOST, last - first + 1))
  return int(some[phases.apex_of(read(some))])


def _spread(first: int, last: int, count: int) -> np.ndarray:
  return np.round(np.linspace(first, last, count)).astype(np.int64)
