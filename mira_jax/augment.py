"""Random changes of a clip, as pure functions of a key and a clip.

Every frame of a clip is changed alike: a face that is shifted, mirrored or lit
differently moves as it did before. A clip is [T, H, W, 3] with values in
[0, 1]; `Augment` takes the uint8 batch of the pipeline and returns what the
model is fed.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

Array = jax.Array

# ImageNet statistics of red, green and blue, as in the reference.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def to_unit(video: Array) -> Array:
  """uint8 [..., 3] in 0 to 255 -> float32 [..., 3] in 0 to 1."""
  return video.astype(jnp.float32) / 255


def normalise(video: Array) -> Array:
  """[..., 3] in 0 to 1 -> zero mean and unit variance over ImageNet."""
  return (video - jnp.asarray(MEAN)) / jnp.asarray(STD)


def prepare(video: Array) -> Array:
  """uint8 [..., 3] -> float32 [..., 3]: what an unchanged clip becomes."""
  return normalise(to_unit(video))


def flip(key: Array, clip: Array) -> Array:
  """Mirrors left and right with probability one half."""
  return jnp.where(jax.random.bernoulli(key), clip[:, :, ::-1], clip)


def shift(key: Array, clip: Array, pixels: int) -> Array:
  """Moves by up to `pixels` either way; borders repeat the last pixel."""
  padded = jnp.pad(
    clip, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode='edge'
  )
  row, column = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
  return jax.lax.dynamic_slice(padded, (0, row, column, 0), clip.shape)


def jitter(
  key: Array, clip: Array, brightness: float, contrast: float
) -> Array:
  """Scales brightness, then contrast about the clip's mean; stays in [0, 1].

  Both factors are uniform in 1 - amount to 1 + amount.
  """
  bright_key, contrast_key = jax.random.split(key)
  bright = jax.random.uniform(
    bright_key, minval=1 - brightness, maxval=1 + brightness
  )
  factor = jax.random.uniform(
    contrast_key, minval=1 - contrast, maxval=1 + contrast
  )
  clip = clip * bright
  return jnp.clip(clip.mean() + factor * (clip - clip.mean()), 0, 1)


@dataclasses.dataclass(kw_only=True, frozen=True)
class Augment:
  """Changes and normalises a training batch; zeros only normalise."""

  flip: bool = True
  shift: int = 0  # pixels
  brightness: float = 0.0  # largest relative change
  contrast: float = 0.0

  def __call__(self, key: Array, video: Array) -> Array:
    """uint8 [B, T, H, W, 3] -> float32 [B, T, H, W, 3], each clip its own."""
    keys = jax.random.split(key, len(video))
    return normalise(jax.vmap(self._clip)(keys, to_unit(video)))

  def _clip(self, key: Array, clip: Array) -> Array:
    flip_key, shift_key, jitter_key = jax.random.split(key, 3)
    if self.flip:
      clip = flip(flip_key, clip)
    if self.shift:
      clip = shift(shift_key, clip, self.shift)
    if self.brightness or self.contrast:
      clip = jitter(jitter_key, clip, self.brightness, self.contrast)
    return clip
