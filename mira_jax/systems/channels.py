"""SMA-style attention: several maps per facial region that learn to differ.

Each of K regions (one per action unit or class) looks at a frame through M
maps. One loss keeps the maps of a region apart, another keeps them on the
region, and the maps of all regions refine each other before those of each are
fused into one.

Shapes: B clips, T frames, N tokens of each, D channels; K regions, M maps of
each. Maps [B, T, K, M, N] are distributions over the tokens of a frame.

Source: 'SMA-style', a reconstruction of our own. Of SMA-Net (Li et al., FG
2021, arXiv 2203.12570) only the abstract could be read: it names multiple
self-diversified maps of the same region, more focus, and refinement by the
correlation between maps. No formula, size or weight here is known to be theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mira_jax.systems.maps import Overlap, overlap, renormalise
from mira_jax.systems.settings import Settings, number

Array = jax.Array
Init = Callable[..., Array]
Focus = Literal['kl', 'entropy', 'none']
zeros = nn.initializers.zeros


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class ChannelsConfig(Settings):
  """Options of SMA-style attention; the defaults start as the identity.

  Raises:
    ValueError: for a value outside its range.
  """

  regions: int = number(0, 0, 10**4)  # K; 0: the number of classes
  channels: int = number(4, 1, 2**8)  # M, maps of each region
  temperature: float = number(
    1.0, 1e-6, 1e6
  )  # logits of the maps are divided by it
  activation: Literal['softmax', 'sigmoid'] = 'softmax'
  refine_dim: int = number(64, 1, 2**15)  # width of the attention between maps
  # What stands for a map in it: what the map collects, or the map itself,
  # which binds the weights to the number of tokens.
  refine_tokens: Literal['features', 'maps'] = 'features'
  diversity: Literal['cosine', 'hellinger', 'margin'] = 'cosine'
  diversity_weight: float = number(0.1, 0, 1e6)  # of sma_diversity in the loss
  focus: Literal['kl', 'entropy', 'none'] = 'kl'
  focus_weight: float = number(0.01, 0, 1e6)  # of sma_focus in the loss
  # Logits of what the regions collect, or a factor on the tokens.
  form: Literal['head', 'reweight'] = 'head'
  # The logits are those of the regions alone, not an addition that starts at 0.
  replace: bool = False

  def __post_init__(self):
    super().__post_init__()
    if self.replace and self.form != 'head':
      raise ValueError(
        f'ChannelsConfig.replace is True with form {self.form!r}, which has no '
        "logits; use form 'head'"
      )


class Channels(NamedTuple):
  """What SMA-style attention sees, and its losses."""

  features: Array  # [B, T, K, D] what each region collects
  maps: Array  # [B, T, K, M, N] refined
  fused: Array  # [B, T, K, N] one map of each region
  gain: Array | None  # [B, T, N] factor on the tokens, of form 'reweight'
  diversity: Array  # [B] how much the maps of a region repeat, unrefined
  focus: Array  # [B] how far they stray, unrefined


def sma_maps(
  x: Array,
  kernel: Array,
  bias: Array | None = None,
  *,
  temperature: float = 1.0,
  activation: Literal['softmax', 'sigmoid'] = 'softmax',
) -> Array:
  """The maps of all regions, each a distribution: [B, T, K, M, N].

  Args:
    x: [B, T, N, D], normalised tokens.
    kernel: [D, K, M].
    bias: [K, M]; in a softmax it cancels.
    temperature: logits are divided by it.
    activation: of the logits; sigmoids are divided by their sum.
  """
  logits = jnp.einsum('btnd,dkm->btkmn', x, kernel.astype(x.dtype))
  logits = logits.astype(jnp.promote_types(x.dtype, jnp.float32))
  if bias is not None:
    logits = logits + bias[..., None]
  logits = logits / temperature
  if activation == 'sigmoid':  # the softmax of logs divides by the sum
    logits = jax.nn.log_sigmoid(logits)
  return jax.nn.softmax(logits)


def sma_refine(
  maps: Array, tokens: Array, query: Array, key: Array, alpha: Array | float
) -> Array:
  """Refines each map by those it correlates with: [B, T, K, M, N].

  The maps A become A + alpha G A, with what is negative set to 0 and rows
  divided by their sum. G = softmax(Q K^T / sqrt(d)), of a frame's K * M maps.
  alpha 0 changes no bit.

  Args:
    maps: [B, T, K, M, N].
    tokens: [B, T, K, M, F], what stands for each map.
    query: [F, d].
    key: [F, d].
    alpha: a number, how much is added.
  """
  one = 'b t k m f -> b t (k m) f'
  flat, tokens = einops.rearrange(maps, one), einops.rearrange(tokens, one)
  q, k = (tokens @ kernel.astype(tokens.dtype) for kernel in (query, key))
  logits = jnp.einsum('btqd,btkd->btqk', q, k) * query.shape[1] ** -0.5
  related = jax.nn.softmax(logits.astype(flat.dtype))
  mixed = flat + alpha * (related @ flat)
  return renormalise(mixed, flat).reshape(maps.shape)


def sma_pool(maps: Array, x: Array, weights: Array) -> tuple[Array, Array]:
  """What each region collects [B, T, K, D], and its one map [B, T, K, N].

  Args:
    maps: [B, T, K, M, N].
    x: [B, T, N, D].
    weights: [B, T, K, M], of the maps of a region; they sum to 1.
  """
  fused = jnp.einsum('btkmn,btkm->btkn', maps, weights.astype(maps.dtype))
  return jnp.einsum('btkn,btnd->btkd', fused.astype(x.dtype), x), fused


def sma_diversity(maps: Array, kind: Overlap = 'cosine') -> Array:
  """The mean overlap of a region's maps, see `maps.overlap`: -> [B]."""
  return overlap(maps, kind).mean((1, 2))


