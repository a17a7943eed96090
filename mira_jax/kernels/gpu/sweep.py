"""What the sweeps of `pallas_gpu` have in common on a Hopper GPU.

A thread block owns a tile of rows (queries or keys) per consumer warpgroup.
One more warpgroup streams the other side by, through a ring in shared memory,
so that copies run behind the matrix products. A sweep is what a warpgroup does
with its own rows and each tile that passes by.

In global memory a matrix is [B, L, H, D], as projections write it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mira_jax.kernels.gpu import warpgroup as ops
from mira_jax.kernels.gpu.warpgroup import Ref
from mira_jax.kernels.operations import Kernel, mark

Array = jax.Array
Shaped = jax.ShapeDtypeStruct | Array

MULTIPROCESSORS = 132  # of H100 (SXM) and H200
STEP = 8  # rows of the patches that a matrix in shared memory is made of


@dataclasses.dataclass(frozen=True)
class Tuning:
  """The sizes and the schedule of a sweep.

  Attributes:
    rows: that a warpgroup owns: a multiple of 64.
    columns: that pass by at a time: a multiple of 32.
    warpgroups: consumers, 2 or 3.
    stages: tiles in the ring.
    persistent: whether as many thread blocks as a GPU has multiprocessors take
      one tile after the other: the next one's copies run while this one ends.
    held: whether warpgroups keep their own matrices in registers, which halves
      what products read from shared memory.
    turns: of two consumers, one multiplies while the other computes
      exponentials; they meet once per tile.
  """

  rows: int
  columns: int
  warpgroups: int = 2
  stages: int = 2
  persistent: bool = True
  held: bool = False
  turns: bool = False

  def own(self, matrix: Ref) -> Ref | Array:
    """A matrix of a warpgroup, as the left side of products."""
    return ops.operand(matrix) if self.held else matrix


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
  passed: Array | int = 0  # tiles before this stream, through the same ring

  def slot(self, i: Array) -> Array:
    """Where tile i of the stream is in the ring."""
    return lax.rem(self.passed + i, jnp.asarray(self.stages, i.dtype))

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
  turns: Ref | None  # a barrier per consumer, if they take turns


def sweep(
  consume: Callable[[Context], Sequence[Array]],
  own: Sequence[Any],
  stream: Sequence[Sequence[Any]],
  out: Sequence[Shaped],
  tuning: Tuning,
  *,
  name: str,
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
    tuning: sizes and schedule.
    name: of the kernel, in profiles.
    products: L x L x D products that `consume` takes, for counts of FLOPs.
    per_head: float32 [B, H, D].
  """
  batch, length, heads, width = own[0].shape
  block = tuning.rows * tuning.warpgroups
  blocks = pl.cdiv(length, block)
  count = pl.cdiv(stream[0][0].shape[1], tuning.columns)
  stages = min(tuning.stages, count)
  own = [_whole(x, block) for x in own]
  stream = [[_whole(x, tuning.columns) for x in group] for group in stream]
  leaves, structure = jax.tree.flatten((own, list(per_head), stream))
  jobs = batch * heads * blocks
  workers = min(jobs, MULTIPROCESSORS) if tuning.persistent else jobs

  # One kernel: what follows is traced together, in this order.
  def kernel(*refs):
    inputs, targets = refs[: len(leaves)], refs[len(leaves) :][: len(out)]
    sources, vectors, streams = jax.tree.unflatten(structure, inputs)
    scratch = refs[len(leaves) + len(out) :]
    kept, rings, staged, loaded, full, free, *turns = scratch
    worker, warpgroup = lax.axis_index('worker'), lax.axis_index('warpgroup')
    turn = turns[0] if turns else None
    groups = [
      Group(ring, *pair, stages, ops.INTERPRETED or len(ring[-1].shape) == 2)
      for ring, pair in zip(rings, zip(full, free, strict=True), strict=True)
    ]

    # Jobs side by side are blocks of one head, which read its keys and values
    # from the cache.
    def place_of(job):
      head_of_clip = job // blocks
      return head_of_clip // heads, head_of_clip % heads, job % blocks

    def rows_of(ref, clip, head, start, size):
      rows = pl.ds(start, size)
      index = {2: (clip, rows), 3: (clip, head, rows), 4: (clip, rows, head)}
      return ref.at[index[len(ref.shape)]]

    def do(done, groups):
      clip, head, index = place_of(worker + done * workers)
      start = index * block + warpgroup * tuning.rows
      mine = [x.at[warpgroup] for x in kept]
      for source, target in zip(sources, mine, strict=True):
        source = rows_of(source, clip, head, start, tuning.rows)
        plgpu.copy_gmem_to_smem(source, target, loaded.at[warpgroup])
      plgpu.barrier_wait(loaded.at[warpgroup])
      of_head = [x.at[clip, head] for x in vectors]
      context = Context(mine, of_head, groups, count, warpgroup, turn)
      values = consume(context)
      for value, stage in zip(values, staged, strict=True):
        stage[warpgroup] = value.astype(stage.dtype)
      plgpu.commit_smem()
      for stage, target in zip(staged, targets, strict=True):
        target = rows_of(target, clip, head, start, tuning.rows)
        plgpu.copy_smem_to_gmem(stage.at[warpgroup], target)
      plgpu.wait_smem_to_gmem(0)

    total = (jobs - worker + workers - 1) // workers  # jobs of this worker

    @pl.when(warpgroup < tuning.warpgroups)
    def _():
      ops.set_registers(tuning.warpgroups, 'increase')

      @pl.loop(0, total)
      def _(done):
        do(done, [x._replace(passed=done * count) for x in groups])

    @pl.when(warpgroup == tuning.warpgroups)
    def _():
      ops.set_registers(tuning.warpgroups, 'decrease')

      def fetch(group, arrays, i):
        clip, head, _ = place_of(worker + i // count * workers)
        start = i % count * tuning.columns
        for array, target in zip(arrays, group.tile(i), strict=True):
          source = rows_of(array, clip, head, start, tuning.columns)
          plgpu.copy_gmem_to_smem(source, target, group.full.at[group.slot(i)])

      pairs = list(zip(groups, streams, strict=True))
      _produce(pairs, fetch, total * count, stages)

  run = plgpu.kernel(
    kernel,
    out_type=[_whole_output(x, blocks * block) for x in out],
    grid=(workers,),
    grid_names=('worker',),
    num_threads=tuning.warpgroups + 1,
    thread_name='warpgroup',
    scratch_types=_scratch(own, stream, out, tuning, stages),
    kernel_name=f'mira_{name}',
    compiler_params=plgpu.CompilerParams(
      approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
    ),
  )
  with mark(Kernel(name, batch, length, heads, width, products)):
    results = run(*leaves)
  return [x[:, :length] if x.ndim == 4 else x[..., :length] for x in results]


def _produce(pairs, fetch, count, stages):
  """Fetches every tile, each as soon as its place in the ring is free."""

  @pl.loop(0, stages)
  def _(i):
    for group, arrays in pairs:
      fetch(group, arrays, i)

  @pl.loop(stages, count)
  def _(i):
    for group, arrays in pairs:
      plgpu.barrier_wait(group.free.at[group.slot(i)])
      fetch(group, arrays, i)

  # The interpreter wants every phase of a barrier to be seen.
  @pl.loop(count - stages, count)
  def _(i):
    for group, _ in pairs:
      plgpu.barrier_wait(group.free.at[group.slot(i)])


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


def _scratch(own, stream, out, tuning, stages):
  """Shared memory: own tiles, rings, staged outputs, and barriers."""
  consumers, columns = tuning.warpgroups, tuning.columns
  # Both sides of a product are swizzled alike, so that own matrices follow the
  # first group; where there is no other, its rows are summed over as well.
  first = columns if len(stream) == 1 else tuning.rows
  summed = [first] + [columns] * (len(stream) - 1)

  def barriers(arrivals):
    return plgpu.Barrier(num_arrivals=arrivals, num_barriers=stages)

  turns = [plgpu.Barrier(num_arrivals=2, num_barriers=consumers)]
  return (
    [_buffer(x, consumers, tuning.rows, first) for x in own],
    [
      [_buffer(x, stages, columns, rows) for x in group]
      for group, rows in zip(stream, summed, strict=True)
    ],
    [_buffer(x, consumers, tuning.rows, tuning.rows) for x in out],
    plgpu.Barrier(num_arrivals=len(own), num_barriers=consumers),
    [barriers(len(group)) for group in stream],
    [barriers(consumers) for _ in stream],
    *(turns if tuning.turns else []),
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
