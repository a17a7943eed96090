"""Gated attention: the identity, the published form, its place in a layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.systems.gates import Gate, GateConfig, gate

KINDS = {'head': (6, 2), 'element': (6, 2, 3)}


def inputs(dtype=jnp.float32):
  y = jax.random.normal(jax.random.key(0), (2, 4, 2, 3), dtype)
  x = jax.random.normal(jax.random.key(1), (2, 4, 6), dtype)
  return y, x


def test_a_head_gate_by_hand():
  y = jnp.array([[[[1.0, 2.0], [3.0, 4.0]]]])
  x = jnp.array([[[np.log(3.0), 1.0]]])
  kernel = jnp.array([[1.0, 0.0], [0.0, 0.0]])  # sigmoid(log 3) = 3 / 4
  published = y * gate(x, kernel, 'published')
  expected = [[0.75, 1.5], [1.5, 2.0]]
  np.testing.assert_allclose(published[0, 0], expected, rtol=1e-6)
  np.testing.assert_allclose(y * gate(x, kernel), 2 * published, rtol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_the_gate_by_an_oracle(kind):
  y, x = inputs()
  kernel = jax.random.normal(jax.random.key(2), KINDS[kind])
  logits = np.einsum('blc,ch...->blh...', x, kernel)
  factor = 1 / (1 + np.exp(-logits.reshape(2, 4, 2, -1)))
  found = y * gate(x, kernel, 'published')
  np.testing.assert_allclose(found, np.asarray(y) * factor, rtol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_module_starts_as_the_identity_and_learns(kind, dtype):
  y, x = inputs(dtype)
  module = Gate(GateConfig(kind=kind), dtype=dtype)
  variables = module.init(jax.random.key(0), y, x)
  shapes = jax.tree.map(jnp.shape, variables)
  assert shapes == {'params': {'gate_kernel': KINDS[kind]}}
  found, mean = jax.jit(module.apply)(variables, y, x)
  assert found.dtype == dtype
  np.testing.assert_array_equal(mean, jnp.ones((2, 4)))
  np.testing.assert_array_equal(found, y)
  grad = jax.grad(lambda v: jnp.square(module.apply(v, y, x)[0]).sum())(
    variables
  )
  assert jnp.abs(grad['params']['gate_kernel']).min() > 0


def test_the_published_form_draws_its_kernel_and_halves_the_branch():
  y, x = inputs()
  init = jax.nn.initializers.normal(1e-4)
  module = Gate(GateConfig(form='published'), kernel_init=init)
  variables = module.init(jax.random.key(0), y, x)
  assert jnp.abs(variables['params']['gate_kernel']).min() > 0
  found, _ = module.apply(variables, y, x)
  np.testing.assert_allclose(found, y / 2, rtol=1e-3)


def test_the_gate_depends_on_the_query_alone():
  _, x = inputs()
  kernel = jax.random.normal(jax.random.key(2), (6, 2))
  other = gate(x.at[:, 1].add(1), kernel)
  same = np.array([0, 2, 3])
  np.testing.assert_array_equal(other[:, same], gate(x, kernel)[:, same])
  assert jnp.abs(other[:, 1] - gate(x, kernel)[:, 1]).max() > 0.1


@pytest.mark.parametrize('field', ['kind', 'form'])
def test_values_that_are_no_choice(field):
  with pytest.raises(ValueError, match=f"GateConfig.{field} is 'odd'; use one"):
    GateConfig(**{field: 'odd'})
