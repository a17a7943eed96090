"""What goes wrong in ARBEx's released head, and does not in ours."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.systems import reliability
from mira_jax.systems.reliability import ReliabilityBalancing, ReliabilityConfig
from reliability_inputs import (
  ANCHORS,
  FEATURES,
  LOGITS,
  ONE_HOT,
  PREDICTIONS,
  SMALL,
  TARGETS,
  UNIFORM,
  B,
  C,
  D,
  E,
  K,
  T,
  balance,
  normal,
)

# Numbers of 64 bits, where a test does not ask for less.
pytestmark = pytest.mark.usefixtures('x64')


def test_confidence_of_sure_and_unsure_distributions():
  np.testing.assert_array_equal(reliability.confidence(ONE_HOT), 1)
  np.testing.assert_allclose(reliability.confidence(UNIFORM), 0, atol=1e-6)
  assert (reliability.confidence(UNIFORM) >= 0).all()
  # A softmax that underflows to zeros.
  gradient = jax.grad(
    lambda x: reliability.confidence(jax.nn.softmax(x)).sum()
  )(jnp.eye(C) * 300.0)
  assert np.isfinite(gradient).all()


def test_uniform_distributions_have_a_uniform_mean():
  """Their confidences are 0 and 0."""

  def mixed(p):
    return reliability.reliability_balance(p, UNIFORM, UNIFORM, 'paper')

  uniform = jnp.asarray(UNIFORM, jnp.float32)
  np.testing.assert_allclose(mixed(uniform), UNIFORM, atol=1e-6)
  gradient = jax.grad(lambda p: mixed(p)[0, 0])(uniform)
  assert np.isfinite(gradient).all()


def test_a_sure_prediction_stays_as_it_is_under_the_released_rule():
  args = (ONE_HOT, UNIFORM, TARGETS)
  released = reliability.reliability_balance(*args, 'released')
  np.testing.assert_array_equal(released, ONE_HOT)
  assert np.abs(reliability.reliability_balance(*args, 'paper') - ONE_HOT).max()


def test_the_rules_differ_for_flat_similarities():
  """The released one gives t what p lacks, the other what t has earned."""
  p = np.array([[0.5, 0.2, 0.1, 0.1, 0.1]])
  flat = np.array([[0.18, 0.18, 0.2, 0.22, 0.22]])
  share = {}
  for rule in ('paper', 'released'):
    q = reliability.reliability_balance(p, flat, flat, rule)
    share[rule] = ((q - p) / (flat - p))[0, 0]
  assert share['paper'] < 0.05
  assert share['released'] > 0.8


def test_the_released_anchor_loss_falls_without_bound_and_ours_does_not():
  released, hinge = (
    functools.partial(reliability.anchor_loss, kind=kind, margin=2.0)
    for kind in ('released', 'hinge')
  )
  np.testing.assert_allclose(
    released(ANCHORS * 10), 100 * released(ANCHORS), rtol=1e-5
  )
  assert released(ANCHORS) < 0
  for scale in (0.0, 0.1, 1.0, 10.0, 1e4):
    assert 0 <= hinge(ANCHORS * scale) <= 2.0**2
  assert hinge(ANCHORS * 10) == 0
  # One anchor of each of two classes in one place, however far the others are.
  meeting = ANCHORS * 10
  meeting[1, 0] = meeting[0, 0]
  expected = 2 * 2.0**2 / (C * (C - 1) * K**2)
  np.testing.assert_allclose(hinge(meeting), expected, rtol=1e-5)
  assert hinge(ANCHORS) > 0


def test_descent_diverges_with_the_released_anchor_loss_only():
  """Anchors and centres together: one is quadratic, the other linear."""

  def size(kind):
    @jax.jit
    def step(anchors):
      def loss(anchors):
        _, distance = reliability.anchor_distribution(FEATURES, anchors, 1.0)
        center = reliability.center_loss(distance, ONE_HOT, jnp.ones(B), D)
        return reliability.anchor_loss(anchors, kind, 2.0) + center.mean()

      return anchors - 0.1 * jax.grad(loss)(anchors)

    anchors = jnp.float32(ANCHORS)
    for _ in range(300):
      anchors = step(anchors)
    return float(jnp.abs(anchors).max())

  assert not size('released') < 1e6
  assert size('hinge') < 10


def test_anchors_at_zero_get_no_gradient_from_the_released_loss():
  """And those of a class stay alike; so ours are drawn."""
  zeros = jnp.zeros((C, K, D))
  gradient = jax.grad(reliability.anchor_loss)(zeros, 'released', 2.0)
  np.testing.assert_array_equal(gradient, 0)

  def similar(anchors):
    return reliability.anchor_distribution(FEATURES, anchors, 1.0)[0][
      :, 0
    ].sum()

  gradient = jax.grad(similar)(zeros)
  np.testing.assert_array_equal(gradient[:, 0], gradient[:, 1])
  drawn = jax.jit(ReliabilityBalancing(ReliabilityConfig(), C).init)(
    jax.random.key(0), np.ones((1, E), np.float32), np.ones((1, C), np.float32)
  )['params']['anchors']
  assert drawn.shape == (C, 10, 128)
  np.testing.assert_allclose(np.linalg.norm(drawn, axis=-1).mean(), 1, atol=0.1)
  assert np.abs(drawn[:, 0] - drawn[:, 1]).min(axis=1).max() > 0
  for kind in ('hinge', 'released'):
    assert jnp.abs(jax.grad(reliability.anchor_loss)(drawn, kind, 2.0)).max()


@pytest.mark.parametrize('kind', ['hinge', 'released'])
def test_gradients_are_finite_at_an_anchor_and_between_equal_anchors(kind):
  features = jnp.asarray(ANCHORS[:B, 0])
  anchors = jnp.asarray(ANCHORS).at[1].set(ANCHORS[0])

  def loss(features, anchors):
    t_g, distance = reliability.anchor_distribution(features, anchors, 1.0)
    center = reliability.center_loss(distance, ONE_HOT, jnp.ones(B), D)
    apart = reliability.anchor_loss(anchors, kind, 2.0)
    return jnp.log(t_g)[:, 0].sum() + center.sum() + apart

  naive = jax.grad(lambda x: jnp.sqrt(jnp.square(x - anchors[0, 0]).sum()))(
    features[0]
  )
  assert np.isnan(naive).all()  # the hazard
  for gradient in jax.grad(loss, (0, 1))(features, anchors):
    assert np.isfinite(gradient).all()


def test_no_gradient_of_the_center_loss_flows_into_the_confidence():
  """Else a head that knows less has less loss."""
  _, distance = reliability.anchor_distribution(FEATURES, ANCHORS, 1.0)

  def loss(logits, distance):
    sure = reliability.confidence(jax.nn.softmax(logits))
    return reliability.center_loss(distance, TARGETS, sure, D).sum()

  logits = jnp.asarray(LOGITS)
  by_logits, by_distance = jax.grad(loss, (0, 1))(logits, distance)
  np.testing.assert_array_equal(by_logits, 0)
  assert np.abs(by_distance).max() > 0.01
  # The confidence still weighs: less of it, less loss.
  assert loss(logits * 0.1, distance) < loss(logits, distance)


@pytest.mark.parametrize('train', [False, True])
def test_other_clips_change_nothing_within_clips(train):
  order = [2, 0, 1]
  for frames in (FEATURES, normal(B, T, D)):
    got = balance(SMALL, frames, train=train)
    moved = balance(SMALL, frames[order], LOGITS[order], train=train)
    alone = balance(SMALL, frames[:1], LOGITS[:1], train=train)
    np.testing.assert_allclose(got.q[np.array(order)], moved.q, atol=1e-6)
    np.testing.assert_allclose(got.q[:1], alone.q, atol=1e-6)


def test_other_clips_change_attention_over_the_batch_in_training_only():
  config = dataclasses.replace(SMALL, attention='batch')
  together, alone = (
    balance(config, FEATURES[:n], LOGITS[:n], train=True).t_a[0] for n in (B, 1)
  )
  assert np.abs(together - alone).max() > 1e-3
  evaluated = balance(config).t_a[0]
  np.testing.assert_allclose(evaluated, alone, atol=1e-6)
  # The order of a batch matters to no clip.
  order = np.array([2, 0, 1])
  got = balance(config, train=True).t_a
  moved = balance(config, FEATURES[order], LOGITS[order], train=True).t_a
  np.testing.assert_allclose(got[order], moved, atol=1e-6)


def test_confidences_are_constants_of_the_paper_rule_only():
  weight = normal(B, C)
  c = [reliability.confidence(x)[:, None] + 1e-6 for x in PREDICTIONS]
  t = (c[1] * PREDICTIONS[1] + c[2] * PREDICTIONS[2]) / (c[1] + c[2])
  sure = reliability.confidence(t)[:, None] + 1e-6

  def constant(p, t_g, t_a):
    t = (c[1] * t_g + c[2] * t_a) / (c[1] + c[2])
    return (weight * (c[0] * p + sure * t) / (c[0] + sure)).sum()

  def gradient(rule):
    return jax.grad(
      lambda *args: (
        weight * reliability.reliability_balance(*args, rule)
      ).sum(),
      (0, 1, 2),
    )(*PREDICTIONS)

  expected = jax.grad(constant, (0, 1, 2))(*PREDICTIONS)
  for got, released, x in zip(
    gradient('paper'), gradient('released'), expected, strict=True
  ):
    np.testing.assert_allclose(got, x, rtol=1e-9)
    assert np.abs(released - x).max() > 0.01
