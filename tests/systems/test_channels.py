"""SMA-style attention: maps, losses, refinement, and the identity."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.systems.channels import (
  ChannelAttention,
  ChannelHead,
  ChannelsConfig,
  sma_diversity,
  sma_focus,
  sma_maps,
  sma_pool,
  sma_refine,
)

B, T, K, M, N, D = 2, 3, 2, 4, 5, 6
SHAPES = {
  'map_kernel': (D, K, M),
  'query_kernel': (D, 7),
  'key_kernel': (D, 7),
  'refine_scale': (),
  'squeeze_kernel': (D, 8),
  'excite_kernel': (8, 1),
}
CONFIG = ChannelsConfig(channels=M, refine_dim=7)


def tokens(dtype=jnp.float32):
  return jax.random.normal(jax.random.key(0), (B, T, N, D), dtype)


def random_maps(seed=0):
  logits = jax.random.normal(jax.random.key(seed), (B, T, K, M, N))
  return jax.nn.softmax(2 * logits)


def attention(config=CONFIG, **changes):
  config = dataclasses.replace(config, **changes)
  init = jax.nn.initializers.normal(1.0)
  return ChannelAttention(config, regions=K, kernel_init=init)


def set_scales(variables, **scales):
  params = dict(variables['params'])
  params |= {name: jnp.float32(x) for name, x in scales.items()}
  return {'params': params}


# Maps.


def test_maps_by_hand():
  # One channel, two tokens whose logits are log 3 / 2 and 0, temperature 1 / 2.
  x = jnp.array([[[[np.log(3) / 2], [0.0]]]])
  maps = sma_maps(x, jnp.ones((1, 1, 1)), temperature=0.5)
  np.testing.assert_allclose(maps[0, 0, 0, 0], [0.75, 0.25], rtol=1e-6)
  # Sigmoids 3 / 4 and 1 / 2, over their sum.
  maps = sma_maps(2 * x, jnp.ones((1, 1, 1)), activation='sigmoid')
  np.testing.assert_allclose(maps[0, 0, 0, 0], [0.6, 0.4], rtol=1e-6)


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_maps_by_an_oracle(activation):
  x, kernel = tokens(), jax.random.normal(jax.random.key(1), (D, K, M))
  bias = jax.random.normal(jax.random.key(2), (K, M))
  z = np.einsum('btnd,dkm->btkmn', x, kernel) + np.asarray(bias)[..., None]
  z = np.exp(z / 2) if activation == 'softmax' else 1 / (1 + np.exp(-z / 2))
  found = sma_maps(x, kernel, bias, temperature=2.0, activation=activation)
  expected = z / z.sum(-1, keepdims=True)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('activation', ['softmax', 'sigmoid'])
def test_maps_are_distributions_however_large_logits_are(activation):
  kernel = -1000 * jnp.ones((D, K, M))
  maps = sma_maps(jnp.abs(tokens()), kernel, activation=activation)
  np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)


# Losses.


@pytest.mark.parametrize('kind', ['cosine', 'hellinger', 'margin'])
def test_diversity_is_of_each_clip_and_within_regions(kind):
  # Of the first clip, maps of a region are disjoint, but equal across regions.
  disjoint = jnp.broadcast_to(jnp.eye(N)[:M], (T, K, M, N))
  alike = jnp.broadcast_to(jnp.eye(N)[0], (T, K, M, N))
  found = sma_diversity(jnp.stack([disjoint, alike]), kind)
  np.testing.assert_allclose(found, [0, 1], atol=1e-6)


def test_diversity_by_an_oracle():
  maps = np.asarray(random_maps(), np.float64)
  unit = maps / np.linalg.norm(maps, axis=-1, keepdims=True)
  square = np.einsum('btkmn,btkpn->btkmp', unit, unit) ** 2
  pairs = square.sum((-2, -1)) - M  # the diagonal is one
  expected = (pairs / (M * (M - 1))).mean((1, 2))
  np.testing.assert_allclose(sma_diversity(random_maps()), expected, rtol=1e-4)


def test_focus_by_hand():
  # Against the mean (1/2, 1/2), each map has a divergence of log 2.
  maps = jnp.array([[[[[1.0, 0.0], [0.0, 1.0]]]], [[[[0.5, 0.5], [0.5, 0.5]]]]])
  np.testing.assert_allclose(sma_focus(maps), [np.log(2), 0], atol=1e-6)
  np.testing.assert_allclose(sma_focus(maps, 'entropy'), [0, 1], atol=1e-6)
  np.testing.assert_array_equal(sma_focus(maps, 'none'), [0, 0])


def test_focus_by_an_oracle():
  maps = np.asarray(random_maps(), np.float64)
  mean = maps.mean(-2, keepdims=True)
  expected = (maps * np.log(maps / mean)).sum(-1).mean((1, 2, 3))
  np.testing.assert_allclose(sma_focus(random_maps()), expected, rtol=1e-4)


@pytest.mark.parametrize('kind', ['kl', 'entropy'])
def test_focus_has_finite_gradients_where_maps_are_0(kind):
  maps = jnp.broadcast_to(jnp.eye(N)[:M], (B, T, K, M, N))
  assert jnp.isfinite(jax.grad(lambda x: sma_focus(x, kind).sum())(maps)).all()


def test_gradients_of_the_focus_by_hand():
  # d (A log (A / m)) / dA = log (A / m) + 1, over the M maps; m is constant.
  maps = jnp.array([[[[[0.9, 0.1], [0.3, 0.7]]]]])
  expected = (np.log(np.asarray(maps) / np.array([0.6, 0.4])) + 1) / 2
  found = jax.grad(lambda x: sma_focus(x).sum())(maps)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_equal_maps_do_not_part_and_different_ones_do():
  """Descent on the kernel: symmetric starts have no gradient difference."""
  x = tokens()

  def loss(kernel):
    return sma_diversity(sma_maps(x, kernel)).mean()

  one = jax.random.normal(jax.random.key(1), (D, K, 1))
  same = jnp.repeat(one, 2, axis=2)
  grad = jax.grad(loss)(same)
  np.testing.assert_array_equal(grad[..., 0], grad[..., 1])
  kernel = same + 0.1 * jax.random.normal(jax.random.key(2), same.shape)
  before = loss(kernel)
  step = jax.jit(lambda x: x - 3 * jax.grad(loss)(x))
  for _ in range(40):
    kernel = step(kernel)
  assert before > 0.9
  assert loss(kernel) < 0.5


# Refinement and fusion.


def refine_inputs(width):
  stand = jax.random.normal(jax.random.key(1), (B, T, K, M, width))
  query, key = jax.random.normal(jax.random.key(2), (2, width, 7))
  return random_maps(), stand, query, key


def test_refinement_by_an_oracle():
  maps, stand, query, key = refine_inputs(D)
  found = sma_refine(maps, stand, query, key, 0.7)
  for b, t in np.ndindex(B, T):
    a = np.asarray(maps[b, t]).reshape(-1, N)
    s = np.asarray(stand[b, t]).reshape(-1, D)
    g = np.exp((s @ query) @ (s @ key).T / np.sqrt(7))
    expected = a + 0.7 * g / g.sum(-1, keepdims=True) @ a
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(found[b, t].reshape(-1, N), expected, rtol=1e-3)


@pytest.mark.parametrize('alpha', [-3, -1, -0.3, 0, 2, 100])
def test_refined_rows_stay_distributions(alpha):
  found = jax.jit(sma_refine)(*refine_inputs(D), alpha)
  assert (found >= 0).all()
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-4)
  if alpha == 0:
    np.testing.assert_array_equal(found, random_maps())


def test_fusion_by_an_oracle():
  maps, x = random_maps(), tokens()
  weights = jax.nn.softmax(jax.random.normal(jax.random.key(3), (B, T, K, M)))
  features, fused = sma_pool(maps, x, weights)
  expected = (np.asarray(maps) * np.asarray(weights)[..., None]).sum(3)
  np.testing.assert_allclose(fused, expected, rtol=1e-5)
  expected = np.einsum('btkn,btnd->btkd', expected, x)
  np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)


# The module.


def test_parameters():
  variables = attention().init(jax.random.key(0), tokens())
  assert jax.tree.map(jnp.shape, variables['params']) == SHAPES
  other = attention(
    activation='sigmoid', refine_tokens='maps', form='reweight'
  ).init(jax.random.key(0), tokens())
  assert jax.tree.map(jnp.shape, other['params']) == SHAPES | {
    'map_bias': (K, M),
    'query_kernel': (N, 7),
    'key_kernel': (N, 7),
    'token_scale': (),
  }


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('form', ['head', 'reweight'])
def test_tokens_are_the_same_at_the_start(form, dtype):
  x = tokens(dtype)
  module = attention(form=form).clone(dtype=dtype)
  variables = module.init(jax.random.key(0), x)
  found = jax.jit(module.apply)(variables, x)
  if form == 'reweight':
    np.testing.assert_array_equal(found.gain, jnp.ones((B, T, N)))
  else:
    assert found.gain is None
  shapes = [(B, T, K, D), (B, T, K, M, N), (B, T, K, N), (B,), (B,)]
  assert [y.shape for y in found._replace(gain=None) if y is not None] == shapes
  assert found.features.dtype == dtype
  assert found.maps.dtype == found.diversity.dtype == jnp.float32


def test_the_start_is_unrefined_and_weighs_maps_alike():
  x, module = tokens(), attention()
  variables = module.init(jax.random.key(0), x)
  found = module.apply(variables, x)
  maps = sma_maps(x, variables['params']['map_kernel'])
  np.testing.assert_allclose(found.maps, maps, rtol=1e-6)
  np.testing.assert_allclose(found.fused, maps.mean(3), rtol=1e-5)
  expected = jnp.einsum('btkn,btnd->btkd', maps.mean(3), x)
  np.testing.assert_allclose(found.features, expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(found.diversity, sma_diversity(maps), rtol=1e-5)
  np.testing.assert_allclose(found.focus, sma_focus(maps), rtol=1e-5)


@pytest.mark.parametrize('kind', ['features', 'maps'])
def test_a_scale_refines_the_maps_but_not_the_losses(kind):
  x, module = tokens(), attention(refine_tokens=kind)
  variables = module.init(jax.random.key(0), x)
  start = module.apply(variables, x)
  found = module.apply(set_scales(variables, refine_scale=1.0), x)
  assert jnp.abs(found.maps - start.maps).max() > 0.01
  np.testing.assert_allclose(found.maps.sum(-1), 1, atol=1e-5)
  np.testing.assert_array_equal(found.diversity, start.diversity)
  np.testing.assert_array_equal(found.focus, start.focus)
  p = variables['params']
  stand = start.maps
  if kind == 'features':
    stand = jnp.einsum('btkmn,btnd->btkmd', start.maps, x)
  expected = sma_refine(
    start.maps, stand, p['query_kernel'], p['key_kernel'], 1.0
  )
  np.testing.assert_allclose(found.maps, expected, rtol=1e-4, atol=1e-6)


def test_tokens_are_weighed_by_what_all_regions_see():
  x, module = tokens(), attention(form='reweight')
  variables = module.init(jax.random.key(0), x)
  found = module.apply(set_scales(variables, token_scale=0.5), x)
  factor = 1 + 0.5 * N * found.fused.sum(2)
  np.testing.assert_allclose(found.gain, factor, rtol=1e-5)


def test_weights_of_maps_follow_the_clip():
  x, module = tokens(), attention()
  variables = module.init(jax.random.key(0), x)
  excite = jax.random.normal(jax.random.key(5), (8, 1))
  p = variables['params'] | {'excite_kernel': excite}
  found = module.apply({'params': p}, x)
  collected = jnp.einsum('btkmn,btnd->btkmd', found.maps, x)
  weights = jax.nn.relu(collected @ p['squeeze_kernel']) @ excite
  weights = jax.nn.softmax(weights[..., 0])
  assert jnp.ptp(weights) > 0.3
  expected = jnp.einsum('btkmn,btkm->btkn', found.maps, weights)
  np.testing.assert_allclose(found.fused, expected, rtol=1e-4, atol=1e-6)


def test_every_parameter_learns():
  x = tokens()
  module = attention(form='reweight', activation='sigmoid')
  variables = module.init(jax.random.key(0), x)
  scales = {'refine_scale': 0.5, 'token_scale': 0.5}
  variables = set_scales(variables, **scales)
  variables['params']['excite_kernel'] = jnp.ones((8, 1))

  def loss(variables):
    found = module.apply(variables, x)
    return sum(jnp.square(y).sum() for y in found)

  for name, grad in jax.jit(jax.grad(loss))(variables)['params'].items():
    assert jnp.abs(grad).max() > 1e-4, name


# The head.


@pytest.mark.parametrize(
  ('classes', 'name', 'shape'),
  [(K, 'kernel', (D, K)), (3, 'regions_kernel', (K, D, 3))],
)
def test_logits_are_0_at_the_start_and_drawn_where_they_replace(
  classes, name, shape
):
  x = jax.random.normal(jax.random.key(0), (B, T, K, D))
  head = ChannelHead(CONFIG, classes)
  variables = head.init(jax.random.key(0), x)
  shapes = jax.tree.map(jnp.shape, variables['params'])
  assert shapes == {name: shape, 'bias': (classes,)}
  np.testing.assert_array_equal(
    head.apply(variables, x), np.zeros((B, classes))
  )
  grad = jax.grad(lambda v: head.apply(v, x).sum())(variables)['params']
  assert jnp.abs(grad[name]).min() > 0
  head = ChannelHead(dataclasses.replace(CONFIG, replace=True), classes)
  variables = head.init(jax.random.key(0), x)
  assert jnp.abs(head.apply(variables, x)).min() > 0


def test_logits_by_an_oracle():
  x = jax.random.normal(jax.random.key(0), (B, T, K, D), jnp.bfloat16)
  mean = np.asarray(x, np.float32).mean(1)
  kernel = jax.random.normal(jax.random.key(1), (D, K))
  params = {'kernel': kernel, 'bias': jnp.array([0.5, -0.5])}
  found = ChannelHead(CONFIG, K).apply({'params': params}, x)
  assert found.dtype == jnp.float32
  expected = [mean[:, k] @ kernel[:, k] + params['bias'][k] for k in range(K)]
  np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-4, atol=1e-5)
  kernel = jax.random.normal(jax.random.key(1), (K, D, 3))
  params = {'regions_kernel': kernel, 'bias': jnp.zeros(3)}
  found = ChannelHead(CONFIG, 3).apply({'params': params}, x)
  expected = mean.reshape(B, -1) @ kernel.reshape(-1, 3)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# Errors.


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('regions', -1),
    ('channels', 0),
    ('temperature', 0.0),
    ('temperature', float('nan')),
    ('activation', 'odd'),
    ('refine_dim', 0),
    ('refine_tokens', 'odd'),
    ('diversity', 'odd'),
    ('diversity_weight', -1.0),
    ('focus', 'odd'),
    ('focus_weight', -1.0),
    ('form', 'odd'),
  ],
)
def test_values_out_of_range(field, value):
  with pytest.raises(ValueError, match=f'ChannelsConfig.{field} is .*; use'):
    ChannelsConfig(**{field: value})


def test_a_form_without_logits_replaces_none():
  with pytest.raises(ValueError, match="replace is True with form 'reweight'"):
    ChannelsConfig(form='reweight', replace=True)


def test_no_regions():
  with pytest.raises(ValueError, match='0 regions; use 1'):
    ChannelAttention(CONFIG, 0).init(jax.random.key(0), tokens())
