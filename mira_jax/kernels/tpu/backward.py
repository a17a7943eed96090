"""Backward passes of `kernels.vjp` for TPUs: one kernel, all gradients.

With keys and values in VMEM, the gradients of both are summed there while
blocks of queries stream by, and each block's dq is complete. Five products
(logits, dP, dq, dk, dv) instead of the seven of separate kernels, and the order
of sums is always the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mira_jax.kernels.tpu.blocks import (
  LOG2_E,
  OVER_KEYS,
  OVER_LANES,
  OVER_ROWS,
  Blocks,
  call,
  cut,
  merge,
  over_chunks,
  own_lanes,
  product,
  scores,
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
    ds = a * ((1 - residual_mix) * dp + keys['gain'] * t - delta)
    return ds, a * (1 - residual_mix + rho * keys['gain']), a * t

  blocks = cut(q.shape, q.dtype)
  inputs = blocks.inputs(q=q, k=k, v=v, g=g) | {'gain': blocks.of_keys(gain)}
  rows, name = [lse, rho, pull, delta], 'redistribute_backward'
  return _gradients(name, tile, blocks, inputs, rows, gain_gradient)


def marginal_backward(q, k, lse, gamma):
  """See `vjp.Passes`."""

  def tile(a, dp, rows, keys):
    del dp
    # A row of one chunk is whole, and its mean at hand.
    mean = rows[0] if rows else _row_sum(a, keys['gamma'])
    return a * (keys['gamma'] - mean), None, None

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
    tile: (A or P, dP, row numbers, key numbers) of a tile -> dS, the weight of
      g in dv, and what `key_sums` sums over rows.
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


def _kernel(inputs, outputs, scratch, *, tile: Callable, blocks: Blocks):
  totals = scratch or {x: outputs[x] for x in ('dk', 'dv') if x in outputs}

  @pl.when(pl.program_id(2) == 0)
  def _():
    for total in totals.values():
      _by_chunks(total, jnp.zeros_like, total, blocks)
    if outputs['key_sums'] is not None:
      outputs['key_sums'][...] = jnp.zeros_like(outputs['key_sums'])

  scale = blocks.width**-0.5
  for clip in range(blocks.clips):
    heads = [_Head(inputs, clip, i, blocks) for i in range(blocks.group)]
    dqs = []
    for joined in _joined(heads, blocks):
      dqs += _add_tiles(joined, outputs, totals, tile)
    outputs['dq'][clip] = (merge(dqs, blocks) * scale).astype(blocks.dtype)

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    _by_chunks(totals['dk'], lambda x: x * scale, outputs['dk'], blocks)
    if 'dv' in scratch:
      _by_chunks(scratch['dv'], lambda x: x, outputs['dv'], blocks)


def _by_chunks(source, f: Callable, target, blocks: Blocks):
  """target = f(source), chunk by chunk to keep the program short."""

  def step(keys, _):
    target[:, keys, :] = f(source[:, keys, :]).astype(target.dtype)
    return ()

  over_chunks(blocks, step, ())


class _Head:
  """One head of one clip in a step of the grid, and its tiles."""

  def __init__(self, inputs, clip: int, head: int, blocks: Blocks):
    self.inputs, self.clip, self.blocks = inputs, clip, blocks
    self.q = own_lanes(inputs['q'][clip], head, blocks)
    self.g = None
    if 'g' in inputs:
      self.g = own_lanes(inputs['g'][clip], head, blocks)
    lanes = range(head, inputs['rows'].shape[-1], blocks.group)
    rows = (inputs['rows'][clip, :, i : i + 1] for i in lanes)
    self.lse, *self.rows = rows
    if 'gamma' in inputs and blocks.chunks > 1:
      self.rows.append(self.mean('gamma'))

  def attention(self, keys) -> Array:
    s = scores(self.q, self.inputs, self.clip, keys, self.blocks)
    return jnp.exp2(s - self.lse)

  def key_numbers(self, keys) -> dict[str, Array]:
    names = {'gain', 'gamma'} & set(self.inputs)
    return {x: self.inputs[x][self.clip, :, keys] for x in names}

  def mean(self, name: str) -> Array:
    """A row's mean of a number of keys, in a sweep of its own."""

    def step(keys, mean):
      x = self.key_numbers(keys)[name]
      return mean + _row_sum(self.attention(keys), x)

    start = jnp.zeros((self.blocks.rows, 1), jnp.float32)
    return over_chunks(self.blocks, step, start)

  def gradients(self, tile: Callable, keys) -> tuple:
    """What `tile` gives of a chunk of keys."""
    a, dp = self.attention(keys), None
    if self.g is not None:
      dp = product(self.g, self.inputs['v'][self.clip, keys, :], OVER_LANES)
    return tile(a, dp, self.rows, self.key_numbers(keys))


def _joined(heads: list[_Head], blocks: Blocks) -> list[list[_Head]]:
  """Heads whose rows are joined in a product over rows.

  The MXU takes rows by 128: 160 of one head cost 256, of two heads 384. Blocks
  of more rows waste less, and tiles of two heads would be too many to hold.
  """
  if blocks.rows == blocks.padded:
    return [heads]
  return [[head] for head in heads]


def _add_tiles(
  heads: list[_Head], outputs, totals, tile: Callable
) -> tuple[Array, ...]:
  """Adds to the sums over rows; returns the heads' dq, unscaled."""
  inputs, clip, blocks = heads[0].inputs, heads[0].clip, heads[0].blocks

  def add(name, keys, parts, tokens):
    x, y = jnp.concatenate(parts), jnp.concatenate(tokens)
    totals[name][clip, keys, :] += product(x, y, OVER_ROWS)

  def step(keys, dqs):
    gradients = (head.gradients(tile, keys) for head in heads)
    ds, weights, terms = zip(*gradients, strict=True)
    add('dk', keys, ds, [head.q for head in heads])
    if 'dv' in totals:
      add('dv', keys, weights, [head.g for head in heads])
    if outputs['key_sums'] is not None:
      sums = sum(x.sum(0, keepdims=True) for x in terms)
      outputs['key_sums'][clip, :, keys] += sums
    k = inputs['k'][clip, keys, :]
    pairs = zip(dqs, ds, strict=True)
    return tuple(dq + product(x, k, OVER_KEYS) for dq, x in pairs)

  start = jnp.zeros((blocks.rows, blocks.lanes), jnp.float32)
  return over_chunks(blocks, step, (start,) * len(heads))


def _row_sum(a: Array, x: Array) -> Array:
  """Sums of a x over keys: [rows, 1]."""
  return (a * x).sum(1, keepdims=True)
