"""The passes of `kernels.vjp` for TPUs v5e, v5p and v6e, in Pallas.

Keys and values of a group of heads stay in VMEM while tiles of queries go by.
Up to ONE_CHUNK keys all logits of a query are held, and there is no online
softmax. In units of U, one L x L x D product per head:

  pass           forward   backward
  attend           2 U       5 U
  marginal         1 U       3 U      (1 U more each beyond ONE_CHUNK keys)
  redistribute     3 U       5 U      (2 U forward if the residual mix is 1)
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mira_jax.kernels.operations import row_norm
from mira_jax.kernels.tpu.backward import (
  attend_backward,
  marginal_backward,
  redistribute_backward,
)
from mira_jax.kernels.tpu.blocks import (
  LOG2_E,
  Blocks,
  call,
  column,
  cut,
  refusal,
)
from mira_jax.kernels.tpu.tiles import (
  OVER_LANES,
  Unit,
  chunk_keys,
  exponentials,
  over,
  over_tiles,
  per_query,
  product,
  queries,
  read_rows,
  sums_over_keys,
  write_rows,
  write_tokens,
)
from mira_jax.kernels.vjp import Passes

__all__ = ['PASSES', 'refusal']

Array = jax.Array


# ----- softmax(S + bias) v ----------------------------------------------------


def _attend(q, k, v, bias, *, keep_rows=True):
  blocks = cut(q.shape, q.dtype)
  out = call(
    'attend',
    _attend_kernel,
    blocks,
    blocks.inputs(bias, q=q, k=k, v=v),
    {
      'y': blocks.row_tokens(),
      'rows': blocks.row_numbers(1) if keep_rows else None,
    },
    products=2,
  )
  y = blocks.unpack(out['y'])
  return (y, *blocks.unpack_rows(out['rows'])) if keep_rows else (y, None)


def _attend_kernel(inputs, outputs, _, known, *, blocks: Blocks):
  def sums(unit, e, keys):
    return e.sum(0, keepdims=True), *keys.sums([keys.transposed('v')], unit, e)

  def tile(units):
    tops, totals = sums_over_keys(inputs, known, units, blocks, sums, None)
    means = [o / total for total, o in totals]
    write_tokens(outputs['y'], units, means, blocks)
    for unit, top, (total, _) in zip(units, tops, totals, strict=True):
      write_rows(outputs['rows'], unit, [_log_sum(top, total)])

  over_tiles(blocks, tile)


# ----- redistribute(A, gain) v ------------------------------------------------


def _redistribute(
  q, k, v, gain, v_mean, lse, *, residual_mix, floor, keep_rows=True
):
  blocks = cut(q.shape, q.dtype)
  keeps = residual_mix < 1  # part of A v
  writes_z = keep_rows or not keeps
  known = {}
  if lse is not None:
    rows = blocks.pack_rows(lse * LOG2_E, fill=[0.0])
    known = {'rows': (rows, blocks.row_numbers(1))}
  counts = 1 if known else 2
  out = call(
    'redistribute',
    functools.partial(_redistribute_kernel, mix=residual_mix, floor=floor),
    blocks,
    blocks.inputs(q=q, k=k, v=v)
    | known
    | {
      'gain': blocks.of_keys(gain),
      'v_mean': (blocks.pack_heads(v_mean), blocks.head_vectors()),
    },
    {
      'y': blocks.row_tokens() if keeps else None,
      'z': blocks.row_tokens() if writes_z else None,
      'rows': blocks.row_numbers(counts) if keep_rows else None,
    },
    products=3 if keeps else 2,
  )
  z = blocks.unpack(out['z']) if writes_z else None
  y = blocks.unpack(out['y']) if keeps else z
  if not keep_rows:
    return y, z, None, None
  mean_gain, *found = blocks.unpack_rows(out['rows'])
  return y, z, found[0] if found else lse, mean_gain


def _redistribute_kernel(
  inputs, outputs, _, known, *, mix: float, floor: float, blocks: Blocks
):
  given = 'rows' in inputs  # the log-sum-exp: e is A

  def sums(unit, e, keys):
    v = keys.transposed('v')
    gained = (v.astype(jnp.float32) * keys.row('gain')).astype(v.dtype)
    both = [v, gained] if mix < 1 else [gained]
    gains = (e * keys.columns('gain', unit.columns)).sum(0, keepdims=True)
    total = [] if given else [e.sum(0, keepdims=True)]
    return keys.sums(both, unit, e), gains, total

  def tile(units):
    tops = None
    if given:
      rows = (read_rows(inputs['rows'], x, blocks) for x in units)
      tops = [lse for (lse,) in rows]
    tops, totals = sums_over_keys(inputs, known, units, blocks, sums, tops)
    ys, zs = [], []
    for unit, top, (o, gains, total) in zip(units, tops, totals, strict=True):
      numbers = [gains]
      if total:
        o, gains = [x / total[0] for x in o], gains / total[0]
        numbers = [gains, _log_sum(top, total[0])]
      write_rows(outputs['rows'], unit, numbers)
      z = (1 - floor) * o[-1] + floor * _mean_of_v(inputs, unit, blocks)
      zs.append(z / row_norm(gains, floor))
      ys.append((1 - mix) * o[0] + mix * zs[-1])
    if outputs['z'] is not None:
      write_tokens(outputs['z'], units, zs, blocks)
    if outputs['y'] is not None:
      write_tokens(outputs['y'], units, ys, blocks)

  over_tiles(blocks, tile)


def _mean_of_v(inputs, unit: Unit, blocks: Blocks) -> Array:
  """[D, columns], the same for all queries of a head."""

  def of_head(head):
    start = head * blocks.width
    mean = inputs['v_mean'][unit.clip, :, start : start + blocks.width]
    return column(mean, unit.count)

  return per_query(of_head, unit)


# ----- the key marginal of A --------------------------------------------------


def _marginal(q, k):
  blocks = cut(q.shape, q.dtype)
  out = call(
    'marginal',
    _marginal_kernel,
    blocks,
    blocks.inputs(q=q, k=k),
    {'mass': blocks.key_sums(), 'rows': blocks.row_numbers(1)},
    products=1 if blocks.chunks == 1 else 2,
  )
  (lse,) = blocks.unpack_rows(out['rows'])
  return blocks.unpack_sums(out['mass']), lse


def _marginal_kernel(inputs, outputs, _, known, *, blocks: Blocks):
  @pl.when(pl.program_id(2) == 0)
  def _():
    outputs['mass'][...] = jnp.zeros_like(outputs['mass'])

  first = pl.program_id(2) * blocks.rows

  def add(units, keys, e, shares):
    """Adds to the mass of keys."""
    for clip, parts in keys.items():
      own = [i for i, unit in enumerate(units) if unit.clip == clip]
      for j, part in enumerate(parts):
        terms = [_weighted_sum(shares[i], e[i][j], blocks) for i in own]
        outputs['mass'][clip, :, part.where] += sum(terms)

  def tile(units):
    shares = [_is_row(first, unit, blocks) for unit in units]

    def finish(tops, totals):
      pairs = zip(tops, totals, strict=True)
      lses = [top + jnp.log2(total) for top, total in pairs]
      for unit, lse in zip(units, lses, strict=True):
        write_rows(outputs['rows'], unit, [lse / LOG2_E])
      return lses

    def weights(index, tops):
      keys = chunk_keys(inputs, known, units, index, blocks)
      qs = [queries(inputs['q'], unit, blocks) for unit in units]
      own = [keys[unit.clip] for unit in units]
      return keys, *exponentials(qs, own, tops)

    if blocks.chunks == 1:
      keys, tops, e = weights(0, None)
      totals = [sum(x.sum(0, keepdims=True) for x in row) for row in e]
      finish(tops, totals)
      parts = zip(shares, totals, strict=True)
      return add(units, keys, e, [share / total for share, total in parts])

    def sums(_, e, __):
      return e.sum(0, keepdims=True)

    lses = finish(*sums_over_keys(inputs, known, units, blocks, sums, None))

    def step(index):
      keys, _, a = weights(index, lses)
      add(units, keys, a, shares)

    over(blocks.chunks, step)

  over_tiles(blocks, tile)


def _is_row(first, unit: Unit, blocks: Blocks) -> Array:
  """1 for rows of the sequence, 0 for those that fill up: [1, columns]."""
  row = lax.broadcasted_iota(jnp.int32, (1, unit.count), 1)
  row += first + unit.queries.start
  own = (row < blocks.length).astype(jnp.float32)
  return per_query(lambda _: own, unit)


def _weighted_sum(row: Array, e: Array, blocks: Blocks) -> Array:
  """[1, columns], [keys, columns] -> sums over columns: [1, keys].

  A product, which has e in half as many bits as it would otherwise be kept in
  until the row is known; of the row, it takes what one number rounds off too.
  """
  high = row.astype(blocks.dtype)
  low = (row - high.astype(row.dtype)).astype(blocks.dtype)
  both = jnp.concatenate([high, low])
  return product(both, e.astype(blocks.dtype), OVER_LANES).sum(0, keepdims=True)


def _log_sum(top: Array, total: Array) -> Array:
  """log sum exp in natural units."""
  return (top + jnp.log2(total)) / LOG2_E


PASSES = Passes(
  _attend,
  attend_backward,
  _marginal,
  marginal_backward,
  _redistribute,
  redistribute_backward,
)
