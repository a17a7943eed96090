"""MiRA's attention as other compilers fuse it: for OpenVINO and onnxruntime.

They know softmax(q k^T) v, heads before tokens, and compute it in tiles that
never reach the memory. Exact mode is linear in the values, so that it is the
same operation on more columns of them (docs/kernels.md).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mira_jax.kernels.operations import Operations, row_norm

Array = jax.Array


def _map(q: Array, k: Array, bias: Array | None = None) -> Array:
  """softmax(q k^T / sqrt(D) + bias): [B, L, H, D] twice -> [B, H, L, L]."""
  dtype = jnp.promote_types(q.dtype, jnp.float32)
  q, k = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1)
  logits = jnp.matmul(q, k, preferred_element_type=dtype)
  logits = logits * q.shape[-1] ** -0.5
  if bias is not None:
    logits = logits + bias[:, None, None, :].astype(dtype)
  return jax.nn.softmax(logits)


def _attend(attention: Array, v: Array) -> Array:
  """Map [B, H, L, L] and values [B, L, H, C] -> [B, L, H, C]."""
  y = attention.astype(v.dtype) @ v.transpose(0, 2, 1, 3)
  return y.transpose(0, 2, 1, 3)


def _biased(q, k, v, bias, bias_gradient):
  if bias is not None and not bias_gradient:
    bias = jax.lax.stop_gradient(bias)
  return _attend(_map(q, k, bias), v)


def _marginal(q, k):
  return _map(q, k).mean((1, 2)), None


def _redistributed(q, k, v, gain, residual_mix, floor, gain_gradient, lse=None):
  del lse
  gain = gain if gain_gradient else jax.lax.stop_gradient(gain)
  gain = gain[:, :, None, None]
  dtype = jnp.promote_types(v.dtype, gain.dtype)
  # Of A v, A (a v) and the mean gain A a; the last in a column of its own.
  ones = jnp.broadcast_to(gain, (*v.shape[:3], 1))
  wide = jnp.concatenate([v, gain * v, ones.astype(dtype)], -1)
  y = _attend(_map(q, k), wide.astype(v.dtype)).astype(dtype)
  depth = v.shape[-1]
  plain, moved = y[..., :depth], y[..., depth : 2 * depth]
  norm = row_norm(y[..., 2 * depth :], floor)
  moved = (1 - floor) * moved + floor * v.mean(1, keepdims=True, dtype=dtype)
  y = (1 - residual_mix) * plain + residual_mix * moved / norm
  return y.astype(v.dtype)


OPERATIONS = Operations(_biased, _marginal, _redistributed)
