"""The TPU kernels against the passes on the whole map, in interpreters."""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import pass_cases
import plain_passes
from mira_jax.kernels.tpu import blocks
from mira_jax.kernels.tpu.passes import PASSES, refusal

# A private part of jax, which may move.
interpret_pallas_call = pytest.importorskip(
  'jax._src.pallas.mosaic.interpret.interpret_pallas_call'
)
SMALL = {'TILE': 16, 'PIECE': 32}
CHUNKS = {'ONE_CHUNK': 32, 'CHUNK': 32, 'TILE': 16, 'PIECE': 16}
# [B, L, H, D], and sizes of blocks other than the module's. Layouts: two heads
# of a block, one, and an axis of heads; 5 clips by two. Tiles: of two heads, of
# one and then, at the end, of both.
SHAPES = {
  'pairs of heads': ((2, 48, 4, 64), SMALL),
  'clips of a step': ((5, 32, 2, 128), {'STEP_ROWS': 64}),
  'heads apart': ((1, 288, 2, 64), {'TILE': 128, 'PIECE': 128}),
  'ragged': ((2, 37, 2, 64), SMALL),
  'ragged chunks': ((2, 75, 1, 80), CHUNKS),
}


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch):
  monkeypatch.setattr(blocks, 'INTERPRET', True)


@contextlib.contextmanager
def sizes(constants):
  """Other sizes of blocks."""
  with pytest.MonkeyPatch.context() as patch:
    for name, value in constants.items():
      patch.setattr(blocks, name, value)
    yield


def assert_agree(ours, expected, tolerance):
  """Same tree, shapes, dtypes; largest error relative to the largest value."""
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True)
  for x, y in pairs:
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * abs(y).max())


# ----- every pass -------------------------------------------------------------


def check(case, shape, constants, dtype=jnp.float32, tolerance=1e-5):
  x, run = pass_cases.draw(shape, dtype), pass_cases.CASES[case].run
  with sizes(constants):
    assert_agree(run(PASSES, x), run(plain_passes.PASSES, x), tolerance)


# Each is compiled anew: every option in one shape, and in others what differs.
@pytest.mark.parametrize(
  ('name', 'case'),
  [
    *(('pairs of heads', x) for x in pass_cases.CASES),
    *(('clips of a step', x) for x in ('attend', 'attend_backward')),
    *(('heads apart', x) for x in ('attend', 'attend_backward')),
    *(('heads apart', x) for x in ('marginal', 'redistribute')),
    *(('ragged', x) for x in ('marginal', 'attend_backward, bias too')),
    *(('ragged chunks', x) for x in ('marginal', 'marginal_backward')),
    *(('ragged chunks', x) for x in ('redistribute', 'attend_backward')),
  ],
)
def test_agrees_in_float32(name, case):
  check(case, *SHAPES[name])


def test_redistributes_without_the_sums_of_rows():
  x = pass_cases.draw((2, 75, 1, 80), jnp.float32)._replace(lse=None)
  run = pass_cases.CASES['redistribute'].run
  with sizes(CHUNKS):
    assert_agree(run(PASSES, x), run(plain_passes.PASSES, x), 1e-5)


@pytest.mark.parametrize('case', ['attend', 'redistribute'])
def test_output_alone_is_written_without_gradients(case):
  run = pass_cases.CASES[f'{case}, output only'].run
  x = pass_cases.shapes((2, 64, 2, 64))
  jaxpr = jax.make_jaxpr(lambda x: run(PASSES, x))(x)
  (call,) = (e for e in jaxpr.eqns if e.primitive.name == 'pallas_call')
  assert [y.aval.shape for y in call.outvars] == [(2, 64, 128)]


@pytest.mark.parametrize('case', ['attend_backward', 'redistribute'])
def test_agrees_in_bfloat16(case):
  # Two roundings of 2^-8 at most: P or dS, and the result.
  check(case, (2, 64, 2, 64), SMALL, jnp.bfloat16, 1e-2)


# ----- as a TPU runs them -----------------------------------------------------


@pytest.mark.parametrize('case', ['marginal', 'attend_backward, bias too'])
def test_without_races_or_unwritten_memory(monkeypatch, case):
  options = pltpu.InterpretParams(
    detect_races=True,
    uninitialized_memory='nan',
    out_of_bounds_reads='raise',
  )
  monkeypatch.setattr(blocks, 'INTERPRET', options)
  check(case, *SHAPES['ragged chunks'])
  assert interpret_pallas_call.races.races_found is False


@pytest.mark.parametrize(
  ('shape', 'wide_integers'),
  [
    ((8, 1568, 16, 80), False),
    ((1, 32768, 12, 64), True),
  ],
  ids=str,
)
def test_lowers_to_one_kernel(monkeypatch, shape, wide_integers):
  monkeypatch.setattr(blocks, 'INTERPRET', False)
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
    ((1, 32768, 12, 64), 'float32', 'at most 18432 do'),
    ((8, 1568, 12, 64), 'float64', 'bfloat16 and float32, not float64'),
    ((8, 1568, 12, 64), 'float16', 'bfloat16 and float32, not float16'),
    ((8, 1568, 12, 60), 'bfloat16', 'multiples of 8 up to 256'),
    ((8, 1568, 1, 512), 'bfloat16', 'multiples of 8 up to 256'),
  ],
)
def test_refusals_say_why(shape, dtype, why):
  answer = refusal(shape, dtype)
  assert answer is None if why is None else why in answer
