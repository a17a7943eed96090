"""Backward passes of `kernels.vjp` for TPUs: one kernel, all gradients.

With keys and values in VMEM, the gradients of both are summed there while
blocks of queries stream by, and each block's dq is complete. Five products
(logits, dP, dq, dk, dv) instead of the seven of separate kernels, and the order
of sums is always the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mira_jax.kernels.tpu.blocks import LANES, LOG2_E, Blocks, call, cut
from mira_jax.kernels.tpu.tiles import (
  OVER_LANES,
  Keys,
  Unit,
  chunk_keys,
  exponentials,
  over,
  over_queries,
  over_tiles,
  product,
  queries,
  read_rows,
  write_tokens,
)

Array = jax.Array


def attend_backward(q, k, v, bias, lse, delta, g, *, bias_gradient):
  """See `vjp.Passes`."""

  def tile(a, dp, rows, keys):
    del keys
    (delta,) = rows
    ds = a * (dp - delta)
    return ds, a, ds

  blocks = cut(q.shape, q.dtype)
  inputs = blocks.inputs(bias, q=q, k=k, v=v, g=g)
  rows = [lse, delta]
  return _gradients(
    'attend_backward', tile, blocks, inputs, rows, bias_gradient
  )


def redistribute_backward(
  q, k, v, gain, lse, rho, pull, delta, g, *, residual_mix, gain_gradient
):
  """See `vjp.Passes`."""

  def tile(a, dp, rows, keys):
    rho, pull, delta = rows
    t = rho * dp - pull
    ds = a * ((1 - residual_mix) * dp + keys('gain') * t - delta)
    return ds, a * (1 - residual_mix + rho * keys('gain')), a * t

  blocks = cut(q.shape, q.dtype)
  inputs = blocks.inputs(q=q, k=k, v=v, g=g) | {'gain': blocks.of_keys(gain)}
  rows, name = [lse, rho, pull, delta], 'redistribute_backward'
  return _gradients(name, tile, blocks, inputs, rows, gain_gradient)


def marginal_backward(q, k, lse, gamma):
  """See `vjp.Passes`."""

  def tile(a, dp, rows, keys):
    del dp
    (mean,) = rows
    return a * (keys('gamma') - mean), None, None

  blocks = cut(q.shape, q.dtype)
  inputs = blocks.inputs(q=q, k=k) | {'gamma': blocks.of_keys(gamma)}
  name = 'marginal_backward'
  return _gradients(name, tile, blocks, inputs, [lse], False)[:2]


def _gradients(
  name: str,
  tile: Callable,
  blocks: Blocks,
  inputs: dict[str, Any],
  rows: list[Array],
  key_sums: bool,
) -> tuple[Array, Array, Array | None, Array | None]:
  """Runs the backward kernel.

  Args:
    name: of the kernel.
    tile: (A or P, dP, row numbers, numbers of keys by name) of a tile, all
      [keys, queries] or rows or columns of that -> dS, the weight of g in dv,
      and what `key_sums` sums over rows.
    blocks: sizes.
    inputs: see `Blocks.inputs`; v and g if there is a dv.
    rows: the log-sum-exp and other numbers of rows, [B, H, L].
    key_sums: whether to sum over rows.

  Returns:
    dq, dk, dv or None, sums [B, L] or None.
  """
  lse, *others = rows
  # A row that only fills up has an infinite log-sum-exp: its A is 0.
  fill = [jnp.inf] + [0.0] * len(others)
  packed = blocks.pack_rows(lse * LOG2_E, *others, fill=fill)
  sums, scratch = _sums(blocks, ['dk', 'dv'] if 'v' in inputs else ['dk'])
  out = call(
    name,
    functools.partial(_kernel, tile=tile),
    blocks,
    inputs | {'rows': (packed, blocks.row_numbers(len(others) + 1))},
    {
      'dq': blocks.row_tokens(),
      'key_sums': blocks.key_sums() if key_sums else None,
      **sums,
    },
    products=5 if 'v' in inputs else 3,
    scratch=scratch,
  )
  return (
    blocks.unpack(out['dq']),
    blocks.unpack(out['dk']),
    blocks.unpack(out['dv']) if 'dv' in out else None,
    blocks.unpack_sums(out['key_sums']) if key_sums else None,
  )


def _sums(blocks: Blocks, names: list[str]) -> tuple[dict, dict]:
  """Outputs, and scratch memory where they are summed in float32."""
  if blocks.chunks > 1:
    # VMEM holds dk and dv of a long sequence only once: sum in the output.
    return {x: blocks.key_tokens(jnp.float32) for x in names}, {}
  shape = (blocks.clips, blocks.padded, blocks.lanes)
  scratch = {x: pltpu.VMEM(shape, jnp.float32) for x in names}
  return {x: blocks.key_tokens() for x in names}, scratch


def _kernel(inputs, outputs, scratch, known, *, tile: Callable, blocks: Blocks):
  totals = scratch or {x: outputs[x] for x in ('dk', 'dv') if x in outputs}

  @pl.when(pl.program_id(2) == 0)
  def _():
    for total in totals.values():
      _by_chunks(total, jnp.zeros_like, total, blocks)
    if outputs['key_sums'] is not None:
      outputs['key_sums'][...] = jnp.zeros_like(outputs['key_sums'])

  scale = blocks.width**-0.5

  def run(units):
    found = [_Queries(inputs, unit, blocks) for unit in units]
    if 'gamma' in inputs:
      _add_means(found, inputs, known, blocks)
    dqs = _add_tiles(found, inputs, known, outputs, totals, tile, blocks)
    dqs = [dq * scale for dq in dqs]
    write_tokens(outputs['dq'], units, dqs, blocks)

  over_tiles(blocks, run)

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    _by_chunks(totals['dk'], lambda x: x * scale, outputs['dk'], blocks)
    if 'dv' in scratch:
      _by_chunks(scratch['dv'], lambda x: x, outputs['dv'], blocks)


def _by_chunks(source, f: Callable, target, blocks: Blocks):
  """target = f(source), part by part to keep the program short."""
  part = math.gcd(blocks.padded, LANES)

  def step(index):
    keys = pl.ds(pl.multiple_of(index * part, part), part)
    target[:, keys, :] = f(source[:, keys, :]).astype(target.dtype)

  over(blocks.padded // part, step)


class _Queries:
  """A unit's tokens and numbers."""

  def __init__(self, inputs, unit: Unit, blocks: Blocks):
    self.unit = unit
    self.q = queries(inputs['q'], unit, blocks)
    self.g = None
    if 'g' in inputs:
      self.g = queries(inputs['g'], unit, blocks)
    self.lse, *self.rows = read_rows(inputs['rows'], unit, blocks)


