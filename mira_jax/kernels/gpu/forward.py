"""The forward sweep of `pallas_gpu`: softmax of every row, online."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mira_jax.kernels.gpu import warpgroup as ops
from mira_jax.kernels.gpu.sweep import Context, Shaped, Tiles, Vector, sweep
from mira_jax.kernels.gpu.warpgroup import LOG2E, along

Array = jax.Array


def forward(
  q: Array,
  k: Array,
  v: Array | None,
  keys: Sequence[Vector],
  finish: Callable[..., Sequence[Array]],
  out: Sequence[Shaped],
  tiles: Tiles,
  *,
  plain: bool = True,
  per_head: Sequence[Array] = (),
) -> list[Array]:
  """Softmax of every row, online: 1 U, and 1 U per sum over values.

  Args:
    q: [B, L, H, D].
    k: [B, L, H, D].
    v: [B, L, H, D], or None.
    keys: [B, L]: the bias in units of log 2, and perhaps a gain.
    finish: (lse, sums, mean gains, per_head) -> a tile of each output. With
      P = softmax(S + bias), sums are P v and, with a gain, (P * gain) v.
    out: shapes of the outputs.
    tiles: sizes.
    plain: whether P v is wanted.
    per_head: float32 [B, H, D], for `finish`.
  """
  scale = LOG2E * q.shape[-1] ** -0.5
  matrix = tiles.rows, q.shape[-1]
  wanted = slice(0 if plain else 1, None if v is not None else 0)
  take_turns = v is not None and tiles.warpgroups == 2

  # One kernel: what follows is traced together, in this order.
  def consume(context: Context):
    (query,), (group, *values) = context.own, context.groups
    turns = _Turns(context, take_turns)

    def arrive(i):
      pl.when(i < context.steps)(lambda: group.wait(i))

    def step(i, carry):
      top, totals, sums = carry
      key, *passing = group.tile(i)
      s = ops.product(query, key, turns.meet)
      bias, *gain = (along(ops.vector(x, 1), 1, s.shape) for x in passing)
      group.release(i)
      p, shrink, top, totals = _online(s * scale + bias, gain, top, totals)
      if not values:
        arrive(i + 1)
        return top, totals, sums
      sums = [x * along(shrink, 0, matrix) for x in sums]
      p = [x.astype(q.dtype) for x in p[wanted]]
      # All of the softmax comes before the turn is over.
      state = top, totals, sums, p
      top, totals, sums, p = lax.optimization_barrier(state)
      turns.give()
      values[0].wait(i)
      turns.take()
      (value,) = values[0].tile(i)
      terms = [(x, value) for x in p]
      sums = ops.accumulate(sums, terms, lambda: arrive(i + 1))
      values[0].release(i)
      return top, totals, sums

    group.wait(jnp.int32(0))
    turns.shift(1)
    start = (
      # Not -inf: where a bias is, their difference would be nan.
      ops.full(matrix[:1], -1e30),
      [ops.full(matrix[:1], 0) for _ in keys],
      [ops.full(matrix, 0) for _ in keys[wanted]],
    )
    top, totals, sums = lax.fori_loop(0, context.steps, step, start)
    turns.shift(0)
    one = 1 / totals[0]
    lse = top * (1 / LOG2E) + jnp.log(totals[0])
    sums = [x * along(one, 0, matrix) for x in sums]
    of_head = [along(ops.vector(x, 1), 1, matrix) for x in context.per_head]
    return finish(lse, sums, [x * one for x in totals[1:]], of_head)

  stream = [[k, *keys]] if v is None else [[k, *keys], [v]]
  return sweep(
    consume,
    [q],
    stream,
    out,
    tiles,
    products=1 + len(keys[wanted]),
    per_head=per_head,
  )


def _online(s, gain, top, totals):
  """P and P * gain of a tile, and their sums over the tiles so far."""
  highest = jnp.maximum(top, s.max(1))
  shrink = jnp.exp2(top - highest)
  p = jnp.exp2(s - along(highest, 0, s.shape))
  p = [p, *(p * x for x in gain)]
  totals = [x * shrink + y.sum(1) for x, y in zip(totals, p, strict=True)]
  return p, shrink, highest, totals


class _Turns:
  """While one warpgroup multiplies, the other computes exponentials.

  At width 64 a tile keeps tensor cores and exponential units busy for about
  the same time; each would wait for the other if all did the same.
  """

  def __init__(self, context: Context, taken: bool):
    self.barrier, self.warpgroup = context.turn, context.warpgroup
    self.taken = taken

  def give(self) -> None:
    if self.taken:
      plgpu.barrier_arrive(self.barrier)

  def take(self) -> None:
    if self.taken:
      plgpu.barrier_wait(self.barrier)

  def meet(self) -> None:
    self.give()
    self.take()

  def shift(self, warpgroup: int) -> None:
    """Lets one warpgroup fall behind by half a step."""
    if self.taken:
      pl.when(self.warpgroup == warpgroup)(self.meet)