def sma_focus(maps: Array, kind: Focus = 'kl') -> Array:
  """How far maps are from a focus: [B, T, K, M, N] -> [B].

  'kl' is the mean divergence (nats) of a map from the mean of its region's:
  without it, diversity may drive maps off the region. 'entropy' is that of each
  map over log N, 0 to 1. 'none' is 0.
  """
  if kind == 'none':
    return jnp.zeros(maps.shape[0], maps.dtype)
  log = jnp.log(jnp.maximum(maps, 1e-30))
  if kind == 'entropy':
    each = -(maps * log).sum(-1) / max(np.log(maps.shape[-1]), 1e-12)
  else:
    # A constant: for maps that stay distributions the gradient is the same.
    mean = jax.lax.stop_gradient(maps.mean(-2, keepdims=True))
    each = (maps * (log - jnp.log(jnp.maximum(mean, 1e-30)))).sum(-1)
  return each.mean((1, 2, 3))


class ChannelAttention(nn.Module):
  """SMA-style attention over the tokens of every frame.

  Parameters: `map_kernel` [D, K, M], and with sigmoids `map_bias` [K, M];
  `query_kernel`, `key_kernel` [F, refine_dim], F being D or N, and
  `refine_scale` [], alpha, 0 at the start; `squeeze_kernel` [D, r], r being
  max(8, D / 16), and `excite_kernel` [r, 1], 0 at the start, which weigh the
  maps of a region; with form 'reweight' `token_scale` [], beta, 0 at the start.
  """

  config: ChannelsConfig
  regions: int  # K
  dtype: Any = jnp.float32
  kernel_init: Init = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, x: Array) -> Channels:
    """Normalised tokens [B, T, N, D], without a class token -> `Channels`."""
    config = self.config
    if self.regions < 1:
      raise ValueError(f'SMA-style attention has {self.regions} regions; use 1')
    x = x.astype(self.dtype)
    shape, bias = (self.regions, config.channels), None
    kernel = self.param('map_kernel', self.kernel_init, (x.shape[-1], *shape))
    if config.activation == 'sigmoid':
      bias = self.param('map_bias', zeros, shape)
    maps = sma_maps(
      x,
      kernel,
      bias,
      temperature=config.temperature,
      activation=config.activation,
    )
    collected = jnp.einsum('btkmn,btnd->btkmd', maps.astype(x.dtype), x)
    refined = self._refine(maps, collected)
    features, fused = sma_pool(refined, x, self._weights(collected))
    gain = None
    if config.form == 'reweight':
      beta = self.param('token_scale', zeros, ())
      gain = 1 + beta * fused.sum(2) * fused.shape[-1]
    diversity = sma_diversity(maps, config.diversity)
    focus = sma_focus(maps, config.focus)
    return Channels(features, refined, fused, gain, diversity, focus)

  def _refine(self, maps: Array, collected: Array) -> Array:
    """Refined maps; `collected` [B, T, K, M, D] is what each map collects."""
    config = self.config
    tokens = collected if config.refine_tokens == 'features' else maps
    shape = (tokens.shape[-1], config.refine_dim)
    query, key = (
      self.param(name, self.kernel_init, shape)
      for name in ('query_kernel', 'key_kernel')
    )
    alpha = self.param('refine_scale', zeros, ())
    return sma_refine(maps, tokens, query, key, alpha)

  def _weights(self, collected: Array) -> Array:
    """Squeeze and excitation: weights [B, T, K, M] of a region's maps."""
    dim = collected.shape[-1]
    hidden = max(8, dim // 16)
    squeeze = self.param('squeeze_kernel', self.kernel_init, (dim, hidden))
    excite = self.param('excite_kernel', zeros, (hidden, 1))
    x = nn.relu(collected @ squeeze.astype(collected.dtype))
    x = (x @ excite.astype(x.dtype))[..., 0]
    return jax.nn.softmax(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


class ChannelHead(nn.Module):
  """Logits of what the regions collect, to add to those of the plain head.

  A class for each region has the logit of its own region: `kernel` [D, K]. Else
  every class sees all regions: `regions_kernel` [K, D, C]. And `bias` [C]. They
  are 0 at the start; with `replace`, where they stand alone, kernels are drawn.
  """

  config: ChannelsConfig
  num_classes: int  # C
  dtype: Any = jnp.float32
  kernel_init: Init = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, features: Array) -> Array:
    """Features [B, T, K, D] -> logits [B, C] in float32."""
    x = features.astype(self.dtype).mean(1)
    regions, dim = x.shape[1:]
    init = self.kernel_init if self.config.replace else zeros
    if regions == self.num_classes:
      kernel = self.param('kernel', init, (dim, regions))
      logits = jnp.einsum('bkd,dk->bk', x, kernel.astype(x.dtype))
    else:
      shape = (regions, dim, self.num_classes)
      kernel = self.param('regions_kernel', init, shape)
      logits = jnp.einsum('bkd,kdc->bc', x, kernel.astype(x.dtype))
    bias = self.param('bias', zeros, (self.num_classes,))
    return logits.astype(jnp.promote_types(x.dtype, jnp.float32)) + bias
