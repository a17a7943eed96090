"""Diverse heads: what heads of attention repeat is a loss, and heads may mix.

Shapes: B clips, H heads, Q queries, N keys; attention maps are [B, H, Q, N],
each row a distribution over the keys. They must exist: kernels that stream over
keys have none, and cannot take these options.

Source: a reconstruction of our own, in the style of 'Disagreement Matters'
(IEEE TAC), the extension of SMA-Net (arXiv 2203.12570) to self-attention. Only
the abstracts could be read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mira_jax.systems.maps import overlap, renormalise
from mira_jax.systems.settings import Settings, number

Array = jax.Array


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class HeadsConfig(Settings):
  """Options of diverse heads; the defaults start as the identity.

  Raises:
    ValueError: for a value outside its range.
  """

  mix: bool = True  # learn to mix the maps of heads
  diversity_weight: float = number(0.0, 0, 1e6)  # of head_diversity in the loss
  queries: int = number(
    64, 1, 2**20
  )  # it is measured on so many, evenly spaced


class Mixed(NamedTuple):
  """Attention maps after mixing, and how much the heads repeat."""

  maps: Array  # [B, H, Q, N]
  diversity: Array  # [B] the loss `head_diversity` of these maps


def head_mix(maps: Array, mix: Array) -> Array:
  """The maps (I + mix) P, each row a distribution again: [B, H, Q, N].

  Entries of `mix` [H, H] may be negative: a head then leaves out what another
  attends to. What falls below 0 becomes 0 before rows are divided by their sum;
  a row of which nothing is left stays as it was. `mix` 0 changes no bit.
  """
  mixed = maps + jnp.einsum('hj,bjqn->bhqn', mix.astype(maps.dtype), maps)
  return renormalise(mixed, maps)


def head_diversity(maps: Array, queries: int = 64) -> Array:
  """Mean squared cosine between heads' maps of a query: [B, H, Q, N] -> [B].

  Over pairs of heads and `queries` evenly spaced queries (all, if there are
  fewer): 0 for disjoint maps, 1 for equal ones; 0 for a single head.
  """
  length = maps.shape[2]
  chosen = np.linspace(0, length - 1, min(queries, length)).round().astype(int)
  return overlap(maps[:, :, chosen].swapaxes(1, 2)).mean(1)


class Heads(nn.Module):
  """Mixes the maps of heads; parameter `mix_kernel` [H, H], 0 at the start."""

  config: HeadsConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, maps: Array) -> Mixed:
    """Attention maps [B, H, Q, N] -> `Mixed`, in the dtype of this module."""
    maps = maps.astype(self.dtype)
    if self.config.mix:
      heads = maps.shape[1]
      zeros = nn.initializers.zeros
      maps = head_mix(maps, self.param('mix_kernel', zeros, (heads, heads)))
    return Mixed(maps, head_diversity(maps, self.config.queries))
