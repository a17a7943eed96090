"""Embedding, positions and MLP of the video transformers.

B clips, T temporal tokens (slots of `tubelet` frames), L tokens, C model width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mira_jax.kernels import dispatch
from mira_jax.systems.experts import SUFFIX, Experts, ExpertsConfig

Array = jax.Array
Dtype = Any
Grid = tuple[int, int, int]  # tokens in time, height and width

# Absolute cut at 2 in the reference: one hundred standard deviations.
default_init = nn.initializers.normal(0.02)


def torch_uniform(fan_in: int) -> Callable[..., Array]:
  """PyTorch's default for Linear and Conv: U(-1/sqrt(fan_in), same)."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def sinusoid(length: int, dim: int) -> np.ndarray:
  """Sine and cosine of the flattened token index, [length, dim] float32.

  Computed in float64 as in docs/method.md, section 5.
  """
  channel = np.arange(dim)
  angle = np.arange(length)[:, None] / 10000.0 ** (2 * (channel // 2) / dim)
  table = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
  return table.astype(np.float32)


def resize_positions(table: Array, old: Grid, new: Grid) -> Array:
  """Cubic interpolation of a position table [L, C] to another grid.

  In time as in space; shrinking an axis smooths it first.
  """
  if old == new:
    return table
  grid = jnp.reshape(table, (*old, -1))
  grid = jax.image.resize(grid, (*new, grid.shape[-1]), 'cubic')
  return grid.reshape(-1, grid.shape[-1])


def layer_norm(dtype: Dtype, name: str, eps: float) -> nn.LayerNorm:
  """LayerNorm as the reference has it: two-pass variance, eps added to it."""
  return nn.LayerNorm(
    epsilon=eps, dtype=dtype, use_fast_variance=False, name=name
  )


def mlp_width(dim: int, ratio: float) -> int:
  """Hidden width of an MLP; whole where `ratio` is a rounded quotient."""
  return int(dim * ratio + 1e-6)


def token_grid(shape: tuple[int, ...], tubelet: int, patch: int) -> Grid:
  """Tokens in time, height and width of a video [B, F, H, W, 3].

  Raises:
    ValueError: another shape, or sizes that are no multiples.
  """
  if len(shape) != 5 or shape[-1] != 3:
    raise ValueError(f'video is {shape}; it must be [B, F, H, W, 3]')
  sizes, units = shape[1:4], (tubelet, patch, patch)
  if any(size % unit for size, unit in zip(sizes, units, strict=True)):
    raise ValueError(
      f'video is {sizes} (F, H, W); each must be a multiple of {units} '
      '(tubelet, patch, patch)'
    )
  t, h, w = (size // unit for size, unit in zip(sizes, units, strict=True))
  return t, h, w


def tubelets(video: Array, tubelet: int, patch: int) -> Array:
  """Cuts [B, F, H, W, 3] into tokens [B, L, tubelet * patch * patch, 3].

  Tokens run over time, then height, then width, and so do pixels within them.
  """
  t, h, w = token_grid(video.shape, tubelet, patch)
  pattern = 'b (t dt) (h dh) (w dw) c -> b (t h w) (dt dh dw) c'
  return einops.rearrange(video, pattern, t=t, h=h, w=w)


def untubelets(x: Array, grid: Grid, tubelet: int, patch: int) -> Array:
  """The inverse of `tubelets`."""
  t, h, _ = grid
  pattern = 'b (t h w) (dt dh dw) c -> b (t dt) (h dh) (w dw) c'
  return einops.rearrange(x, pattern, t=t, h=h, dt=tubelet, dh=patch, dw=patch)


HOG_CELL = 4  # pixels along a side, of a token's histograms
HOG_BINS = 9  # of 20 degrees; opposite directions are one


def oriented_gradients(video: Array, cell: int) -> Array:
  """Gradients of luma by direction, summed over cells (Dalal and Triggs 2005).

  Each is shared by the two bins beside its direction. [B, F, H, W, 3] ->
  [B, F, H / cell, W / cell, HOG_BINS], not normalised.
  """
  luma = video @ jnp.array([0.299, 0.587, 0.114], video.dtype)
  down, right = _central_difference(luma, 2), _central_difference(luma, 3)
  direction = jnp.arctan2(down, right)
  opposite = jnp.where(direction < 0, direction + jnp.pi, direction)
  direction = opposite * (HOG_BINS / jnp.pi)
  apart = jnp.abs(direction[..., None] - jnp.arange(HOG_BINS))
  share = jnp.maximum(1 - jnp.minimum(apart, HOG_BINS - apart), 0)
  votes = share * jnp.hypot(down, right)[..., None]
  pattern = 'b f (h y) (w x) k -> b f h w k'
  return einops.reduce(votes, pattern, 'sum', y=cell, x=cell)


def _central_difference(x: Array, axis: int) -> Array:
  """The next pixel less the one before; at the edges this pixel is either."""
  last = x.shape[axis] - 1
  part = functools.partial(jax.lax.slice_in_dim, x, axis=axis)
  after = jnp.concatenate([part(1, None), part(last, None)], axis)
  return after - jnp.concatenate([part(0, 1), part(0, last)], axis)


class TubeletEmbed(nn.Module):
  """Linear map of the `tubelets`: [B, F, H, W, 3] -> [B, L, C].

  Of pixels, or of what a stem computes in each frame:

  - 'conv', that of Xiao et al., Early convolutions help transformers see
    better, https://arxiv.org/abs/2106.14881: 3 x 3 convolutions of stride 2,
    down to one pixel per token and half as wide as C at the end. LayerNorm over
    channels needs no statistics of a batch.
  - 'hog', histograms of oriented gradients in cells of HOG_CELL pixels, over
    their deviation in a token: what few clips cannot teach a first layer.
  """

  dim: int
  tubelet: int = 2
  patch: int = 16
  stem: str = 'linear'
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, video: Array) -> Array:
    t, h, w = token_grid(video.shape, self.tubelet, self.patch)
    if self.stem == 'conv':
      x = self._convolve(video)
    elif self.stem == 'hog':
      x = self._histograms(video)
    else:
      x = video
    # A convolution whose stride is its kernel is one matrix product.
    size = (self.tubelet, x.shape[2] // h, x.shape[3] // w, x.shape[-1])
    init = torch_uniform(int(np.prod(size)))
    kernel = self.param('kernel', init, (*size, self.dim))
    bias = self.param('bias', init, (self.dim,))
    x, kernel, bias = (x.astype(self.dtype) for x in (x, kernel, bias))
    pattern = 'b (t dt) (h dh) (w dw) c -> b (t h w) (dt dh dw c)'
    x = einops.rearrange(x, pattern, t=t, h=h, w=w)
    return x @ kernel.reshape(-1, self.dim) + bias

  def _histograms(self, video: Array) -> Array:
    """[B, F, H, W, 3] -> [B, F, H / patch, W / patch, cells * HOG_BINS]."""
    side = self.patch // HOG_CELL
    pattern = 'b f (h y) (w x) k -> b f h w (y x k)'
    x = oriented_gradients(video, HOG_CELL)
    x = einops.rearrange(x, pattern, y=side, x=side)
    # The constant is the contrast of noise: flat tokens stay near 0.
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 0.1)

  def _convolve(self, video: Array) -> Array:
    """[B, F, H, W, 3] -> [B, F, H / patch, W / patch, C / 2]."""
    x = einops.rearrange(video.astype(self.dtype), 'b f h w c -> (b f) h w c')
    count = self.patch.bit_length() - 1
    for i in range(count):
      conv = nn.Conv(
        max(1, self.dim >> (count - i)),
        (3, 3),
        strides=2,
        use_bias=False,
        dtype=self.dtype,
        name=f'conv_{i}',
      )
      x = nn.relu(layer_norm(self.dtype, f'norm_{i}', 1e-6)(conv(x)))
    return einops.rearrange(x, '(b f) ... -> b f ...', f=video.shape[1])


def once(x: Array) -> Array:
  """x, which a CPU computes once and not in every operation that uses it.

  XLA fuses it into each of them there, and jax 0.10 needs the options of
  `train.step.compiler_options` beside it.
  """
  on_cpu = dispatch.target().platform == 'cpu'
  return jax.lax.optimization_barrier(x) if on_cpu else x


@jax.custom_vjp
def gelu(x: Array) -> Array:
  """x Phi(x), Phi being the normal distribution function: the exact GELU.

  By erf, as PyTorch has it: erfc, which jax.nn takes, costs a CPU three times
  as much. The backward pass keeps x alone.
  """
  return (x * _normal_cdf(x)).astype(x.dtype)


def _normal_cdf(x: Array) -> Array:
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_bwd(x: Array, g: Array) -> tuple[Array]:
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  density = jnp.exp(-0.5 * wide * wide) * (2 * np.pi) ** -0.5
  return (once((g * (_normal_cdf(x) + wide * density)).astype(x.dtype)),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_bwd)


class Mlp(nn.Module):
  """Two linear layers with a GELU between: 'exact', or its 'tanh' formula."""

  hidden: int
  gelu: str = 'exact'
  kernel_init: Callable[..., Array] = default_init
  dtype: Dtype = jnp.float32
  experts: ExpertsConfig | None = None
  train: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    def dense(x, features, name):
      layer = nn.Dense(
        features, dtype=self.dtype, kernel_init=self.kernel_init, name=name
      )
      return with_experts(layer, self.experts, x, self.train)

    hidden = dense(x, self.hidden, 'fc1')
    hidden = nn.gelu(hidden) if self.gelu == 'tanh' else gelu(hidden)
    return dense(hidden, x.shape[-1], 'fc2')


def with_experts(
  layer: nn.Dense | nn.DenseGeneral,
  config: ExpertsConfig | None,
  x: Array,
  train: bool,
) -> Array:
  """The output of a named layer, with its experts if there are any."""
  y = layer(x)
  if config is None:
    return y
  axis: Any = getattr(layer, 'axis', -1)
  features: Any = layer.features
  branch = Experts(
    config, features, axis, y.dtype, train, name=f'{layer.name}{SUFFIX}'
  )
  return y + branch(x)
