"""ARBEx's window cross-attention: a guide asks the tokens of a frame.

Within windows of a frame, queries are made of a guide (landmarks of the face,
or what moves between frames), keys and values of the tokens, at several scales
of the same grid.

Shapes: B clips, T frames (temporal tokens), N = H * W tokens per frame, L =
T * N tokens ordered frame by frame, D channels, h heads, P landmarks, M = B * T
images, n = wh * ww tokens per window.

Source: Wasi, Serbetar, Islam, Rafi, Chae, 'ARBEx: Attentive Feature Extraction
with Reliability Balancing for Robust Facial Expression Learning', 2023, arXiv
2305.01486. Attention without a projection of the guide, relative positions and
layer scales of 1e-5 are the behaviour of the authors' public code, which takes
features of two networks of its own at three scales, with one window on each.
One grid of tokens that is pooled, several windows, frame differences as a guide
and a residual before the norm instead of after it are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mira_jax.systems.settings import Settings, number

Array = jax.Array
Grid = tuple[int, int, int]  # tokens in time, height and width
Window = tuple[int, int]  # tokens in height and width


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class CrossWindowsConfig(Settings):
  """Options of the block.

  Raises:
    ValueError: for a value outside its range.
  """

  # Height and width in tokens; that of a smaller grid at most.
  window: int = number(7, 1, 2**10)
  # The grid, and so many less one halvings of it.
  scales: int = number(3, 1, 16)
  # 'difference' is the frame less the one before; 'landmarks' are heat maps.
  guide: Literal['difference', 'landmarks'] = 'difference'
  sigma: float = number(1.0, 1e-3, 1e3)  # of the heat maps, in tokens
  # Start of the scales of both branches: 0 changes no token; published 1e-5.
  layer_scale: float = number(0.0, -1e6, 1e6)
  mlp_ratio: float = number(4.0, 0.01, 2**16)  # hidden width of the MLP over D
  query: Literal['identity', 'dense'] = 'identity'  # projection of the guide


def frame_differences(x: Array) -> Array:
  """Each frame less the one before, 0 for the first: [B, T, N, D] -> same."""
  return jnp.diff(x, axis=1, prepend=x[:, :1])


def landmark_maps(points: Array, hw: Window, sigma: float) -> Array:
  """Heat of each landmark on the grid of tokens, 1 at the landmark.

  Args:
    points: [B, T, P, 2], x and y as shares of width and height; NaN where a
      landmark is missing, whose map is 0.
    hw: H and W.
    sigma: standard deviation of the Gaussian, in tokens.

  Returns:
    [B, T, N, P].
  """
  wide = jnp.promote_types(points.dtype, jnp.float32)
  points = points.astype(wide)
  found = jnp.isfinite(points).all(-1)
  points = jnp.where(found[..., None], points, 0)
  rows, columns = (jnp.arange(size, dtype=wide) + 0.5 for size in hw)
  x = columns - points[..., :1] * hw[1]  # [B, T, P, W]
  y = rows - points[..., 1:] * hw[0]
  square = jnp.square(y)[..., :, None] + jnp.square(x)[..., None, :]
  heat = jnp.exp(-square / (2 * sigma**2)) * found[..., None, None]
  return einops.rearrange(heat, 'b t p h w -> b t (h w) p')


def relative_positions(window: Window) -> np.ndarray:
  """Row of the bias table for each query and key of a window: int [n, n]."""
  places = np.indices(window).reshape(2, -1)
  offset = places[:, :, None] - places[:, None, :]
  row, column = (o + size - 1 for o, size in zip(offset, window, strict=True))
  return row * (2 * window[1] - 1) + column


def window_cross_attention(
  query: Array, key: Array, value: Array, bias: Array, window: Window
) -> Array:
  """Attention of all queries to the keys of their window.

  A grid that is no multiple of the window is padded at the bottom and right;
  nothing attends to padding. The maps are materialised, in at least float32.

  Args:
    query: [M, H, W, D], of the guide.
    key: [M, H, W, D].
    value: [M, H, W, D].
    bias: [(2 wh - 1) * (2 ww - 1), h], of relative positions.
    window: wh and ww, in tokens.

  Returns:
    [M, H, W, D], in the type of the values.
  """
  _, height, width, dim = query.shape
  wide = jnp.promote_types(query.dtype, jnp.float32)
  heads = bias.shape[-1]
  q, k, v = (
    einops.rearrange(_windows(x, window), '... n (h d) -> ... h n d', h=heads)
    for x in (query, key, value)
  )
  scores = jnp.einsum('...id,...jd->...ij', q, k, preferred_element_type=wide)
  table = jnp.take(bias, relative_positions(window), axis=0)  # [n, n, h]
  scores = scores * (dim // heads) ** -0.5 + table.transpose(2, 0, 1)
  present = jnp.ones((1, height, width, 1), bool)
  present = _windows(present, window)[:, :, None, None, :, 0]
  attention = jax.nn.softmax(jnp.where(present, scores, -jnp.inf))
  output = einops.rearrange(
    attention.astype(v.dtype) @ v,
    'm (a b) h (i j) d -> m (a i) (b j) (h d)',
    a=-(-height // window[0]),
    i=window[0],
  )
  return output[:, :height, :width]


def pool_grid(x: Array, factor: int) -> Array:
  """Means of factor x factor tokens, or what the edge leaves of them.

  [M, H, W, D] -> [M, ceil(H / factor), ceil(W / factor), D].
  """
  if factor == 1:
    return x
  window = (factor, factor)
  counts = _pad(jnp.ones((1, *x.shape[1:3], 1), x.dtype), window)
  total, count = (
    einops.reduce(y, 'm (h i) (w j) d -> m h w d', 'sum', i=factor, j=factor)
    for y in (_pad(x, window), counts)
  )
  return total / count


def repeat_grid(x: Array, factor: int, hw: Window) -> Array:
  """Brings pooled tokens back to a grid of H x W: [M, H, W, D]."""
  x = einops.repeat(x, 'm h w d -> m (h i) (w j) d', i=factor, j=factor)
  return x[:, : hw[0], : hw[1]]


class CrossWindows(nn.Module):
  """A residual block: guided attention at all scales, then an MLP.

  Scale s has N_s = N / 4^s tokens and 3 D^2 + (2 w - 1)^2 h parameters, and
  multiplies 3 N_s D^2 + 2 N_s w^2 D times for a frame; query='dense' adds D^2
  parameters to each. The MLP has 2 mlp_ratio D^2.

  Attributes:
    config: its options.
    heads: h, dividing D.
    grid: T, H and W.
    dtype: of the computation.
    kernel_init: of all kernels.
  """

  config: CrossWindowsConfig
  heads: int
  grid: Grid
  dtype: Any = jnp.float32
  kernel_init: Callable[..., Array] = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, x: Array, landmarks: Array | None = None) -> Array:
    """Adds what the guide finds to the tokens.

    Args:
      x: [B, L, D].
      landmarks: [B, T, P, 2] as in `landmark_maps`, for guide='landmarks'.

    Returns:
      [B, L, D]; x, where both layer scales are 0.

    Raises:
      ValueError: sizes that do not fit, or no landmarks where they guide.
    """
    config, dim = self.config, x.shape[-1]
    self._check(x, landmarks)
    start = nn.initializers.constant(config.layer_scale)
    normed = self._norm('norm')(x)
    guide = self._images(self._guide(normed, landmarks))
    images = self._images(normed)
    scales = self.param('attention_scale', start, (config.scales, dim))
    for s in range(config.scales):
      y = self._attend(guide, images, s).reshape(x.shape)
      x = x + scales[s].astype(x.dtype) * y.astype(x.dtype)
    y = self._norm('mlp_norm')(x)
    y = self._dense(int(dim * config.mlp_ratio + 1e-6), 'fc1')(y)
    y = self._dense(dim, 'fc2')(nn.gelu(y, approximate=False))
    scale = self.param('mlp_scale', start, (dim,))
    return x + scale.astype(x.dtype) * y.astype(x.dtype)

  def _guide(self, x: Array, landmarks: Array | None) -> Array:
    """[B, T, N, D]."""
    frames, *hw = self.grid
    if self.config.guide == 'landmarks':
      assert landmarks is not None
      maps = landmark_maps(landmarks, (hw[0], hw[1]), self.config.sigma)
      return self._dense(x.shape[-1], 'guide')(maps)
    x = einops.rearrange(x, 'b (t n) d -> b t n d', t=frames)
    return frame_differences(x)

  def _images(self, x: Array) -> Array:
    """[B, L, D] or [B, T, N, D] -> [M, H, W, D]."""
    return x.reshape(-1, *self.grid[1:], x.shape[-1])

  def _attend(self, guide: Array, x: Array, s: int) -> Array:
    """What scale s adds to the tokens: [M, H, W, D]."""
    hw, factor, dim = self.grid[1:], 2**s, x.shape[-1]
    guide, x = pool_grid(guide, factor), pool_grid(x, factor)
    height, width = (min(self.config.window, size) for size in x.shape[1:3])
    window = height, width
    if self.config.query == 'dense':
      guide = self._dense(dim, f'query_{s}')(guide)
    key, value = jnp.split(self._dense(2 * dim, f'key_value_{s}')(x), 2, -1)
    size = (2 * window[0] - 1) * (2 * window[1] - 1)
    zeros = nn.initializers.zeros
    bias = self.param(f'position_bias_{s}', zeros, (size, self.heads))
    y = window_cross_attention(guide, key, value, bias, window)
    return repeat_grid(self._dense(dim, f'out_{s}')(y), factor, hw)

  def _dense(self, features: int, name: str) -> nn.Dense:
    return nn.Dense(
      features, dtype=self.dtype, kernel_init=self.kernel_init, name=name
    )

  def _norm(self, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
      epsilon=1e-6, dtype=self.dtype, use_fast_variance=False, name=name
    )

  def _check(self, x: Array, landmarks: Array | None) -> None:
    config, (frames, *hw) = self.config, self.grid
    if x.ndim != 3 or x.shape[1] != frames * hw[0] * hw[1]:
      raise ValueError(
        f'tokens are {x.shape}; grid {self.grid} needs '
        f'[B, {frames * hw[0] * hw[1]}, D]'
      )
    if x.shape[-1] % self.heads:
      raise ValueError(f'{self.heads} heads do not divide dim {x.shape[-1]}')
    most = min(hw).bit_length()
    if config.scales > most:
      raise ValueError(
        f'CrossWindowsConfig.scales is {config.scales}; a grid of '
        f'{hw[0]} x {hw[1]} tokens has at most {most}'
      )
    if config.guide == 'landmarks':
      shape = None if landmarks is None else landmarks.shape
      if shape is None or shape[:2] != (len(x), frames) or shape[3:] != (2,):
        raise ValueError(
          f"landmarks are {shape}; guide='landmarks' needs "
          f"[{len(x)}, {frames}, P, 2]; or use guide='difference'"
        )


def _pad(x: Array, window: Window) -> Array:
  """Zeros at the bottom and right, up to a multiple of the window."""
  rows, columns = (-s % w for s, w in zip(x.shape[1:3], window, strict=True))
  return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))


def _windows(x: Array, window: Window) -> Array:
  """[M, H, W, D] -> [M, windows, n, D]."""
  return einops.rearrange(
    _pad(x, window),
    'm (a i) (b j) d -> m (a b) (i j) d',
    i=window[0],
    j=window[1],
  )
