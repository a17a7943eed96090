"""Identity adversarial training: the reversal, the head and its loss."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.systems.identity import (
  IdentityConfig,
  IdentityHead,
  grad_reverse,
  identity_loss,
  reversal_strength,
)

LOSSES = ('bce', 'ce')


@pytest.mark.parametrize('strength', [0, 0.5, 2])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_gradient_is_reversed_and_scaled(strength, dtype):
  x = jnp.array([1.0, -2.0, 3.0], dtype)

  def loss(x, strength):
    return jnp.square(grad_reverse(x, strength)).sum()

  for f in (grad_reverse, jax.jit(grad_reverse)):
    np.testing.assert_array_equal(f(x, strength), x)
  grad = jax.jit(jax.grad(loss))(x, strength)
  assert grad.dtype == dtype
  np.testing.assert_array_equal(grad, -strength * 2 * x)
  # The strength may be traced; nothing learns it.
  assert jax.grad(loss, argnums=1)(x, jnp.float32(strength)) == 0


def test_reversal_under_vmap_and_twice():
  x = jnp.arange(6.0).reshape(3, 2)
  grad = jax.vmap(jax.grad(lambda x: (grad_reverse(x, 2.0) ** 2).sum()))(x)
  np.testing.assert_array_equal(grad, -4 * x)
  twice = jax.grad(lambda x: grad_reverse(grad_reverse(x, 2.0), 3.0).sum())(x)
  np.testing.assert_array_equal(twice, 6 * jnp.ones_like(x))


@pytest.mark.parametrize('kind', LOSSES)
def test_the_head_learns_at_full_rate_whatever_the_strength(kind):
  config = IdentityConfig(loss=kind)
  head = IdentityHead(config, subjects=3)
  x = jax.random.normal(jax.random.key(0), (4, 5))
  subject = jnp.array([0, 1, 2, 1])
  variables = head.init(jax.random.key(1), x)
  shapes = jax.tree.map(jnp.shape, variables)
  assert shapes == {'params': {'kernel': (5, 3), 'bias': (3,)}}

  def loss(variables, x, strength):
    logits = head.apply(variables, x, strength)
    return identity_loss(logits, subject, config.loss).mean()

  grads = {
    s: jax.grad(loss, argnums=(0, 1))(variables, x, s) for s in (0.0, 0.5, 2.0)
  }

  def plain(variables, x):
    params = variables['params']
    logits = x @ params['kernel'] + params['bias']
    return identity_loss(logits, subject, config.loss).mean()

  usual = jax.grad(plain, argnums=(0, 1))(variables, x)
  for strength, (own, back) in grads.items():
    jax.tree.map(np.testing.assert_array_equal, own, usual[0])
    np.testing.assert_allclose(back, -strength * usual[1], atol=1e-7)
  # Without a strength, it is the configuration's.
  default = jax.grad(loss, argnums=1)(variables, x, None)
  np.testing.assert_allclose(default, -usual[1], atol=1e-7)


def test_the_head_and_the_features_pull_apart():
  """Descent on both: the head gets better on still features, they worse."""
  head = IdentityHead(IdentityConfig(), subjects=2)
  x = jnp.array([[1.0, 0.2], [-1.0, 0.1], [0.9, 0.3], [-1.1, 0.2]])
  subject = jnp.array([0, 1, 0, 1])
  variables = head.init(jax.random.key(0), x)

  def loss(variables, x):
    return identity_loss(head.apply(variables, x, 1.0), subject).mean()

  gradient = jax.jit(jax.grad(loss))
  for _ in range(30):
    grad = gradient(variables, x)
    variables = jax.tree.map(lambda a, b: a - b, variables, grad)
  learned = loss(variables, x)
  assert learned < 0.3
  assert loss(variables, x - jax.grad(loss, argnums=1)(variables, x)) > learned


def test_losses_by_hand():
  logits = jnp.array([[math.log(3.0), 0.0]])
  subject = jnp.array([0])
  # -log(3 / 4) and -log(1 / 2), of two binary questions; one softmax.
  expected = (math.log(4 / 3) + math.log(2)) / 2
  np.testing.assert_allclose(identity_loss(logits, subject), [expected], 1e-6)
  found = identity_loss(logits, subject, 'ce')
  np.testing.assert_allclose(found, [math.log(4 / 3)], 1e-6)


@pytest.mark.parametrize('kind', LOSSES)
def test_unknown_subjects_have_neither_loss_nor_gradient(kind):
  logits = jnp.array([[1.0, -1.0], [jnp.inf, 0.0], [2.0, 3.0]])
  subject = jnp.array([1, -1, 2])
  assert identity_loss(logits, subject, kind)[0] > 0
  np.testing.assert_array_equal(identity_loss(logits, subject, kind)[1:], 0)
  logits = logits.at[1].set(5.0)
  grad = jax.grad(lambda x: identity_loss(x, subject, kind).sum())(logits)
  assert jnp.abs(grad[0]).min() > 0
  np.testing.assert_array_equal(grad[1:], 0)


def test_the_strength_may_rise_with_training():
  steady, rising = (
    IdentityConfig(strength=2),
    IdentityConfig(strength=2, ramp='linear'),
  )
  assert [reversal_strength(steady, x) for x in (0, 0.5, 1)] == [2, 2, 2]
  assert [reversal_strength(rising, x) for x in (0, 0.5, 1)] == [0, 1, 2]
  traced = jax.jit(lambda x: reversal_strength(rising, x))(jnp.float32(0.25))
  assert traced == 0.5


def test_logits_are_float32_from_bfloat16_features():
  head = IdentityHead(IdentityConfig(), subjects=2, dtype=jnp.bfloat16)
  x = jnp.ones((1, 4), jnp.bfloat16)
  variables = head.init(jax.random.key(0), x)
  assert head.apply(variables, x).dtype == jnp.float32


def test_no_subjects():
  with pytest.raises(ValueError, match='0 subjects; use a dataset'):
    IdentityHead(IdentityConfig(), subjects=0).init(
      jax.random.key(0), jnp.ones((1, 2))
    )


@pytest.mark.parametrize(
  ('field', 'value'),
  [('subjects', -1), ('strength', -1.0), ('loss', 'odd'), ('ramp', 'odd')],
)
def test_values_out_of_range(field, value):
  with pytest.raises(ValueError, match=f'IdentityConfig.{field} is .*; use'):
    IdentityConfig(**{field: value})
