"""What systems with several attention maps share: overlap, renormalisation.

Maps [..., M, N] are M distributions over N keys. Our own formulas, of what
'self-diversified' attention (arXiv 2203.12570) is said to do: its method
section could not be read.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

Array = jax.Array
Overlap = Literal['cosine', 'hellinger', 'margin']
MARGIN = 0.5  # of the cosine, below which 'margin' counts no overlap


def overlap(maps: Array, kind: Overlap = 'cosine') -> Array:
  """Mean overlap of the pairs of M maps: [..., M, N] -> [...], float32.

  0 where all are disjoint, 1 where all are alike; 0 for a single map. Of two
  maps it is the squared cosine; with 'hellinger' one less their squared
  Hellinger distance, the sum of sqrt(p q); with 'margin' the square of how much
  of the way from MARGIN to 1 the cosine is, so that maps may share a region.

  Two equal maps get equal gradients: descent does not part them unless what
  makes them differs.
  """
  maps = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
  count = maps.shape[-2]
  if kind == 'hellinger':
    some = maps > 0  # at 0 the gradient of the root is infinite
    vectors = jnp.where(some, jnp.sqrt(jnp.where(some, maps, 1)), 0)
  else:
    square = jnp.square(maps).sum(-1, keepdims=True)
    vectors = maps * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
  pairs = jnp.einsum('...mn,...pn->...mp', vectors, vectors)
  if kind == 'margin':
    pairs = jax.nn.relu(pairs - MARGIN) / (1 - MARGIN)
  if kind != 'hellinger':
    pairs = jnp.square(pairs)
  others = 1 - jnp.eye(count, dtype=pairs.dtype)
  return (pairs * others).sum((-2, -1)) / max(1, count * (count - 1))


def renormalise(mixed: Array, maps: Array) -> Array:
  """Distributions from mixtures of maps with weights of any sign.

  What is negative becomes 0, and each row is divided by its sum; a row of which
  (almost) nothing is left is that of `maps`. Where `mixed` is `maps`, so is the
  result, to the last bit.

  Args:
    mixed: [..., N], finite.
    maps: [..., N], what was mixed; rows sum to 1.
  """
  kept = jax.nn.relu(mixed)
  # The sum of `kept`, but exactly 1 where nothing changed.
  change = (kept - maps).astype(jnp.promote_types(maps.dtype, jnp.float32))
  total = 1 + change.sum(-1, keepdims=True)
  lost = total <= 1e-3  # false for NaN, which shall be seen
  rows = jnp.where(lost, maps, kept / jnp.where(lost, 1, total))
  return rows.astype(maps.dtype)
