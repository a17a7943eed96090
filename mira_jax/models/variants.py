"""Baselines: blocks that attend otherwise than jointly over space and time.

Each is a kind of `encoder.Block`, made for `num_prefix` 0. MiRA acts where
frames meet: on the global attention of 'intra', 'intra_as_shipped' and
'st_block', on the attention over time of the factorised ones. Only 'st_block'
and 'factorised_self_attention' have other parameters than 'joint'. See
docs/method.md, section 7.
"""

from __future__ import annotations

import functools

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from mira_jax.devices import partition
from mira_jax.kernels.attention import Attended
from mira_jax.models.encoder import Block, Record, block_record
from mira_jax.models.factorised import (
  heads_of,
  mean_of,
  outside_groups,
  over_time,
  within_frames,
)
from mira_jax.models.layers import Attention, Mlp

Array = jax.Array


class PartAttention(Attention):
  """What attention to a part of the tokens is made of."""

  def _within(self, q: Array, k: Array, v: Array) -> Attended:
    return within_frames(
      q,
      k,
      v,
      num_frames=self.num_frames,
      implementation=self._implementation(),
      keep_maps=self.keep_maps,
    )

  def _over_time(self, q: Array, k: Array, v: Array) -> Attended:
    attend = functools.partial(
      over_time,
      q,
      k,
      v,
      num_frames=self.num_frames,
      config=self.mira,
      training=self.train,
      keep_maps=self.keep_maps,
    )
    return self._with_average(attend)


class IntraAttention(PartAttention):
  """Half global attention, half attention within the token's own frame.

  MiRA is on the global half. In the authors' code it replaces both halves, and
  what is left is variant 'joint': ask for that to have it.
  """

  def _attend(self, q: Array, k: Array, v: Array) -> Attended:
    return mean_of(super()._attend(q, k, v), self._within(q, k, v))


class ShippedIntraAttention(IntraAttention):
  """`IntraAttention` with two mistakes of the authors' code, to reproduce it.

  What it takes for frames are runs of T tokens instead of N, and its second
  half attends to everything outside of them.
  """

  def _within(self, q: Array, k: Array, v: Array) -> Attended:
    return outside_groups(
      q, k, v, group=self.num_frames, keep_maps=self.keep_maps
    )


class SpatialAttention(PartAttention):
  """Attention within frames, without MiRA."""

  def _attend(self, q: Array, k: Array, v: Array) -> Attended:
    return self._within(q, k, v)


class TemporalAttention(PartAttention):
  """Attention over time at every place, with MiRA."""

  def _attend(self, q: Array, k: Array, v: Array) -> Attended:
    return self._over_time(q, k, v)


class DotProductAttention(PartAttention):
  """The first half of the heads attends within frames, the other over time.

  Raises:
    ValueError: an odd number of heads.
  """

  def _attend(self, q: Array, k: Array, v: Array) -> Attended:
    if self.heads % 2:
      raise ValueError(
        f"variant 'factorised_dot_product' halves the heads, and {self.heads} "
        'is odd; use an even number of heads'
      )
    (qs, qt), (ks, kt), (vs, vt) = (jnp.split(x, 2, axis=2) for x in (q, k, v))
    return heads_of(self._within(qs, ks, vs), self._over_time(qt, kt, vt))


class IntraBlock(Block):
  """'intra', see `IntraAttention`."""

  attention_type = IntraAttention


class ShippedIntraBlock(Block):
  """'intra_as_shipped', see `ShippedIntraAttention`."""

  attention_type = ShippedIntraAttention


class DotProductBlock(Block):
  """'factorised_dot_product', model 4 of ViViT: see `DotProductAttention`."""

  attention_type = DotProductAttention


class SelfAttentionBlock(Block):
  """'factorised_self_attention', model 3 of ViViT: attention twice.

  First within frames ('attn'), then over time ('time_attn') with a norm and a
  residual of its own, then the MLP. In records, maps have twice the heads.
  """

  @nn.compact
  def __call__(
    self, x: Array, drop_rate: Array | float
  ) -> tuple[Array, Record | None]:
    """See `Block`."""
    x = partition.split_clips(x)
    y, spatial = self._attention(SpatialAttention, 'attn')(
      self._norm('norm1')(x)
    )
    x = x + self._branch(y, drop_rate, 'scale1')
    y, temporal = self._attention(TemporalAttention, 'time_attn')(
      self._norm('time_norm')(x)
    )
    x = x + self._branch(y, drop_rate, 'time_scale')
    x = self._mlp(x, drop_rate)
    if not self.record:
      return x, None
    return x, block_record(heads_of(spatial, temporal), x)


class STBlock(Block):
  """'st_block' of the authors' code: a second, light block within each frame.

  It follows the usual block, and has 3 heads of max(32, C // 8) channels and an
  MLP with max(64, C // 4) hidden ones, no layer scale, and a drop path that
  drops single frames. MiRA is on the joint attention of the usual block, as
  there; records are of that attention.
  """

  @nn.compact
  def __call__(
    self, x: Array, drop_rate: Array | float
  ) -> tuple[Array, Record | None]:
    """See `Block`."""
    x = partition.split_clips(x)
    y, attended = self._attention(Attention, 'attn')(self._norm('norm1')(x))
    x = x + self._branch(y, drop_rate, 'scale1')
    x = self._mlp(x, drop_rate)
    x = self._framewise(x, drop_rate)
    return x, block_record(attended, x) if self.record else None

  def _framewise(self, x: Array, drop_rate: Array | float) -> Array:
    frames = self.num_frames
    x = einops.rearrange(x, 'b (t n) c -> (b t) n c', t=frames)
    dim = x.shape[-1]
    y, _ = Attention(
      heads=3,
      num_frames=1,
      head_dim=max(32, dim // 8),
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      name='framewise_attn',
    )(self._norm('framewise_norm1')(x))
    x = x + self._drop(y, drop_rate)
    y = Mlp(
      max(64, dim // 4),
      self.gelu,
      self.kernel_init,
      self.dtype,
      name='framewise_mlp',
    )(self._norm('framewise_norm2')(x))
    x = x + self._drop(y, drop_rate)
    return einops.rearrange(x, '(b t) n c -> b (t n) c', t=frames)


# 'factorised_encoder' is not here: it is two encoders of plain blocks.
BLOCKS = {
  'joint': Block,
  'intra': IntraBlock,
  'intra_as_shipped': ShippedIntraBlock,
  'st_block': STBlock,
  'factorised_self_attention': SelfAttentionBlock,
  'factorised_dot_product': DotProductBlock,
}
VARIANTS = (*BLOCKS, 'factorised_encoder')
CLS_VARIANTS = ('joint', 'factorised_encoder')

# Layers of the second encoder of 'factorised_encoder', as in the paper.
TEMPORAL_DEPTH = 4


def clip_record(record: Record, num_frames: int, num_prefix: int) -> Record:
  """The record of clips from that of their frames, [B * T, ...] each.

  Maps and outputs get the axes [B, T, ...]. The marginals become [B, L], those
  of the clip: a token receives attention from its own frame only, which is one
  of T. Prefix tokens are left out of them.
  """
  clips = {
    name: einops.rearrange(x, '(b t) ... -> b t ...', t=num_frames)
    for name, x in record.items()
  }
  for name in clips.keys() & {'before', 'after'}:
    marginal = clips[name][:, :, num_prefix:] / num_frames
    clips[name] = einops.rearrange(marginal, 'b t n -> b (t n)')
  return clips
