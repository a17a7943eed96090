"""The passes of `kernels.vjp` for TPUs v5e, v5p and v6e, in Pallas.

Keys and values of a group of heads stay in VMEM while blocks of queries stream
by. Up to ONE_CHUNK keys a row of logits is whole, and there is no online
softmax. In units of U, one L x L x D product per head:

  pass           forward   backward
  attend           2 U       5 U
  marginal         1 U       3 U      (1 U more each beyond ONE_CHUNK keys)
  redistribute     3 U       5 U      (2 U forward if the residual mix is 1;
                                       2 U in time up to D = 64)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

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
  OVER_KEYS,
  Blocks,
  call,
  cut,
  merge,
  over_chunks,
  own_lanes,
  product,
  refusal,
  scores,
)
from mira_jax.kernels.vjp import Passes

__all__ = ['PASSES', 'refusal']

Array = jax.Array


# ----- softmax(S + bias) v ----------------------------------------------------


def _attend(q, k, v, bias, *, keep_rows=True):
  del keep_rows
  blocks = cut(q.shape, q.dtype)
  out = call(
    'attend',
    _attend_kernel,
    blocks,
    blocks.inputs(bias, q=q, k=k, v=v),
    {'y': blocks.row_tokens(), 'rows': blocks.row_numbers(1)},
    products=2,
  )
  (lse,) = blocks.unpack_rows(out['rows'])
  return blocks.unpack(out['y']), lse


def _attend_kernel(inputs, outputs, _, *, blocks: Blocks):
  def clip_sums(clip, e, keys):
    v = inputs['v'][clip, keys, :]
    return e.sum(1, keepdims=True), product(e, v, OVER_KEYS)

  for clip in range(blocks.clips):
    means, lses = [], []
    sums = functools.partial(clip_sums, clip)
    for head in range(blocks.group):
      top, (total, o) = _sums_over_keys(inputs, clip, head, blocks, sums)
      means.append(o / total)
      lses.append(_log_sum(top, total))
    outputs['y'][clip] = merge(means, blocks).astype(blocks.dtype)
    _write_rows(outputs, clip, lses)


# ----- redistribute(A, gain) v ------------------------------------------------


def _redistribute(
  q, k, v, gain, v_mean, lse, *, residual_mix, floor, keep_rows=True
):
  del lse, keep_rows  # a whole row of logits gives its sum at no cost
  blocks = cut(q.shape, q.dtype)
  keeps = residual_mix < 1  # part of A v
  gained = (v * gain[:, :, None, None]).astype(v.dtype)
  values = jnp.concatenate([v, gained], -1) if keeps else gained
  # [v | a v]: up to D = 64 both fit into the 128 lanes that the MXU multiplies
  # by at once, so that one product gives two.
  wide = dataclasses.replace(blocks, width=values.shape[-1])
  out = call(
    'redistribute',
    functools.partial(_redistribute_kernel, mix=residual_mix, floor=floor),
    blocks,
    blocks.inputs(q=q, k=k)
    | {
      'v': (wide.pack(values), wide.key_tokens()),
      'gain': blocks.of_keys(gain),
      'v_mean': (blocks.pack_heads(v_mean), blocks.head_vectors()),
    },
    {
      'y': blocks.row_tokens() if keeps else None,
      'z': blocks.row_tokens(),
      'rows': blocks.row_numbers(2),
    },
    products=3 if keeps else 2,
  )
  lse, mean_gain = blocks.unpack_rows(out['rows'])
  z = blocks.unpack(out['z'])
  return blocks.unpack(out['y']) if keeps else z, z, lse, mean_gain


def _redistribute_kernel(
  inputs, outputs, _, *, mix: float, floor: float, blocks: Blocks
):
  width = inputs['v'].shape[-1] // blocks.group

  def head_sums(clip, head, e, keys):
    v = inputs['v'][clip, keys, head * width : (head + 1) * width]
    gain = inputs['gain'][clip, :, keys]
    gains = (e * gain).sum(1, keepdims=True)
    return e.sum(1, keepdims=True), gains, product(e, v, OVER_KEYS)

  for clip in range(blocks.clips):
    means, lses, mean_gains = [], [], []
    for head in range(blocks.group):
      sums = functools.partial(head_sums, clip, head)
      top, (total, gains, o) = _sums_over_keys(inputs, clip, head, blocks, sums)
      means.append(o / total)
      lses.append(_log_sum(top, total))
      mean_gains.append(gains / total)
    _write_rows(outputs, clip, [*lses, *mean_gains])
    norm = row_norm(merge(mean_gains, blocks), floor)
    z = _side_by_side(means, width - blocks.width, blocks.width)
    z = ((1 - floor) * z + floor * inputs['v_mean'][clip]) / norm
    outputs['z'][clip] = z.astype(blocks.dtype)
    if mix < 1:
      y = (1 - mix) * _side_by_side(means, 0, blocks.width) + mix * z
      outputs['y'][clip] = y.astype(blocks.dtype)


def _side_by_side(parts: list[Array], start: int, width: int) -> Array:
  """The same lanes of each head: [rows, lanes of all]."""
  return jnp.concatenate([x[:, start : start + width] for x in parts], 1)


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


def _marginal_kernel(inputs, outputs, _, *, blocks: Blocks):
  @pl.when(pl.program_id(2) == 0)
  def _():
    outputs['mass'][...] = jnp.zeros_like(outputs['mass'])

  for clip in range(blocks.clips):
    heads = range(blocks.group)
    lses = [_add_mass(inputs, outputs, clip, head, blocks) for head in heads]
    _write_rows(outputs, clip, lses)


def _add_mass(inputs, outputs, clip: int, head: int, blocks: Blocks) -> Array:
  """Adds a head's part to the mass of keys; returns its log-sum-exp."""

  def sums(e, _):
    # Of one chunk, e itself is kept: it is what the mass is made of.
    whole = (e,) if blocks.chunks == 1 else ()
    return e.sum(1, keepdims=True), *whole

  top, (total, *whole) = _sums_over_keys(inputs, clip, head, blocks, sums)
  share = _is_row(blocks) / total
  q = own_lanes(inputs['q'][clip], head, blocks)

  def add(keys, state):
    if whole:
      (e,) = whole
    else:
      e = jnp.exp2(scores(q, inputs, clip, keys, blocks) - top)
    outputs['mass'][clip, :, keys] += (e * share).sum(0, keepdims=True)
    return state

  over_chunks(blocks, add, ())
  return _log_sum(top, total)


