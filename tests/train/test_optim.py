"""Optimisers: schedules, weight decay, layer-wise decay, Muon."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import runs
from mira_jax import config
from mira_jax.models.vivit import ViViT
from mira_jax.systems.orientation import OrientationConfig
from mira_jax.train import build, optim

PyTree = Any

# Two blocks and a decay of 1/2: powers of two, which scale without rounding.
HALVES = {
  'embed': 1 / 8,
  'positions': 1 / 8,
  'cls': 1 / 8,
  'block_0': 1 / 4,
  'block_1': 1 / 2,
  'blocks': np.array([1 / 4, 1 / 2]),
  'norm': 1.0,
  'head': 1.0,
}


def shapes(depth: int, scan: bool = False) -> PyTree:
  """Shapes of a small classifier that has every kind of parameter."""
  model = ViViT(
    dim=4,
    depth=depth,
    heads=2,
    num_classes=3,
    frames=4,
    image_size=8,
    patch=4,
    pool='cls',
    positions='learned',
    layer_scale=0.1,
    scan=scan,
  )
  video = jax.ShapeDtypeStruct((1, 4, 8, 8, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), video)['params']


def draw(tree: PyTree, seed: int, dtype: Any = np.float32) -> PyTree:
  """Standard normal arrays of these shapes."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.standard_normal(x.shape).astype(dtype), tree
  )


