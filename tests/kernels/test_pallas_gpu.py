"""The Hopper kernels: results in the interpreter, and what they lower to."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.mosaic_gpu import barrier_arrive

import pass_cases
import plain_passes
from aot import gpu
from kernel_interpreters import interpreted
from mira_jax.kernels import vjp
from mira_jax.kernels.gpu import passes, sweep
from mira_jax.kernels.gpu.sweep import Group, Tuning

SMALL = Tuning(64, 32, warpgroups=2, stages=2)
CASES = pass_cases.CASES | pass_cases.JOINT


def assert_near(ours, plain, narrow=4e-3, wide=1e-5):
  """Every array in norm; limits for those in bfloat16 and in float32."""
  ours, plain = jax.tree.leaves(ours), jax.tree.leaves(plain)
  for one, other in zip(ours, plain, strict=True):
    assert one.shape == other.shape
    limit = narrow if one.dtype == jnp.bfloat16 else wide
    one, other = (np.asarray(x, np.float64) for x in (one, other))
    assert np.linalg.norm(one - other) < limit * np.linalg.norm(other)


def wide(x: pass_cases.Inputs) -> pass_cases.Inputs:
  return jax.tree.map(lambda x: x.astype(jnp.float32), x)


def check_pass(case, shape, size=SMALL):
  """A pass on bfloat16, against the oracle on the same numbers in float32."""
  run, x = CASES[case].run, pass_cases.draw(shape)
  with interpreted(detect_races=True):
    ours = run(passes.tuned(dict.fromkeys(passes.TUNING, size)), x)
  assert_near(ours, run(plain_passes.PASSES, wide(x)))


@pytest.mark.parametrize('case', [*pass_cases.WHOLE, *pass_cases.JOINT])
def test_passes_agree_with_the_oracle(case):
  """Four ragged tiles through two places of a ring; 101 is padded to 104."""
  check_pass(case, (1, 101, 1, 80))


def test_warpgroups_that_take_turns_agree_with_the_oracle():
  turns = dataclasses.replace(SMALL, turns=True)
  check_pass('attend', (1, 200, 1, 16), turns)


@pytest.mark.skipif(
  jax.__version_info__ < (0, 11), reason='its detector knows no fences'
)
def test_a_missing_fence_is_a_race(monkeypatch):
  monkeypatch.setattr(
    Group, 'release', lambda self, i: barrier_arrive(self.free.at[self.slot(i)])
  )
  with pytest.raises(AssertionError, match='race'):
    check_pass('attend', (1, 104, 1, 16))


@pytest.mark.parametrize('persistent', [False, True])
def test_clips_heads_and_blocks_are_told_apart(monkeypatch, persistent):
  """By one block each, or three that have two or three of them to do."""
  monkeypatch.setattr(sweep, 'MULTIPROCESSORS', 3)
  size = dataclasses.replace(SMALL, persistent=persistent)
  check_pass('attend', (2, 136, 2, 16), size)


def test_an_operation_and_its_gradients():
  """With three warpgroups."""
  x = pass_cases.draw((1, 160, 1, 64))
  with interpreted(detect_races=True):
    ours = pass_cases.both(vjp.operations(passes.PASSES), 'redistributed', x)
  operations = vjp.operations(plain_passes.PASSES)
  plain = pass_cases.both(operations, 'redistributed', wide(x))
  # Sums over a row's gradient start from an output rounded to bfloat16.
  assert_near(ours, plain, narrow=5e-3, wide=1e-3)


@pytest.mark.parametrize('shape', [gpu.SHAPES['huge'], (2, 393, 12, 64)])
def test_every_pass_lowers_to_kernels(shape):
  for name, (run, kernels) in CASES.items():
    run = jax.jit(functools.partial(run, passes.PASSES))
    lowered = run.trace(pass_cases.shapes(shape)).lower(
      lowering_platforms=('cuda',)
    )
    text = lowered.as_text()
    assert text.count('custom_call @mosaic_gpu') == kernels, name


@pytest.mark.parametrize(
  ('shape', 'dtype', 'word'),
  [
    ((2, 1568, 12, 64), jnp.float32, 'float32'),
    ((2, 1568, 12, 72), jnp.bfloat16, '72'),
    ((2, 1568, 12, 144), jnp.bfloat16, '144'),
  ],
)
def test_refusals_say_why(shape, dtype, word):
  assert word in passes.refusal(shape, dtype)
  for served in gpu.SHAPES.values():
    assert passes.refusal(served, jnp.bfloat16) is None
