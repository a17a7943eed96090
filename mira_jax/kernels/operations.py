"""The three operations that every mode of attention is made of.

With S = q k^T / sqrt(D), all heads at once, q, k, v and results [B, L, H, D],
and what belongs to keys [B, L] in at least float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

Array = jax.Array

# Names of what a backward pass needs of the map: rematerialisation that keeps
# these never computes attention twice.
RESIDUALS = ('attention_output', 'attention_rows')


class Operations(NamedTuple):
  """One implementation of attention."""

  # (q, k, v, bias | None, bias_gradient) -> softmax(S + bias) v
  biased: Callable
  # (q, k) -> the key marginal of softmax(S): [B, L]
  marginal: Callable
  # (q, k, v, gain, residual_mix, floor, gain_gradient)
  # -> redistribute(softmax(S), gain) v
  redistributed: Callable


def keep_output(x: Array) -> Array:
  """Marks [B, L, H, D] as a residual."""
  return checkpoint_name(x, RESIDUALS[0])


def keep_rows(x: Array) -> Array:
  """Marks what is one number per row or key as a residual."""
  return checkpoint_name(x, RESIDUALS[1])
