"""Times a computation on its device, without what the host spends on a call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

MOST = 10**6  # calls in a round


def seconds(
  run: Callable[..., Any],
  arguments: Sequence[Any],
  *,
  rounds: int = 5,
  least: float = 0.03,
) -> list[float]:
  """Seconds of `run(*arguments)`, once per round.

  A round is one program that calls `run` again and again, each time after the
  call before has ended.

  Args:
    run: what `jax.jit` can trace.
    arguments: arrays, the first of which must be floats.
    rounds: measurements.
    least: seconds of a round.
  """

  @jax.jit
  def repeat(count, arguments):
    def step(_, state):
      (first, *rest), _ = state
      results = lax.optimization_barrier(run(first, *rest))
      # Adds 0 to a number in place: the next call depends on this one.
      one = jax.tree.leaves(results)[0].ravel()[0].astype(first.dtype)
      start = (0,) * first.ndim
      first = first.at[start].add(0 * one)
      return lax.optimization_barrier(((first, *rest), results))

    empty = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, *arguments)
    )
    return lax.fori_loop(0, count, step, (arguments, empty))[1]

  def elapsed(count: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready(repeat(count, tuple(arguments)))
    return time.perf_counter() - start

  elapsed(1)  # compiles
  once = elapsed(1)
  count = math.ceil(min(least / once, MOST))
  if count > 1:  # a single call is mostly the host's time
    count = math.ceil(min(count * least / elapsed(count), MOST))
  return [elapsed(count) / count for _ in range(rounds)]
