"""The three operations that every mode of attention is made of.

With S = q k^T / sqrt(D), all heads at once, q, k, v and results [B, L, H, D],
and what belongs to keys [B, L] in at least float32. Where bias_gradient or
gain_gradient is False, the gradient by the bias or the gain is 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import xla_metadata

Array = jax.Array

# The name of a `Kernel` in `jax.experimental.xla_metadata`.
KERNEL = 'mira_kernel'

# Names of what the backward passes of `streaming` and `vjp` need of the map:
# rematerialisation that keeps these never computes their attention twice.
RESIDUALS = ('attention_output', 'attention_rows')

_attention = jax.checkpoint_policies.save_only_these_names(*RESIDUALS)
# What is kept of a block for its backward pass, if not all: less memory, more
# time.
REMAT = {
  # Its input.
  'full': jax.checkpoint_policies.nothing_saveable,
  # And what attention needs not to run again, if it is streamed or a kernel.
  'attention': _attention,
  # And the results of its linear layers.
  'linear': jax.checkpoint_policies.save_from_both_policies(
    _attention, jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  ),
}


class Operations(NamedTuple):
  """One implementation of attention."""

  # (q, k, v, bias | None, bias_gradient) -> softmax(S + bias) v: [B, L, H, D]
  biased: Callable
  # (q, k) -> the key marginal of softmax(S) [B, L], and the log-sum-exp of its
  # rows [B, H, L], a constant, or None where that does not help
  marginal: Callable
  # (q, k, v, gain, residual_mix, floor, gain_gradient, that log-sum-exp | None)
  # -> redistribute(softmax(S), gain) v
  redistributed: Callable
  # (estimate, residual_mix, floor, q, k, v, x)
  # -> (redistribute(softmax(S), gain) v, frames), with frames, gain =
  # estimate(marginal, x): the last two in one, where that saves time. It shares
  # out its work over devices itself.
  exact: Callable | None = None


class Kernel(NamedTuple):
  """A kernel of our own as it is called, for counts of FLOPs."""

  name: str
  batch: int  # of one device, and so are the heads
  length: int
  heads: int
  width: int
  products: int  # L x L x D, that it takes

  def __str__(self) -> str:
    return f'{self.name} {self.shape}'

  @property
  def shape(self) -> str:
    return 'x'.join(map(str, self[1:5]))

  @property
  def flops(self) -> int:
    cells = self.batch * self.heads * self.length**2
    return 2 * self.products * cells * self.width


def mark(kernel: Kernel) -> contextlib.AbstractContextManager[None]:
  """The context in which a kernel is called, which `kernel_of` reads."""
  text = ' '.join(map(str, kernel))
  return xla_metadata.set_xla_metadata(**{KERNEL: text})


def kernel_of(eqn: Any) -> Kernel | None:
  """What kernel an equation of a jaxpr calls, if any."""
  text = (eqn.ctx.xla_metadata or {}).get(KERNEL)
  if text is None:
    return None
  name, *numbers = text.split()
  return Kernel(name, *map(int, numbers))


def row_norm(mean_gain: Array, floor: float) -> Array:
  """What a redistributed row is divided by, from its mean gain A a."""
  return jnp.maximum((1 - floor) * mean_gain + floor, 1e-12)


def keep_output(x: Array) -> Array:
  """Marks [B, L, H, D] as a residual."""
  return checkpoint_name(x, RESIDUALS[0])


def keep_rows(x: Array) -> Array:
  """Marks what is one number per row or key as a residual."""
  return checkpoint_name(x, RESIDUALS[1])
