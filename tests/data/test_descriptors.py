"""Descriptors of clips: directions of edges, light, and damaged clips."""

from __future__ import annotations

import numpy as np
import pytest

from mira_jax.data import descriptors
from mira_jax.data.records import Clip
from mira_jax.errors import MiraInputError
from mira_jax.video import images


def stripes(angle=0.0, contrast=60.0, size=64):
  """A gray frame of waves along a direction, in degrees."""
  y, x = np.mgrid[:size, :size]
  turn = np.deg2rad(angle)
  wave = np.sin((x * np.cos(turn) + y * np.sin(turn)) / 3)
  return (128 + contrast * wave).astype(np.uint8)


def test_hog_has_the_direction_of_gradients_and_not_the_contrast():
  for angle, bins in ((0, {0, 8}), (90, {4}), (40, {1, 2})):
    found = descriptors.hog(stripes(angle)).reshape(-1, 9)
    assert set(np.bincount(found.argmax(1)).nonzero()[0]) <= bins
  assert found.shape == (7 * 7 * 4, 9)
  faint = descriptors.hog(stripes(40, contrast=30)).reshape(-1, 9)
  np.testing.assert_allclose(faint, found, atol=0.03)
  assert not descriptors.hog(np.full((64, 64), 9, np.uint8)).any()


def test_a_clip_has_the_mean_and_the_maximum_of_its_frames():
  angles = (0, 45, 90)
  clip = Clip(clip_id='a', label=0, frames=[_jpeg(angle) for angle in angles])
  (found,), kept = descriptors.of_clips([clip])
  frames = np.stack(
    [
      descriptors.hog(images.decode_jpeg(frame)[..., 0])
      for frame in clip.frames
    ]
  )
  expected = np.concatenate([frames.mean(0), frames.max(0)])
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert kept.tolist() == [0]


def test_damaged_clips_are_left_out(caplog):
  good = Clip(clip_id='a', label=0, frames=[_jpeg(0)] * 20)
  bad = Clip(clip_id='b', label=0, frames=[b'no jpeg'])
  found, kept = descriptors.of_clips([bad, good, bad, good], 'pca')
  assert kept.tolist() == [1, 3]
  assert found.shape == (2, 2 * 48 * 48)
  assert abs(found[0, : 48 * 48].mean()) < 1e-5
  assert 'clip 2 is damaged' in caplog.text
  with pytest.raises(MiraInputError, match='no clip is readable'):
    descriptors.of_clips([bad])


def _jpeg(angle):
  return images.encode_jpeg(np.repeat(stripes(angle)[..., None], 3, axis=2))
