"""From the tokens of an encoder to logits, with the systems of a head.

B clips, T temporal tokens, N places, L tokens, C model width, H heads, K
classes. What the loss of a system needs are `Terms`, per clip.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from mira_jax.models.blocks import Record
from mira_jax.models.layers import layer_norm
from mira_jax.models.options import ModelOptions, oracle_numbers
from mira_jax.models.spec import BlockSpec
from mira_jax.systems.channels import ChannelAttention, ChannelHead, Channels
from mira_jax.systems.identity import IdentityHead, reversal_strength
from mira_jax.systems.reliability import (
  Balance,
  ReliabilityBalancing,
  prediction,
)

Array = jax.Array
Terms = dict[str, Any]  # names -> [B, ...], or a `Balance`
zeros = nn.initializers.zeros


class Inputs(NamedTuple):
  """What a model may read beside the video; None where it is not given.

  Attributes:
    units: annotated action units, 0 or 1, [B, U]: see `oracle_units`.
    landmarks: [B, T, P, 2], see `systems.cross_windows`.
    progress: [] share of the training that is done; None in evaluation.
  """

  units: Array | None = None
  landmarks: Array | None = None
  progress: Array | None = None


class ClassifierHead(nn.Module, ModelOptions):
  """The part of a ViViT that follows its encoder."""

  def _head(
    self, x: Array, embedded: Array, spec: BlockSpec, inputs: Inputs
  ) -> tuple[Array, Terms]:
    """Logits [B, K], or features, and what losses and records need.

    Args:
      x: tokens [B, L, C] of the encoder.
      embedded: tokens [B, T * N, C] before it.
      spec: of the blocks.
      inputs: beside the video.
    """
    terms: Terms = {}
    if self.position_stream:
      x = self._with_positions(x, embedded, spec)
    regions = None  # what each of them collects
    if self.channels is not None and (
      self.num_classes or self.channels.form == 'reweight'
    ):
      x, seen = self._channels(x, spec)
      regions = seen.features
      terms['channel_maps'] = seen.fused
      terms |= {'diversity': seen.diversity, 'focus': seen.focus}
    eps = self.norm_eps if self.last_norm_eps is None else self.last_norm_eps
    norm = layer_norm(spec.dtype, 'norm', eps)
    balancing = self.reliability
    frames = balancing is not None and balancing.pool == 'frames'
    features = self._pooled(x, norm, spec, 'frame' if frames else self.pool)
    if not self.num_classes:
      return _wide(features.mean(1) if features.ndim == 3 else features), terms
    logits = self._logits(features, regions, spec, inputs)
    if self.identity is not None:
      terms['subject'] = self._subject(features, spec, inputs.progress)
    if balancing is not None:
      if self.pool == 'mean':  # the frames, for attention to look over
        features = self._pooled(x, norm, spec, 'frame')
      logits, terms['balance'] = self._balanced(features, logits, spec)
    return _wide(logits), terms

  def _logits(
    self,
    features: Array,
    regions: Array | None,
    spec: BlockSpec,
    inputs: Inputs,
  ) -> Array:
    """Logits [B, K] or, of features [B, T, C], those of each frame.

    Those of action units and regions are of whole clips.
    """
    start = nn.initializers.normal(0.02 * self.head_scale)
    logits = self._dense(self.num_classes, 'head', spec, start)(features)
    of_clip = (lambda y: y[:, None]) if features.ndim == 3 else (lambda y: y)
    if self.oracle_units:
      logits = logits + of_clip(self._oracle(inputs.units, spec))
    if self.channels is not None and self.channels.form == 'head':
      assert regions is not None
      own = of_clip(
        ChannelHead(
          self.channels, self.num_classes, spec.dtype, name='channel_head'
        )(regions)
      )
      alone = jnp.broadcast_to(own, logits.shape)
      logits = alone if self.channels.replace else logits + own
    return logits

  def _balanced(
    self, features: Array, logits: Array, spec: BlockSpec
  ) -> tuple[Array, Balance]:
    """Logits of ARBEx's head in evaluation, and what its loss needs."""
    config = self.reliability
    assert config is not None
    balance = ReliabilityBalancing(
      config, self.num_classes, spec.dtype, name='reliability'
    )(features, logits, train=spec.train)
    if spec.train:
      return balance.logits, balance
    return prediction(balance, config), balance

  def record_of(self, terms: Terms) -> Record:
    """What pictures show of a head.

    `channel_maps` [B, T, regions, N] of SMA-style attention; of reliability
    balancing `primary`, `anchored`, `attentive`, `corrected` [B, K].
    """
    record = {n: x for n, x in terms.items() if n == 'channel_maps'}
    if balance := terms.get('balance'):
      names = ('primary', 'anchored', 'attentive', 'corrected')
      each = (balance.p, balance.t_g, balance.t_a, balance.q)
      record |= dict(zip(names, each, strict=True))
    return record

  def _pooled(
    self, x: Array, norm: nn.LayerNorm, spec: BlockSpec, pool: str
  ) -> Array:
    """Features [B, C] of tokens [B, L, C].

    With 'grid' the head has weights of its own for each place, as for faces
    that are aligned: features are [B, N * C]. With 'frame' they are those of
    each temporal token, [B, T, C]. With 'attention' each of H parts of the
    channels is a mean of its own, weighed by a query, as of a probe: the tokens
    are keys and values (Psomas et al. 2026, https://arxiv.org/abs/2506.10178).
    """
    if pool == 'grid':
      x = einops.reduce(x, 'b (t n) c -> b n c', 'mean', t=spec.num_frames)
      return einops.rearrange(norm(x), 'b n c -> b (n c)')
    if pool == 'frame':
      frames = spec.num_frames
      return norm(einops.reduce(x, 'b (t n) c -> b t c', 'mean', t=frames))
    if pool == 'attention':
      x = norm(x)
      # Starts as the mean.
      query = self.param('query', zeros, (self.heads, self.dim))
      weights = jnp.einsum('blc,hc->bhl', x, query.astype(x.dtype))
      weights = jax.nn.softmax(weights * self.dim**-0.5)
      parts = einops.rearrange(x, 'b l (h d) -> b l h d', h=self.heads)
      x = jnp.einsum('bhl,blhd->bhd', weights, parts)
      return einops.rearrange(x, 'b h d -> b (h d)')
    return norm(x)[:, 0] if pool == 'cls' else norm(x.mean(axis=1))

  def _dense(
    self, features: int, name: str, spec: BlockSpec, init: Any
  ) -> nn.Dense:
    return nn.Dense(features, dtype=spec.dtype, kernel_init=init, name=name)

  def _with_positions(
    self, x: Array, embedded: Array, spec: BlockSpec
  ) -> Array:
    """Adds tokens of the first and the peak frame to those of all frames.

    FaceSleuth's position stream, with the embedding of this model in place of
    its Swin transformer, behind a layer that starts at 0. The peak frame
    differs most from the first.
    """
    frames, prefix = spec.num_frames, spec.num_prefix
    own = einops.rearrange(embedded, 'b (t n) c -> b t n c', t=frames)
    apart = jnp.square(own - own[:, :1]).mean((2, 3))
    peak = jnp.take_along_axis(own, apart.argmax(1)[:, None, None, None], 1)
    both = own[:, 0] + peak[:, 0]
    added = self._dense(self.dim, 'position_stream', spec, zeros)(both)
    return x.at[:, prefix:].add(jnp.tile(added, (1, frames, 1)).astype(x.dtype))

  def _channels(self, x: Array, spec: BlockSpec) -> tuple[Array, Channels]:
    """Tokens, re-weighted if asked, and what SMA-style attention sees."""
    assert self.channels is not None
    frames, prefix = spec.num_frames, spec.num_prefix
    norm = layer_norm(spec.dtype, 'channels_norm', self.norm_eps)
    tokens = norm(x[:, prefix:])
    seen = ChannelAttention(
      self.channels,
      self.channels.regions or max(1, self.num_classes),
      spec.dtype,
      spec.kernel_init,
      name='channels',
    )(einops.rearrange(tokens, 'b (t n) c -> b t n c', t=frames))
    if seen.gain is not None:
      gain = seen.gain.reshape(len(x), -1, 1).astype(x.dtype)
      x = x.at[:, prefix:].multiply(gain)
    return x, seen

  def _oracle(self, units: Array | None, spec: BlockSpec) -> Array:
    """Logits of annotated action units; 0 at the start.

    Raises:
      ValueError: they are not given.
    """
    count = len(oracle_numbers(self))
    if units is None and self.is_initializing():
      units = jnp.zeros((1, count))
    if units is None:
      raise ValueError(
        f'oracle_units is {self.oracle_units!r}: this model reads annotated '
        'action units beside the video; give inputs.units, or train without'
      )
    layer = self._dense(self.num_classes, 'oracle', spec, zeros)
    return layer(units.astype(spec.dtype))

  def _subject(
    self, features: Array, spec: BlockSpec, progress: Array | None
  ) -> Array:
    """Logits [B, S] of who the person is, behind a reversed gradient."""
    config = self.identity
    assert config is not None
    if features.ndim == 3:
      features = features.mean(1)
    strength = reversal_strength(config, 1.0 if progress is None else progress)
    head = IdentityHead(
      config,
      config.subjects,
      spec.dtype,
      spec.kernel_init,
      name='identity_head',
    )
    return head(features, strength)


def _wide(x: Array) -> Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
