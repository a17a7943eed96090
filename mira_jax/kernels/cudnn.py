"""Attention with a gain on NVIDIA GPUs that our kernels do not serve: cuDNN.

Its fused attention takes a bias only as a whole [L, L] map, several times
slower (docs/kernels.md). Channels of a head come in steps of 8 anyway, so the
log gain travels in eight more channels: queries get 1 there, keys the gain.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mira_jax.kernels.operations import Operations, keep_output

Array = jax.Array

EXTRA = 8  # channels; cuDNN wants multiples of this


def refusal(shape: tuple[int, ...], dtype: Any, mode: str) -> str | None:
  """Why cuDNN cannot attend q, k, v [B, L, H, D] in a mode; None if it can."""
  if mode == 'exact':
    return 'cuDNN has no exact mode'
  if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
    return f'cuDNN takes bfloat16 and float16, not {jnp.dtype(dtype)}'
  widest = 128 if mode == 'plain' else 128 - EXTRA
  if shape[-1] % EXTRA or shape[-1] > widest:
    return f'heads must be a multiple of {EXTRA} up to {widest} wide'
  return None


def with_bias(
  q: Array, k: Array, v: Array, bias: Array
) -> tuple[Array, Array, Array]:
  """Puts a bias [B, L] on the logits into eight channels of q, k and v.

  Two channels hold it, as what a 16-bit number keeps of bias * sqrt(D) and what
  it loses: one alone would round the log gain to 8 bits. Differentiable. Keep
  the scale 1 / sqrt(D); the last 8 channels of the output are 0.
  """
  bias = bias * q.shape[-1] ** 0.5
  high = bias.astype(q.dtype)
  low = (bias - high.astype(bias.dtype)).astype(q.dtype)
  columns = jnp.stack([high, low] + [jnp.zeros_like(high)] * (EXTRA - 2), -1)
  ones = jnp.arange(EXTRA) < 2

  def append(x, channels):
    channels = jnp.broadcast_to(channels, (*x.shape[:3], EXTRA))
    return jnp.concatenate([x, channels.astype(x.dtype)], -1)

  return append(q, ones), append(k, columns[:, :, None]), append(v, 0)


def _biased(q, k, v, bias, bias_gradient):
  width = q.shape[-1]
  if bias is not None:
    bias = bias if bias_gradient else jax.lax.stop_gradient(bias)
    q, k, v = with_bias(q, k, v, bias)
  y = jax.nn.dot_product_attention(
    q, k, v, scale=width**-0.5, implementation='cudnn'
  )
  return keep_output(y[..., :width])


def _no_exact_mode(*_):
  raise NotImplementedError('cuDNN has no exact mode')


OPERATIONS = Operations(_biased, _no_exact_mode, _no_exact_mode)
