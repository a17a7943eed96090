"""Overlap of maps, and heads that mix and differ."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.systems.heads import (
  Heads,
  HeadsConfig,
  head_diversity,
  head_mix,
)
from mira_jax.systems.maps import overlap, renormalise

KINDS = ('cosine', 'hellinger', 'margin')


def random_maps(*shape, seed=0, dtype=jnp.float32):
  logits = jax.random.normal(jax.random.key(seed), shape)
  return jax.nn.softmax(2 * logits).astype(dtype)


# Overlap.


@pytest.mark.parametrize('kind', KINDS)
def test_overlap_is_0_for_disjoint_and_1_for_equal_maps(kind):
  assert overlap(jnp.eye(5)[:3], kind) == 0
  same = jnp.tile(random_maps(1, 6), (3, 1))
  np.testing.assert_allclose(overlap(same, kind), 1, rtol=1e-5)
  flat = jnp.ones((3, 200)) / 200
  np.testing.assert_allclose(overlap(flat, kind), 1, rtol=1e-5)
  assert overlap(same[:1], kind) == 0  # a single map repeats nothing


@pytest.mark.parametrize(
  ('kind', 'expected'),
  # p = (1, 0), q = (0.36, 0.64): cosine 0.36 / sqrt(0.1296 + 0.4096)
  [
    ('cosine', 0.1296 / 0.5392),
    ('hellinger', 0.6),
    ('margin', 0.0),
  ],
)
def test_overlap_of_two_maps_by_hand(kind, expected):
  maps = jnp.array([[1.0, 0.0], [0.36, 0.64]])
  np.testing.assert_allclose(overlap(maps, kind), expected, atol=1e-6)


def test_the_margin_by_hand():
  # Cosine 0.8, which is 0.6 of the way from 0.5 to 1.
  maps = jnp.array([[1.0, 0.0], [0.8, 0.6]])
  np.testing.assert_allclose(overlap(maps, 'margin'), 0.36, rtol=1e-5)


def test_overlap_is_the_mean_over_pairs():
  maps = np.asarray(random_maps(2, 4, 9))
  for found, rows in zip(overlap(jnp.array(maps)), maps, strict=True):
    cosines = [
      a @ b / np.linalg.norm(a) / np.linalg.norm(b)
      for a, b in itertools.combinations(rows, 2)
    ]
    np.testing.assert_allclose(found, np.square(cosines).mean(), rtol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_overlap_has_finite_gradients_where_maps_are_0(kind):
  maps = jnp.array([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 0.0]])
  assert jnp.isfinite(jax.grad(lambda x: overlap(x, kind))(maps)).all()


@pytest.mark.parametrize('kind', KINDS)
def test_equal_maps_get_equal_gradients_and_different_ones_part(kind):
  def loss(logits):
    return overlap(jax.nn.softmax(logits), kind)

  row = jax.random.normal(jax.random.key(0), (8,))
  same = jnp.stack([row, row])
  grad = jax.grad(loss)(same)
  np.testing.assert_array_equal(grad[0], grad[1])
  logits = same + 0.3 * jax.random.normal(jax.random.key(1), same.shape)
  before = loss(logits)
  step = jax.jit(lambda x: x - 2 * jax.grad(loss)(x))
  for _ in range(50):
    logits = step(logits)
  assert loss(logits) < 0.5 * before


# Mixing.


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_mixing_by_0_changes_no_bit(dtype):
  maps = random_maps(2, 3, 5, 7, dtype=dtype)
  for f in (head_mix, jax.jit(head_mix)):
    mixed = f(maps, jnp.zeros((3, 3)))
    assert mixed.dtype == dtype
    np.testing.assert_array_equal(mixed, maps)


def test_mixing_by_hand():
  # Head 0 takes half of head 1, which leaves out half of head 0.
  maps = jnp.array([[[[0.5, 0.5]], [[0.2, 0.8]]]])
  mixed = head_mix(maps, jnp.array([[0.0, 0.5], [-0.5, 0.0]]))
  np.testing.assert_allclose(mixed[0, 0, 0], [0.4, 0.6], rtol=1e-6)
  # (0.2 - 0.25, 0.8 - 0.25) = (-0.05, 0.55): what is negative becomes 0.
  np.testing.assert_allclose(mixed[0, 1, 0], [0.0, 1.0], atol=1e-6)


def test_a_row_of_which_nothing_is_left_stays():
  maps = random_maps(1, 2, 3, 4)
  mixed = head_mix(maps, jnp.array([[-2.0, 0.0], [0.0, 0.0]]))
  np.testing.assert_array_equal(mixed, maps)


@pytest.mark.parametrize('seed', range(4))
def test_rows_stay_distributions(seed):
  mix = 2 * jax.random.normal(jax.random.key(seed), (3, 3))
  mixed = head_mix(random_maps(2, 3, 5, 7, seed=seed), mix)
  assert (mixed >= 0).all()
  np.testing.assert_allclose(mixed.sum(-1), 1, atol=1e-4)


def test_gradients_of_the_mix_at_0_by_differences(x64):
  maps = random_maps(1, 2, 2, 5, dtype=jnp.float64)
  target = random_maps(1, 2, 2, 5, seed=1, dtype=jnp.float64)

  def loss(mix):
    return jnp.square(head_mix(maps, mix) - target).sum()

  zero = jnp.zeros((2, 2))
  grad = jax.grad(loss)(zero)
  for i, j in itertools.product(range(2), range(2)):
    step = 1e-6 * jnp.zeros((2, 2)).at[i, j].set(1)
    slope = (loss(step) - loss(-step)) / 2e-6
    np.testing.assert_allclose(grad[i, j], slope, atol=1e-8)
  # More of itself changes nothing; more of another head does.
  np.testing.assert_allclose(jnp.diag(grad), 0, atol=1e-12)
  assert abs(grad[0, 1]) > 1e-4


def test_nan_is_not_hidden():
  mixed = jnp.array([[jnp.nan, 0.5]])
  assert jnp.isnan(renormalise(mixed, jnp.array([[0.5, 0.5]]))).any()


# Diversity.


def test_diversity_is_of_each_clip():
  eye = jnp.eye(4)[:, None]  # four heads, one query, four keys
  maps = jnp.stack([eye, jnp.ones((4, 1, 4)) / 4])
  np.testing.assert_allclose(head_diversity(maps), [0, 1], atol=1e-6)


def test_diversity_by_an_oracle():
  maps = np.asarray(random_maps(2, 3, 5, 7), np.float64)
  unit = maps / np.linalg.norm(maps, axis=-1, keepdims=True)
  square = np.einsum('bhqn,bjqn->bhjq', unit, unit) ** 2
  expected = [
    np.mean([x[h, j] for h in range(3) for j in range(3) if h != j])
    for x in square
  ]
  np.testing.assert_allclose(head_diversity(jnp.array(maps)), expected, 1e-5)


def test_diversity_looks_at_evenly_spaced_queries():
  maps = random_maps(1, 2, 9, 4)
  np.testing.assert_array_equal(
    head_diversity(maps, 3), head_diversity(maps[:, :, np.array([0, 4, 8])])
  )


def test_a_single_head_repeats_nothing():
  maps = random_maps(2, 1, 3, 4)
  np.testing.assert_array_equal(head_diversity(maps), [0, 0])


# The module.


def test_the_module_starts_as_the_identity_and_learns():
  maps = random_maps(2, 3, 5, 7)
  module = Heads(HeadsConfig(queries=2))
  variables = module.init(jax.random.key(0), maps)
  assert jax.tree.map(jnp.shape, variables) == {
    'params': {'mix_kernel': (3, 3)}
  }
  found = jax.jit(module.apply)(variables, maps)
  np.testing.assert_array_equal(found.maps, maps)
  np.testing.assert_allclose(found.diversity, head_diversity(maps, 2), 1e-6)
  grad = jax.grad(lambda v: module.apply(v, maps).diversity.sum())(variables)
  assert jnp.abs(grad['params']['mix_kernel']).max() > 1e-3
  assert not Heads(HeadsConfig(mix=False)).init(jax.random.key(0), maps)


def test_the_module_computes_in_its_dtype():
  maps = random_maps(2, 3, 5, 7)
  module = Heads(HeadsConfig(), dtype=jnp.bfloat16)
  found = module.apply(module.init(jax.random.key(0), maps), maps)
  assert found.maps.dtype == jnp.bfloat16
  assert found.diversity.dtype == jnp.float32


@pytest.mark.parametrize(
  ('field', 'value'), [('queries', 0), ('diversity_weight', -0.1)]
)
def test_values_out_of_range(field, value):
  with pytest.raises(ValueError, match=f'HeadsConfig.{field} is {value}; use'):
    HeadsConfig(**{field: value})
