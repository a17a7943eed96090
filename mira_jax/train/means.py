"""Means over the clips of a batch that count."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def masked_mean(values: Array, mask: Array) -> Array:
  """Mean of values [B] where mask [B] is True; 0 when it nowhere is."""
  total = jnp.where(mask, values, 0).sum()
  return total / jnp.maximum(mask.sum(), 1)


def weighted_mean(values: Array, mask: Array, weights: Array | None) -> Array:
  """As `masked_mean`, with weights [B]; None are 1."""
  if weights is None:
    return masked_mean(values, mask)
  weights = jnp.where(mask, weights, 0)
  return (values * weights).sum() / jnp.maximum(weights.sum(), 1e-12)
