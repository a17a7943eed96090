"""Times a computation on its device, without what the host spends on a call."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

MOST = 10**6  # calls in a round
LONG = 1.0  # seconds of a call that is measured once


def repeated(
  run: Callable[..., Any], arguments: Sequence[Any], group: int = 1
) -> Callable:
  """Many calls of `run(*arguments)` in one program, one after the other.

  Args:
    run: what `jax.jit` can trace.
    arguments: arrays or their shapes, the first of floats.
    group: calls per iteration. Between iterations a GPU waits for the host,
      which takes some 10 us; within one, the loop's length is known.

  Returns:
    A jitted function (iterations, arguments) -> the last results.
  """

  def step(_, state):
    (first, *rest), _ = state
    results = lax.optimization_barrier(run(first, *rest))
    # Adds 0 to a number in place: the next call depends on this one.
    one = jax.tree.leaves(results)[0].ravel()[0].astype(first.dtype)
    start = (0,) * first.ndim
    corner = lax.slice(first, start, (1,) * first.ndim) + 0 * one
    first = lax.dynamic_update_slice(first, corner, start)
    return lax.optimization_barrier(((first, *rest), results))

  def iteration(_, state):
    return lax.fori_loop(0, group, step, state)

  empty = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, *arguments)
  )

  return jax.jit(
    lambda count, arguments: lax.fori_loop(
      0, count, iteration, (arguments, empty)
    )[1]
  )


def seconds(
  run: Callable[..., Any],
  arguments: Sequence[Any],
  *,
  rounds: int = 5,
  least: float = 0.03,
  group: int = 1,
  alone: contextlib.AbstractContextManager = contextlib.nullcontext(),
) -> list[float]:
  """Seconds of `run(*arguments)`, once per round.

  A round is one program that calls `run` again and again, each time after the
  call before has ended.

  Args:
    run: what `jax.jit` can trace.
    arguments: arrays, the first of which must be floats.
    rounds: measurements.
    least: seconds of a round.
    group: see `repeated`; a round has at least as many calls.
    alone: entered when all is compiled: a lock, where others time here, too.
  """
  arguments = tuple(arguments)
  program = repeated(run, arguments, group).lower(0, arguments).compile()

  def elapsed(count: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready(program(count, arguments))
    return time.perf_counter() - start

  with alone:
    elapsed(1)  # loads the program
    once = elapsed(1)
    if once > LONG:
      return [once / group]
    count = math.ceil(min(least / once, MOST))
    if count > 1:  # a single call is mostly the host's time
      count = math.ceil(min(count * least / elapsed(count), MOST))
    return [elapsed(count) / (count * group) for _ in range(rounds)]
