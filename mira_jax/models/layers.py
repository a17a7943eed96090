"""The layers that every video transformer here is built from.

Shapes: B clips, T temporal slots (MiRA's frames), N tokens per slot, L tokens,
C model width, H heads, D = C / H.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mira_jax.kernels.attention import Attended, mira_attention
from mira_jax.mira import MiraConfig, key_marginal

Array = jax.Array
Dtype = Any
Record = dict[str, Array]

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


def layer_norm(dtype: Dtype, name: str) -> nn.LayerNorm:
  """LayerNorm as the reference has it: epsilon 1e-6, two-pass variance."""
  return nn.LayerNorm(
    epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name
  )


class TubeletEmbed(nn.Module):
  """Linear map of every t x p x p tubelet: [B, F, H, W, 3] -> [B, L, C].

  Tokens run over time, then height, then width.
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
    # One matrix product: a strided convolution, but faster on every backend.
    x = einops.rearrange(
      video,
      'b (t dt) (h dh) (w dw) c -> b (t h w) (dt dh dw c)',
      dt=self.tubelet,
      dh=self.patch,
      dw=self.patch,
    )
    return x @ kernel.reshape(-1, self.dim) + bias


class Attention(nn.Module):
  """Multi-head self-attention with MiRA as an option.

  Attributes:
    heads: H.
    num_frames: T.
    mira: None is plain attention, with the same parameters.
    num_prefix: leading tokens of no frame.
    train: whether a training step is running.
    implementation: of attention, see `kernels.attention`; None chooses.
    keep_maps: whether None must choose one that returns attention maps.
  """

  heads: int
  num_frames: int
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
    if dim % self.heads:
      raise ValueError(f'{self.heads} heads do not divide dim {dim}')
    head_shape = (self.heads, dim // self.heads)
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
    attended = mira_attention(
      q,
      k,
      v,
      num_frames=self.num_frames,
      config=self.mira,
      num_prefix=self.num_prefix,
      past=None if past is None else past.value,
      training=self.train,
      implementation=self.implementation
      or ('meaning' if self.keep_maps else None),
    )
    if past is not None and learning and not self.is_initializing():
      past.value = attended.frames.ema.astype(past.value.dtype)
    return attended

  def _has_ema(self) -> bool:
    return self.mira is not None and self.mira.statistics == 'batch_ema'

  def _uniform(self) -> Array:
    return jnp.full((self.num_frames,), 1 / self.num_frames, jnp.float32)


class Mlp(nn.Module):
  """Two linear layers with the exact GELU between."""

  hidden: int
  kernel_init: Callable[..., Array] = default_init
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dim = x.shape[-1]

    def dense(features, name):
      return nn.Dense(
        features, dtype=self.dtype, kernel_init=self.kernel_init, name=name
      )

    x = nn.gelu(dense(self.hidden, 'fc1')(x), approximate=False)
    return dense(dim, 'fc2')(x)


class Block(nn.Module):
  """Pre-norm transformer block.

  Attributes:
    mlp_ratio: hidden width of the MLP over C.
    layer_scale: start value of a learned per-channel scale on both branches;
      None leaves it out.
    attention: its implementation, see `kernels.attention`; None chooses.
    drop_path: whether to draw which clips lose a branch (rng 'dropout').
    record: whether to return what a person may want to see.
  """

  heads: int
  num_frames: int
  mira: MiraConfig | None = None
  num_prefix: int = 0
  mlp_ratio: float = 4.0
  layer_scale: float | None = None
  attention: str | None = None
  train: bool = False
  drop_path: bool = False
  record: bool = False
  kernel_init: Callable[..., Array] = default_init
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Array, drop_rate: Array | float
  ) -> tuple[Array, Record | None]:
    """[B, L, C] -> [B, L, C] and the record of `block_record`, if asked."""
    y, attended = Attention(
      heads=self.heads,
      num_frames=self.num_frames,
      mira=self.mira,
      num_prefix=self.num_prefix,
      train=self.train,
      implementation=self.attention,
      keep_maps=self.record,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      name='attn',
    )(layer_norm(self.dtype, 'norm1')(x))
    x = x + self._branch(y, drop_rate, 'scale1')
    y = Mlp(
      int(x.shape[-1] * self.mlp_ratio),
      self.kernel_init,
      self.dtype,
      name='mlp',
    )(layer_norm(self.dtype, 'norm2')(x))
    x = x + self._branch(y, drop_rate, 'scale2')
    return x, block_record(attended, x) if self.record else None

  def _branch(self, y: Array, drop_rate: Array | float, name: str) -> Array:
    """Layer scale and drop path (each clip loses the branch with drop_rate)."""
    if self.layer_scale is not None:
      init = nn.initializers.constant(self.layer_scale)
      y = y * self.param(name, init, (y.shape[-1],)).astype(y.dtype)
    if self.drop_path:
      keep = 1 - jnp.asarray(drop_rate, jnp.float32)
      kept = jax.random.bernoulli(
        self.make_rng('dropout'), keep, (y.shape[0], 1, 1)
      )
      y = jnp.where(kept, y / keep.astype(y.dtype), 0)
    return y


