"""Small models that a PyTorch model computes, too, and clips for them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax.models import build
from mira_jax.weights import weights_file

SMALL: dict[str, Any] = {
  'dim': 48,
  'depth': 3,
  'heads': 3,
  'num_classes': 5,
  'frames': 8,
  'image_size': 32,
  'patch': 8,
  'tubelet': 2,
  'dtype': 'float32',
}


def spread(fields, seed=0):
  """Variables that are not at their start, where biases are 0."""
  model = build.build_model(fields)
  side, frames = fields['image_size'], fields['frames']
  video = jnp.zeros((1, frames, side, side, 3))
  variables = jax.device_get(jax.jit(model.init)(jax.random.key(seed), video))
  rng = np.random.default_rng(seed)
  deviation = 0.5 / np.sqrt(fields['dim'])
  params = jax.tree.map(
    lambda x: x + rng.normal(0, deviation, x.shape).astype(np.float32),
    variables['params'],
  )
  return {**variables, 'params': params}


def clips(fields, count=2):
  side = fields['image_size']
  rng = np.random.default_rng(1)
  # Brightness moves, so that frames differ.
  video = rng.integers(0, 120, (count, fields['frames'], side, side, 3))
  ramp = np.linspace(0, 130, fields['frames']).astype(int)
  return (video + ramp[:, None, None, None]).astype(np.uint8)


def save(fields, folder):
  """A weights file of these fields."""
  variables = spread(fields)
  return weights_file.save_weights(
    folder / 'w.safetensors',
    variables['params'],
    variables['mira'],
    {
      'model': fields,
      'pretrain': None,
      'class_names': list('abcde'),
      'preprocessing': {'rate': 2, 'fit': 'squash'},
    },
  )