def _is_row(blocks: Blocks) -> Array | float:
  """1 for rows of the sequence, 0 for those that fill up: [rows, 1]."""
  if blocks.padded == blocks.length:
    return 1.0
  row = lax.broadcasted_iota(jnp.int32, (blocks.rows, 1), 0)
  row += pl.program_id(2) * blocks.rows
  return (row < blocks.length).astype(jnp.float32)


# ----- all three --------------------------------------------------------------


def _sums_over_keys(
  inputs, clip: int, head: int, blocks: Blocks, sums: Callable
):
  """One head's row maximum, and sums of e = exp2(S - maximum).

  Args:
    inputs: references to q, k and bias.
    clip: of the block.
    head: of the block.
    blocks: sizes.
    sums: (e, keys) -> sums over the keys of a chunk, each [rows, ...].

  Returns:
    The maximum of all logits [rows, 1] and the sums over all keys.
  """
  q = own_lanes(inputs['q'][clip], head, blocks)

  def chunk(keys):
    s = scores(q, inputs, clip, keys, blocks)
    top = s.max(1, keepdims=True)
    return top, sums(jnp.exp2(s - top), keys)

  def step(keys, state):
    (old, old_sums), (new, new_sums) = state, chunk(keys)
    top = jnp.maximum(old, new)
    shrink, grow = jnp.exp2(old - top), jnp.exp2(new - top)
    return top, tuple(
      x * shrink + y * grow for x, y in zip(old_sums, new_sums, strict=True)
    )

  return over_chunks(blocks, step, chunk(pl.ds(0, blocks.chunk)), first=1)


def _log_sum(top: Array, total: Array) -> Array:
  """log sum exp in natural units."""
  return (top + jnp.log2(total)) / LOG2_E


def _write_rows(outputs, clip: int, numbers: list[Array]):
  for lane, number in enumerate(numbers):
    outputs['rows'][clip, :, lane : lane + 1] = number


PASSES = Passes(
  _attend,
  attend_backward,
  _marginal,
  marginal_backward,
  _redistribute,
  redistribute_backward,
)
