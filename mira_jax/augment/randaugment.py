"""RandAugment of whole clips, with the results of Pillow.

A clip is uint8 [T, H, W, 3]. Every operation gives the integers that `PIL`
gives for each frame, and changes all frames by the same amount. `rand_augment`
draws operations and amounts as 'rand-m7-n4-mstd0.5-inc1' of timm's
`auto_augment`: four operations, their amounts from a normal distribution.

Reference: Cubuk et al., RandAugment, https://arxiv.org/abs/1909.13719.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax.devices.partition import over_clips

Array = jax.Array
Change = Callable[[Array], Array]

OPERATIONS = (
  'auto_contrast',
  'equalize',
  'invert',
  'posterize',
  'solarize',
  'solarize_add',
  'color',
  'contrast',
  'brightness',
  'sharpness',
  # These are one warp with different matrices:
  'rotate',
  'shear_x',
  'shear_y',
  'translate_x',
  'translate_y',
)
WARPS = 10  # index of the first one
OPS = 4  # drawn for a clip
MAGNITUDE, STD = 7.0, 0.5  # of amounts, cut off at 0 and 10
FILL = 128  # level outside a frame
TILE, WINDOW = 8, 16  # pixels: of a warped tile, of the square it is read from


class Draws(NamedTuple):
  """The operations on a clip, in their order; all [N]."""

  operation: Array  # int, index in OPERATIONS
  happens: Array  # bool
  share: Array  # 0 to 1, of the largest amount
  sign: Array  # -1 or 1


def draw(key: Array) -> Draws:
  """`OPS` operations with replacement, each with probability one half."""
  which, happens, how_much, sign = jax.random.split(key, 4)
  level = MAGNITUDE + STD * jax.random.normal(how_much, (OPS,))
  return Draws(
    operation=jax.random.randint(which, (OPS,), 0, len(OPERATIONS)),
    happens=jax.random.bernoulli(happens, 0.5, (OPS,)),
    share=jnp.clip(level, 0, 10) / 10,
    sign=jax.random.rademacher(sign, (OPS,), jnp.float32),
  )


def rand_augment(key: Array, clip: Array) -> Array:
  """Changes uint8 [T, H, W, 3] by what is drawn, one after the other.

  Under `jax.vmap` every clip would go through all operations: map over clips
  with `rand_augment_clips`.
  """

  def step(clip: Array, row: Draws) -> tuple[Array, None]:
    # One branch each, and one for all warps; the last one does nothing.
    branch = jnp.where(
      row.happens, jnp.minimum(row.operation, WARPS), WARPS + 1
    )
    branches = changes(row, (clip.shape[1], clip.shape[2]))
    return jax.lax.switch(branch, branches, clip), None

  return jax.lax.scan(step, clip, draw(key))[0]


def rand_augment_clips(keys: Array, video: Array) -> Array:
  """`rand_augment` of uint8 [B, T, H, W, 3], a key for each of the B clips."""

  def each(keys: Array, video: Array) -> Array:
    return jax.lax.map(lambda row: rand_augment(*row), (keys, video))

  return over_clips(each, keys, video)


def changes(row: Draws, size: tuple[int, int]) -> tuple[Change, ...]:
  """The branches of a drawn row: each pixel operation, a warp, and nothing.

  Amounts follow timm's "increasing" scale.
  """
  partial = functools.partial
  enhanced = {'factor': jnp.maximum(0.1, 1 + 0.9 * row.share * row.sign)}
  matrix = matrices(row.share * row.sign, size)[row.operation - WARPS]
  return (
    auto_contrast,
    equalize,
    invert,
    # Not 0 bits: the frames would be black.
    partial(posterize, bits=jnp.maximum(1, 4 - jnp.int32(4 * row.share))),
    partial(solarize, threshold=256 - jnp.int32(256 * row.share)),
    partial(solarize_add, amount=jnp.int32(110 * row.share)),
    partial(color, **enhanced),
    partial(contrast, **enhanced),
    partial(brightness, **enhanced),
    partial(sharpness, **enhanced),
    partial(warp, matrix=matrix),
    lambda clip: clip,
  )


def matrices(share: Array, size: tuple[int, int]) -> Array:
  """[5, 6], matrices for `warp` of the operations from WARPS on.

  Args:
    share: -1 to 1, of the largest amount: 30 degrees, a shear of 0.3, 0.45 of
      a side.
    size: height and width of a frame in pixels.
  """
  height, width = size
  angle, shear, part = math.pi / 6 * share, 0.3 * share, 0.45 * share
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  x, y = width / 2, height / 2
  one, zero = jnp.ones_like(share), jnp.zeros_like(share)
  rows = (  # counter-clockwise about the middle, as PIL rotates
    (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y),
    (one, shear, zero, zero, one, zero),
    (one, zero, zero, shear, one, zero),
    (one, zero, part * width, zero, one, zero),
    (one, zero, zero, zero, one, part * height),
  )
  return jnp.array(rows)


# ----- operations by a table of 256 levels ------------------------------------


def auto_contrast(clip: Array) -> Array:
  """Stretches each colour of each frame to 0 to 255."""
  low = clip.min((1, 2)).astype(jnp.int32)[..., None]
  high = clip.max((1, 2)).astype(jnp.int32)[..., None]
  level = jnp.arange(256)
  table = 255 * (level - low) // jnp.maximum(high - low, 1)
  code = (low * 256 + high) * 256 + level
  codes = jnp.asarray(_falls_short())
  found = codes[jnp.searchsorted(codes, code).clip(max=len(codes) - 1)]
  table = jnp.where(high > low, table - (found == code), level)
  return _look_up(table, clip)


@functools.cache
def _falls_short() -> np.ndarray:
  """Sorted codes (low, high, level) for which PIL is one below the quotient.

  It truncates a product with a rounded scale.
  """
  codes = []
  for low in range(256):
    level, high = np.arange(low, 256), np.arange(low + 1, 256)[:, None]
    scale = 255.0 / (high - low)
    stretched = (level * scale + -low * scale).astype(int)
    short = (stretched < 255 * (level - low) // (high - low)) & (level <= high)
    codes.append(((low * 256 + high) * 256 + level)[short])
  return np.concatenate(codes).astype(np.int32)


def equalize(clip: Array) -> Array:
  """Makes all levels of each colour of each frame about equally frequent."""
  counts = _histogram(clip)
  # The lightest pixels do not count, as in PIL: no level lies above theirs.
  last = 255 - jnp.argmax(counts[..., ::-1] > 0, axis=-1, keepdims=True)
  total = counts.sum(-1, keepdims=True)
  step = (total - jnp.take_along_axis(counts, last, axis=-1)) // 255
  before = jnp.cumsum(counts, axis=-1) - counts
  table = (step // 2 + before) // jnp.maximum(step, 1)
  table = jnp.where(step > 0, jnp.minimum(table, 255), jnp.arange(256))
  return _look_up(table, clip)


def _histogram(clip: Array) -> Array:
  """[T, H, W, 3] -> int32 [T, 3, 256], how often each level occurs."""
  high, low = _digits(clip)
  counts = jnp.einsum(
    'thwci,thwcj->tcij', high, low, preferred_element_type=jnp.float32
  )
  return counts.reshape(*counts.shape[:2], 256).astype(jnp.int32)


def _look_up(table: Array, clip: Array) -> Array:
  """uint8 [T, H, W, 3], table[t, c, clip[t, h, w, c]] of a [T, 3, 256]."""
  high, low = _digits(clip)
  square = table.reshape(*table.shape[:2], 16, 16).astype(low.dtype)
  rows = jnp.einsum('tcij,thwcj->thwci', square, low)
  return (rows * high).sum(-1).astype(jnp.uint8)


def _digits(clip: Array) -> tuple[Array, Array]:
  """Both hexadecimal digits of all levels, one-hot [..., 16].

  Histograms and look-ups become matrix products, exact in bfloat16:
  accelerators are slow at scattering and gathering.
  """
  one_hot = functools.partial(jax.nn.one_hot, dtype=jnp.bfloat16)
  return one_hot(clip // 16, 16), one_hot(clip % 16, 16)


# ----- other operations on pixels ---------------------------------------------


def invert(clip: Array) -> Array:
  """Light becomes dark."""
  return 255 - clip


def posterize(clip: Array, bits: Array) -> Array:
  """Keeps the `bits` highest of 8 bits."""
  dropped = (8 - jnp.asarray(bits)).astype(jnp.uint8)
  return clip >> dropped << dropped


def solarize(clip: Array, threshold: Array) -> Array:
  """Inverts levels from `threshold` on."""
  return jnp.where(clip.astype(jnp.int32) < threshold, clip, 255 - clip)


def solarize_add(clip: Array, amount: Array) -> Array:
  """Adds a whole number to the levels below 128."""
  brighter = jnp.minimum(clip.astype(jnp.int32) + amount, 255)
  return jnp.where(clip < 128, brighter, clip).astype(jnp.uint8)


def color(clip: Array, factor: Array) -> Array:
  """Away from grey, or towards it where `factor` is below 1."""
  return _blend(_grey(clip), clip, factor)


def contrast(clip: Array, factor: Array) -> Array:
  """Away from the mean grey of each frame, or towards it."""
  grey = _grey(clip)
  pixels = math.prod(clip.shape[1:3])
  total = grey.sum((1, 2, 3), keepdims=True)
  return _blend((2 * total + pixels) // (2 * pixels), clip, factor)


def brightness(clip: Array, factor: Array) -> Array:
  """Away from black, or towards it."""
  return _blend(0, clip, factor)


def sharpness(clip: Array, factor: Array) -> Array:
  """Away from the smoothed frames, or towards them; borders stay."""
  x = jnp.asarray(clip, jnp.int32)
  height, width = clip.shape[1:3]
  if min(height, width) < 3:  # nothing but borders
    return clip
  square = sum(
    x[:, i : height - 2 + i, j : width - 2 + j] for i, j in np.ndindex(3, 3)
  )
  smooth = (2 * (square + 4 * x[:, 1:-1, 1:-1]) + 13) // 26  # 13 weights
  return _blend(x.at[:, 1:-1, 1:-1].set(smooth), clip, factor)


def _grey(clip: Array) -> Array:
  """int32 [T, H, W, 1], luma of ITU-R 601 as PIL rounds it."""
  weights = jnp.array([19595, 38470, 7471])
  luma = (clip.astype(jnp.int32) * weights).sum(-1, keepdims=True)
  return (luma + 2**15) >> 16


def _blend(base: Array | int, clip: Array, factor: Array) -> Array:
  """base + factor (clip - base), cut off at 0 and 255 and after the point."""
  x = base + factor * (clip.astype(jnp.float32) - base)
  return jnp.clip(x, 0, 255).astype(jnp.uint8)


# ----- warps ------------------------------------------------------------------


def warp(clip: Array, matrix: Array) -> Array:
  """Reads the pixel at (x, y) from (a x + b y + c, d x + e y + f).

  Bicubic as PIL's `Image.transform` (slope -1, unlike its `resize`), with
  centres of pixels at halves, repeated borders, and FILL outside. Each tile is
  one matrix product with a window of the frames, not a gather per pixel.

  Args:
    clip: uint8 [T, H, W, 3].
    matrix: float [6], a to f; |a| + |b| and |d| + |e| at most 1.5, so that a
      window covers its tile.
  """
  frames, height, width, _ = clip.shape
  tile = functools.partial(_tile, size=(height, width), matrix=matrix)
  images = jnp.moveaxis(clip, 0, 2).reshape(height, width, -1)
  # Pixels inside a frame see two past its edges; windows may start at the last.
  border = (2, WINDOW)
  images = jnp.pad(images, (border, border, (0, 0)), mode='edge')
  rows, columns = -(-height // TILE), -(-width // TILE)
  corners = jnp.moveaxis(TILE * jnp.indices((rows, columns)), 0, -1)
  tiles = jax.vmap(jax.vmap(functools.partial(tile, images)))(corners)
  whole = tiles.swapaxes(1, 2).reshape(rows * TILE, columns * TILE, frames, 3)
  return jnp.moveaxis(whole[:height, :width], 2, 0)


def _tile(
  images: Array, corner: Array, *, size: tuple[int, int], matrix: Array
) -> Array:
  """uint8 [TILE, TILE, T * 3] of the warped clip.

  `images` are the padded frames, uint8 [H + 2 + WINDOW, W + 2 + WINDOW, T * 3],
  `size` is H, W, and `corner` row and column of the tile's first pixel.
  """
  y, x = jnp.meshgrid(
    *(corner[:, None] + jnp.arange(TILE) + 0.5), indexing='ij'
  )
  a, b, c, d, e, f = matrix
  sides = jnp.array(size)
  source = jnp.stack([d * x + e * y + f, a * x + b * y + c])
  inside = jnp.all(
    (source >= 0) & (source < sides[:, None, None]), axis=0, keepdims=True
  )
  start = jnp.floor(source.min((1, 2)) - 0.5).astype(int) - 1
  start = jnp.clip(start, -2, sides)
  window = jax.lax.dynamic_slice(
    images, (*(start + 2), 0), (WINDOW, WINDOW, images.shape[-1])
  )
  pixels = start[:, None] + jnp.arange(WINDOW) + 0.5
  down, across = _cubic(source[..., None] - pixels[:, None, None])
  # In bfloat16, products would lose what 8 bits per colour hold.
  mixed = jnp.einsum(
    'yxij,ijn->yxn',
    down[..., None] * across[..., None, :],
    window.astype(jnp.float32),
    precision='highest',
  )
  # PIL truncates; a flat frame must stay flat although weights in float32 sum
  # to slightly less than 1.
  mixed = jnp.clip(mixed + 2**-9, 0, 255)
  return jnp.where(inside[0, ..., None], mixed, FILL).astype(jnp.uint8)


def _cubic(distance: Array) -> Array:
  """Keys' kernel with a slope of -1 at distance 1."""
  x = jnp.abs(distance)
  near = (x - 2) * x * x + 1
  far = ((5 - x) * x - 8) * x + 4
  return jnp.where(x <= 1, near, jnp.where(x < 2, far, 0))
