"""Parts of the TPU kernels: tiles of the attention map, keys by queries.

A tile has keys along sublanes and queries along lanes, S^T = k q^T. What
belongs to queries (the maximum and sum of a softmax, the log-sum-exp) is then a
row [1, queries], made by adding registers, and sums over keys come out as
[D, queries]: D of the MXU's rows, not of its 128 or 256 columns, so that narrow
heads waste half as much of it as with queries along sublanes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mira_jax.kernels.tpu import blocks as sizes
from mira_jax.kernels.tpu.blocks import LANES, LOG2_E, Blocks, column, up, widen

Array = jax.Array

OVER_LANES = (((1,), (1,)), ((), ()))  # x y^T
PLAIN = (((1,), (0,)), ((), ()))  # x y


def product(x: Array, y: Array, contract=PLAIN) -> Array:
  """A matrix product in float32 of operands in the narrower dtype."""
  dtype = min(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
  # One pass of the MXU takes 8 bits of mantissa: all that bfloat16 has.
  exact = lax.Precision.HIGHEST if dtype == jnp.float32 else None
  return lax.dot_general(
    x.astype(dtype),
    y.astype(dtype),
    contract,
    precision=exact,
    preferred_element_type=jnp.float32,
  )


# ----- queries ----------------------------------------------------------------


class Unit(NamedTuple):
  """Queries that are the columns of a product: of one head, or of all."""

  clip: int  # of the block, as all that follows
  heads: tuple[int, ...]
  queries: slice | pl.Slice
  count: int  # of queries of each head

  @property
  def columns(self) -> int:
    return len(self.heads) * self.count


def over_tiles(blocks: Blocks, run: Callable) -> None:
  """Calls `run(units)` for the queries of a block, two units or more at a time.

  The products of one then run beside the exponentials of another. All clips go
  together: with one at a time, the short ones wait for their own results.
  """
  width = blocks.tile * (1 if blocks.group > 1 else 2)
  whole, rest = divmod(blocks.rows, width)
  if rest and whole:
    # Few queries alone leave most of the units idle.
    whole, rest = whole - 1, rest + width
  over(whole, lambda i: run(_units(i * width, width, width, blocks)))
  if rest:
    run(_units(whole * width, rest, width, blocks))


def _units(start, count: int, width: int, blocks: Blocks) -> list[Unit]:
  if not isinstance(start, int):
    start = pl.multiple_of(start, width)
  clips, heads, units = range(blocks.clips), range(blocks.group), []
  for clip, (i, n) in itertools.product(clips, _cuts(count, blocks.tile)):
    whole, rest = n // LANES * LANES, n % LANES
    if whole and 2 * rest > LANES:
      whole, rest = n, 0
    if whole:
      units += [Unit(clip, (x,), pl.ds(start + i, whole), whole) for x in heads]
    if rest:
      # Columns come by 128: few queries of several heads share them.
      joined = [tuple(heads)]
      if blocks.group * rest > LANES:
        joined = [(head,) for head in heads]
      where = pl.ds(start + i + whole, rest)
      units += [Unit(clip, x, where, rest) for x in joined]
  return units


def _cuts(length: int, size: int) -> list[tuple[int, int]]:
  return [(i, min(size, length - i)) for i in range(0, length, size)]


def over(count: int, step: Callable) -> None:
  """Calls step(i) for i < count."""
  if count == 1:
    step(0)
  elif count:
    # Plain numbers would count in 64 bits under x64.
    bounds = jnp.int32(0), jnp.int32(count)
    lax.fori_loop(*bounds, lambda i, _: step(i), None)


def queries(ref, unit: Unit, blocks: Blocks) -> Array:
  """A unit's tokens [columns, lanes], 0 in the lanes of other heads.

  Products over lanes then ignore the other heads' part of keys.
  """
  x = ref[unit.clip, unit.queries, :]
  if blocks.group == 1:
    return x
  lane = lax.broadcasted_iota(jnp.int32, (1, blocks.lanes), 1)
  # Not `//`: its lowering asks which TPU is attached.
  head = lax.div(lane, jnp.int32(blocks.width))
  own = [jnp.where(head == i, x, jnp.zeros_like(x)) for i in unit.heads]
  return jnp.concatenate(own)


def write_tokens(
  ref, units: list[Unit], parts: list[Array], blocks: Blocks
) -> None:
  """Writes [D, columns] of each unit as tokens."""
  heads = []
  for unit, part in zip(units, parts, strict=True):
    heads += _by_head(part, unit)
    if len(heads) == blocks.group:
      tokens = jnp.concatenate(heads).T
      ref[unit.clip, unit.queries, :] = tokens.astype(ref.dtype)
      heads = []


def read_rows(ref, unit: Unit, blocks: Blocks) -> list[Array]:
  """All numbers of a unit's rows, each [1, columns]."""

  def read(number):
    rows = (number + head for head in unit.heads)
    parts = [ref[unit.clip, i : i + 1, unit.queries] for i in rows]
    return jnp.concatenate(parts, 1)

  return [read(i) for i in range(0, ref.shape[1], blocks.group)]


