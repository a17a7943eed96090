"""The TPU kernels against the passes on the whole map, in interpreters."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

import plain_passes
from mira_jax.kernels.tpu import blocks
from mira_jax.kernels.tpu.passes import PASSES, passes, refusal
from mira_jax.kernels.vjp import (
  Passes,
  attention_marginal,
  biased_attention,
  redistributed_attention,
)

# A private part of jax, which may move.
interpret_pallas_call = pytest.importorskip(
  'jax._src.pallas.mosaic.interpret.interpret_pallas_call'
)
INTERPRETED = passes(interpret=True)
SMALL = {'ROWS': (16, 16)}
CHUNKS = {'ONE_CHUNK': 32, 'CHUNK': 32, 'CHUNK_ROWS': 16}
# [B, L, H, D], and sizes of blocks other than the module's.
SHAPES = {
  'pairs of heads': ((2, 48, 4, 64), SMALL),
  'clips of a step': ((5, 32, 2, 128), {'STEP_ROWS': 64}),
  'ragged': ((2, 37, 2, 64), SMALL),
  'chunks': ((1, 96, 2, 64), CHUNKS),
  'ragged chunks': ((2, 75, 1, 80), CHUNKS),
}


@pytest.fixture
def sizes(monkeypatch):
  """A function that changes the sizes of blocks."""

  def change(constants):
    for name, value in constants.items():
      monkeypatch.setattr(blocks, name, value)

  return change


def draw(shape, dtype=np.float32):
  """Calls of every pass, by name, with arguments as training makes them."""
  rng = np.random.default_rng(0)
  batch, length, heads, _ = shape
  q, k, v, g = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4))
  rho, pull, delta = (
    jnp.asarray(rng.normal(size=(batch, heads, length)), jnp.float32)
    for _ in range(3)
  )
  gain = jnp.asarray(rng.uniform(0.5, 1.5, (batch, length)), jnp.float32)
  bias = jnp.log(gain)
  _, lse = plain_passes.attend(q, k, v, None)
  _, biased_lse = plain_passes.attend(q, k, v, bias)
  mean = v.mean(1, dtype=jnp.float32)

  def back(f, bias, lse, wanted):
    return f(q, k, v, bias, lse, delta, g, bias_gradient=wanted)

  def spread(f, mix):
    return f(q, k, v, gain, mean, residual_mix=mix, floor=0.1)

  def spread_back(f, mix, wanted):
    x = (q, k, v, gain, lse, rho, pull, delta, g)
    return f(*x, residual_mix=mix, gain_gradient=wanted)

  return {
    'attend': [lambda f: f(q, k, v, bias), lambda f: f(q, k, v, None)],
    'attend_backward': [
      lambda f: back(f, bias, biased_lse, True),
      lambda f: back(f, None, lse, False),
    ],
    'marginal': [lambda f: f(q, k)],
    'marginal_backward': [lambda f: f(q, k, lse, gain)],
    'redistribute': [lambda f: spread(f, 0.4), lambda f: spread(f, 1.0)],
    'redistribute_backward': [
      lambda f: spread_back(f, 0.4, True),
      lambda f: spread_back(f, 1.0, False),
    ],
  }


def assert_agree(ours, expected, tolerance):
  """Same tree, shapes, dtypes; largest error relative to the largest value."""
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
  for x, y in pairs:
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * abs(y).max())


# ----- every pass -------------------------------------------------------------


@pytest.mark.parametrize('name', Passes._fields)
@pytest.mark.parametrize('case', SHAPES.values(), ids=SHAPES.keys())
def test_agrees_in_float32(sizes, case, name):
  shape, constants = case
  sizes(constants)
  calls = draw(shape)[name]
  # Every option in one shape, the first in all: each is compiled anew.
  for call in calls if case is SHAPES['pairs of heads'] else calls[:1]:
    assert_agree(
      call(getattr(INTERPRETED, name)),
      call(getattr(plain_passes.PASSES, name)),
      1e-5,
    )


@pytest.mark.parametrize('name', Passes._fields)
def test_agrees_in_bfloat16(sizes, name):
  sizes(SMALL)
  for call in draw((2, 64, 2, 64), jnp.bfloat16)[name]:
    assert_agree(
      call(getattr(INTERPRETED, name)),
      call(getattr(plain_passes.PASSES, name)),
      1e-2,  # two roundings of 2^-8 at most: P or dS, and the result
    )


@pytest.mark.parametrize('name', Passes._fields)
@settings(max_examples=3, derandomize=True, deadline=None, database=None)
@given(
  shape=st.tuples(st.integers(1, 2), st.integers(2, 70), st.integers(1, 2)),
  width=st.sampled_from([8, 64, 128]),
)
def test_agrees_on_any_shape(name, shape, width):
  with pytest.MonkeyPatch.context() as patch:
    for constant, value in (SMALL | CHUNKS).items():
      patch.setattr(blocks, constant, value)
    call = draw((*shape, width))[name][0]
    ours = call(getattr(INTERPRETED, name))
  assert_agree(ours, call(getattr(plain_passes.PASSES, name)), 2e-5)


def test_shapes_cover_every_layout():
  cuts = {}
  for name, (shape, constants) in SHAPES.items():
    with pytest.MonkeyPatch.context() as patch:
      for constant, value in constants.items():
        patch.setattr(blocks, constant, value)
      cuts[name] = blocks.cut(shape, jnp.float32)
  assert {(x.packed, x.group) for x in cuts.values()} == {
    (True, 2),
    (True, 1),
    (False, 1),
  }
  assert cuts['pairs of heads'].grid == (2, 2, 3)
  assert cuts['clips of a step'].clips == 2  # 5 clips: the last step has one
  assert cuts['ragged'].padded == 48
  assert cuts['chunks'].chunks == 3
  assert cuts['ragged chunks'].padded == 96


@pytest.mark.parametrize(
  ('length', 'rows', 'padded'),
  [(1568, 224, 1568), (160, 160, 160), (37, 48, 48), (1552, 224, 1568)],
)
def test_rows_fill_the_length(length, rows, padded):
  cut = blocks.cut((1, length, 2, 64), jnp.bfloat16)
  assert (cut.rows, cut.padded) == (rows, padded)


# ----- through vjp.py ---------------------------------------------------------


def marginal_loss(use, q, k, v, gain, weight):
  mass = attention_marginal(use, q, k)
  return (mass * gain).sum() * mass.shape[1]


def biased_loss(use, q, k, v, gain, weight):
  y = biased_attention(use, q, k, v, jnp.log(gain), True)
  return (y * weight).sum()


def redistributed_loss(use, q, k, v, gain, weight, mix=0.5):
  y = redistributed_attention(use, q, k, v, gain, mix, 0.1, True)
  return (y * weight).sum()


@pytest.mark.parametrize(
  'loss',
  [
    biased_loss,
    marginal_loss,
    redistributed_loss,
    functools.partial(redistributed_loss, mix=1.0),
  ],
  ids=['biased', 'marginal', 'redistributed', 'replaced'],
)
def test_gradients_of_operations(sizes, loss):
  sizes(SMALL)
  shape = (2, 40, 2, 64)
  rng = np.random.default_rng(1)
  q, k, v, weight = (
    jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(4)
  )
  gain = jnp.asarray(rng.uniform(0.5, 1.5, shape[:2]), jnp.float32)

  def value_and_gradients(use):
    f = functools.partial(loss, use)
    return jax.value_and_grad(f, (0, 1, 2, 3))(q, k, v, gain, weight)

  assert_agree(
    value_and_gradients(INTERPRETED),
    value_and_gradients(plain_passes.PASSES),
    2e-5,
  )


# ----- as a TPU runs them -----------------------------------------------------


@pytest.mark.parametrize('name', Passes._fields)
def test_without_races_or_unwritten_memory(sizes, name):
  shape, constants = SHAPES['ragged chunks']
  sizes(constants)
  interpreted = passes(
    interpret=pltpu.InterpretParams(
      detect_races=True,
      uninitialized_memory='nan',
      out_of_bounds_reads='raise',
    )
  )
  call = draw(shape)[name][0]
  ours = call(getattr(interpreted, name))
  assert_agree(ours, call(getattr(plain_passes.PASSES, name)), 1e-5)
  assert interpret_pallas_call.races.races_found is False


@pytest.mark.parametrize(
  ('shape', 'wide_integers'),
  [
    ((8, 1568, 12, 64), False),
    ((8, 1568, 16, 80), True),
    ((64, 160, 12, 64), False),
    ((1, 32768, 12, 64), True),
  ],
  ids=str,
)
def test_lowers_to_one_kernel(shape, wide_integers):
  batch, length, heads, _ = shape
  token = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  row = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
  key = jax.ShapeDtypeStruct((batch, length), jnp.float32)
  mean = jax.ShapeDtypeStruct((batch, heads, shape[-1]), jnp.float32)
  calls = {
    'attend': (token, token, token, key),
    'attend_backward': (token, token, token, key, row, row, token),
    'marginal': (token, token),
    'marginal_backward': (token, token, row, key),
    'redistribute': (token, token, token, key, mean),
    'redistribute_backward': (token, token, token, key, *(row,) * 4, token),
  }
  options = {
    'attend_backward': {'bias_gradient': True},
    'redistribute': {'residual_mix': 0.5, 'floor': 1e-3},
    'redistribute_backward': {'residual_mix': 0.5, 'gain_gradient': True},
  }
  assert calls.keys() == set(Passes._fields)
  for name, arguments in calls.items():
    f = functools.partial(getattr(PASSES, name), **options.get(name, {}))
    with jax.enable_x64(wide_integers):
      traced = jax.jit(f).trace(*arguments)
      text = traced.lower(lowering_platforms=('tpu',)).as_text()
    assert text.count('tpu_custom_call') == 1, name


@pytest.mark.parametrize(
  ('shape', 'dtype', 'why'),
  [
    ((8, 1568, 12, 64), 'bfloat16', None),
    ((8, 1568, 12, 64), 'float32', None),
    ((1, 32768, 12, 64), 'bfloat16', None),
    ((1, 32769, 12, 64), 'bfloat16', 'at most 32768 do with heads of 64'),
    ((1, 32768, 12, 64), 'float32', 'at most 22528 do'),
    ((8, 1568, 12, 64), 'float64', 'bfloat16 and float32, not float64'),
    ((8, 1568, 12, 64), 'float16', 'bfloat16 and float32, not float16'),
    ((8, 1568, 12, 60), 'bfloat16', 'multiples of 8 up to 256'),
    ((8, 1568, 1, 512), 'bfloat16', 'multiples of 8 up to 256'),
  ],
)
def test_refusals_say_why(shape, dtype, why):
  answer = refusal(shape, dtype)
  assert answer is None if why is None else why in answer