def _over_chunks(blocks: Blocks, step: Callable, state: list[Array]):
  """Folds step(index, state) over the chunks of keys."""
  if blocks.chunks == 1:
    return step(0, state)
  bounds = jnp.int32(0), jnp.int32(blocks.chunks)
  return lax.fori_loop(*bounds, step, state)


def _add_means(found: list[_Queries], inputs, known, blocks: Blocks):
  """Adds to the rows' numbers their mean of gamma, in a sweep of its own."""
  units = [x.unit for x in found]

  def step(index, means):
    keys = chunk_keys(inputs, known, units, index, blocks)
    own = [keys[unit.clip] for unit in units]
    lses = [x.lse for x in found]
    _, weights = exponentials([x.q for x in found], own, lses)
    means = list(means)
    for i, unit in enumerate(units):
      for part, a in zip(own[i], weights[i], strict=True):
        gamma = part.columns('gamma', unit.columns)
        means[i] += (a * gamma).sum(0, keepdims=True)
    return means

  means = [jnp.zeros_like(x.lse) for x in found]
  for x, mean in zip(found, _over_chunks(blocks, step, means), strict=True):
    x.rows.append(mean)


def _add_tiles(
  found: list[_Queries],
  inputs,
  known,
  outputs,
  totals,
  tile: Callable,
  blocks: Blocks,
) -> list[Array]:
  """Adds to the sums over rows; returns dq of units, unscaled [D, columns]."""

  def gradients(x: _Queries, part: Keys):
    _, ((a,),) = exponentials([x.q], [[part]], [x.lse])
    dp = None
    if x.g is not None:
      dp = product(part.tokens('v'), x.g, OVER_LANES)
    return tile(a, dp, x.rows, lambda name: part.columns(name, a.shape[1]))

  def add(own: list[_Queries], part: Keys, dqs: list[Array]) -> list[Array]:
    parts = [gradients(x, part) for x in own]
    ds, weights, terms = zip(*parts, strict=True)
    at = part.clip, part.where, slice(None)
    totals['dk'][at] += _over_rows(ds, [x.q for x in own])
    if 'dv' in totals:
      gs = [x.g for x in own if x.g is not None]
      totals['dv'][at] += _over_rows(weights, gs)
    if outputs['key_sums'] is not None:
      sums = over_queries(list(terms))
      outputs['key_sums'][part.clip, :, part.where] += sums
    k = part.transposed('k')
    return [
      dq + part.sums([k], x.unit, y)[0]
      for dq, x, y in zip(dqs, own, ds, strict=True)
    ]

  def step(index, dqs):
    units = [x.unit for x in found]
    done = []
    for clip, parts in chunk_keys(inputs, known, units, index, blocks).items():
      at = [i for i, unit in enumerate(units) if unit.clip == clip]
      own = [dqs[i] for i in at]
      for part in parts:
        own = add([found[i] for i in at], part, own)
      done += own  # units come clip by clip
    return done

  start = [
    jnp.zeros((blocks.width, x.unit.columns), jnp.float32) for x in found
  ]
  return _over_chunks(blocks, step, start)


def _over_rows(xs, ys: list[Array]) -> Array:
  """Sum of x y over pairs of [keys, columns] and [columns, lanes]."""
  if all(x.shape[1] % LANES == 0 for x in xs[:-1]):
    return product(jnp.concatenate(xs, 1), jnp.concatenate(ys))
  return functools.reduce(jnp.add, map(product, xs, ys))
