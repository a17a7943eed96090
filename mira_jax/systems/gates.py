"""Gated attention: a gate of the query on what each head returns.

Between the weighted mean of values and the output projection, each head's
result is multiplied by a sigmoid of the token that asked. Maps are not needed:
every kernel can take it.

Shapes: B clips, L tokens, C model width, H heads, D channels per head.

Source: Qiu et al., 'Gated Attention for Large Language Models', arXiv
2505.06708, and the behaviour of its public code: 'published', without biases.
'identity', which is twice that with a kernel of 0, is our own, so that
pretrained weights can take it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from mira_jax.systems.settings import Settings

Array = jax.Array
Form = Literal['identity', 'published']


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class GateConfig(Settings):
  """Options of gated attention; the defaults start as the identity.

  Raises:
    ValueError: for a value outside its range.
  """

  kind: Literal['head', 'element'] = 'head'  # a gate per head, or per channel
  # 2 sigmoid(x W), W 0 at the start, or sigmoid(x W), W drawn.
  form: Literal['identity', 'published'] = 'identity'


def gate(x: Array, kernel: Array, form: Form = 'identity') -> Array:
  """The factor on what each head returns: [B, L, H, 1 or D], in float32.

  Args:
    x: [B, L, C], what the queries are made of (after the norm).
    kernel: [C, H], a gate per head, or [C, H, D], one per channel.
    form: 'identity' is 2 sigmoid(x W), 'published' sigmoid(x W).
  """
  logits = jnp.tensordot(x, kernel.astype(x.dtype), 1)
  dtype = jnp.promote_types(logits.dtype, jnp.float32)
  factor = jax.nn.sigmoid(logits.astype(dtype))
  if form == 'identity':
    factor = 2 * factor
  return factor[..., None] if kernel.ndim == 2 else factor


class Gate(nn.Module):
  """Applies `gate`; its parameter is `gate_kernel` [C, H] or [C, H, D]."""

  config: GateConfig
  dtype: Any = jnp.float32
  kernel_init: Callable[..., Array] = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, y: Array, x: Array) -> tuple[Array, Array]:
    """Gates what heads return.

    Args:
      y: [B, L, H, D], the weighted means of values.
      x: [B, L, C], as in `gate`.

    Returns:
      [B, L, H, D], and the mean gate of every token, [B, L].
    """
    config = self.config
    heads, channels = y.shape[2:]
    shape = (x.shape[-1], heads)
    if config.kind == 'element':
      shape = (*shape, channels)
    init = self.kernel_init
    if config.form == 'identity':
      init = nn.initializers.zeros
    kernel = self.param('gate_kernel', init, shape)
    y, x = y.astype(self.dtype), x.astype(self.dtype)
    factor = gate(x, kernel, config.form)
    return y * factor.astype(y.dtype), factor.mean((2, 3))
