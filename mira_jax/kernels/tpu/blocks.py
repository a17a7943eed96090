"""How the arrays of attention are cut into blocks of a TPU's VMEM.

A TPU works on tiles of 8 x 128 numbers, so an array whose last dimension is 64
wastes half of its memory. Heads therefore stay side by side as the projection
made them, [B, L, H * D]: with D = 64 two of them, a group, fill the 128 lanes
of a block. Other heads (D = 80, or an odd number) get an axis, [B, H, L, D].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mira_jax.kernels.operations import Kernel, mark

Array = jax.Array
Block = tuple[jax.ShapeDtypeStruct, pl.BlockSpec]

LANES = 128
LOG2_E = math.log2(math.e)
# Keys of which a query's logits are held at once, without an online softmax.
ONE_CHUNK = 2048
# Keys of a chunk of longer sequences, and queries of a block.
CHUNK = 2048
# Queries of a tile: the columns of the MXU of a v6e, twice those of a v5e.
TILE = 256
# Keys of a product, most. The compiler gives each product to one of the MXUs.
PIECE = 1024
# Queries of all the clips of a step: 8 clips of 160 keep all units busy.
STEP_ROWS = 1280
# Of `pl.pallas_call`; tests set it.
INTERPRET: Any = False
# The least VMEM of the chips (v5p has 64 MiB, v5e and v6e 128), less what the
# compiler takes for itself.
VMEM = 63 * 2**20
# Of it, for the tiles of a row block, by size of a number.
WORKSPACE = {2: 13 * 2**20, 4: 24 * 2**20}
# A key that only fills up the last chunk has this bias: its weight is 0.
NO_KEY = -1e30


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Sizes of blocks, and the arrays of a kernel laid out in them.

  The grid is (clips, groups, row blocks). A block holds `rows` queries of each
  of `clips` clips, or all of their keys; a kernel goes through the queries
  `tile` at a time, and through the keys `chunk` at a time.
  """

  batch: int
  length: int
  heads: int
  width: int  # D
  dtype: jnp.dtype
  packed: bool  # [B, L, H * D] rather than [B, H, L, D]
  group: int  # heads of a block
  clips: int  # of a step
  rows: int
  tile: int
  chunk: int
  padded: int  # length of a multiple of rows and of chunk

  @property
  def chunks(self) -> int:
    return self.padded // self.chunk

  @property
  def lanes(self) -> int:
    return self.group * self.width

  @property
  def groups(self) -> int:
    return self.heads // self.group

  @property
  def grid(self) -> tuple[int, int, int]:
    return (
      pl.cdiv(self.batch, self.clips),
      self.groups,
      self.padded // self.rows,
    )

  # ----- blocks: the whole array, and the part that a step sees ---------------

  def row_tokens(self) -> Block:
    """Blocks [clips, rows, lanes] of q, y, g or dq."""
    return self._tokens(self.rows, self.dtype)

  def key_tokens(self, dtype=None) -> Block:
    """Blocks [clips, padded, lanes] of k, v, dk or dv."""
    return self._tokens(self.padded, dtype or self.dtype)

  def _tokens(self, rows: int, dtype) -> Block:
    whole = rows == self.padded
    row = (lambda i: 0) if whole else (lambda i: i)
    if self.packed:
      shape = (self.batch, self.padded, self.heads * self.width)
      block = (self.clips, rows, self.lanes)
      index = lambda b, h, i: (b, row(i), h)  # noqa: E731
    else:
      shape = (self.batch, self.heads, self.padded, self.width)
      block = (self.clips, None, rows, self.width)
      index = lambda b, h, i: (b, h, row(i), 0)  # noqa: E731
    return jax.ShapeDtypeStruct(shape, dtype), self._spec(block, index, whole)

  def row_numbers(self, count: int) -> Block:
    """Blocks [clips, count * group, rows]: numbers of each row, by heads."""
    shape = (self.batch, self.groups, count * self.group, self.padded)
    block = (self.clips, None, count * self.group, self.rows)
    return self._numbers(shape, block, lambda b, h, i: (b, h, 0, i))

  def key_numbers(self) -> Block:
    """Blocks [clips, 1, padded]: a number of each key, for all heads."""
    shape = (self.batch, 1, self.padded)
    block = (self.clips, 1, self.padded)
    return self._numbers(shape, block, lambda b, h, i: (b, 0, 0), True)

  def key_sums(self) -> Block:
    """Blocks [clips, 1, padded]: a number of each key, by group of heads."""
    shape = (self.batch, self.groups, 1, self.padded)
    block = (self.clips, None, 1, self.padded)
    return self._numbers(shape, block, lambda b, h, i: (b, h, 0, 0))

  def head_vectors(self) -> Block:
    """Blocks [clips, 1, lanes]: a vector of each head."""
    shape = (self.batch, self.groups, 1, self.lanes)
    block = (self.clips, None, 1, self.lanes)
    return self._numbers(shape, block, lambda b, h, i: (b, h, 0, 0))

  def _numbers(self, shape, block, index, whole: bool = False) -> Block:
    array = jax.ShapeDtypeStruct(shape, jnp.float32)
    return array, self._spec(block, index, whole)

  def _spec(self, block, index, whole: bool = False) -> pl.BlockSpec:
    # A long sequence leaves no room for the next one's keys.
    once = pl.Buffered(1) if whole and self.chunks > 1 else None
    return pl.BlockSpec(block, index, pipeline_mode=once)

  # ----- arrays into blocks and back ------------------------------------------

  def inputs(self, bias: Array | None = None, **tokens: Array) -> dict:
    """Inputs of kernels: q and g by rows, k and v whole, and a bias [B, L]."""
    named: dict[str, Any] = {}
    for name, x in tokens.items():
      block = self.row_tokens() if name in 'qg' else self.key_tokens()
      named[name] = self.pack(x), block
    return named | {'bias': self.bias(bias)}

  def of_keys(self, x: Array) -> tuple[Array, Block]:
    """An input [B, L], a number of each key."""
    return self.pack_keys(x), self.key_numbers()

  def pack(self, x: Array) -> Array:
    """[B, L, H, D] -> as `row_tokens` and `key_tokens` say."""
    if not self.packed:
      return self._fill(jnp.moveaxis(x, 2, 1), 2)
    return self._fill(x.reshape(*x.shape[:2], -1), 1)

  def unpack(self, x: Array) -> Array:
    """The inverse of `pack`, in the dtype of q."""
    x = x.astype(self.dtype)
    if not self.packed:
      return jnp.moveaxis(x[:, :, : self.length], 1, 2)
    shape = (self.batch, self.length, self.heads, self.width)
    return x[:, : self.length].reshape(shape)

  def pack_rows(self, *numbers: Array, fill: Sequence[float]) -> Array:
    """[B, H, L] each -> as `row_numbers` says; `fill` is for rows beyond L."""
    pairs = zip(numbers, fill, strict=True)
    x = jnp.stack([self._fill(x, 2, value) for x, value in pairs], 1)
    x = x.reshape(self.batch, -1, self.groups, self.group, self.padded)
    shape, _ = self.row_numbers(len(numbers))
    return jnp.moveaxis(x, 1, 2).reshape(shape.shape)

  def unpack_rows(self, x: Array) -> list[Array]:
    """The inverse of `pack_rows`."""
    x = x.reshape(self.batch, self.groups, -1, self.group, self.padded)
    x = jnp.moveaxis(x, 2, 0)[..., : self.length]
    return list(x.reshape(len(x), self.batch, self.heads, self.length))

  def pack_keys(self, x: Array, fill: float = 0.0) -> Array:
    """[B, L] -> as `key_numbers` says; `fill` is for keys beyond L."""
    return self._fill(x, 1, fill)[:, None]

  def bias(self, bias: Array | None) -> tuple[Array, Block] | None:
    """An input for `scores`: a bias [B, L], and no weight for keys beyond L."""
    if bias is None:
      if self.padded == self.length:
        return None
      bias = jnp.zeros((self.batch, self.length), jnp.float32)
    return self.pack_keys(bias * LOG2_E, NO_KEY), self.key_numbers()

  def pack_heads(self, x: Array) -> Array:
    """[B, H, D] -> as `head_vectors` says."""
    return x.reshape(self.batch, self.groups, 1, self.lanes)

  def unpack_sums(self, x: Array) -> Array:
    """As `key_sums` says -> [B, L], summed over heads."""
    return x.sum((1, 2))[:, : self.length]

  def _fill(self, x: Array, axis: int, value: float = 0.0) -> Array:
    if self.padded == self.length:
      return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, self.padded - self.length)
    return jnp.pad(x, widths, constant_values=value)


