"""Where gradients of MiRA flow, and where they do not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
from mira_inputs import (
  WIDE,
  frame_gain,
  mira_attention,
  random_marginal,
  random_qkv,
)
from mira_jax import mira
from mira_jax.kernels.reference import attention_map
from mira_jax.mira import (
  MiraConfig,
  key_gain,
  log_bias,
)


def finite_difference(f, x, step=1e-6):
  """Central differences of a scalar function of an array."""
  gradient = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    ahead, behind = x.copy(), x.copy()
    ahead[i] += step
    behind[i] -= step
    gradient[i] = (f(ahead) - f(behind)) / (2 * step)
  return gradient


def numpy_statistics(marginal, frames=4):
  """Confidence and concentration by the oracle: [B, L] -> [B, T] twice."""
  tokens = marginal.reshape(len(marginal), frames, -1)
  mass = tokens.sum(2)
  return mass / mass.sum(1, keepdims=True), oracle.inverse_entropy(tokens)


def gain_gradient(config, marginal, weight, past=None, training=False):
  """Gradient of the weighted sum of gains by the marginal."""
  return jax.grad(
    lambda m: (
      weight * frame_gain(m, 4, config, past=past, training=training).gain
    ).sum()
  )(marginal)


WEIGHT = np.cos(np.arange(12.0)).reshape(3, 4)
WIDE_HYPER = oracle.Hyper(alpha_min=1e-3, alpha_max=1e3)


@pytest.mark.parametrize('statistics', ['instance', 'batch'])
def test_no_gradient_through_the_clips_own_confidence(x64, statistics):
  marginal = np.asarray(random_marginal())
  own, _ = numpy_statistics(marginal)

  def with_constant_denominator(marginal, denominator=own):
    c, h = numpy_statistics(marginal)
    if statistics == 'batch':
      c, h = (x.mean(0, keepdims=True) for x in (c, h))
    *_, alpha = oracle.exact_gain(denominator, c, h, WIDE_HYPER)
    return (WEIGHT * alpha).sum()

  got = gain_gradient(
    MiraConfig(statistics=statistics, **WIDE), marginal, WEIGHT
  )
  want = finite_difference(with_constant_denominator, marginal)
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
  # The check has teeth: with the denominator moving it fails.
  moving = finite_difference(
    lambda m: with_constant_denominator(m, numpy_statistics(m)[0]), marginal
  )
  assert np.abs(moving - want).max() > 0.1


def test_batch_ema_training_has_no_gradient_through_confidence(x64):
  marginal, past = np.asarray(random_marginal()), np.full(4, 0.25)
  own, _ = numpy_statistics(marginal)
  mean = 0.9 * past + 0.1 * own.mean(0)

  def with_constant_mean(marginal, mean=mean):
    h = numpy_statistics(marginal)[1].mean(0, keepdims=True)
    *_, alpha = oracle.exact_gain(own, mean[None], h, WIDE_HYPER)
    return (WEIGHT * alpha).sum()

  got = gain_gradient(
    MiraConfig(statistics='batch_ema', **WIDE),
    marginal,
    WEIGHT,
    past=jnp.asarray(past),
    training=True,
  )
  want = finite_difference(with_constant_mean, marginal)
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
  assert np.abs(want).max() > 1e-2
  moving = finite_difference(
    lambda m: with_constant_mean(
      m, 0.9 * past + 0.1 * numpy_statistics(m)[0].mean(0)
    ),
    marginal,
  )
  assert np.abs(moving - want).max() > 1e-3


def test_flashlite_gain_is_a_constant(x64):
  qkv = random_qkv()
  config = MiraConfig(mode='flashlite')
  bias = log_bias(
    key_gain(mira_attention(*qkv, num_frames=4, config=config).frames.gain, 12)
  )

  def with_constant_bias(q, k, v):
    weights = attention_map(q, k, bias)
    return jnp.sin(jnp.einsum('bhqk,bkhd->bqhd', weights, v)).sum()

  def loss(q, k, v):
    got = mira_attention(q, k, v, num_frames=4, config=config)
    return jnp.sin(got.output).sum()

  got, want = (
    jax.jit(jax.grad(f, argnums=(0, 1, 2)))(*qkv)
    for f in (loss, with_constant_bias)
  )
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
  # Nor does a marginal that is not made of keys get a gradient.
  gradient = gain_gradient(config, random_marginal(), WEIGHT)
  np.testing.assert_array_equal(gradient, 0)


def test_gradient_passes_on_the_bound_and_stops_beyond():
  slope = jax.grad(lambda x: mira._clip(x, 0.7, 1.4))
  low, high = jnp.float32(0.7), jnp.float32(1.4)
  assert [float(slope(x)) for x in (low, jnp.float32(1), high)] == [1, 1, 1]
  beyond = jnp.nextafter(low, 0), jnp.nextafter(high, 2)
  assert [float(slope(x)) for x in beyond] == [0, 0]


def test_frames_tied_with_the_least_score_keep_their_gradient(x64):
  # PyTorch's min(dim) hands its gradient to one index, here the first.
  score = jnp.array([[0.2, 0.2, 0.7, 0.2]])
  slope = jax.jacobian(lambda f: mira._exact_prior(f, MiraConfig())[0][0])
  want = np.array([[0, 0, 0, 0], [-2, 2, 0, 0], [0, 0, 0, 0], [-2, 0, 0, 2]])
  np.testing.assert_allclose(slope(score)[:, 0], want, atol=1e-9)
