"""Transformer blocks and stacks of them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mira_jax.devices import partition
from mira_jax.kernels.attention import Attended
from mira_jax.kernels.operations import REMAT
from mira_jax.mira import MiraConfig, key_marginal
from mira_jax.models.layers import (
  Attention,
  Dtype,
  Mlp,
  default_init,
  layer_norm,
  mlp_width,
)

Array = jax.Array
Record = dict[str, Array]


class Block(nn.Module):
  """Pre-norm transformer block.

  Attributes:
    mlp_ratio: hidden width of the MLP over C.
    gelu: of the MLP, see `layers.Mlp`.
    norm_eps: what the norms add to a variance.
    layer_scale: start value of a learned per-channel scale on both branches;
      None leaves it out.
    attention: its implementation, see `kernels.dispatch`; None chooses.
    drop_path: whether to draw which clips lose a branch (rng 'dropout').
    record: whether to return what a person may want to see.
  """

  heads: int
  num_frames: int
  mira: MiraConfig | None = None
  num_prefix: int = 0
  mlp_ratio: float = 4.0
  gelu: str = 'exact'
  norm_eps: float = 1e-6
  layer_scale: float | None = None
  attention: str | None = None
  train: bool = False
  drop_path: bool = False
  record: bool = False
  kernel_init: Callable[..., Array] = default_init
  dtype: Dtype = jnp.float32

  attention_type = Attention  # what a variant may replace; no field

  @nn.compact
  def __call__(
    self, x: Array, drop_rate: Array | float
  ) -> tuple[Array, Record | None]:
    """[B, L, C] -> [B, L, C] and the record of `block_record`, if asked."""
    x = partition.split_clips(x)
    y, attended = self._attention(self.attention_type, 'attn')(
      self._norm('norm1')(x)
    )
    x = x + self._branch(y, drop_rate, 'scale1')
    x = self._mlp(x, drop_rate)
    return x, block_record(attended, x) if self.record else None

  def _attention(self, kind: type[Attention], name: str) -> Attention:
    return kind(
      heads=self.heads,
      num_frames=self.num_frames,
      mira=self.mira,
      num_prefix=self.num_prefix,
      train=self.train,
      implementation=self.attention,
      keep_maps=self.record,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      name=name,
    )

  def _norm(self, name: str) -> nn.LayerNorm:
    return layer_norm(self.dtype, name, self.norm_eps)

  def _mlp(self, x: Array, drop_rate: Array | float) -> Array:
    """The second half of a block."""
    y = Mlp(
      mlp_width(x.shape[-1], self.mlp_ratio),
      self.gelu,
      self.kernel_init,
      self.dtype,
      name='mlp',
    )(self._norm('norm2')(x))
    return x + self._branch(y, drop_rate, 'scale2')

  def _branch(self, y: Array, drop_rate: Array | float, name: str) -> Array:
    """Layer scale and drop path (each clip loses the branch with drop_rate)."""
    if self.layer_scale is not None:
      init = nn.initializers.constant(self.layer_scale)
      y = y * self.param(name, init, (y.shape[-1],)).astype(y.dtype)
    return self._drop(y, drop_rate)

  def _drop(self, y: Array, drop_rate: Array | float) -> Array:
    """Drop path over the leading axis."""
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
    block: the kind of block, see `variants.BLOCKS`.
    drop_path: rate of the last block; rates rise linearly.
    first_drop_path: rate of the first block.
    remat: what the backward pass keeps, a key of `kernels.operations.REMAT`;
      None keeps all.
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
  gelu: str = 'exact'
  norm_eps: float = 1e-6
  layer_scale: float | None = None
  attention: str | None = None
  block: type[Block] = Block
  drop_path: float = 0.0
  first_drop_path: float = 0.0
  remat: str | None = None
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
    rates = np.linspace(
      self.first_drop_path, self.drop_path, self.depth, dtype=np.float32
    )
    block = self._rematerialised() if self.remat else self.block
    if self.scan:
      return self._scan(block, x, rates)
    records = []
    for i, rate in enumerate(rates):
      mira = self.mira if i >= self._first_mira() else None
      x, record = self._make(block, mira, name=f'block_{i}')(x, rate)
      records.append(record)
    return x, records if self.record else None

  def _rematerialised(self):
    return nn.remat(
      self.block, prevent_cse=not self.scan, policy=REMAT[self.remat]
    )

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
      gelu=self.gelu,
      norm_eps=self.norm_eps,
      layer_scale=self.layer_scale,
      attention=self.attention,
      train=self.train,
      drop_path=self.train and self.drop_path > 0,
      record=self.record,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      name=name,
    )
