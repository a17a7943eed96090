"""Random inputs of the method."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax import mira
from mira_jax.kernels import attention as kernels

# Compiled once per configuration, which is faster than op by op.
frame_gain = jax.jit(
  mira.frame_gain,
  static_argnames=('num_frames', 'config', 'training'),
)
mira_attention = jax.jit(
  kernels.mira_attention,
  static_argnames=('num_frames', 'config', 'num_prefix', 'training'),
)
# Bounds that no gain reaches, so that the numbers behind the clip show.
WIDE = {'gain_min': 1e-3, 'gain_max': 1e3}


def random_marginal(shape=(3, 24), seed=0):
  """Positive, each row sums to 1, far from uniform."""
  marginal = np.exp(np.random.default_rng(seed).normal(size=shape))
  return jnp.asarray(marginal / marginal.sum(1, keepdims=True))


def random_qkv(shape=(2, 12, 2, 4), seed=0):
  """Queries, keys, values; keys differ in size from frame to frame."""
  q, k, v = np.random.default_rng(seed).normal(size=(3, *shape))
  k = k * np.linspace(0.3, 2, shape[1])[:, None, None]
  return tuple(jnp.asarray(x) for x in (2 * q, k, v))
