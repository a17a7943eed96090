"""Weights files of a small model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax import config
from mira_jax.mira import MiraConfig
from mira_jax.models import build
from mira_jax.weights import weights_file

NAMES = ('angry', 'happy', 'sad')
CONFIG = config.ModelConfig(
  dim=16, depth=2, heads=2, num_classes=3, frames=4, image_size=16, patch=8,
  head_scale=1.0, mira=MiraConfig(),
)  # fmt: skip


def variables(seed=0, **changes):
  """Numbers of no meaning in the shapes of a model."""
  model = build.build_model(dataclasses.asdict(CONFIG) | changes)
  side = model.image_size
  video = jax.ShapeDtypeStruct((1, model.frames, side, side, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), video)
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
  )


def save(path, tree, names=NAMES, **changes):
  card = {
    'model': dataclasses.asdict(CONFIG) | changes,
    'class_names': list(names),
    'preprocessing': {'rate': 1, 'fit': 'crop'},
  }
  return weights_file.save_weights(
    path / 'ours.safetensors', tree['params'], tree.get('mira', {}), card
  )
