"""Every implementation of attention against the reference."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plain_passes
from mira_jax.kernels import cudnn, dispatch, fusible, reference, streaming, vjp
from mira_jax.kernels.attention import mira_attention, redistributed_attention
from mira_jax.kernels.operations import REMAT
from mira_jax.kernels.streaming import Tiling
from mira_jax.kernels.tpu import blocks
from mira_jax.kernels.tpu import passes as pallas_tpu
from mira_jax.mira import MiraConfig, redistribute

CONFIGS = {
  'plain': None,
  'exact': MiraConfig(statistics='batch_ema'),
  'flashlite': MiraConfig(mode='flashlite'),
  'replaced': MiraConfig(residual_mix=1.0, floor=0.0),
  'floor': MiraConfig(floor=0.3),
  'constant gain': MiraConfig(gain_gradient=False),
}


class Case(NamedTuple):
  """An implementation as it can run on a CPU, and its bounds."""

  dtype: Any
  value: float  # relative to the largest number
  gradient: float
  shape: tuple[int, ...]  # B, L, H, D; T is 4
  configs: tuple[str, ...] = tuple(CONFIGS)


# 28 rows in tiles of 10 leave one unfilled; so do 36 rows in blocks of 16.
CASES = {
  'streaming': Case(np.float64, 1e-12, 1e-10, (2, 28, 3, 8)),
  'passes': Case(np.float64, 1e-12, 1e-10, (2, 28, 3, 8)),
  'fusible': Case(np.float64, 1e-12, 1e-10, (2, 28, 3, 8)),
  'pallas_tpu': Case(
    np.float32, 1e-5, 1e-4, (2, 36, 2, 64), ('exact', 'flashlite', 'replaced')
  ),
}
ALL = [
  (name, config) for name, case in CASES.items() for config in case.configs
]
IN_FLOAT64 = ['streaming', 'passes', 'fusible']


def draw(shape, dtype=np.float64):
  rng = np.random.default_rng(0)
  q, k, v, weight = (rng.normal(size=shape) for _ in range(4))
  k = k * np.linspace(0.4, 1.6, shape[1])[:, None, None]  # frames differ
  return tuple(jnp.asarray(x, dtype) for x in (q, k, v, weight))


def relative(ours, expected):
  ours, expected = (np.asarray(x, np.float64) for x in (ours, expected))
  return np.abs(ours - expected).max() / np.abs(expected).max()


def assert_close(ours, expected, rtol=1e-10, atol=1e-14):
  pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
  for a, b in pairs:
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def put(monkeypatch, name, operations):
  """Makes an implementation that serves everything."""
  serves = dispatch.Implementation(lambda _: operations, lambda _: None)
  monkeypatch.setitem(dispatch.IMPLEMENTATIONS, name, serves)


@pytest.fixture
def small_tiles(monkeypatch):
  put(monkeypatch, 'streaming', streaming.operations(Tiling(10 * 28)))
  monkeypatch.setattr(blocks, 'TILE', 16)


@pytest.fixture
def interpreters(monkeypatch):
  """Kernels that run here, and the algebra of `vjp` on plain passes."""
  sets = {
    'passes': plain_passes.PASSES,
    'pallas_tpu': pallas_tpu.PASSES,
  }
  for name, passes in sets.items():
    put(monkeypatch, name, vjp.operations(passes))
  monkeypatch.setattr(blocks, 'INTERPRET', True)


@pytest.mark.usefixtures('interpreters', 'small_tiles')
@pytest.mark.parametrize(('name', 'config'), ALL)
def test_value_and_gradients(name, config):
  case, config = CASES[name], CONFIGS[config]

  @functools.partial(jax.jit, static_argnums=3)
  def run(q, k, v, implementation):
    def loss(q, k, v):
      attended = mira_attention(
        q,
        k,
        v,
        num_frames=4,
        config=config,
        past=jnp.array([0.4, 0.3, 0.2, 0.1]),
        training=True,
        implementation=implementation,
      )
      return (attended.output * weight).sum(), attended

    gradients, attended = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return attended.output, attended.frames, gradients

  with jax.enable_x64(case.dtype == np.float64):
    *qkv, weight = draw(case.shape, case.dtype)
    ours, expected = (run(*qkv, which) for which in (name, 'reference'))
  assert ours[0].dtype == case.dtype
  assert relative(ours[0], expected[0]) < case.value
  frames = zip(*map(jax.tree.leaves, (ours[1], expected[1])), strict=True)
  for a, b in frames:
    assert relative(a, b) < 10 * case.value
  for a, b in zip(ours[2], expected[2], strict=True):
    assert relative(a, b) < case.gradient


@pytest.mark.parametrize('name', IN_FLOAT64)
@settings(max_examples=4, derandomize=True, deadline=None, database=None)
@given(
  shape=st.tuples(*(st.integers(1, x) for x in (2, 17, 3, 9))),
  tiling=st.builds(
    Tiling, st.integers(1, 60), st.sampled_from(['head', 'clip', 'batch'])
  ),
  mix=st.sampled_from([0.0, 0.4, 1.0]),
  floor=st.sampled_from([0.0, 0.2, 1.0]),
  by_gain=st.booleans(),
  seed=st.integers(0, 99),
)
def test_any_shape(name, shape, tiling, mix, floor, by_gain, seed):
  rng = np.random.default_rng(seed)
  operations = {
    'reference': reference.OPERATIONS,
    'fusible': fusible.OPERATIONS,
    'streaming': streaming.operations(tiling),
    'passes': vjp.operations(plain_passes.PASSES),
  }

  def loss(operations, q, k, v, gain):
    y = operations.redistributed(q, k, v, gain, mix, floor, by_gain)
    z = operations.biased(q, k, v, jnp.log(gain), by_gain)
    marginal = operations.marginal(q, k)[0]
    return (weight * y).sum() + (weight * z * z).sum() + (marginal * gain).sum()

  with jax.enable_x64(True):
    q, k, v, weight = (jnp.asarray(rng.normal(size=shape)) for _ in range(4))
    gain = jnp.asarray(rng.uniform(0.5, 1.6, shape[:2]))
    ours, expected = (
      jax.jit(
        jax.value_and_grad(
          functools.partial(loss, operations[which]), (0, 1, 2, 3)
        )
      )(q, k, v, gain)
      for which in (name, 'reference')
    )
    value = jax.jit(functools.partial(loss, operations[name]))(q, k, v, gain)
  assert_close(ours, expected, rtol=1e-9, atol=1e-12)
  assert_close(value, ours[0], rtol=1e-12, atol=0)  # without gradients


@pytest.mark.parametrize('name', ['reference', 'streaming'])
def test_half_a_redistribution_without_a_floor(x64, name):
  q, k, v, _ = draw((2, 12, 2, 4))
  gain = jnp.linspace(0.5, 2, 12)[None]
  ours = redistributed_attention(
    q, k, v, gain, residual_mix=0.5, implementation=name
  )
  before = reference.attention_map(q, k)
  after = redistribute(before, gain, residual_mix=0.5, floor=0.0)
  assert_close(ours, reference.attend(after, v))


@functools.partial(jax.jit, static_argnames=('num_prefix', 'implementation'))
def attend(q, k, v, **options):
  return mira_attention(q, k, v, num_frames=4, config=MiraConfig(), **options)


def test_a_prefix_belongs_to_no_frame(x64):
  q, k, v, _ = draw((2, 29, 2, 4))
  ours, expected = (
    attend(q, k, v, num_prefix=1, implementation=which)
    for which in ('streaming', 'reference')
  )
  assert_close(
    (ours.frames.gain, ours.output), (expected.frames.gain, expected.output)
  )


def test_streaming_keeps_bfloat16():
  q, k, v, _ = draw((2, 32, 2, 8), jnp.bfloat16)
  ours, expected = (
    attend(q, k, v, implementation=which).output
    for which in ('streaming', 'reference')
  )
  assert ours.dtype == jnp.bfloat16
  assert relative(ours.astype(jnp.float32), expected) < 2e-2


@pytest.mark.usefixtures('interpreters')
@pytest.mark.parametrize('name', [*IN_FLOAT64, 'pallas_tpu'])
def test_large_logits_stay_finite(name):
  q, k, v, _ = draw((1, 16, 1, 4), np.float32)

  @jax.jit
  @jax.value_and_grad
  def run(q):
    return attend(q, k, v, implementation=name).output.sum()

  value, gradient = run(1e4 * q)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


@pytest.mark.usefixtures('interpreters')
@pytest.mark.parametrize('name', [*IN_FLOAT64, 'pallas_tpu'])
def test_frames_without_gain_stay_finite(name):
  q, k, v, weight = draw((1, 16, 2, 8), np.float32)
  gain = jnp.zeros((1, 16))  # one row for all clips

  @functools.partial(jax.jit, static_argnums=3)
  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
  def run(q, k, v, implementation):
    y = redistributed_attention(
      q, k, v, gain, residual_mix=0.5, floor=0.0, implementation=implementation
    )
    return (y * weight).sum()

  ours, expected = (run(q, k, v, which) for which in (name, 'reference'))
  pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
  assert all(relative(a, b) < 1e-5 for a, b in pairs)


def test_bfloat16_queries_are_scaled_without_rounding():
  # 1 / sqrt(80) is no number of bfloat16, nor is q of 80 channels times it.
  q, k, _, _ = draw((1, 32, 1, 80), jnp.bfloat16)
  one = q[0, :, 0], k[0, :, 0]
  wide = [np.asarray(x, np.float64) for x in one]
  want = wide[0] @ wide[1].T / 80**0.5
  for logits in (reference.scores(q, k)[0, 0], streaming._logits(*one)):
    np.testing.assert_allclose(logits, want, atol=1e-5)


def test_streaming_needs_a_tenth_of_the_memory():
  shape = jax.ShapeDtypeStruct((8, 1568, 12, 64), jnp.float32)

  def temporaries(name: str) -> int:
    def loss(q, k, v):
      return mira_attention(
        q, k, v, num_frames=8, config=MiraConfig(), implementation=name
      ).output.sum()

    step = jax.jit(jax.grad(loss, (0, 1, 2)))
    compiled = step.lower(shape, shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporaries('streaming') < temporaries('reference') / 10


def test_a_constant_gain_saves_the_gradient_of_the_marginal():
  q, k, v, weight = draw((1, 24, 1, 4), np.float32)

  def gradient(gain_gradient):
    config = MiraConfig(gain_gradient=gain_gradient, gain_min=0.1, gain_max=9.0)

    def loss(q):
      attended = mira_attention(
        q, k, v, num_frames=4, config=config, implementation='streaming'
      )
      return (attended.output * weight).sum()

    return jax.grad(loss)

  found = (jax.jit(gradient(wanted))(q) for wanted in (True, False))
  assert relative(*found) > 1e-3
  products = [
    str(jax.make_jaxpr(gradient(wanted))(q)).count('dot_general')
    for wanted in (True, False)
  ]
  assert products[1] < products[0]


@pytest.mark.usefixtures('interpreters')
def test_rematerialised_kernels_sweep_no_map_twice():
  *qkv, weight = draw((1, 16, 1, 4), np.float32)

  def attend(*qkv):
    return mira_attention(
      *qkv, num_frames=4, config=MiraConfig(), implementation='passes'
    ).output

  def exponentials(attend):
    step = jax.grad(lambda *x: (attend(*x) * weight).sum(), (0, 1, 2))
    return str(jax.make_jaxpr(step)(*qkv)).count(' exp ')

  plain = exponentials(attend)
  again = {
    name: exponentials(jax.checkpoint(attend, policy=policy))
    for name, policy in REMAT.items()
  }
  assert again['full'] > plain
  assert max(again['attention'], again['linear']) <= plain


def test_cudnn_gets_the_gain_in_spare_channels():
  q, k, v, _ = draw((2, 24, 2, 8), np.float32)
  q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
  gain = np.random.default_rng(1).uniform(0.7, 1.4, (2, 24))
  bias = jnp.log(jnp.asarray(gain, jnp.float32))
  wide = cudnn.with_bias(q, k, v, bias)
  assert all(x.shape[-1] == 16 for x in wide)
  ours = jax.nn.dot_product_attention(
    *(x.astype(jnp.float32) for x in wide), scale=8**-0.5
  )
  q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
  expected = reference.attend(reference.attention_map(q, k, bias), v)
  # 16 bits of the log gain arrive, not bfloat16's 8.
  np.testing.assert_allclose(ours[..., :8], expected, atol=3e-5)
  np.testing.assert_array_equal(ours[..., 8:], 0)


def test_arrays_must_be_alike():
  q, k, v, _ = draw((1, 16, 1, 4), np.float32)
  with pytest.raises(ValueError, match=r'\(1, 8, 1, 4\) float32'):
    redistributed_attention(q, k[:, :8], v, None)
  with pytest.raises(ValueError, match='bfloat16'):
    mira_attention(q, k, v.astype(jnp.bfloat16), num_frames=4, config=None)
