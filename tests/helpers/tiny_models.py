"""Small models for tests: shapes, weights by formula, one training step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax.models.blocks import BLOCKS
from mira_jax.models.spec import BlockSpec
from mira_jax.models.vivit import ViViT
from mira_jax.weights import torch_names
from mira_jax.weights.weights_file import flatten, restack, unflatten
from oracle import formula_state

# A tiny classifier, and the sizes of the blocks below, which are the same.
TINY = {
  'dim': 8,
  'depth': 2,
  'heads': 2,
  'num_classes': 3,
  'frames': 6,
  'image_size': 8,
  'patch': 4,
  'head_scale': 50.0,
}
B, T, N, C, H = 2, 3, 4, 8, 2


def shapes_of(model):
  """Shapes of a classifier's variables, without making any array."""
  side = model.image_size
  video = jax.ShapeDtypeStruct((1, model.frames, side, side, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), video)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def by_formula(template, table=torch_names.CLASSIFIER, dtype=np.float64):
  """Variables of these shapes, filled by the published formula."""
  zeros = jax.tree.map(lambda x: np.zeros(x.shape), template)
  names = torch_names.to_torch(zeros, table)
  state = formula_state({name: x.shape for name, x in names.items()})
  state |= {
    name: np.full(x.shape, 1 / x.size)
    for name, x in names.items()
    if name.endswith('c_buf')
  }
  variables = torch_names.from_torch(state, template, table)
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)


def stacked(tree):
  """Blocks stacked, as scan=True has them."""
  return unflatten(restack(flatten(tree), stacked=True))


def train_step(model, variables, video, key=None):
  """Loss, moved buffers and gradients of one training step."""

  def loss(params):
    logits, updates = model.apply(
      variables | {'params': params},
      video,
      train=True,
      mutable=['mira'],
      rngs={} if key is None else {'dropout': key},
    )
    return jnp.sin(3 * logits).sum(), updates

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])


def draw(template, seed=0, scale=0.4):
  """Normal arrays of these shapes, in float64; the buffers are uniform."""
  rng = np.random.default_rng(seed)
  drawn = jax.tree.map(lambda x: scale * rng.normal(size=x.shape), template)
  if 'mira' in template:
    drawn['mira'] = jax.tree.map(
      lambda x: np.full(x.shape, 1 / x.shape[-1]), template['mira']
    )
  return drawn


def spec_of_block(variant, **fields):
  return BlockSpec(
    heads=H, num_frames=T, variant=variant, dtype=jnp.float64, **fields
  )


def block_and_variables(variant, mira=None, **fields):
  """A block of float64, its drawn variables and an input [B, T * N, C]."""
  block = BLOCKS[variant](spec_of_block(variant, mira=mira, **fields))
  x = np.random.default_rng(1).normal(size=(B, T * N, C))
  init = functools.partial(block.init, jax.random.key(0))
  return block, draw(jax.eval_shape(init, x, 0.0)), x


def model_and_variables(variant, seed=0, **fields):
  """A tiny float64 model with drawn variables, and two clips."""
  model = ViViT(**TINY | fields, variant=variant, dtype=jnp.float64)
  video = np.random.default_rng(7).normal(size=(B, 6, 8, 8, 3))
  return model, draw(shapes_of(model), seed), video
