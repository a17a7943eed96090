"""What attention with MiRA means: plain JAX on the whole map.

Every other implementation must agree with these lines. They store maps of
[B, H, L, L] and leave the gradients to autodiff.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mira_jax.kernels.operations import Operations
from mira_jax.mira import key_marginal, redistribute

Array = jax.Array


def scores(q: Array, k: Array) -> Array:
  """q k^T / sqrt(D), at least float32: [B, L, H, D] twice -> [B, H, L, L]."""
  dtype = jnp.promote_types(q.dtype, jnp.float32)
  logits = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=dtype)
  return logits * q.shape[-1] ** -0.5  # q / sqrt(80) would round in bfloat16


def attention_map(q: Array, k: Array, bias: Array | None = None) -> Array:
  """softmax(q k^T / sqrt(D) + bias): [B, L, H, D] twice -> [B, H, L, L].

  The bias of each key is [B or 1, L].
  """
  logits = scores(q, k)
  if bias is not None:
    logits = logits + bias[:, None, None, :].astype(logits.dtype)
  return jax.nn.softmax(logits)


def attend(attention: Array, v: Array) -> Array:
  """Map [B, H, L, L] and values [B, L, H, D] -> [B, L, H, D]."""
  return jnp.einsum('bhqk,bkhd->bqhd', attention.astype(v.dtype), v)


def _biased(q, k, v, bias, bias_gradient):
  if bias is not None and not bias_gradient:
    bias = jax.lax.stop_gradient(bias)
  return attend(attention_map(q, k, bias), v)


def _marginal(q, k):
  return key_marginal(attention_map(q, k)), None


def _redistributed(q, k, v, gain, residual_mix, floor, gain_gradient, lse=None):
  del lse
  gain = gain if gain_gradient else jax.lax.stop_gradient(gain)
  attention = redistribute(
    attention_map(q, k), gain, residual_mix=residual_mix, floor=floor
  )
  return attend(attention, v)


OPERATIONS = Operations(_biased, _marginal, _redistributed)
