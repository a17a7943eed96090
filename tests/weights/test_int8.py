"""Kernels in eight bits, with a factor per output channel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax.weights import int8


def test_eight_bits_keep_the_largest_weight_of_every_output():
  rng = np.random.default_rng(0)
  variables = {
    'params': {
      'attn': {
        'qkv': {'kernel': rng.normal(size=(8, 3, 2, 4)).astype(np.float32)}
      },
      'mlp': {'fc1': {'kernel': rng.normal(size=(8, 16)).astype(np.float32)}},
      'blocks': {
        'mlp': {'fc1': {'kernel': rng.normal(size=(2, 8, 4)).astype('f')}}
      },
      'head': {'kernel': np.ones((8, 3), np.float32)},
      'norm': {'scale': np.ones(8, np.float32)},
      'to_decoder': {'kernel': np.zeros((4, 4), np.float32)},
    }
  }
  held = int8.quantise(variables)
  params = held['params']
  assert params['attn']['qkv']['kernel'].factors.shape == (1, 3, 2, 4)
  assert params['mlp']['fc1']['kernel'].factors.shape == (1, 16)
  assert params['blocks']['mlp']['fc1']['kernel'].factors.shape == (2, 1, 4)
  for name in ('head', 'norm'):
    assert not isinstance(next(iter(params[name].values())), int8.Int8)
  back = int8.restore(held)

  def close(a, b):
    steps = np.abs(b).max(axis=0, keepdims=True) / 127
    assert (np.abs(a - b) <= steps / 2 + 1e-7).all()

  for part in ('attn', 'mlp', 'to_decoder'):
    jax.tree.map(close, back['params'][part], variables['params'][part])
  kernel = params['mlp']['fc1']['kernel']
  assert kernel.values.dtype == jnp.int8
  assert (np.abs(kernel.values).max(axis=0) == 127).all()
