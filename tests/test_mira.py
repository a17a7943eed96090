"""MiRA as pure functions: constants by hand, invariants, gradients, shards."""

from __future__ import annotations

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mira_inputs import (
  WIDE,
  frame_gain,
  mira_attention,
  random_marginal,
  random_qkv,
)
from mira_jax.mira import (
  MiraConfig,
  frame_statistics,
  key_energy,
  key_gain,
  key_marginal,
  redistribute,
)

MODES = ('exact', 'flashlite')
STATISTICS = ('instance', 'batch', 'batch_ema')

few = hypothesis.settings(
  max_examples=5,
  derandomize=True,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**31 - 1)
unit = st.floats(0, 1)


# By hand.


def test_key_marginal_by_hand():
  # One head looks at key 0 only, the other at both keys alike.
  attention = jnp.array([[[[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]]])
  np.testing.assert_allclose(key_marginal(attention), [[0.75, 0.25]])


def test_key_energy_by_hand():
  # [B=1, L=2, H=1, D=2]: (9 + 16) / 2 and (1 + 0) / 2.
  keys = jnp.array([[[[3.0, 4.0]], [[1.0, 0.0]]]])
  np.testing.assert_allclose(key_energy(keys), [[12.5, 0.5]])


def test_frame_statistics_by_hand(x64):
  # Two frames with half the mass each: shares (3/4, 1/4) and (1/2, 1/2).
  marginal = jnp.array([[3 / 8, 1 / 8, 1 / 4, 1 / 4]])
  confidence, concentration = frame_statistics(marginal, 2)
  np.testing.assert_allclose(confidence, [[0.5, 0.5]], rtol=1e-15)
  entropy = [0.75 * math.log(4 / 3) + 0.25 * math.log(4), math.log(2)]
  np.testing.assert_allclose(
    concentration, [[1 / (h + 1e-6) for h in entropy]], rtol=1e-14
  )


def test_confidence_floor_keeps_an_empty_frame_above_zero(x64):
  marginal = jnp.array([[0.5, 0.5, 0.0, 0.0]])
  bare, _ = frame_statistics(marginal, 2)
  floored, _ = frame_statistics(marginal, 2, confidence_floor=1e-6)
  np.testing.assert_array_equal(bare, [[1, 0]])
  np.testing.assert_allclose(floored[0, 1], 1e-6 / (1 + 1e-6), rtol=1e-12)


def test_exact_gain_by_hand(x64):
  # The score is (1, 0) after min-max; to the power 1.5 and normalised it is
  # (1, 1e-9); with a tenth uniform the prior is (0.95, 0.05) to 1e-9, and the
  # confidences are a half each.
  marginal = jnp.array([[3 / 8, 1 / 8, 1 / 4, 1 / 4]])
  frames = frame_gain(marginal, 2, MiraConfig(**WIDE))
  np.testing.assert_allclose(frames.score, [[1, 0]], atol=1e-11)
  np.testing.assert_allclose(frames.prior, [[0.95, 0.05]], atol=1e-8)
  np.testing.assert_allclose(frames.gain, [[1.9, 0.1]], atol=1e-8)
  clipped = frame_gain(marginal, 2, MiraConfig())
  np.testing.assert_array_equal(clipped.gain, [[1.4, 0.7]])


def test_flashlite_gain_by_hand(x64):
  # Of two frames the z-scores are 1 and -1, and the softmax of 0.17 times
  # those is the sigmoid of 0.34.
  marginal = jnp.array([[3 / 8, 1 / 8, 1 / 4, 1 / 4]])
  frames = frame_gain(marginal, 2, MiraConfig(mode='flashlite'))
  prior = 0.9 / (1 + math.exp(-0.34)) + 0.05
  np.testing.assert_allclose(frames.score, [[1, -1]], rtol=1e-12)
  np.testing.assert_allclose(frames.prior, [[prior, 1 - prior]], rtol=1e-12)
  np.testing.assert_allclose(frames.gain, [[2 * prior, 2 - 2 * prior]])


def test_key_gain_repeats_frames_after_the_prefix():
  got = key_gain(jnp.array([[2.0, 3.0]]), 7, num_prefix=1)
  np.testing.assert_array_equal(got, [[1, 2, 2, 2, 3, 3, 3]])


def test_redistribute_by_hand():
  # (0.75, 0.25) times (1, 2) is (0.75, 0.5), normalised (0.6, 0.4).
  attention = jnp.array([[[[0.75, 0.25]]]])
  gain = jnp.array([[1.0, 2.0]])

  def move(residual_mix, floor):
    return redistribute(
      attention, gain, residual_mix=residual_mix, floor=floor
    )[0, 0, 0]

  np.testing.assert_allclose(move(1.0, 0.0), [0.6, 0.4], rtol=1e-6)
  np.testing.assert_allclose(move(0.5, 0.0), [0.675, 0.325], rtol=1e-6)
  # Half of it floor: 0.5 (0.75, 0.5) + 0.25 = (0.625, 0.5), over 1.125.
  np.testing.assert_allclose(move(1.0, 0.5), [5 / 9, 4 / 9], rtol=1e-6)
  np.testing.assert_allclose(move(1.0, 1.0), [0.5, 0.5], rtol=1e-6)


# Invariants.


shapes = st.sampled_from([(4, 6), (3, 2), (5, 1)])  # T, N
configs = st.sampled_from(
  [
    MiraConfig(mode=mode, statistics=statistics, **WIDE)
    for mode in MODES
    for statistics in STATISTICS
  ]
)


@few
@hypothesis.given(seed=seeds, shape=shapes, mix=unit, floor=unit)
def test_redistribution(x64, seed, shape, mix, floor):
  frames, tokens = shape
  length = frames * tokens
  rng = np.random.default_rng(seed)
  attention = np.exp(2 * rng.normal(size=(2, 2, length, length)))
  attention /= attention.sum(-1, keepdims=True)
  gain = rng.uniform(0.1, 3, (2, length))
  move = functools.partial(redistribute, residual_mix=mix, floor=floor)
  moved = move(attention, gain)
  assert moved.min() >= 0
  np.testing.assert_allclose(moved.sum(-1), 1, rtol=1e-12)
  # Equivariant under a permutation of frames, of queries and keys alike.
  order = rng.permutation(frames)[:, None] * tokens + np.arange(tokens)
  order = order.ravel()
  permuted = move(attention[:, :, order][..., order], gain[:, order])
  np.testing.assert_allclose(
    permuted, moved[:, :, order][..., order], rtol=1e-12
  )
  # A mix of 0 is the identity, and so is a gain of 1, or any common one.
  nothing = redistribute(attention, gain, residual_mix=0.0, floor=floor)
  np.testing.assert_array_equal(nothing, attention)
  for common in (1.0, 3.0):
    same = redistribute(
      attention, jnp.full((1, length), common), residual_mix=mix, floor=0.0
    )
    np.testing.assert_allclose(same, attention, rtol=1e-12)


@few
@hypothesis.given(seed=seeds, shape=shapes, config=configs)
def test_gains(x64, seed, shape, config):
  frames, tokens = shape
  marginal = random_marginal((3, frames * tokens), seed)
  past = jnp.full((frames,), 1 / frames)
  found = frame_gain(marginal, frames, config, past=past)
  np.testing.assert_allclose(found.prior.sum(-1), 1, rtol=1e-12)
  # The order of the tokens within frames, and the scale, change nothing; the
  # order of the frames is that of the gains.
  rng = np.random.default_rng(seed)
  order, within = rng.permutation(frames), rng.permutation(tokens)
  grid = marginal.reshape(3, frames, tokens)[:, order][:, :, within]
  again = frame_gain(1000 * grid.reshape(3, -1), frames, config, past=past)
  np.testing.assert_allclose(again.gain, found.gain[:, order], rtol=1e-9)
  # Clips whose frames all matter as much, and a uniform prior.
  uniform = jnp.full_like(marginal, 1 / marginal.shape[1])
  same = frame_gain(uniform, frames, config, past=past)
  np.testing.assert_allclose(same.gain, 1, rtol=1e-12)
  clipped = frame_gain(
    marginal, frames, MiraConfig(mode=config.mode, uniform_mix=1.0)
  )
  np.testing.assert_allclose(clipped.prior, 1 / frames, rtol=1e-12)
  assert 0.7 <= clipped.gain.min() <= clipped.gain.max() <= 1.4


def test_flashlite_is_redistribution_with_mix_one_and_no_floor(x64):
  q, k, v = random_qkv()
  flash = mira_attention(
    q, k, v, num_frames=4, config=MiraConfig(mode='flashlite')
  )
  gain = key_gain(flash.frames.gain, 12)
  want = redistribute(flash.before, gain, residual_mix=1.0, floor=0.0)
  np.testing.assert_allclose(flash.after, want, rtol=1e-13)


@pytest.mark.parametrize(
  ('mode', 'statistics'),
  [('exact', 'batch_ema'), ('flashlite', 'batch')],
)
def test_constant_clips_stay_finite(mode, statistics):
  config = MiraConfig(mode=mode, statistics=statistics)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
  def loss(q, k, v):
    got = mira_attention(
      q,
      k,
      v,
      num_frames=4,
      config=config,
      past=jnp.full((4,), 0.25),
      training=True,
    )
    weight = jnp.arange(got.output.size).reshape(got.output.shape)
    return (got.output * weight).sum(), got.output

  for constant in (0.0, 1.0):
    clip = jnp.full((2, 12, 2, 4), constant, jnp.float32)
    (_, output), gradients = loss(clip, clip, clip)
    np.testing.assert_allclose(output, constant, rtol=1e-6)
    for gradient in gradients:
      assert np.isfinite(gradient).all()


def test_prefix_is_left_out_of_the_statistics_and_keeps_gain_one(x64):
  q, k, v = random_qkv((2, 13, 2, 4))
  config = MiraConfig(mode='flashlite')
  with_prefix = mira_attention(
    q, k, v, num_frames=4, config=config, num_prefix=1
  )
  without = mira_attention(
    q[:, 1:], k[:, 1:], v[:, 1:], num_frames=4, config=config
  )
  np.testing.assert_allclose(
    with_prefix.frames.gain, without.frames.gain, rtol=1e-13
  )
  # Odds between the prefix and a frame change by that frame's gain only.
  odds = [
    with_prefix.after[..., 1:] / with_prefix.after[..., :1],
    with_prefix.before[..., 1:] / with_prefix.before[..., :1],
  ]
  gain = jnp.repeat(without.frames.gain, 3, axis=1)[:, None, None]
  np.testing.assert_allclose(odds[0] / odds[1], gain + 0 * odds[0], rtol=1e-12)


# Errors.


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('mode', 'Exact'),
    ('statistics', 'ema'),
    ('uniform_mix', float('nan')),
    ('residual_mix', 1.5),
    ('temperature', -0.17),
    ('gain_min', 0.0),
    ('gain_max', 0.5),
  ],
)
def test_config_errors_name_field_and_value(field, value):
  with pytest.raises(ValueError, match=rf'MiraConfig\.{field} is') as e:
    MiraConfig(**{field: value})
  assert str(value) in str(e.value)