def cut(shape: tuple[int, ...], dtype) -> Blocks:
  """Blocks for q [B, L, H, D]."""
  batch, length, heads, width = shape
  group = 2 if width == 64 else 1
  packed = width * group % LANES == 0 and heads % group == 0
  group = group if packed else 1
  clips = 1
  if length <= ONE_CHUNK:
    # bfloat16 comes in tiles of 16 rows.
    padded = rows = chunk = up(length, 16)
    steps = pl.cdiv(batch, max(1, STEP_ROWS // rows))
    clips = pl.cdiv(batch, steps)
  else:
    chunk = pl.cdiv(length, pl.cdiv(length, CHUNK))
    rows = chunk = up(chunk, min(LANES, CHUNK))
    padded = up(length, chunk)
  return Blocks(
    batch=batch,
    length=length,
    heads=heads,
    width=width,
    dtype=jnp.dtype(dtype),
    packed=packed,
    group=group,
    clips=clips,
    rows=rows,
    tile=TILE,
    chunk=chunk,
    padded=padded,
  )


def up(x: int, unit: int) -> int:
  return -(-x // unit) * unit


def refusal(shape: tuple[int, ...], dtype) -> str | None:
  """Why these kernels cannot serve q, k, v [B, L, H, D]; None if they can."""
  dtype = jnp.dtype(dtype)
  if dtype not in (jnp.bfloat16, jnp.float32):
    return f'TPU kernels take bfloat16 and float32, not {dtype}'
  if shape[-1] % 8 or shape[-1] > 256:
    return f'heads of {shape[-1]}; TPU kernels take multiples of 8 up to 256'
  # k, v and, in float32, dk and dv: what the backward pass holds.
  per_key = up(cut(shape, dtype).lanes, LANES) * (2 * dtype.itemsize + 8)
  most = (VMEM - WORKSPACE[dtype.itemsize]) // per_key // CHUNK * CHUNK
  if shape[1] > most:
    return (
      f'{shape[1]} keys do not fit in VMEM; at most {most} do with heads of '
      f'{shape[-1]} in {dtype}'
    )
  return None


# ----- calls of kernels -------------------------------------------------------


def call(
  name: str,
  kernel: Callable,
  blocks: Blocks,
  inputs: dict[str, tuple[Array, Block] | None],
  outputs: dict[str, Block | None],
  *,
  products: int,
  scratch: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Runs `kernel(inputs, outputs, scratch, columns, blocks=)` over the grid.

  Args:
    name: of the kernel in profiles.
    kernel: takes references to blocks, by name; `columns` are numbers of keys,
      [clips, padded, LANES], the same in every lane, where they fit.
    blocks: sizes.
    inputs: arrays and their blocks; None for one that is not there.
    outputs: their blocks; the arrays, by name, are returned.
    products: L x L x D products that the kernel takes, for XLA's estimates.
    scratch: of `pl.pallas_call`.
  """
  shapes, out_specs = _halves(outputs)
  arrays, blocks_in = _halves(inputs)
  _, in_specs = _halves(blocks_in)
  shape = blocks.batch, blocks.length, blocks.heads, blocks.width
  own = Kernel(name, *shape, products)
  moved = jax.tree.leaves((arrays, shapes))
  cost = pl.CostEstimate(
    flops=own.flops,
    transcendentals=blocks.batch * blocks.heads * blocks.length**2,
    bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
  )
  columns = {
    x: pltpu.VMEM((blocks.clips, blocks.padded, LANES), jnp.float32)
    for x in ('bias', 'gain', 'gamma')
    if inputs.get(x) and blocks.chunks == 1
  }

  def with_columns(inputs, outputs, scratch, columns):
    for name, ref in columns.items():
      for clip in range(blocks.clips):
        ref[clip] = column(inputs[name][clip], LANES)
    kernel(inputs, outputs, scratch, columns, blocks=blocks)

  run = pl.pallas_call(
    with_columns,
    shapes,
    grid=blocks.grid,
    in_specs=[in_specs],
    out_specs=out_specs,
    scratch_shapes=[scratch or {}, columns],
    compiler_params=pltpu.CompilerParams(
      # Sums over queries stay in place from one row block to the next.
      dimension_semantics=('parallel', 'parallel', 'arbitrary'),
      vmem_limit_bytes=VMEM,
    ),
    cost_estimate=cost,
    interpret=INTERPRET,
    name=name,
  )
  with mark(own):
    return run(arrays)


def column(row: Array, count: int) -> Array:
  """[1, n] -> [n, count], the same in every column."""
  lanes = min(count, LANES)
  x = jnp.broadcast_to(row, (lanes, row.shape[1])).T
  return widen(x, count)


def widen(x: Array, count: int) -> Array:
  """Columns, all the same, to as many as needed."""
  return jnp.concatenate([x] * pl.cdiv(count, x.shape[1]), 1)[:, :count]


def _halves(pairs: dict[str, tuple | None]) -> tuple[dict, dict]:
  """{name: (x, y)} -> {name: x}, {name: y}."""
  first, second = (
    {name: pair and pair[i] for name, pair in pairs.items()} for i in (0, 1)
  )
  return first, second