def block_record(attended: Attended, output: Array) -> Record:
  """What a person may want to see of a block, by name.

  `attention_before`, `attention_after` [B, H, L, L] and `before`, `after`
  [B, L], their key marginals, unless an implementation without maps was asked
  for; `output` [B, L, C]; and with MiRA `gain`, `prior`, `score`, `confidence`,
  `concentration` (unless N is 1), each [B or 1, T].
  """
  record = {'output': output}
  if attended.before is not None:
    record |= {
      'attention_before': attended.before,
      'attention_after': attended.after,
      'before': key_marginal(attended.before),
      'after': key_marginal(attended.after),
    }
  if attended.frames is not None:
    frames = attended.frames._asdict()
    del frames['ema']
    record |= {name: x for name, x in frames.items() if x is not None}
  return record


class Encoder(nn.Module):
  """A stack of blocks, MiRA in the last of them.

  Attributes:
    mira_last_blocks: how many blocks have MiRA, counted from the end; None is
      all of them.
    drop_path: rate of the last block; rates rise linearly from 0.
    remat: recompute each block in the backward pass instead of storing it.
    scan: compile one block and loop over stacked parameters (`blocks`, with a
      leading depth axis, instead of `block_0`, `block_1`, ...).
  """

  depth: int
  heads: int
  num_frames: int
  mira: MiraConfig | None = None
  mira_last_blocks: int | None = None
  num_prefix: int = 0
  mlp_ratio: float = 4.0
  layer_scale: float | None = None
  attention: str | None = None
  drop_path: float = 0.0
  remat: bool = False
  scan: bool = False
  train: bool = False
  record: bool = False
  kernel_init: Callable[..., Array] = default_init
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, list[Record] | None]:
    """[B, L, C] -> [B, L, C] and, if asked, one record per block."""
    if not 0 <= self.drop_path < 1:
      raise ValueError(f'drop_path is {self.drop_path}; use 0 to below 1')
    rates = np.linspace(0, self.drop_path, self.depth, dtype=np.float32)
    block = nn.remat(Block, prevent_cse=not self.scan) if self.remat else Block
    if self.scan:
      return self._scan(block, x, rates)
    records = []
    for i, rate in enumerate(rates):
      mira = self.mira if i >= self._first_mira() else None
      x, record = self._make(block, mira, name=f'block_{i}')(x, rate)
      records.append(record)
    return x, records if self.record else None

  def _first_mira(self) -> int:
    last = self.mira_last_blocks
    return 0 if last is None else max(0, self.depth - last)

  def _scan(self, block, x: Array, rates: np.ndarray):
    if self.mira is not None and self._first_mira() > 0:
      raise ValueError(
        f'scan needs the same attention in every block, but MiRA is in the '
        f'last {self.mira_last_blocks} of {self.depth}; set '
        'mira_last_blocks=None or scan=False'
      )
    scanned = nn.scan(
      block,
      variable_axes={'params': 0, 'mira': 0},
      split_rngs={'params': True, 'dropout': True},
      length=self.depth,
    )
    x, stacked = self._make(scanned, self.mira, name='blocks')(
      x, jnp.asarray(rates)
    )
    if not self.record:
      return x, None
    return x, [
      jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
      for i in range(self.depth)
    ]

  def _make(self, block, mira: MiraConfig | None, name: str) -> nn.Module:
    return block(
      heads=self.heads,
      num_frames=self.num_frames,
      mira=mira,
      num_prefix=self.num_prefix,
      mlp_ratio=self.mlp_ratio,
      layer_scale=self.layer_scale,
      attention=self.attention,
      train=self.train,
      drop_path=self.train and self.drop_path > 0,
      record=self.record,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      name=name,
    )