def test_frames_that_do_not_divide_are_named():
  with pytest.raises(ValueError, match=r'25 tokens .* 4 frames'):
    frame_statistics(jnp.ones((1, 25)), 4)


def test_training_with_an_average_needs_the_past():
  config = MiraConfig(statistics='batch_ema')
  for past in (None, jnp.ones(5)):
    with pytest.raises(ValueError, match='4 frames; past is'):
      frame_gain(random_marginal(), 4, config, past=past, training=True)


# One batch on several devices.


@pytest.mark.parametrize(
  ('mode', 'statistics'),
  [('exact', 'batch_ema'), ('flashlite', 'batch')],
)
def test_sharded_batch_gives_the_global_statistics(mode, statistics):
  mesh = jax.make_mesh(
    (4,), ('data',), (AxisType.Auto,), devices=jax.devices('cpu')[:4]
  )
  assert mesh.size == 4
  config = MiraConfig(mode=mode, statistics=statistics)
  run = functools.partial(
    mira_attention, num_frames=4, config=config, training=True
  )
  qkv, past = random_qkv((8, 12, 2, 4)), jnp.full((4,), 0.25)
  want = run(*qkv, past=past)
  sharded = jax.device_put(qkv, NamedSharding(mesh, PartitionSpec('data')))
  assert len(sharded[0].addressable_shards) == 4
  got = run(*sharded, past=past)
  for name in ('gain', 'prior', 'ema'):
    np.testing.assert_allclose(
      getattr(got.frames, name),
      getattr(want.frames, name),
      rtol=2e-5,
      err_msg=name,
    )
  np.testing.assert_allclose(got.output, want.output, rtol=1e-4, atol=1e-5)
  # Means over each device's own clips would have given something else.
  local = run(*(x[:2] for x in qkv), past=past)
  assert np.abs(local.frames.prior - want.frames.prior).max() > 1e-3