def write_rows(ref, unit: Unit, numbers: Sequence[Array]) -> None:
  """Writes numbers of a unit's rows; there may be no place for them."""
  if ref is None:
    return
  group = ref.shape[1] // len(numbers)
  for i, number in enumerate(numbers):
    for head, x in zip(unit.heads, _by_head(number, unit), strict=True):
      at = i * group + head
      ref[unit.clip, at : at + 1, unit.queries] = x


def _by_head(x: Array, unit: Unit) -> list[Array]:
  """[n, columns] -> [n, queries] of each head."""
  return [
    x[:, i * unit.count : (i + 1) * unit.count] for i in range(len(unit.heads))
  ]


def per_query(part: Callable, unit: Unit) -> Array:
  """part(head) [n, queries] of each head -> [n, columns]."""
  return jnp.concatenate([part(head) for head in unit.heads], 1)


# ----- keys -------------------------------------------------------------------


class Keys:
  """Keys of a clip that are one operand of a product."""

  def __init__(
    self, inputs, known, clip: int, where: slice | pl.Slice, blocks: Blocks
  ):
    self.inputs, self.known = inputs, known
    self.clip, self.where = clip, where
    self.blocks = blocks
    # Made once for all units.
    self.columns = functools.cache(self._columns)
    self.transposed = functools.cache(self._transposed)

  def tokens(self, name: str) -> Array:
    """[keys, lanes]."""
    return self.inputs[name][self.clip, self.where, :]

  def sums(self, tokens: list[Array], unit: Unit, e: Array) -> list[Array]:
    """Sums over keys of each [lanes, keys] times e [keys, columns].

    Returns:
      Of each, the unit's heads: [D, columns].
    """
    width = self.blocks.width
    if len(unit.heads) < self.blocks.group:
      (head,) = unit.heads
      tokens = [x[head * width : (head + 1) * width] for x in tokens]
    o = product(jnp.concatenate(tokens), e)

    def own(part):
      heads = enumerate(_by_head(part, unit))
      parts = [x[i * width : (i + 1) * width] for i, x in heads]
      return jnp.concatenate(parts, 1)

    return [own(x) for x in jnp.split(o, len(tokens))]

  def _transposed(self, name: str) -> Array:
    return self.tokens(name).T

  def row(self, name: str) -> Array:
    """Numbers of keys: [1, keys]."""
    return self.inputs[name][self.clip, :, self.where]

  def _columns(self, name: str, count: int) -> Array:
    """Numbers of keys, the same for all queries: [keys, queries]."""
    if name in self.known:
      return widen(self.known[name][self.clip, self.where, :], count)
    return column(self.row(name), count)

  def logits(self, q: Array) -> Array:
    """Of queries, in units of log2: [keys, queries]."""
    s = product(self.tokens('k'), q, OVER_LANES)
    # The hardware's exponential is 2^x.
    s = s * (LOG2_E * self.blocks.width**-0.5)
    if self.inputs['bias'] is None:
      return s
    return s + self.columns('bias', q.shape[0])


