"""Descriptors of clips that need no training: HOG, or gray pixels.

HOG is OpenCV's, which is there already: scikit-image would be one more package
for the same numbers.
"""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Callable

import cv2
import numpy as np

from mira_jax.data import records
from mira_jax.data.pipeline import Source
from mira_jax.errors import MiraInputError, data_error
from mira_jax.video import footage, geometry

_log = logging.getLogger(__name__)
FRAMES = 8  # of a clip, at most
_SIDE = {'hog': 64, 'pca': 48}  # of a frame, in pixels
KINDS = tuple(_SIDE)


def of_clips(
  source: Source, kind: str = 'hog', threads: int = 16
) -> tuple[np.ndarray, np.ndarray]:
  """Descriptors of the readable clips of a source.

  Every frame is described by its histograms of oriented gradients (Dalal and
  Triggs, CVPR 2005), in 9 directions, cells of 8 and blocks of 16 pixels, or by
  its pixels less their mean and over their deviation. A clip has the mean and
  the maximum of up to FRAMES frames, which are spread over it.

  Args:
    source: C clips.
    kind: one of KINDS.
    threads: that decode clips.

  Returns:
    float32 [R, D], and the indices [R] of the readable clips.

  Raises:
    MiraInputError: no clip can be read ('damaged').
  """
  describe = {'hog': hog, 'pca': pixels}[kind]

  def one(index: int) -> np.ndarray | None:
    try:
      return _of_clip(source[index], describe, _SIDE[kind])
    except MiraInputError as error:
      _log.warning('clip %d is damaged and left out: %s', index, error)
      return None

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    rows = list(pool.map(one, range(len(source))))
  kept = [i for i, row in enumerate(rows) if row is not None]
  if not kept:
    hint = 'no clip is readable; prepare the dataset again'
    raise data_error('damaged', 'dataset', hint)
  return np.stack([row for row in rows if row is not None]), np.array(kept)


def _of_clip(
  clip: records.Clip, describe: Callable[[np.ndarray], np.ndarray], side: int
) -> np.ndarray:
  """The descriptor [D] of a clip."""
  spread = footage.spaced(len(clip), FRAMES)
  frames = records.read_frames(clip, spread.tolist()).values()
  rows = np.stack([describe(_gray(frame, side)) for frame in frames])
  return np.concatenate([rows.mean(0), rows.max(0)])


def _gray(frame: np.ndarray, side: int) -> np.ndarray:
  """uint8 [side, side] of a frame [H, W, 3]."""
  square = geometry.resize(frame, side, 'squash')
  return cv2.cvtColor(square, cv2.COLOR_RGB2GRAY)


def hog(gray: np.ndarray) -> np.ndarray:
  """Histograms of oriented gradients of uint8 [S, S]: float32 [D].

  S is a multiple of 8, and D = 36 (S / 8 - 1)^2.
  """
  block, cell = (16, 16), (8, 8)
  made = cv2.HOGDescriptor(gray.shape, block, cell, cell, 9)
  return np.asarray(made.compute(gray))


def pixels(gray: np.ndarray) -> np.ndarray:
  """Pixels of uint8 [S, S] of mean 0 and deviation 1: float32 [S * S]."""
  flat = gray.astype(np.float32).ravel()
  return (flat - flat.mean()) / max(float(flat.std()), 1.0)
