"""Random transforms of a clip, as pure functions of a key and a clip.

All frames of a clip are transformed alike, so that the face moves as it did. A
clip is [T, H, W, 3] with values in [0, 1]; only `random_erase` takes normalised
ones. `Augment` maps the uint8 batch of the pipeline to the model's input.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mira_jax.augment.randaugment import rand_augment_clips

Array = jax.Array
Transform = Callable[[Array, Array], Array]  # key, clip -> clip

# ImageNet statistics of red, green and blue, as in the reference.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
TRIES = 10  # how often a box is drawn until one fits

# Sides of crops for pre-training, of the whole frame, by the size of the model;
# a side that is listed twice is drawn twice as often.
CROP_SCALES = {
  'base': (1, 0.875, 0.75, 0.66),
  'large': (1, 0.875, 0.75, 0.66, 0.60, 0.60, 0.55, 0.55),
}


def to_unit(video: Array) -> Array:
  """uint8 [..., 3] in 0 to 255 -> float32 [..., 3] in 0 to 1."""
  return video.astype(jnp.float32) / 255


def normalise(video: Array) -> Array:
  """[..., 3] in 0 to 1 -> zero mean and unit variance over ImageNet."""
  return (video - jnp.asarray(MEAN)) / jnp.asarray(STD)


def denormalise(video: Array) -> Array:
  """The inverse of `normalise`."""
  return video * jnp.asarray(STD) + jnp.asarray(MEAN)


def prepare(video: Array) -> Array:
  """uint8 [..., 3] -> normalised float32 [..., 3], without augmentation."""
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
  bright, factor = (
    jax.random.uniform(each, minval=1 - amount, maxval=1 + amount)
    for each, amount in zip(
      jax.random.split(key), (brightness, contrast), strict=True
    )
  )
  clip = clip * bright
  return jnp.clip(clip.mean() + factor * (clip - clip.mean()), 0, 1)


def turn(key: Array, clip: Array, degrees: float, zoom: float) -> Array:
  """Rotates and scales about the middle; borders repeat the last pixel.

  The angle is uniform up to `degrees` (below 90) either way, the logarithm of
  the scale up to log(1 + zoom). One-dimensional interpolation of columns, then
  of rows (Catmull and Smith 1980), each a matrix product.
  """
  turned, scaled = jax.random.uniform(key, (2,), minval=-1.0)
  angle, scale = math.pi / 180 * degrees * turned, (1 + zoom) ** scaled
  a, b = jnp.cos(angle) / scale, jnp.sin(angle) / scale
  height, width = clip.shape[1:3]
  y = jnp.arange(height) - (height - 1) / 2
  x = jnp.arange(width) - (width - 1) / 2
  # The pixel at (x, y) is read from (a x + b y, a y - b x).
  rows = (a + b * b / a) * y - b / a * x[:, None]  # in column x of the source
  columns = a * x + b * y[:, None]  # in row y
  clip = jnp.einsum(
    'xyj,tjxc->tyxc', _linear(rows, height), clip, precision='highest'
  )
  return jnp.einsum(
    'yxi,tyic->tyxc', _linear(columns, width), clip, precision='highest'
  )


def _linear(place: Array, size: int) -> Array:
  """Weights [..., size] of the pixels beside a place from the middle."""
  place = jnp.clip(place + (size - 1) / 2, 0, size - 1)
  return jnp.maximum(1 - jnp.abs(place[..., None] - jnp.arange(size)), 0)


class Box(NamedTuple):
  """A rectangle of whole pixels; it may reach past the edges of a frame."""

  top: Array
  left: Array
  height: Array
  width: Array

  def mask(self, whole: tuple[int, int]) -> Array:
    """bool [H, W, 1], True inside, for frames of `whole` = H, W pixels."""
    row = jnp.arange(whole[0])[:, None, None] - self.top
    column = jnp.arange(whole[1])[:, None] - self.left
    inside_rows = (row >= 0) & (row < self.height)
    return inside_rows & (column >= 0) & (column < self.width)


def draw_box(
  key: Array,
  whole: tuple[int, int],
  area: tuple[float, float],
  ratio: tuple[float, float],
  fallback: tuple[int, int],
) -> Box:
  """A random box inside the frame: the first of `TRIES` that fits.

  Args:
    key: of the draw.
    whole: height and width of the frame in pixels.
    area: of shares of the frame, drawn uniformly.
    ratio: of widths / heights, drawn log-uniformly.
    fallback: height and width of the centred box where none fits.
  """
  # All tries at once: a loop would run as long as the unluckiest clip's.
  draws = jax.random.uniform(key, (TRIES, 4))
  pixels = math.prod(whole) * _between(*area, draws[:, 0])
  shape = jnp.exp(_between(math.log(ratio[0]), math.log(ratio[1]), draws[:, 1]))
  sizes = jnp.sqrt(jnp.stack([pixels / shape, pixels * shape], axis=-1))
  sizes = jnp.round(sizes).astype(int)
  room = jnp.asarray(whole) - sizes
  corners = jnp.floor(draws[:, 2:] * (room + 1)).astype(int)
  fits = jnp.all((sizes > 0) & (room >= 0), axis=-1)
  boxes = jnp.concatenate([corners, sizes], axis=-1)
  middle = [(a - b) // 2 for a, b in zip(whole, fallback, strict=True)]
  centred = jnp.array([*middle, *fallback])
  top, left, height, width = jnp.where(
    fits.any(), boxes[fits.argmax()], centred
  )
  return Box(top, left, height, width)


def _between(low: float, high: float, share: Array) -> Array:
  return low + (high - low) * share


def stretch(clip: Array, box: Box) -> Array:
  """Every frame inside the box, bilinearly to the size of the whole frame.

  As PyTorch's `interpolate` of the cropped clip: centres of pixels lie at
  halves, without antialiasing, and pixels outside the box do not bleed in.
  """
  rows = _bilinear(box.top, box.height, clip.shape[1])
  columns = _bilinear(box.left, box.width, clip.shape[2])
  # Matrix products, because the box is only known on the device; in bfloat16
  # they would lose 8-bit precision.
  return jnp.einsum(
    'yh,thwc,xw->tyxc', rows, clip, columns, precision='highest'
  )


def _bilinear(start: Array, length: Array, size: int) -> Array:
  """Weights [size, size] of the pixels that each stretched pixel mixes."""
  centre = (jnp.arange(size) + 0.5) * (length / size) - 0.5
  source = start + jnp.clip(centre, 0, length - 1)
  return jnp.maximum(1 - jnp.abs(source[:, None] - jnp.arange(size)), 0)


def random_resized_crop(
  key: Array,
  clip: Array,
  *,
  area: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
  """Cuts out a random box and stretches it to the clip's own size.

  `area` and `ratio` as in `draw_box`; where no box fits, the largest centred
  one within `ratio` is taken.
  """
  height, width = clip.shape[1:3]
  largest = (
    min(height, round(width / ratio[0])),
    min(width, round(height * ratio[1])),
  )
  return stretch(clip, draw_box(key, (height, width), area, ratio, largest))


def crop_sizes(side: int, scales: tuple[float, ...]) -> list[tuple[int, int]]:
  """Heights and widths that `multi_scale_crop` draws from.

  Pairs of sides at most one place apart in `scales`; a side that lacks less
  than 3 pixels is whole.
  """
  sides = [int(side * scale) for scale in scales]
  sides = [side if abs(x - side) < 3 else x for x in sides]
  return [
    (height, width)
    for i, height in enumerate(sides)
    for j, width in enumerate(sides)
    if abs(i - j) <= 1
  ]


# Positions of a box in `multi_scale_crop`: row, column in quarters of the room.
CORNERS = (
  *((0, 0), (0, 4), (4, 0), (4, 4)),  # corners
  *((2, 2), (0, 2), (4, 2), (2, 0), (2, 4)),  # middle, and middles of edges
  *((1, 1), (1, 3), (3, 1), (3, 3)),  # middles of quarters
)


def multi_scale_crop(
  key: Array, clip: Array, *, scales: tuple[float, ...]
) -> Array:
  """Cuts out one of few boxes and stretches it to the clip's own size.

  The augmentation of pre-training: GroupMultiScaleCrop of temporal segment
  networks, https://arxiv.org/abs/1608.00859, with 13 positions for a box. The
  clip is square; `scales` as in `crop_sizes`.
  """
  side = clip.shape[1]
  size_key, corner_key = jax.random.split(key)
  size = jax.random.choice(size_key, jnp.array(crop_sizes(side, scales)))
  corner = jax.random.choice(corner_key, jnp.array(CORNERS))
  return stretch(clip, Box(*(corner * ((side - size) // 4)), *size))


def random_erase(
  key: Array,
  clip: Array,
  *,
  probability: float = 0.25,
  area: tuple[float, float] = (0.02, 1 / 3),
  ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Array:
  """Fills a random box with noise from N(0, 1), new in every pixel and frame.

  The clip is normalised, so that the noise has the variance of its values.
  `area` and `ratio` as in `draw_box`; where no box fits, nothing is erased.
  """
  whole = (clip.shape[1], clip.shape[2])
  happens_key, box_key, noise_key = jax.random.split(key, 3)
  box = draw_box(box_key, whole, area, ratio, fallback=(0, 0))
  erased = box.mask(whole) & jax.random.bernoulli(happens_key, probability)
  noise = jax.random.normal(noise_key, clip.shape, clip.dtype)
  return jnp.where(erased, noise, clip)


@dataclasses.dataclass(kw_only=True, frozen=True)
class Augment:
  """Augments and normalises a training batch; a 0 leaves a transform out.

  A transform draws from the clip's key and its own name, whatever others do.
  """

  rand_augment: bool = False
  multi_scale: str = ''  # a key of CROP_SCALES, or '': no such crop
  resized_crop: bool = False
  flip: bool = True
  rotate: float = 0.0  # largest angle in degrees
  zoom: float = 0.0  # largest relative change of size
  shift: int = 0  # pixels
  brightness: float = 0.0  # largest relative change
  contrast: float = 0.0
  erase: float = 0.0  # probability

  def __call__(self, key: Array, video: Array) -> Array:
    """uint8 [B, T, H, W, 3] -> float32 [B, T, H, W, 3], each clip its own."""
    keys = jax.random.split(key, len(video))
    if self.rand_augment:
      video = rand_augment_clips(_own_keys(keys, 'rand_augment'), video)
    clips = to_unit(video)
    for name, transform in self._transforms().items():
      clips = jax.vmap(transform)(_own_keys(keys, name), clips)
    return clips

  def _transforms(self) -> dict[str, Transform]:
    """Those of single clips by name, in their order."""
    scales, partial = CROP_SCALES.get(self.multi_scale), functools.partial
    jitters = self.brightness or self.contrast
    turns = self.rotate or self.zoom
    table: dict[str, Any] = {
      'multi_scale_crop': scales and partial(multi_scale_crop, scales=scales),
      'random_resized_crop': self.resized_crop and random_resized_crop,
      'flip': self.flip and flip,
      'turn': turns and partial(turn, degrees=self.rotate, zoom=self.zoom),
      'shift': self.shift and partial(shift, pixels=self.shift),
      'jitter': jitters
      and partial(jitter, brightness=self.brightness, contrast=self.contrast),
      'normalise': lambda _, clip: normalise(clip),
      'random_erase': self.erase
      and partial(random_erase, probability=self.erase),
    }
    return {name: change for name, change in table.items() if change}


def _own_keys(keys: Array, name: str) -> Array:
  """Keys of a transform from those of the clips, [B] both."""
  number = zlib.crc32(name.encode())
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
