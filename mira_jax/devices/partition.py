"""How the devices of a mesh share clips and heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

Array = jax.Array

# Axes of a mesh that split clips, and the one that splits heads.
CLIP_AXES = ('data', 'fsdp')
HEAD_AXIS = 'model'


def over_clips(operation: Callable, *arrays: Array) -> Array:
  """`operation(*arrays)`, each device of a mesh on its own clips.

  A compiler that splits programs over devices cannot look into a kernel, nor
  split a loop over clips. Arguments and results have clips first, [B, ...].
  They are split over CLIP_AXES of the ambient mesh; where it has none, or B
  does not divide by them, every device computes all clips.
  """
  if not _splits():
    return operation(*arrays)
  clips = PartitionSpec(clip_axes(arrays[0].shape[0]))
  return jax.shard_map(
    operation, in_specs=clips, out_specs=clips, check_vma=False
  )(*arrays)


def over_heads(
  operation: Callable, *arrays: Any, out: int | tuple[int, ...] = 4
) -> Any:
  """`operation(*arrays)`, each device on its own clips and heads.

  Args:
    operation: of arrays [B, L, H, D] first, which HEAD_AXIS splits as
      CLIP_AXES do in `over_clips`, and of arrays [B, L], which belong to keys,
      and [B, H, L], which belong to rows; or of None.
    *arrays: its arguments.
    out: how many axes each of its results has. Those of two, [B, L], are means
      over heads; any may be None instead.
  """
  if not _splits():
    return operation(*arrays)
  clips = clip_axes(arrays[0].shape[0])
  heads = head_axes(arrays[0].shape[2])
  tokens, rows = PartitionSpec(clips, None, heads), PartitionSpec(clips, heads)
  keys = PartitionSpec(clips)
  specs = {4: tokens, 3: rows, 2: keys}

  def mean(x: Array) -> Array:
    return jax.lax.pmean(x, heads) if heads and x.ndim == 2 else x

  return jax.shard_map(
    lambda *arrays: jax.tree.map(mean, operation(*arrays)),
    in_specs=tuple(keys if x is None else specs[x.ndim] for x in arrays),
    out_specs=jax.tree.map(specs.get, out),
    check_vma=False,
  )(*arrays)


def split_clips(x: Array) -> Array:
  """`x` [B, ...], and a promise that clips are all that devices share of it.

  Left to itself, a compiler that splits parameters over 'fsdp' at times moves
  the tokens of all clips instead of the few weights.
  """
  clips = clip_axes(x.shape[0])
  if not clips or not _splits():
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(clips))


def _splits() -> bool:
  """Whether there are devices to share work that no `shard_map` shared yet."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.size > 1 and not mesh.manual_axes


def clip_axes(batch: int) -> tuple[str, ...]:
  return _dividing(CLIP_AXES, batch)


def head_axes(heads: int) -> tuple[str, ...]:
  return _dividing((HEAD_AXIS,), heads)


def _dividing(axes: tuple[str, ...], size: int) -> tuple[str, ...]:
  """Those of the axes that the ambient mesh has, if they divide a size."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(x for x in axes if x in mesh.shape and not mesh.manual_axes)
  return () if size % count(axes) else axes


def count(axes: tuple[str, ...]) -> int:
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[axis] for axis in axes)
