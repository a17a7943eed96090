"""What the sweeps of `pallas_gpu` have in common on a Hopper GPU.

A thread block owns a tile of rows (queries or keys) per consumer warpgroup.
One more warpgroup streams the other side by, through a ring in shared memory,
so that copies run behind the matrix products. A sweep is what a warpgroup does
with its own rows and each tile that passes by.

In global memory a matrix is [B, L, H, D], as projections write it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental import xla_metadata
from jax.experimental.pallas import mosaic_gpu as plgpu

from mira_jax.kernels.gpu import warpgroup as ops
from mira_jax.kernels.gpu.warpgroup import Ref
from mira_jax.kernels.operations import FLOPS

Array = jax.Array
Shaped = jax.ShapeDtypeStruct | Array

STEP = 8  # rows of the patches that a matrix in shared memory is made of


class Tiles(NamedTuple):
  """Sizes of a sweep."""

  rows: int  # that a warpgroup owns: a multiple of 64
  columns: int  # that pass by at a time: a multiple of 32
  warpgroups: int = 2  # consumers, 2 or 3
  stages: int = 2  # tiles in the ring


class Vector(NamedTuple):
  """Float32 [B, H, L] per row or [B, L] per key, and what follows the last."""

  values: Array
  fill: float = 0.0


class Group(NamedTuple):
  """Streamed arrays that arrive, and are released, together."""

  buffers: Sequence[Ref]  # [stages, columns(, D)] each
  full: Ref  # barriers, one per stage
  free: Ref
  stages: int
  fenced: bool  # whether ordinary loads read the buffers

  def slot(self, i: Array) -> Array:
    """Where tile i of the stream is in the ring."""
    return lax.rem(i, jnp.asarray(self.stages, i.dtype))

  def wait(self, i: Array) -> None:
    """Returns when tile i has arrived."""
    plgpu.barrier_wait(self.full.at[self.slot(i)])

  def tile(self, i: Array) -> list[Ref]:
    """Tile i of each array."""
    return [x.at[self.slot(i)] for x in self.buffers]

  def release(self, i: Array) -> None:
    """Lets the producer overwrite tile i."""
    # Copies into shared memory, unlike matrix products, are not ordered with
    # ordinary loads: without the fence one could overtake a load.
    if self.fenced:
      plgpu.commit_smem()
    plgpu.barrier_arrive(self.free.at[self.slot(i)])


class Context(NamedTuple):
  """What a consumer warpgroup sees."""

  own: list[Ref]  # its tiles, in shared memory
  per_head: list[Ref]  # [D], in global memory
  groups: list[Group]
  steps: int  # tiles that pass by
  warpgroup: Array
  turn: Ref  # a barrier at which all consumers meet


def sweep(
  consume: Callable[[Context], Sequence[Array]],
  own: Sequence[Any],
  stream: Sequence[Sequence[Any]],
  out: Sequence[Shaped],
  tiles: Tiles,
  *,
  products: int,
  per_head: Sequence[Array] = (),
) -> list[Array]:
  """Runs `consume` for every tile of rows of every head.

  Args:
    consume: computes a tile of each output; it must wait for and release every
      tile of every group once.
    own: what a warpgroup keeps a tile of: a matrix first, and vectors.
    stream: groups of what passes by, a matrix first. The rows of those in the
      last group are summed over by `accumulate`.
    out: shapes of the outputs, which have the rows of `own`.
    tiles: sizes.
    products: L x L x D products that `consume` takes, for counts of FLOPs.
    per_head: float32 [B, H, D].
  """
  batch, length, heads, width = own[0].shape
  flops = 2 * products * batch * heads * length**2 * width
  block = tiles.rows * tiles.warpgroups
  blocks = pl.cdiv(length, block)
  count = pl.cdiv(stream[0][0].shape[1], tiles.columns)
  stages = min(tiles.stages, count)
  own = [_whole(x, block) for x in own]
  stream = [[_whole(x, tiles.columns) for x in group] for group in stream]
  leaves, structure = jax.tree.flatten((own, list(per_head), stream))

  # One kernel: what follows is traced together, in this order.
  def kernel(*refs):
    inputs, targets = refs[: len(leaves)], refs[len(leaves) :][: len(out)]
    sources, vectors, streams = jax.tree.unflatten(structure, inputs)
    kept, rings, staged, loaded, full, free, turn = refs[-7:]
    clip, head = lax.axis_index('clip'), lax.axis_index('head')
    warpgroup = lax.axis_index('warpgroup')
    groups = [
      Group(ring, *pair, stages, ops.INTERPRETED or len(ring[-1].shape) == 2)
      for ring, pair in zip(rings, zip(full, free, strict=True), strict=True)
    ]

    def rows_of(ref, start, size):
      rows = pl.ds(start, size)
      index = {2: (clip, rows), 3: (clip, head, rows), 4: (clip, rows, head)}
      return ref.at[index[len(ref.shape)]]

    @pl.when(warpgroup < tiles.warpgroups)
    def _():
      ops.set_registers(tiles.warpgroups, 'increase')
      start = lax.axis_index('block') * block + warpgroup * tiles.rows
      mine = [x.at[warpgroup] for x in kept]
      for source, target in zip(sources, mine, strict=True):
        source = rows_of(source, start, tiles.rows)
        plgpu.copy_gmem_to_smem(source, target, loaded.at[warpgroup])
      plgpu.barrier_wait(loaded.at[warpgroup])
      of_head = [x.at[clip, head] for x in vectors]
      context = Context(mine, of_head, groups, count, warpgroup, turn)
      values = consume(context)
      for value, stage in zip(values, staged, strict=True):
        stage[warpgroup] = value.astype(stage.dtype)
      plgpu.commit_smem()
      for stage, target in zip(staged, targets, strict=True):
        target = rows_of(target, start, tiles.rows)
        plgpu.copy_smem_to_gmem(stage.at[warpgroup], target)
      plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == tiles.warpgroups)
    def _():
      ops.set_registers(tiles.warpgroups, 'decrease')

      def fetch(group, arrays, i):
        for array, target in zip(arrays, group.tile(i), strict=True):
          source = rows_of(array, i * tiles.columns, tiles.columns)
          plgpu.copy_gmem_to_smem(source, target, group.full.at[group.slot(i)])

      _produce(list(zip(groups, streams, strict=True)), fetch, count, stages)

  run = plgpu.kernel(
    kernel,
    out_type=[_whole_output(x, blocks * block) for x in out],
    grid=(blocks, heads, batch),
    grid_names=('block', 'head', 'clip'),
    num_threads=tiles.warpgroups + 1,
    thread_name='warpgroup',
    scratch_types=_scratch(own, stream, out, tiles, stages),
    compiler_params=plgpu.CompilerParams(
      approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
    ),
  )
  with xla_metadata.set_xla_metadata(**{FLOPS: str(flops)}):
    results = run(*leaves)
  return [x[:, :length] if x.ndim == 4 else x[..., :length] for x in results]


def _produce(pairs, fetch, count, stages):
  """Fetches every tile, each as soon as its place in the ring is free."""
  # A traced 0: constant slices must lie inside an array, while the copy engine
  # fills what lies outside with zeros.
  zero = lax.axis_index('warpgroup') * 0
  for i in range(stages):
    for group, arrays in pairs:
      fetch(group, arrays, zero + i)

  @pl.loop(stages, count)
  def _(i):
    for group, arrays in pairs:
      plgpu.barrier_wait(group.free.at[group.slot(i)])
      fetch(group, arrays, i)

  # The interpreter wants every phase of a barrier to be seen.
  for i in range(count - stages, count):
    for group, _ in pairs:
      plgpu.barrier_wait(group.free.at[i % stages])


# ----- memory -----------------------------------------------------------------


def _whole(x, rows):
  """Pads a vector to whole tiles, and a matrix to where it can be clipped.

  The copy engine clips matrices, but in steps of `STEP` rows.
  """
  vector = isinstance(x, Vector)
  values, axis, step = (x.values, -1, rows) if vector else (x, 1, STEP)
  missing = -values.shape[axis] % step
  if not missing:
    return values
  padding = [(0, 0)] * values.ndim
  padding[axis] = 0, missing
  fill = x.fill if vector else 0
  return jnp.pad(values, padding, constant_values=fill)


def _whole_output(x, rows):
  """The shape of an output, padded likewise. The interpreter clips nothing."""
  axis, step = (2, rows) if len(x.shape) == 3 else (1, STEP)
  shape = list(x.shape)
  shape[axis] = rows if ops.INTERPRETED else pl.cdiv(shape[axis], step) * step
  return jax.ShapeDtypeStruct(shape, x.dtype)


def _scratch(own, stream, out, tiles, stages):
  """Shared memory: own tiles, rings, staged outputs, and barriers."""
  consumers, columns = tiles.warpgroups, tiles.columns
  # Both sides of a product are swizzled alike, so that own matrices follow the
  # first group; where there is no other, its rows are summed over as well.
  first = columns if len(stream) == 1 else tiles.rows
  summed = [first] + [columns] * (len(stream) - 1)

  def barriers(arrivals):
    return plgpu.Barrier(num_arrivals=arrivals, num_barriers=stages)

  return (
    [_buffer(x, consumers, tiles.rows, first) for x in own],
    [
      [_buffer(x, stages, columns, rows) for x in group]
      for group, rows in zip(stream, summed, strict=True)
    ],
    [_buffer(x, consumers, tiles.rows, tiles.rows) for x in out],
    plgpu.Barrier(num_arrivals=len(own), num_barriers=consumers),
    [barriers(len(group)) for group in stream],
    [barriers(consumers) for _ in stream],
    plgpu.Barrier(num_arrivals=consumers),
  )


def _buffer(x, count, rows, summed):
  """Room for `count` tiles; products sum over the width, or `summed` rows."""
  if len(x.shape) != 4:
    return plgpu.SMEM((count, rows), x.dtype)
  item = x.dtype.itemsize
  swizzle = next(  # in bytes: the widest that divides what is summed over
    size
    for size in (128, 64, 32)
    if x.shape[-1] * item % size == 0 and summed * item % size == 0
  )
  tiling = plgpu.TilingTransform((STEP, swizzle // item))
  return plgpu.SMEM(
    (count, rows, x.shape[-1]),
    x.dtype,
    transforms=(tiling, plgpu.SwizzleTransform(swizzle)),
  )
