"""Reliability balancing: its formulas by hand, its gradients, its learning."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mira_jax.systems import reliability
from mira_jax.systems.reliability import ReliabilityBalancing, ReliabilityConfig
from reliability_inputs import (
  ANCHORS,
  FEATURES,
  LOGITS,
  SMALL,
  TARGETS,
  B,
  C,
  D,
  E,
  T,
  balance,
  by_hand,
  normal,
  softmax,
  variables,
)

# Numbers of 64 bits, where a test does not ask for less.
pytestmark = pytest.mark.usefixtures('x64')


@pytest.mark.parametrize('rule', ['paper', 'released'])
@pytest.mark.parametrize('kind', ['hinge', 'released'])
@pytest.mark.parametrize('attention', ['clip', 'batch'])
def test_is_what_it_is_by_hand(rule, kind, attention):
  config = dataclasses.replace(
    SMALL,
    rule=rule,
    anchor_loss=kind,
    attention=attention,
    delta=0.7,
    anchor_weight=0.3,
    center_weight=0.6,
  )
  got = balance(config, train=True)
  loss, _ = reliability.reliability_loss(got, TARGETS, 0.25, config)
  context = FEATURES if attention == 'batch' else ANCHORS.reshape(-1, D)
  for b in range(B):
    t_g, t_a, q, expected = by_hand(
      LOGITS[b], FEATURES[b], context, config, 0.25, TARGETS[b]
    )
    np.testing.assert_allclose(got.t_g[b], t_g, atol=1e-9)
    np.testing.assert_allclose(got.t_a[b], t_a, atol=1e-9)
    # Confidences have 1e-6 added to them.
    np.testing.assert_allclose(got.q[b], q, atol=1e-5)
    np.testing.assert_allclose(loss[b], expected, atol=1e-5)


def test_frames_are_the_context_and_are_weighed_by_confidence():
  frames = normal(B, T, D)
  logits = normal(B, T, C) * 3
  config = dataclasses.replace(SMALL, pool='frames')
  got = balance(config, frames, logits)
  for b in range(B):
    p = np.array([softmax(row) for row in logits[b]])
    sure = 1 + (p * np.log(p)).sum(1) / np.log(C)
    weights = sure / sure.sum()
    np.testing.assert_allclose(got.frame_weights[b], weights, atol=1e-5)
    np.testing.assert_allclose(got.p[b], weights @ p, atol=1e-5)
    _, t_a, q, _ = by_hand(
      np.log(weights @ p), weights @ frames[b], frames[b], config, 1, TARGETS[b]
    )
    np.testing.assert_allclose(got.t_a[b], t_a, atol=1e-5)
    np.testing.assert_allclose(got.q[b], q, atol=1e-5)
  np.testing.assert_allclose(np.exp(got.logits), got.p, atol=1e-12)


def test_frames_of_one_prediction_are_averaged():
  frames = normal(B, T, D)
  got = balance(SMALL, frames)
  np.testing.assert_allclose(
    got.distance, balance(SMALL, frames.mean(1)).distance, atol=1e-9
  )
  np.testing.assert_array_equal(got.logits, LOGITS)


@pytest.mark.parametrize('scale', [0.0, 1.0, 200.0])
@pytest.mark.parametrize('rule', ['paper', 'released'])
def test_every_distribution_sums_to_one(rule, scale):
  config = dataclasses.replace(SMALL, rule=rule)
  got = balance(config, FEATURES * scale, LOGITS * scale)
  for x in (got.p, got.t_g, got.t_a, got.q):
    assert x.shape == (B, C)
    assert (x >= 0).all()
    np.testing.assert_allclose(x.sum(-1), 1, atol=1e-5)
  mixed = reliability.balanced_logits(got.logits, got.q, 0.3)
  np.testing.assert_allclose(
    jax.nn.softmax(mixed), 0.7 * got.p + 0.3 * got.q, atol=1e-5
  )


def test_without_tau_loss_and_gradient_are_those_of_the_plain_head():
  features, logits, targets = (
    jnp.asarray(x, jnp.float32) for x in (FEATURES, LOGITS, TARGETS)
  )

  def ours(logits):
    got = balance(SMALL, features, logits, train=True)
    return reliability.reliability_loss(got, targets, 0.0, SMALL)[0]

  def plain(logits):
    return optax.softmax_cross_entropy(logits, targets)

  np.testing.assert_array_equal(ours(logits), plain(logits))
  np.testing.assert_array_equal(
    jax.grad(lambda x: ours(x).sum())(logits),
    jax.grad(lambda x: plain(x).sum())(logits),
  )
  got = balance(SMALL, features, logits)
  assert got.q.dtype == jnp.float32
  np.testing.assert_array_equal(
    reliability.balanced_logits(got.logits, got.q, 0.0), logits
  )


def test_nothing_of_the_head_is_trained_while_tau_is_zero():
  params = variables()['params']

  def loss(params, progress):
    got = ReliabilityBalancing(SMALL, C).apply(
      {'params': params}, FEATURES, LOGITS, train=True
    )
    return reliability.reliability_loss(got, TARGETS, progress, SMALL)[0].sum()

  gradient = jax.jit(jax.grad(loss))
  for leaf in jax.tree.leaves(gradient(params, 0.0)):
    np.testing.assert_array_equal(leaf, 0)
  for leaf in jax.tree.leaves(gradient(params, 0.5)):
    assert np.isfinite(leaf).all()
    assert np.abs(leaf).max() > 1e-6


def test_evaluation_takes_the_output_that_is_asked_for():
  got = balance(SMALL)
  primary = dataclasses.replace(SMALL, output='primary')
  np.testing.assert_array_equal(
    reliability.prediction(got, primary), got.logits
  )
  np.testing.assert_allclose(
    jax.nn.softmax(reliability.prediction(got, SMALL)), got.q, atol=1e-6
  )


def test_ramp():
  assert [float(reliability.ramp(x, 'linear')) for x in (0, 0.5, 1, 1.2)] == [
    0,
    0.5,
    1,
    1,
  ]
  assert float(reliability.ramp(0.0, 'none')) == 1
  got = balance(SMALL)
  always = dataclasses.replace(SMALL, ramp='none')
  np.testing.assert_array_equal(
    reliability.reliability_loss(got, TARGETS, 0.0, always)[0],
    reliability.reliability_loss(got, TARGETS, 1.0, SMALL)[0],
  )


def test_soft_targets_weigh_the_centres_of_classes():
  _, distance = reliability.anchor_distribution(FEATURES, ANCHORS, 1.0)
  loss = functools.partial(
    reliability.center_loss, distance, confidence=jnp.ones(B), dim=D
  )
  parts = sum(
    TARGETS[:, c] * loss(targets=np.eye(C)[[c] * B]) for c in range(C)
  )
  np.testing.assert_allclose(loss(targets=TARGETS), parts, rtol=1e-5)


@pytest.mark.parametrize('kind', ['hinge', 'released'])
def test_gradients_are_those_of_finite_differences(kind):
  config = dataclasses.replace(SMALL, rule='released', anchor_loss=kind)
  sure = reliability.confidence(jax.nn.softmax(LOGITS))

  def loss(logits, features, anchors):
    params = variables()['params'] | {'anchors': anchors}
    got = ReliabilityBalancing(config, C, dtype=None).apply(
      {'params': params}, features, logits, train=True
    )
    # As a number the confidence of the centre loss has no gradient.
    got = got._replace(confidence=sure)
    return reliability.reliability_loss(got, TARGETS, 0.6, config)[0].sum()

  args = (LOGITS, FEATURES, ANCHORS)
  gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(*args)
  value, drawn = jax.jit(loss), np.random.default_rng(2)
  for n, gradient in enumerate(gradients):
    for _ in range(4):
      step = drawn.normal(size=args[n].shape) * 1e-6
      ahead, behind = (
        value(*args[:n], args[n] + sign * step, *args[n + 1 :])
        for sign in (1, -1)
      )
      np.testing.assert_allclose(
        (gradient * step).sum(), (ahead - behind) / 2, rtol=1e-4, atol=1e-12
      )


@pytest.mark.parametrize('pool', ['clip', 'frames'])
def test_bfloat16_and_jit(pool):
  config = dataclasses.replace(SMALL, pool=pool)
  model = ReliabilityBalancing(config, C, dtype=jnp.bfloat16)
  frames = pool == 'frames'
  features = jnp.asarray(normal(B, T, E), jnp.bfloat16)
  logits = normal(*((B, T, C) if frames else (B, C))) * 100
  logits = jnp.asarray(logits, jnp.bfloat16)
  params = jax.jit(model.init)(jax.random.key(0), features, logits)
  params = jax.tree.map(jnp.float32, params)
  assert params['params']['reduce']['kernel'].shape == (E, D)

  @jax.jit
  def loss(params, features, logits, progress):
    got = model.apply(params, features, logits, train=True)
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype('float32')}
    total, metrics = reliability.reliability_loss(
      got, TARGETS, progress, config
    )
    assert {x.shape for x in (total, *metrics.values())} == {(B,)}
    return total.sum()

  gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
  for progress in (0.0, 0.5, 1.0):
    gradients = gradient(params, features, logits, progress)
    for leaf in jax.tree.leaves(gradients):
      assert np.isfinite(np.asarray(leaf, np.float32)).all()
  np.testing.assert_allclose(
    loss(params, features, logits, 0.5),
    loss.__wrapped__(params, features, logits, 0.5),
    rtol=1e-4,
  )


@pytest.mark.parametrize('seed', range(3))
def test_every_branch_learns(seed):
  """Classes that are in the features: p, t_g and t_a find them."""
  drawn = np.random.default_rng(seed)
  labels = np.arange(40) % C
  features = (drawn.normal(size=(C, E)) * 2)[labels]
  features = jnp.asarray(features + drawn.normal(size=(40, E)) * 0.3)
  targets = np.eye(C)[labels]
  model = ReliabilityBalancing(SMALL, C)
  balancing = jax.jit(model.init)(jax.random.key(seed), features, targets)
  params = {'head': jnp.zeros((E, C)), 'balance': balancing['params']}
  optimiser = optax.adam(0.03)

  def apply(params):
    variables = {'params': params['balance']}
    logits = features @ params['head']
    return model.apply(variables, features, logits, train=True)

  def step(carry, progress):
    params, state = carry

    def loss(params):
      got = apply(params)
      return reliability.reliability_loss(got, targets, progress, SMALL)[
        0
      ].mean()

    updates, state = optimiser.update(jax.grad(loss)(params), state)
    return (optax.apply_updates(params, updates), state), None

  progress = jnp.linspace(0, 1, 300)
  (params, _), _ = jax.jit(lambda x: jax.lax.scan(step, x, progress))(
    (params, optimiser.init(params))
  )
  got = jax.jit(apply)(params)
  for p in (got.p, got.q, got.t_g):
    np.testing.assert_array_equal(p.argmax(-1), labels)
  assert (got.t_a.argmax(-1) == labels).mean() > 0.5


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('anchors', 0),
    ('dim', 0),
    ('delta', 0.0),
    ('margin', float('inf')),
    ('anchor_weight', -1.0),
    ('center_weight', float('nan')),
    ('attention', 'frames'),
    ('rule', 'code'),
    ('anchor_loss', 'sphere'),
    ('ramp', 'cosine'),
    ('output', 'both'),
    ('pool', 'mean'),
  ],
)
def test_values_outside_their_range_are_refused(field, value):
  with pytest.raises(ValueError, match=rf'ReliabilityConfig.{field} is .*use'):
    ReliabilityConfig(**{field: value})


def test_shapes_that_do_not_fit_are_refused():
  frames = dataclasses.replace(SMALL, pool='frames')
  with pytest.raises(ValueError, match=r"pool='frames' needs \[B, T, E\]"):
    balance(frames)
  with pytest.raises(ValueError, match=r'use \(3, 5\) with pool'):
    balance(SMALL, logits=LOGITS[:, 1:])
  with pytest.raises(ValueError, match=r'use \(3, 4, 5\) with pool'):
    balance(frames, normal(B, T, D))
  with pytest.raises(ValueError, match='num_classes is 1; use 2 or more'):
    ReliabilityBalancing(SMALL, 1).init(
      jax.random.key(0), FEATURES, LOGITS[:, :1]
    )