def chunk_keys(inputs, known, units: list[Unit], index, blocks: Blocks):
  """The keys of a chunk, by products: for each of the units' clips, a list."""
  count = pl.cdiv(blocks.chunk, sizes.PIECE)
  size = up(pl.cdiv(blocks.chunk, count), min(LANES, sizes.PIECE))
  start = index * blocks.chunk
  if not isinstance(start, int):
    start = pl.multiple_of(start, blocks.chunk)
  return {
    clip: [
      Keys(inputs, known, clip, pl.ds(start + i, n), blocks)
      for i, n in _cuts(blocks.chunk, size)
    ]
    for clip in sorted({unit.clip for unit in units})
  }


def over_queries(terms: list[Array]) -> Array:
  """Sums [keys, queries] each over all queries: [1, keys]."""
  parts: dict[int, Array] = {}  # by how many queries they have
  for x in terms:
    for i, n in _cuts(x.shape[1], LANES):
      part = x[:, i : i + n]
      parts[n] = parts[n] + part if n in parts else part
  sums = [x.T.sum(0, keepdims=True) for x in parts.values()]
  return functools.reduce(jnp.add, sums)


# ----- softmax ----------------------------------------------------------------


def exponentials(
  qs: list[Array], keys: list[list[Keys]], tops: list[Array] | None = None
) -> tuple[list[Array], list[list[Array]]]:
  """2^(S - top) of units and keys.

  Args:
    qs: tokens of each unit.
    keys: of each unit, those of a chunk.
    tops: of each unit, [1, columns]; else the maximum over the keys is taken.

  Returns:
    The tops, and for each unit [keys, columns] of each of its keys.
  """
  logits = [
    [part.logits(q) for part in parts]
    for q, parts in zip(qs, keys, strict=True)
  ]
  if tops is None:
    tops = [
      functools.reduce(jnp.maximum, (s.max(0, keepdims=True) for s in row))
      for row in logits
    ]
  pairs = zip(logits, tops, strict=True)
  return tops, [[jnp.exp2(s - top) for s in row] for row, top in pairs]


def sums_over_keys(
  inputs, known, units: list[Unit], blocks: Blocks, sums: Callable, tops
):
  """Sums over keys of e = 2^(S - top), for each unit.

  Args:
    inputs: references to q, k and bias.
    known: columns of numbers of keys, see `blocks.call`.
    units: queries.
    blocks: sizes.
    sums: (unit, e, keys) -> sums over some keys, each [..., columns].
    tops: see `exponentials`.

  Returns:
    The tops, the maxima over all keys if there were none, and the sums.
  """
  qs = [queries(inputs['q'], unit, blocks) for unit in units]

  def chunk(index):
    by_clip = chunk_keys(inputs, known, units, index, blocks)
    keys = [by_clip[unit.clip] for unit in units]
    found, e = exponentials(qs, keys, tops)
    totals = []
    for unit, row, parts in zip(units, e, keys, strict=True):
      pairs = zip(row, parts, strict=True)
      totals.append(_add(*(sums(unit, x, part) for x, part in pairs)))
    return found, totals

  def step(index, state):
    (old, old_sums), (new, new_sums) = state, chunk(index + 1)
    if tops is not None:
      return tops, list(map(_add, old_sums, new_sums))
    both = list(map(jnp.maximum, old, new))
    old_sums = map(_scale, old_sums, old, both)
    new_sums = map(_scale, new_sums, new, both)
    return both, list(map(_add, old_sums, new_sums))

  state = chunk(0)
  if blocks.chunks == 1:
    return state
  return lax.fori_loop(jnp.int32(0), jnp.int32(blocks.chunks - 1), step, state)


def _add(*sums):
  return jax.tree.map(lambda *x: functools.reduce(jnp.add, x), *sums)


def _scale(sums, top: Array, new_top: Array):
  scale = jnp.exp2(top - new_top)
  return jax.tree.map(lambda x: x * scale, sums)