def flat(tree: PyTree) -> dict[str, Any]:
  """Leaves by name, such as 'encoder/block_0/mlp/fc1/kernel'."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def halves(name: str, ndim: int) -> np.ndarray:
  """The entry of HALVES for a leaf, to be multiplied with it."""
  first, second, *_ = [*name.split('/'), '']
  factor = np.asarray(HALVES[second if first == 'encoder' else first])
  return factor.reshape(-1, *[1] * (ndim - 1)) if factor.ndim else factor


def first_update(
  optimizer: optax.GradientTransformation, params: PyTree, grads: PyTree
) -> PyTree:
  """The updates of a fresh optimiser, compiled: leaf by leaf takes seconds."""

  @functools.partial(jax.jit, compiler_options=runs.USUAL_FUSIONS)
  def update(params, grads):
    return optimizer.update(grads, optimizer.init(params), params)[0]

  return update(params, grads)


# ----- schedule, decay, Muon ------------------------------------------------


def test_learning_rates_are_the_references():
  # reference: 3 epochs of 4 steps, the first epoch warms up.
  schedule = optim.warmup_cosine(
    peak=1.0, final=0.1, warmup_steps=4, total_steps=12
  )
  warmup = [0, 0.333333, 0.666667, 1]
  cosine = [1, 0.965746, 0.868198, 0.722208, 0.55, 0.377792, 0.231802, 0.134254]
  rates = [schedule(step) for step in range(12)]
  np.testing.assert_allclose(rates, warmup + cosine, atol=1e-6)


@pytest.mark.parametrize('scan', [False, True])
def test_muon_makes_every_matrix_orthogonal(scan):
  params, grads = draw(shapes(2, scan), 0), draw(shapes(2, scan), 1)
  optimizer = optim.muon(lambda step: 1.0, weight_decay=0.0)
  updates = first_update(optimizer, params, grads)
  blocks = updates['encoder']['blocks' if scan else 'block_0']
  qkv = np.asarray(blocks['attn']['qkv']['kernel'])
  matrix = (qkv[0] if scan else qkv).reshape(4, -1)
  values = np.linalg.svd(matrix, compute_uv=False)
  # Five Newton-Schulz steps bring singular values near one another, and the
  # scale of AdamW's updates is a root mean square of 0.2.
  assert values.max() / values.min() < 2
  assert np.sqrt(np.mean(matrix**2)) == pytest.approx(0.2, rel=0.2)
  axes = optim.matrix_axes(params)
  assert axes['head']['kernel'] is None
  assert axes['norm']['scale'] is None


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_directions_learn_faster_and_never_decay(name):
  """6 times the update that they would have; the others as without SOA."""
  model = ViViT(
    dim=4, depth=1, heads=2, num_classes=3, frames=4, image_size=8, patch=4,
    orientation=OrientationConfig(),
  )  # fmt: skip
  video = jax.ShapeDtypeStruct((1, 4, 8, 8, 3), jnp.float32)
  tree = jax.eval_shape(model.init, jax.random.key(0), video)['params']
  params, grads = draw(tree, 0), draw(tree, 1)
  found = {}
  for oriented, decay in ((True, 0.0), (True, 0.5), (False, 0.0)):
    cfg = config.OptimConfig(name=name, weight_decay=decay)
    optimizer = build.make_optimizer(cfg, lambda step: 0.1, oriented)
    found[oriented, decay] = flat(first_update(optimizer, params, grads))
  fast, decayed, slow = found.values()
  for leaf, update in slow.items():
    factor = 6.0 if leaf.endswith('orientation/direction') else 1.0
    np.testing.assert_allclose(fast[leaf], factor * update, rtol=1e-6)
  leaf = 'encoder/block_0/mlp/fc1/kernel'
  assert not np.allclose(decayed[leaf], fast[leaf])
  for leaf in fast:
    if '/orientation/' in leaf:
      np.testing.assert_array_equal(decayed[leaf], fast[leaf])


# ----- factors --------------------------------------------------------------


def test_scales_are_the_references():
  depth, found = 12, {}
  # Of the layers 0, 1, 2, depth and depth + 1.
  printed = [0.023757, 0.031676, 0.042235, 0.75, 1]
  for name, scale in flat(optim.layer_scales(shapes(depth), 0.75)).items():
    part = name.removeprefix('encoder/').split('/')[0]
    found.setdefault(part, set()).add(round(float(scale), 6))
  first, second, third, last, after = ({x} for x in printed)
  assert found['embed'] == found['positions'] == found['cls'] == first
  assert found['block_0'] == second
  assert found['block_1'] == third
  assert found[f'block_{depth - 1}'] == last
  assert found['norm'] == found['head'] == after
  assert len(found) == depth + 5


# ----- updates --------------------------------------------------------------


@pytest.mark.parametrize('scan', [False, True])
def test_adamw_steps_as_worked_out_by_hand(x64, scan):
  tree = shapes(2, scan)
  params, grads = draw(tree, 0, np.float64), draw(tree, 1, np.float64)
  optimizer = optim.adamw(
    lambda step: 0.1, weight_decay=0.3, clip_norm=1.0, layer_decay=0.5
  )
  updates = first_update(optimizer, params, grads)
  norm = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(grads)))
  params, grads = flat(params), flat(grads)
  for name, update in flat(updates).items():
    # The first step's moments, freed of their bias, are g and g * g.
    g = grads[name] / norm
    direction = g / (np.abs(g) + 1e-8)
    if name.endswith('kernel'):
      direction += 0.3 * params[name]
    expected = -0.1 * halves(name, update.ndim) * direction
    np.testing.assert_allclose(update, expected, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize('scan', [False, True])
def test_every_leaf_has_its_share_of_the_learning_rate_of_muon(scan):
  params, grads = draw(shapes(2, scan), 0), draw(shapes(2, scan), 1)

  def updates(decay):
    cfg = config.OptimConfig(name='muon', layer_decay=decay)
    optimizer = build.make_optimizer(cfg, lambda step: 1e-3)
    return flat(first_update(optimizer, params, grads))

  plain, decayed = updates(1.0), updates(0.5)
  for leaf, update in decayed.items():
    assert np.abs(update).min() > 0
    np.testing.assert_allclose(
      update, plain[leaf] * halves(leaf, update.ndim), rtol=1e-5, err_msg=leaf
    )


def test_a_decay_of_one_is_the_bare_optimiser():
  def rate(step):
    return 0.1

  bare = optax.contrib.muon(
    rate,
    weight_decay=0.3,
    weight_decay_mask=optim.decayed,
    adam_weight_decay=0.0,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=optim.matrix_axes,
  )
  params, grads = draw(shapes(1), 0), draw(shapes(1), 1)
  ours = optim.muon(rate, weight_decay=0.3, layer_decay=1.0)
  # As trees they must be one, for checkpoints to fit.
  states = [jax.eval_shape(x.init, params) for x in (bare, ours)]
  assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
  jax.tree.map(
    np.testing.assert_array_equal,
    first_update(ours, params, grads),
    first_update(bare, params, grads),
  )


def test_updates_keep_their_type(x64):
  params = draw(shapes(2, scan=True), 0, 'bfloat16')
  optimizer = optim.adamw(lambda step: 0.1, layer_decay=0.5)
  updates = jax.eval_shape(
    lambda x: optimizer.update(x, optimizer.init(x), x)[0], params
  )
  assert {x.dtype.name for x in jax.tree.leaves(updates)} == {'bfloat16'}
