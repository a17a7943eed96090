"""Times a computation on its device, without what the host spends on a call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax


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
    arguments: arrays.
    rounds: measurements.
    least: seconds of a round.
  """

  @jax.jit
  def repeat(count, arguments):
    def step(_, state):
      arguments, _ = state
      # The barrier makes the next call wait for this one.
      return lax.optimization_barrier((arguments, run(*arguments)))

    empty = jax.tree.map(
      lambda x: jax.numpy.zeros(x.shape, x.dtype),
      jax.eval_shape(run, *arguments),
    )
    return lax.fori_loop(0, count, step, (arguments, empty))[1]

  def elapsed(count: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready(repeat(count, tuple(arguments)))
    return time.perf_counter() - start

  elapsed(1)  # compiles
  once = elapsed(1)
  count = max(1, math.ceil(least / once))
  if count > 1:  # a single call is mostly the host's time
    count = max(1, math.ceil(count * least / elapsed(count)))
  return [elapsed(count) / count for _ in range(rounds)]
