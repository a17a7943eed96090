"""Transformer blocks: attention with MiRA, MLP, and the blocks of variants.

B clips, T temporal tokens (MiRA's frames), N tokens of each, L tokens, C model
width, H heads, D channels per head.
"""

from __future__ import annotations

import dataclasses
import functools

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from mira_jax.devices.partition import split_clips
from mira_jax.kernels.attention import Attended
from mira_jax.mira import key_marginal
from mira_jax.models import variants
from mira_jax.models.layers import (
  Mlp,
  layer_norm,
  mlp_width,
  once,
  with_experts,
)
from mira_jax.models.spec import BlockSpec
from mira_jax.systems.gates import Gate
from mira_jax.systems.heads import Heads
from mira_jax.systems.orientation import OrientationGate, key_gain_of

Array = jax.Array
Rate = Array | float  # of drop path
State = Array | tuple[Array, Array]  # of a stack of blocks, see `Block`
Record = dict[str, Array]
LARGE = ('attention_before', 'attention_after', 'output')  # of a record


class Attention(nn.Module):
  """Multi-head self-attention.

  Attributes:
    spec: of the block.
    attend: from queries, keys and values to the attention, see `variants`.
    head_dim: D; None is C / H.
  """

  spec: BlockSpec
  attend: variants.Attend = variants.joint
  head_dim: int | None = None

  @nn.compact
  def __call__(
    self, x: Array, gain: Array | None = None
  ) -> tuple[Array, Attended]:
    """[B, L, C] -> the output [B, L, C] and the attention.

    `gain` [B, L] is on the attention to every token.
    """
    spec, dim = self.spec, x.shape[-1]
    if self.head_dim is None and dim % spec.heads:
      raise ValueError(f'{spec.heads} heads do not divide dim {dim}')
    head_shape = (spec.heads, self.head_dim or dim // spec.heads)
    options = {'dtype': spec.dtype, 'kernel_init': spec.kernel_init}
    layer = nn.DenseGeneral(
      (3, *head_shape), use_bias=False, name='qkv', **options
    )
    qkv = with_experts(layer, spec.experts, x, spec.train)
    # A split, whose gradient is one concatenation; that of slices is padded.
    q, k, v = (x[:, :, 0] for x in jnp.split(qkv, 3, axis=2))
    # Keys have no bias: it would cancel in the softmax.
    zeros = nn.initializers.zeros
    q = q + self.param('q_bias', zeros, head_shape).astype(spec.dtype)
    v = v + self.param('v_bias', zeros, head_shape).astype(spec.dtype)
    attended = self._with_average(q, k, v, gain)
    y = attended.output
    if spec.gate is not None:
      gate = Gate(spec.gate, spec.dtype, spec.kernel_init, name='gate')
      y, mean = gate(y, x)
      attended = attended._replace(gate=mean)
    layer = nn.DenseGeneral(dim, axis=(-2, -1), name='proj', **options)
    return with_experts(layer, spec.experts, y, spec.train), attended

  def _with_average(
    self, q: Array, k: Array, v: Array, gain: Array | None
  ) -> Attended:
    """Attends with MiRA's EMA so far, and updates it in training."""
    spec, learning = self.spec, self.is_mutable_collection('mira')
    has_ema = spec.mira is not None and spec.mira.statistics == 'batch_ema'
    if spec.train and has_ema and not learning:
      raise ValueError("statistics='batch_ema' trains with mutable=['mira']")
    past = None
    # The reference keeps this buffer in every statistics mode; so do we, so
    # that a conversion back and forth loses nothing. Where nothing needs it,
    # the variables of a plain model will do.
    if spec.mira is not None and (
      learning or self.has_variable('mira', 'confidence')
    ):
      shape, uniform = (spec.num_frames,), 1 / spec.num_frames
      full = functools.partial(jnp.full, shape, uniform, jnp.float32)
      past = self.variable('mira', 'confidence', full)
    value = None if past is None else past.value
    attended = self._attend(q, k, v, value, gain)
    if past is not None and learning and not self.is_initializing():
      assert attended.frames is not None
      assert attended.frames.ema is not None
      past.value = attended.frames.ema.astype(past.value.dtype)
    return attended

  def _attend(
    self, q: Array, k: Array, v: Array, past: Array | None, gain: Array | None
  ) -> Attended:
    """Attends, with the options that joint attention alone has."""
    spec, own, found = self.spec, {}, []
    if gain is not None:
      own['gain'] = gain
    if spec.head_mix is not None:
      dtype = jnp.promote_types(spec.dtype, jnp.float32)
      heads = Heads(spec.head_mix, dtype, name='head_mix')

      def mix(maps: Array) -> Array:
        found.append(heads(maps))
        return found[-1].maps

      own['transform'] = mix
    attended = self.attend(spec, q, k, v, past, **own)
    return attended._replace(diversity=found[-1].diversity if found else None)


class Block(nn.Module):
  """Pre-norm transformer block: attention, then an MLP."""

  spec: BlockSpec

  @nn.compact
  def __call__(self, state: State, drop_rate: Rate) -> tuple[State, Record]:
    """Tokens [B, L, C] to tokens.

    Args:
      state: the tokens; where SOA carries over, also the gate of lines of the
        block before, see `systems.orientation`.
      drop_rate: of drop path.

    Returns:
      The same of this block, a record: with diverse heads
      `head_diversity` [B]; if it is asked for, what `block_record` has, and of
      SOA `orientation` [B, T * N], its mean gate, and `angle` [B], degrees.
    """
    x, carry = state if isinstance(state, tuple) else (state, None)
    x = split_clips(x)
    soa, gate, angle = self.spec.orientation, None, None
    if soa is not None and soa.target == 'keys':
      gate, carry, angle = self._orient(x, carry)
      gain = self._with_prefix(x, key_gain_of(gate))
      x, attended = self._attend(x, drop_rate, gain)
    else:
      x, attended = self._attend(x, drop_rate)
    x = self._transform(x, drop_rate)
    if soa is not None and soa.target == 'tokens':
      gate, carry, angle = self._orient(x, carry)
      x = x * self._with_prefix(
        x, einops.rearrange(gate, 'b t n c -> b (t n) c')
      )
    record = block_record(attended, x) if self.spec.record else {}
    if attended.diversity is not None:
      record['head_diversity'] = attended.diversity
    if self.spec.record and gate is not None and angle is not None:
      record['orientation'] = gate.mean(-1).reshape(len(x), -1)
      record['angle'] = jnp.broadcast_to(angle, len(x))
    return x if carry is None else (x, carry), record

  def _orient(
    self, x: Array, carry: Array | None
  ) -> tuple[Array, Array | None, Array]:
    """The gate of tokens of frames, what is carried over, and the angle."""
    spec = self.spec
    assert spec.orientation is not None
    x = x[:, spec.num_prefix :]
    x = einops.rearrange(x, 'b (t n) c -> b t n c', t=spec.num_frames)
    gate, lines, angle = OrientationGate(
      spec.orientation,
      spec.size,
      spec.dtype,
      spec.kernel_init,
      name='orientation',
    )(x, carry)
    return gate, None if carry is None else lines, angle

  def _with_prefix(self, x: Array, gate: Array) -> Array:
    """A gate of all tokens of x, 1 for those of no frame."""
    ones = jnp.ones((len(x), self.spec.num_prefix, *gate.shape[2:]), gate.dtype)
    return jnp.concatenate([ones, gate], axis=1)

  def _attend(
    self, x: Array, drop_rate: Rate, gain: Array | None = None
  ) -> tuple[Array, Attended]:
    attend = variants.ATTENTION[self.spec.variant]
    y, attended = Attention(self.spec, attend, name='attn')(
      self._norm('norm1')(x), gain
    )
    return self._add(x, self._branch(y, drop_rate, 'scale1')), attended

  def _transform(self, x: Array, drop_rate: Rate) -> Array:
    width = mlp_width(x.shape[-1], self.spec.mlp_ratio)
    y = self._mlp(width, 'mlp')(self._norm('norm2')(x))
    return self._add(x, self._branch(y, drop_rate, 'scale2'))

  def _norm(self, name: str) -> nn.LayerNorm:
    return layer_norm(self.spec.dtype, name, self.spec.norm_eps)

  def _mlp(self, width: int, name: str) -> Mlp:
    spec = self.spec
    return Mlp(
      width,
      spec.gelu,
      spec.kernel_init,
      spec.dtype,
      spec.experts,
      spec.train,
      name=name,
    )

  def _add(self, x: Array, branch: Array) -> Array:
    """The residual sum."""
    x = x + branch
    # Else its gradient sums those of all later blocks again in every block.
    return once(x) if self.spec.train else x

  def _branch(self, y: Array, drop_rate: Rate, name: str) -> Array:
    """Layer scale and drop path (each clip loses the branch with drop_rate)."""
    if self.spec.layer_scale is not None:
      init = nn.initializers.constant(self.spec.layer_scale)
      y = y * self.param(name, init, (y.shape[-1],)).astype(y.dtype)
    return self._drop(y, drop_rate)

  def _drop(self, y: Array, drop_rate: Rate) -> Array:
    """Drop path over the leading axis."""
    if self.spec.drop_paths:
      keep = 1 - jnp.asarray(drop_rate, jnp.float32)
      kept = jax.random.bernoulli(
        self.make_rng('dropout'), keep, (y.shape[0], 1, 1)
      )
      y = jnp.where(kept, y / keep.astype(y.dtype), 0)
    return y


class SelfAttentionBlock(Block):
  """'factorised_self_attention', model 3 of ViViT: attention twice.

  First within frames ('attn'), then over time ('time_attn') with a norm and a
  residual of its own, then the MLP. In records, maps have twice the heads.
  """

  def _attend(
    self, x: Array, drop_rate: Rate, gain: Array | None = None
  ) -> tuple[Array, Attended]:
    assert gain is None  # see `options.contradiction`
    plain = dataclasses.replace(self.spec, mira=None)
    y, spatial = Attention(plain, variants.within_frames, name='attn')(
      self._norm('norm1')(x)
    )
    x = self._add(x, self._branch(y, drop_rate, 'scale1'))
    y, temporal = Attention(self.spec, variants.over_time, name='time_attn')(
      self._norm('time_norm')(x)
    )
    x = self._add(x, self._branch(y, drop_rate, 'time_scale'))
    return x, variants.heads_of(spatial, temporal)


class STBlock(Block):
  """'st_block' of the authors' code: a second, light block within each frame.

  It follows the usual block, and has 3 heads of max(32, C // 8) channels and an
  MLP with max(64, C // 4) hidden ones, no layer scale, and a drop path that
  drops single frames. MiRA is on the joint attention of the usual block, as
  there; records are of that attention.
  """

  def _transform(self, x: Array, drop_rate: Rate) -> Array:
    x = super()._transform(x, drop_rate)
    frames, dim = self.spec.num_frames, x.shape[-1]
    x = einops.rearrange(x, 'b (t n) c -> (b t) n c', t=frames)
    light = dataclasses.replace(
      self.spec,
      heads=3,
      num_frames=1,
      mira=None,
      head_mix=None,
      attention=None,
      record=False,
    )
    y, _ = Attention(light, head_dim=max(32, dim // 8), name='framewise_attn')(
      self._norm('framewise_norm1')(x)
    )
    x = self._add(x, self._drop(y, drop_rate))
    y = self._mlp(max(64, dim // 4), 'framewise_mlp')(
      self._norm('framewise_norm2')(x)
    )
    x = self._add(x, self._drop(y, drop_rate))
    return einops.rearrange(x, '(b t) n c -> b (t n) c', t=frames)


# 'factorised_encoder' is not here: it is two encoders of plain blocks.
BLOCKS = {
  'joint': Block,
  'intra': Block,
  'intra_as_shipped': Block,
  'st_block': STBlock,
  'factorised_self_attention': SelfAttentionBlock,
  'factorised_dot_product': Block,
}


def block_record(attended: Attended, output: Array) -> Record:
  """The recorded arrays of a block, by name.

  `attention_before`, `attention_after` [B, H, L, L], `before`, `after` [B, L],
  their key marginals, and `heads_before`, `heads_after` [B, H, L], those of
  each head, unless an implementation without maps was asked for; `output`
  [B, L, C]; with gated attention `gate` [B, L]; and with MiRA `gain`, `prior`,
  `score`, `confidence`, `concentration` (unless N is 1), each [B or 1, T].
  """
  record = {'output': output}
  if attended.before is not None and attended.after is not None:
    record |= {
      'attention_before': attended.before,
      'attention_after': attended.after,
      'before': key_marginal(attended.before),
      'after': key_marginal(attended.after),
      'heads_before': attended.before.mean(axis=2),
      'heads_after': attended.after.mean(axis=2),
    }
  if attended.gate is not None:
    record['gate'] = attended.gate
  if attended.frames is not None:
    frames = attended.frames._asdict()
    del frames['ema']
    record |= {name: x for name, x in frames.items() if x is not None}
  return record
