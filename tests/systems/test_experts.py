"""Masked low-rank experts: the branch, its mask, and folding it into layers."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mira_jax.errors import MiraInputError
from mira_jax.systems.experts import (
  Experts,
  ExpertsConfig,
  merged,
  mlae_branch,
  mlae_dense,
)

# Of the layers of a block, C 6, 2 heads of 3 channels: input, features, axis,
# and the shapes of a and b.
LAYERS = {
  'qkv': ((2, 4, 6), (3, 2, 3), -1, (6, 4), (4, 3, 2, 3)),
  'proj': ((2, 4, 2, 3), 6, (-2, -1), (2, 3, 4), (4, 6)),
  'fc1': ((2, 4, 6), 10, -1, (6, 4), (4, 10)),
}
CONFIG = ExpertsConfig(rank=4, dropout=0.5, alpha=0.7)


class Layer(nn.Module):
  """A layer, and its experts beside it."""

  layer: str = 'qkv'
  config: ExpertsConfig | None = CONFIG
  train: bool = False

  @nn.compact
  def __call__(self, x):
    _, features, axis, _, _ = LAYERS[self.layer]
    y = nn.DenseGeneral(features, axis=axis, name=self.layer)(x)
    if self.config is not None:
      name = f'{self.layer}_experts'
      experts = Experts(
        self.config, features, axis, train=self.train, name=name
      )
      y = y + experts(x)
    return y


class Step(nn.Module):
  """A layer of a stack: the same width in and out."""

  config: ExpertsConfig | None = CONFIG

  @nn.compact
  def __call__(self, x, _):
    dim = x.shape[-1]
    y = nn.Dense(dim, name='fc2')(x)
    if self.config is not None:
      y = y + Experts(self.config, dim, name='fc2_experts')(x)
    return jnp.tanh(y), None


def drawn(variables, seed=9):
  """Random numbers in place of all parameters."""
  leaves, tree = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  new = [
    jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(tree, new)


def features(layer):
  shape = LAYERS[layer][0]
  return jax.random.normal(jax.random.key(1), shape)


def test_the_branch_by_hand():
  # Two experts: (1, 2) . (1, 1) = 3 and (1, 2) . (0, 1) = 2.
  x, kernel = jnp.array([1.0, 2.0]), jnp.array([[1.0], [1.0]])
  a, b = jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.array([[5.0], [7.0]])
  scale = jnp.array([0.1, 10.0])
  assert mlae_dense(x, kernel, a, b, scale) == 3 + 0.1 * 3 * 5 + 10 * 2 * 7
  kept = jnp.array([2.0, 0.0])
  assert mlae_dense(x, kernel, a, b, scale, kept) == 3 + 2 * 0.1 * 3 * 5


@pytest.mark.parametrize('layer', LAYERS)
def test_a_layer_starts_as_it_was(layer):
  x = features(layer)
  variables = Layer(layer).init(jax.random.key(0), x)
  branch = variables['params'].pop(f'{layer}_experts')
  _, _, _, a, b = LAYERS[layer]
  assert jax.tree.map(jnp.shape, branch) == {'a': a, 'b': b, 'scale': (4,)}
  np.testing.assert_array_equal(branch['b'], 0)
  np.testing.assert_array_equal(branch['scale'], np.float32(0.7))
  # Kaiming: bounded by, and nearly reaching, sqrt(6 / inputs).
  assert 0.8 < np.abs(branch['a']).max() / (6 / 6) ** 0.5 <= 1
  plain = Layer(layer, None).apply(variables, x)
  variables['params'][f'{layer}_experts'] = branch
  for train in (False, True):
    found = Layer(layer, train=train).apply(
      variables, x, rngs={'dropout': jax.random.key(0)}
    )
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize('layer', LAYERS)
def test_merged_is_unmerged(layer):
  x = features(layer)
  variables = drawn(Layer(layer).init(jax.random.key(0), x))
  before = copy.deepcopy(variables)
  plain = merged(variables)
  assert list(plain['params']) == [layer]
  found = Layer(layer, None).apply(plain, x)
  expected = jax.jit(Layer(layer).apply)(variables, x)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  # The experts matter, and what was given stays as it was.
  own = {'params': {layer: variables['params'][layer]}}
  assert jnp.abs(Layer(layer, None).apply(own, x) - expected).max() > 0.1
  jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_stacked_blocks_merge():
  x = jax.random.normal(jax.random.key(1), (2, 6))

  def stack(config):
    return nn.scan(
      Step,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=3,
    )(config)

  variables = drawn(stack(CONFIG).init(jax.random.key(0), x, None))
  assert variables['params']['fc2_experts']['a'].shape == (3, 6, 4)
  expected, _ = stack(CONFIG).apply(variables, x, None)
  found, _ = stack(None).apply(merged(variables), x, None)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_members_merge():
  x = features('qkv')

  def ensemble(config):
    return nn.vmap(
      Layer,
      in_axes=None,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      axis_size=3,
    )('qkv', config)

  variables = drawn(ensemble(CONFIG).init(jax.random.key(0), x))
  assert variables['params']['qkv_experts']['b'].shape == (3, 4, 3, 2, 3)
  expected = ensemble(CONFIG).apply(variables, x)
  found = ensemble(None).apply(merged(variables), x)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_other_parameters_stay():
  tree = {'encoder': {'block_0': {'norm1': {'scale': jnp.ones(2)}}, 'n': 3}}
  assert merged(tree) == tree


def test_a_mask_leaves_out_whole_experts_for_the_whole_batch():
  x = features('fc1')
  module = Experts(CONFIG, 10, train=True)
  rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
  variables = drawn(module.init(rngs, x))
  p = variables['params']
  keys = jax.random.split(jax.random.key(2), 40)
  found = jax.jit(
    jax.vmap(lambda key: module.apply(variables, x, rngs={'dropout': key}))
  )(keys)
  each = [mlae_branch(x, p['a'], p['b'], p['scale'], row) for row in jnp.eye(4)]
  # The masks that explain the first token explain all of them.
  first = np.stack([y[0, 0] for y in each], 1)
  masks = np.linalg.lstsq(first, np.asarray(found[:, 0, 0]).T)[0].T
  np.testing.assert_allclose(masks, 2 * np.round(masks / 2), atol=1e-2)
  expected = np.einsum('sr,r...->s...', masks, np.stack(each))
  np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)
  # Half of the experts are kept, at twice their weight.
  masks = np.round(masks)
  assert 0.35 < np.mean(masks == 2) < 0.65
  assert len(np.unique(masks, axis=0)) > 4


def test_the_branch_learns_and_its_layer_may_be_frozen():
  x = features('qkv')
  variables = Layer().init(jax.random.key(0), x)

  def loss(branch):
    params = variables['params'] | {'qkv_experts': branch}
    return jnp.square(Layer().apply({'params': params}, x)).mean()

  branch = variables['params']['qkv_experts']
  before = loss(branch)
  gradient = jax.jit(jax.grad(loss))
  for _ in range(20):
    grad = gradient(branch)
    branch = jax.tree.map(lambda p, g: p - 0.3 * g, branch, grad)
  assert loss(branch) < 0.7 * before


def test_bfloat16():
  x = features('proj').astype(jnp.bfloat16)
  module = Experts(CONFIG, 6, (-2, -1), jnp.bfloat16)
  variables = drawn(module.init(jax.random.key(0), x))
  found = module.apply(variables, x)
  assert found.dtype == jnp.bfloat16
  wide = Experts(CONFIG, 6, (-2, -1)).apply(variables, x)
  np.testing.assert_allclose(found, wide, rtol=0.1, atol=0.2)


def test_a_branch_without_its_layer():
  tree = {'block_0': {'fc1_experts': {'a': 0, 'b': 0, 'scale': 0}}}
  with pytest.raises(MiraInputError, match='no block_0/fc1/kernel') as caught:
    merged(tree)
  assert caught.value.code == 'bad_key'


def test_a_branch_of_another_shape():
  variables = Layer().init(jax.random.key(0), features('qkv'))
  params = variables['params']
  params['qkv']['kernel'] = params['qkv']['kernel'][:5]
  with pytest.raises(
    MiraInputError, match=r'do not fit a kernel \(5,'
  ) as caught:
    merged(variables)
  assert caught.value.code == 'weights_mismatch'


@pytest.mark.parametrize(
  ('field', 'value'), [('rank', 0), ('dropout', 1.0), ('alpha', 0.0)]
)
def test_values_out_of_range(field, value):
  with pytest.raises(ValueError, match=f'ExpertsConfig.{field} is .*; use'):
    ExpertsConfig(**{field: value})
