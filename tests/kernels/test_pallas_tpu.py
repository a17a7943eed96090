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

import pass_cases
import plain_passes
from mira_jax.kernels import vjp
from mira_jax.kernels.tpu import blocks
from mira_jax.kernels.tpu.passes import PASSES, passes, refusal

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


def assert_agree(ours, expected, tolerance):
  """Same tree, shapes, dtypes; largest error relative to the largest value."""
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
  for x, y in pairs:
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * abs(y).max())


# ----- every pass -------------------------------------------------------------


def check(case, shape, dtype=jnp.float32, tolerance=1e-5, use=INTERPRETED):
  x, run = pass_cases.draw(shape, dtype), pass_cases.CASES[case].run
  assert_agree(run(use, x), run(plain_passes.PASSES, x), tolerance)


# Every option in one shape, the whole passes in all: each is compiled anew.
@pytest.mark.parametrize(
  ('name', 'case'),
  [('pairs of heads', x) for x in pass_cases.CASES]
  + [(n, x) for n in list(SHAPES)[1:] for x in pass_cases.WHOLE],
)
def test_agrees_in_float32(sizes, name, case):
  shape, constants = SHAPES[name]
  sizes(constants)
  check(case, shape)


@pytest.mark.parametrize('case', pass_cases.WHOLE)
def test_agrees_in_bfloat16(sizes, case):
  sizes(SMALL)
  # Two roundings of 2^-8 at most: P or dS, and the result.
  check(case, (2, 64, 2, 64), jnp.bfloat16, 1e-2)


@pytest.mark.parametrize('case', pass_cases.WHOLE)
@settings(max_examples=3, derandomize=True, deadline=None, database=None)
@given(
  shape=st.tuples(st.integers(1, 2), st.integers(2, 70), st.integers(1, 2)),
  width=st.sampled_from([8, 64, 128]),
)
def test_agrees_on_any_shape(case, shape, width):
  with pytest.MonkeyPatch.context() as patch:
    for constant, value in (SMALL | CHUNKS).items():
      patch.setattr(blocks, constant, value)
    check(case, (*shape, width), tolerance=2e-5)


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


@pytest.mark.parametrize('name', pass_cases.OPERATIONS)
def test_gradients_of_operations(sizes, name):
  sizes(SMALL)
  x = pass_cases.draw((2, 40, 2, 64), jnp.float32)
  ours, expected = (
    pass_cases.both(vjp.operations(use), name, x)
    for use in (INTERPRETED, plain_passes.PASSES)
  )
  assert_agree(ours, expected, 2e-5)


# ----- as a TPU runs them -----------------------------------------------------


@pytest.mark.parametrize('case', pass_cases.WHOLE)
def test_without_races_or_unwritten_memory(sizes, case):
  shape, constants = SHAPES['ragged chunks']
  sizes(constants)
  interpreted = passes(
    interpret=pltpu.InterpretParams(
      detect_races=True,
      uninitialized_memory='nan',
      out_of_bounds_reads='raise',
    )
  )
  check(case, shape, use=interpreted)
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
  for case in pass_cases.WHOLE:
    run = functools.partial(pass_cases.CASES[case].run, PASSES)
    with jax.enable_x64(wide_integers):
      traced = jax.jit(run).trace(pass_cases.shapes(shape))
      text = traced.lower(lowering_platforms=('tpu',)).as_text()
    assert text.count('tpu_custom_call') == 1, case


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
