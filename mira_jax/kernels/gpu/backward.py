"""Sweeps of `pallas_gpu` that know the log-sum-exp: for queries, and for keys.

Both recompute P = exp(S - lse) tile by tile. One sweep for both would need 5 U
instead of 7 U, but several blocks would add to each dq, in any order; with two,
one warpgroup makes each sum, and gradients are the same in every run.

q, k, v and g = dL/dy are [B, L, H, D]. `rows` are [B, H, L]: the log-sum-exp in
units of log 2, and those of the rule. `keys` are [B, L], those of the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mira_jax.kernels.gpu import warpgroup as ops
from mira_jax.kernels.gpu.sweep import Context, Tuning, Vector, sweep
from mira_jax.kernels.gpu.warpgroup import LOG2E, along

Array = jax.Array


class Slopes(NamedTuple):
  """What follows from dP, in multiples of P."""

  slope: Array | float = 0.0  # dS
  weight: Array | float = 1.0  # of g in dv
  share: Array | float = 1.0  # of what is summed per key


# (dP, what rows have, what keys have, repeated over the tile) -> Slopes; dP
# lies as the tile does, and is None where no v is given.
Rule = Callable[[Array | None, Sequence[Array], Sequence[Array]], Slopes]


def biased(dp, rows, keys) -> Slopes:
  """softmax(S + bias) v, with row sums delta."""
  del keys
  (delta,) = rows
  slope = dp - delta
  return Slopes(slope, share=slope)


def redistributed(residual_mix: float) -> Rule:
  """The rule of `Passes.redistribute_backward`; gamma, if any, is of keys."""

  def rule(dp, rows, keys):
    (rho, pull, delta), (gain, *gamma) = rows, keys
    t = rho * dp - pull
    slope = (1 - residual_mix) * dp + gain * t - delta
    for x in gamma:
      slope += x
    return Slopes(slope, (1 - residual_mix) + gain * rho, t)

  return rule


def by_gain(dp, rows, keys) -> Slopes:
  """The rule of `Passes.gain_gradient`."""
  del keys
  rho, pull = rows
  return Slopes(share=rho * dp - pull)


def marginal(dp, rows, keys) -> Slopes:
  """The key marginal, with dL/d marginal and its mean over each row."""
  del dp
  (mean,), (gamma,) = rows, keys
  return Slopes(gamma - mean)


def mass(dp, rows, keys) -> Slopes:
  """What each key receives."""
  del dp, rows, keys
  return Slopes()


def row_gradient(
  q: Array,
  k: Array,
  v: Array,
  g: Array,
  rows: Sequence[Vector],
  keys: Sequence[Vector],
  rule: Rule,
  tuning: Tuning,
  name: str,
) -> Array:
  """dq [B, L, H, D], 3 U: every warpgroup keeps queries, keys pass by.

  The first of `keys` is the bias in units of log 2.
  """
  scale = q.shape[-1] ** -0.5
  shape = tuning.rows, tuning.columns

  def consume(context: Context):
    query, gradient, *own = context.own
    query, gradient = tuning.own(query), tuning.own(gradient)
    (group,) = context.groups
    lse, *own = (along(ops.vector(x, 0), 0, shape) for x in own)

    def step(i, dq):
      group.wait(i)
      key, value, *passing = group.tile(i)
      bias, *passing = (along(ops.vector(x, 1), 1, shape) for x in passing)
      p, dp = ops.product_pair(
        (query, key),
        (gradient, value),
        lambda s: jnp.exp2(s * (scale * LOG2E) - lse + bias),
      )
      ds = p * rule(dp, own, passing).slope
      (dq,) = ops.accumulate([dq], [(ds.astype(q.dtype), key)])
      group.release(i)
      return dq

    dq = ops.full((tuning.rows, q.shape[-1]), 0)
    return [scale * lax.fori_loop(0, context.steps, step, dq)]

  own, stream = [q, g, *rows], [[k, v, *keys]]
  (dq,) = sweep(consume, own, stream, [q], tuning, name=name, products=3)
  return dq


def key_gradient(
  q: Array,
  k: Array,
  values: Sequence[Array],
  rows: Sequence[Vector],
  keys: Sequence[Vector],
  rule: Rule,
  wanted: Sequence[str],
  tuning: Tuning,
  name: str,
  *,
  factor: Vector | None = None,
) -> list[Array]:
  """Sums over queries, 4 U with all: a warpgroup keeps keys, queries pass by.

  Args:
    q: queries.
    k: keys.
    values: v and g, or nothing.
    rows: numbers of rows.
    keys: numbers of keys.
    rule: gives dS, the weight of g in dv, and what is summed per key.
    wanted: of 'dk', 'dv' and 'share'.
    tuning: sizes and schedule.
    name: of the kernel.
    factor: [B, L], of P. All sums of a key share it: a bias is exp(bias) here.

  Returns:
    What is wanted, dk and dv like k, the share float32 [B, H, L].
  """
  scale = q.shape[-1] ** -0.5
  shape = tuning.rows, tuning.columns
  v, g = ([x] for x in values) if values else ([], [])

  # One kernel: what follows is traced together, in this order.
  def consume(context: Context):
    (group,) = context.groups
    key, *value = map(tuning.own, context.own[: 1 + len(v)])
    own = [ops.vector(x, 0) for x in context.own[1 + len(v) :]]
    last = own.pop() if factor is not None else None
    own = [along(x, 0, shape) for x in own]

    def step(i, sums):
      group.wait(i)
      query, *passing = group.tile(i)
      gradient, passing = passing[: len(g)], passing[len(g) :]
      lse, *passing = (along(ops.vector(x, 1), 1, shape) for x in passing)

      def softmax(s):
        return jnp.exp2(s * (scale * LOG2E) - lse)

      if v:
        pair = value[0], gradient[0]
        p, dp = ops.product_pair((key, query), pair, softmax)
      else:
        p, dp = softmax(ops.product(key, query)), None
      terms, share = _terms(rule(dp, passing, own), p, query, gradient, wanted)
      names = list(terms)
      new = [sums[x] for x in names]
      if terms:
        new = ops.accumulate(new, list(terms.values()))
      group.release(i)
      new = dict(zip(names, new, strict=True))
      if 'share' in sums:
        new['share'] = sums['share'] + share.sum(1)
      return new

    matrix = tuning.rows, k.shape[-1]
    sums = {
      x: ops.full(shape[:1] if x == 'share' else matrix, 0) for x in wanted
    }
    sums = lax.fori_loop(0, context.steps, step, sums)
    if 'dk' in sums:
      sums['dk'] *= scale
    if last is not None:
      tall = along(last, 0, matrix)
      sums = {x: y * (last if y.ndim == 1 else tall) for x, y in sums.items()}
    return [sums[x] for x in wanted]

  batch, length, heads, _ = k.shape
  per_key = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
  return sweep(
    consume,
    [k, *v, *keys, *([] if factor is None else [factor])],
    [[q, *g, *rows]],
    [per_key if x == 'share' else k for x in wanted],
    tuning,
    name=name,
    products=1 + len(v) + len({'dk', 'dv'} & set(wanted)),
  )


def _terms(slopes, p, query, gradient, wanted):
  """What a tile adds to dk and dv, as products; and per key, as a matrix."""
  terms = {}
  if 'dv' in wanted:
    terms['dv'] = (p * slopes.weight).astype(query.dtype), *gradient
  if 'dk' in wanted:
    terms['dk'] = (p * slopes.slope).astype(query.dtype), query
  return terms, p * slopes.share
