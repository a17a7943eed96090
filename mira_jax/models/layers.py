"""The layers that every video transformer here is built from.

Shapes: B clips, T temporal slots (MiRA's frames), N tokens per slot, L tokens,
C model width, H heads, D = C / H.
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

from mira_jax.kernels.attention import Attended, mira_attention
from mira_jax.mira import MiraConfig

Array = jax.Array
Dtype = Any

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

  Channel j of token p has angle `p / 10000 ** (2 * (j // 2) / dim)`, sine where
  j is even; docs/method.md, section 5. In float64, rounded to float32.
  """
  channel = np.arange(dim)
  angle = np.arange(length)[:, None] / 10000.0 ** (2 * (channel // 2) / dim)
  table = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
  return table.astype(np.float32)


def resize_positions(
  table: Array, old: tuple[int, int, int], new: tuple[int, int, int]
) -> Array:
  """Cubic interpolation of a position table [L, C] to another (T, h, w).

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


def token_grid(
  shape: tuple[int, ...], tubelet: int, patch: int
) -> tuple[int, int, int]:
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
  return einops.rearrange(
    video,
    'b (t dt) (h dh) (w dw) c -> b (t h w) (dt dh dw) c',
    t=t,
    h=h,
    w=w,
  )


class TubeletEmbed(nn.Module):
  """Linear map of every t x p x p tubelet: [B, F, H, W, 3] -> [B, L, C].

  Tokens are those of `tubelets`.
  """

  dim: int
  tubelet: int = 2
  patch: int = 16
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, video: Array) -> Array:
    size = (self.tubelet, self.patch, self.patch, video.shape[-1])
    init = torch_uniform(int(np.prod(size)))
    kernel = self.param('kernel', init, (*size, self.dim))
    bias = self.param('bias', init, (self.dim,))
    video, kernel, bias = (x.astype(self.dtype) for x in (video, kernel, bias))
    # A convolution whose stride is its kernel is one matrix product.
    x = einops.rearrange(
      tubelets(video, self.tubelet, self.patch), 'b l p c -> b l (p c)'
    )
    return x @ kernel.reshape(-1, self.dim) + bias


class Attention(nn.Module):
  """Multi-head self-attention with MiRA as an option.

  Attributes:
    heads: H.
    num_frames: T.
    head_dim: D; None is C / H.
    mira: None is plain attention, with the same parameters.
    num_prefix: leading tokens of no frame.
    train: whether a training step is running.
    implementation: of attention, see `kernels.dispatch`; None chooses.
    keep_maps: whether None must choose one that returns attention maps.
  """

  heads: int
  num_frames: int
  head_dim: int | None = None
  mira: MiraConfig | None = None
  num_prefix: int = 0
  train: bool = False
  implementation: str | None = None
  keep_maps: bool = False
  kernel_init: Callable[..., Array] = default_init
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Attended]:
    """[B, L, C] -> the output [B, L, C] and what led to it."""
    dim = x.shape[-1]
    if self.head_dim is None and dim % self.heads:
      raise ValueError(f'{self.heads} heads do not divide dim {dim}')
    head_shape = (self.heads, self.head_dim or dim // self.heads)
    qkv = nn.DenseGeneral(
      (3, *head_shape),
      use_bias=False,
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      name='qkv',
    )(x)
    q, k, v = (qkv[:, :, i] for i in range(3))
    # Keys have no bias: it would cancel in the softmax.
    zeros = nn.initializers.zeros
    q = q + self.param('q_bias', zeros, head_shape).astype(self.dtype)
    v = v + self.param('v_bias', zeros, head_shape).astype(self.dtype)
    attended = self._attend(q, k, v)
    y = nn.DenseGeneral(
      dim,
      axis=(-2, -1),
      dtype=self.dtype,
      kernel_init=self.kernel_init,
      name='proj',
    )(attended.output)
    return y, attended

  def _attend(self, q: Array, k: Array, v: Array) -> Attended:
    """What a variant changes: [B, L, H, D] three times -> the attention."""
    attend = functools.partial(
      mira_attention,
      q,
      k,
      v,
      num_frames=self.num_frames,
      config=self.mira,
      num_prefix=self.num_prefix,
      training=self.train,
      implementation=self._implementation(),
    )
    return self._with_average(attend)

  def _implementation(self) -> str | None:
    return self.implementation or ('meaning' if self.keep_maps else None)

  def _with_average(self, attend: Callable[..., Attended]) -> Attended:
    """Runs `attend(past=...)` with MiRA's EMA so far, and moves it on."""
    learning = self.is_mutable_collection('mira')
    if self.train and self._has_ema() and not learning:
      raise ValueError("statistics='batch_ema' trains with mutable=['mira']")
    past = None
    # The reference keeps this buffer in every statistics mode; so do we, so
    # that a conversion back and forth loses nothing. Where nothing needs it,
    # the variables of a plain model will do.
    if self.mira is not None and (
      learning or self.has_variable('mira', 'confidence')
    ):
      past = self.variable('mira', 'confidence', self._uniform)
    attended = attend(past=None if past is None else past.value)
    if past is not None and learning and not self.is_initializing():
      past.value = attended.frames.ema.astype(past.value.dtype)
    return attended

  def _has_ema(self) -> bool:
    return self.mira is not None and self.mira.statistics == 'batch_ema'

  def _uniform(self) -> Array:
    return jnp.full((self.num_frames,), 1 / self.num_frames, jnp.float32)


class Mlp(nn.Module):
  """Two linear layers with a GELU between: 'exact', or its 'tanh' formula."""

  hidden: int
  gelu: str = 'exact'
  kernel_init: Callable[..., Array] = default_init
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dim = x.shape[-1]

    def dense(features, name):
      return nn.Dense(
        features, dtype=self.dtype, kernel_init=self.kernel_init, name=name
      )

    approximate = self.gelu == 'tanh'
    x = nn.gelu(dense(self.hidden, 'fc1')(x), approximate=approximate)
    return dense(dim, 'fc2')(x)
