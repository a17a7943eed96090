"""Augmentation: the same change in every frame, and nothing but a change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax import augment

KEY = jax.random.key(0)


def clip(frames: int = 3, side: int = 6) -> jax.Array:
  """A different picture in every pixel, the same in every frame."""
  frame = jnp.linspace(0.1, 0.9, side * side * 3).reshape(side, side, 3)
  return jnp.broadcast_to(frame, (frames, side, side, 3))


def test_prepare_is_imagenet_normalisation():
  # (255/255 - 0.485) / 0.229 and so on, worked out by hand.
  white = augment.prepare(np.full((1, 1, 1, 1, 3), 255, np.uint8))
  np.testing.assert_allclose(
    white.ravel(), [2.2489083, 2.4285714, 2.64], rtol=1e-6
  )
  assert white.dtype == jnp.float32


def test_flip_mirrors_about_half_of_the_clips():
  x = clip()
  keys = jax.random.split(KEY, 400)
  out = jax.vmap(lambda key: augment.flip(key, x))(keys)
  mirrored = jnp.all(out == x[:, :, ::-1], axis=(1, 2, 3, 4))
  same = jnp.all(out == x, axis=(1, 2, 3, 4))
  assert bool(jnp.all(mirrored ^ same))
  assert 0.4 < mirrored.mean() < 0.6


def test_shift_is_a_window_of_the_padded_clip():
  x = clip()
  frame = np.pad(x[0], ((2, 2), (2, 2), (0, 0)), mode='edge')
  windows = {
    frame[i : i + 6, j : j + 6].tobytes(): (i, j)
    for i in range(5)
    for j in range(5)
  }
  seen = set()
  for key in jax.random.split(KEY, 100):
    out = np.asarray(augment.shift(key, x, 2))
    assert (out == out[0]).all()  # all frames alike
    seen.add(windows[out[0].tobytes()])
  assert {i for i, _ in seen} == {j for _, j in seen} == {0, 1, 2, 3, 4}


def test_jitter_moves_brightness_and_contrast_only():
  x = clip() * 0.5 + 0.2
  out = augment.jitter(KEY, x, 0.2, 0.3)
  # An affine map of the values, the same for every pixel and frame.
  slope, offset = np.polyfit(np.ravel(x), np.ravel(out), 1)
  np.testing.assert_allclose(out, slope * x + offset, atol=1e-5)
  assert 0.8 * 0.7 <= slope <= 1.2 * 1.3
  assert abs(slope - 1) > 1e-3
  assert 0.8 <= out.mean() / x.mean() <= 1.2


def test_jitter_stays_in_range():
  out = augment.jitter(KEY, clip() * 1.1, 1.0, 1.0)
  assert out.min() >= 0
  assert out.max() <= 1


def test_augment_of_nothing_only_normalises():
  video = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4, 3), np.uint8)
  none = augment.Augment(flip=False)
  np.testing.assert_array_equal(none(KEY, video), augment.prepare(video))


def test_augment_draws_per_clip_and_repeats_with_its_key():
  video = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8, 3), np.uint8)
  video = np.repeat(video, 4, axis=0)
  change = augment.Augment(shift=2, brightness=0.2, contrast=0.2)
  out = change(KEY, video)
  assert len({np.asarray(row).tobytes() for row in out}) == 4
  np.testing.assert_array_equal(out, change(KEY, video))
  assert (out != change(jax.random.key(1), video)).any()
