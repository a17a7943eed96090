"""The forward sweeps of `gpu.passes`: a warpgroup keeps queries, keys pass by.

`softmax_sums` finds the log-sum-exp of every row online; `weighted_sums` knows
it. q, k and v are [B, L, H, D].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mira_jax.kernels.gpu import warpgroup as ops
from mira_jax.kernels.gpu.sweep import Context, Shaped, Tuning, Vector, sweep
from mira_jax.kernels.gpu.warpgroup import LOG2E, along

Array = jax.Array


def softmax_sums(
  q: Array,
  k: Array,
  v: Array | None,
  bias: Vector,
  out: Sequence[Shaped],
  tuning: Tuning,
  name: str,
) -> list[Array]:
  """P v with P = softmax(S + bias), and the log-sum-exp: 2 U, or 1 U without v.

  Args:
    q: queries.
    k: keys.
    v: values, or None.
    bias: [B, L], in units of log 2.
    out: shapes of P v, if there are values, and of the log-sum-exp, if wanted.
    tuning: sizes and schedule.
    name: of the kernel.
  """
  scale = LOG2E * q.shape[-1] ** -0.5
  matrix = tuning.rows, q.shape[-1]

  # One kernel: what follows is traced together, in this order.
  def consume(context: Context):
    (query,), (group, *values) = context.own, context.groups
    query = tuning.own(query)
    turns = _Turns(context)

    def arrive(i):
      pl.when(i < context.steps)(lambda: group.wait(i))

    def step(i, carry):
      top, total, sums = carry
      key, bias = group.tile(i)
      s = ops.product(query, key, turns.give)
      bias = along(ops.vector(bias, 1), 1, s.shape)
      group.release(i)
      p, shrink, top, total = _online(s * scale + bias, top, total)
      if not values:
        arrive(i + 1)
        return top, total, sums
      sums = [x * along(shrink, 0, matrix) for x in sums]
      values[0].wait(i)
      turns.take()
      terms = [(p.astype(q.dtype), *values[0].tile(i))]
      sums = ops.accumulate(sums, terms, lambda: arrive(i + 1))
      values[0].release(i)
      return top, total, sums

    group.wait(jnp.int32(0))
    turns.start()
    start = (
      # Not -inf: where a bias is, their difference would be nan.
      ops.full(matrix[:1], -1e30),
      ops.full(matrix[:1], 0),
      [ops.full(matrix, 0) for _ in values],
    )
    top, total, sums = lax.fori_loop(0, context.steps, step, start)
    turns.end()
    sums = [x * along(1 / total, 0, matrix) for x in sums]
    return [*sums, top * (1 / LOG2E) + jnp.log(total)][: len(out)]

  values = [] if v is None else [[v]]
  return sweep(
    consume,
    [q],
    [[k, bias], *values],
    out,
    tuning,
    name=name,
    products=1 + len(values),
  )


def _online(s, top, total):
  """P of a tile, and the maximum and the sum over the tiles so far."""
  highest = jnp.maximum(top, s.max(1))
  shrink = jnp.exp2(top - highest)
  p = jnp.exp2(s - along(highest, 0, s.shape))
  return p, shrink, highest, total * shrink + p.sum(1)


class _Turns:
  """While one of two warpgroups multiplies, the other computes exponentials.

  Each gives the turn when it has begun a product with keys, and takes its own
  before that with values: it waits once per tile.
  """

  def __init__(self, context: Context):
    self.barriers, self.warpgroup = context.turns, context.warpgroup

  def give(self) -> None:
    if self.barriers is not None:
      plgpu.barrier_arrive(self.barriers.at[1 - self.warpgroup])

  def take(self) -> None:
    if self.barriers is not None:
      own = self.barriers.at[self.warpgroup]
      plgpu.barrier_arrive(own)
      plgpu.barrier_wait(own)

  def start(self) -> None:
    """Lets the second fall behind by half a step."""
    if self.barriers is not None:
      pl.when(self.warpgroup == 1)(self.take)

  def end(self) -> None:
    if self.barriers is not None:
      pl.when(self.warpgroup == 0)(self.give)


def weighted_sums(
  q: Array,
  k: Array,
  v: Array | None,
  lse: Vector,
  weights: Vector,
  finish: Callable[..., Sequence[Array]],
  out: Sequence[Shaped],
  tuning: Tuning,
  name: str,
  *,
  plain: bool = True,
  per_head: Sequence[Array] = (),
) -> list[Array]:
  """Sums over values of P = exp(S - lse): 2 U, and 1 U with the plain one.

  Args:
    q: queries.
    k: keys.
    v: values, or None for the mean alone: 1 U.
    lse: [B, H, L], in units of log 2; infinite where there is no row.
    weights: w of keys, [B, L]; 0 where there is no key.
    finish: (sums, mean of w, per_head) -> a tile of each output. Sums are P v,
      if `plain`, and (P * w) v; the mean is P w.
    out: shapes of the outputs.
    tuning: sizes and schedule.
    name: of the kernel.
    plain: whether P v is wanted.
    per_head: float32 [B, H, D], for `finish`.
  """
  scale = LOG2E * q.shape[-1] ** -0.5
  matrix, shape = (tuning.rows, q.shape[-1]), (tuning.rows, tuning.columns)
  count = 0 if v is None else 2 if plain else 1

  # One kernel: what follows is traced together, in this order.
  def consume(context: Context):
    (query, lse), (group, *values) = context.own, context.groups
    query, lse = tuning.own(query), along(ops.vector(lse, 0), 0, shape)

    def step(i, carry):
      mean, sums = carry
      group.wait(i)
      key, weight = group.tile(i)
      s = ops.product(query, key)
      weight = along(ops.vector(weight, 1), 1, shape)
      group.release(i)
      # Where there is no key, P is not 0, but the value and the weight are.
      p = jnp.exp2(s * scale - lse)
      weighted = p * weight
      for passing in values:
        passing.wait(i)
        (value,) = passing.tile(i)
        terms = [(x.astype(q.dtype), value) for x in (p, weighted)[-count:]]
        sums = ops.accumulate(sums, terms)
        passing.release(i)
      return mean + weighted.sum(1), sums

    start = ops.full(matrix[:1], 0), [ops.full(matrix, 0)] * count
    mean, sums = lax.fori_loop(0, context.steps, step, start)
    of_head = [along(ops.vector(x, 1), 1, matrix) for x in context.per_head]
    return finish(sums, mean, of_head)

  return sweep(
    consume,
    [q, lse],
    [[k, weights], *([] if v is None else [[v]])],
    out,
    tuning,
    name=name,
    products=1 + count,
    per_head=per_head,
  )
