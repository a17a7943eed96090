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
# A GPU asks the host whether to go on, unless a loop's length is known.
GROUP = 16


def repeated(run: Callable[..., Any], arguments: Sequence[Any]) -> Callable:
  """Many calls of `run(*arguments)` in one program, one after the other.

  Args:
    run: what `jax.jit` can trace.
    arguments: arrays or their shapes, the first of floats.

  Returns:
    A jitted function (groups, calls, arguments) -> the last results, of GROUP
    calls per group and `calls` more.
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

  def group(_, state):
    return lax.fori_loop(0, GROUP, step, state)

  empty = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, *arguments)
  )

  @jax.jit
  def repeat(groups, calls, arguments):
    state = lax.fori_loop(0, groups, group, (arguments, empty))
    return lax.fori_loop(0, calls, step, state)[1]

  return repeat


def seconds(
  run: Callable[..., Any],
  arguments: Sequence[Any],
  *,
  rounds: int = 5,
  least: float = 0.03,
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
    alone: entered when all is compiled: a lock, where others time here, too.
  """
  arguments = tuple(arguments)
  program = repeated(run, arguments).lower(0, 0, arguments).compile()

  def elapsed(count: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready(program(*divmod(count, GROUP), arguments))
    return time.perf_counter() - start

  with alone:
    elapsed(1)  # loads the program
    once = elapsed(1)
    if once > LONG:
      return [once]
    count = _whole(least / once)
    if count > 1:  # a single call is mostly the host's time
      count = _whole(count * least / elapsed(count))
    return [elapsed(count) / count for _ in range(rounds)]


def _whole(count: float) -> int:
  """Calls in a round: whole groups, if they are so many."""
  count = math.ceil(min(count, MOST))
  return count if count < GROUP else math.ceil(count / GROUP) * GROUP
