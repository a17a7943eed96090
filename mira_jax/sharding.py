"""Where arrays live: one mesh, one table of rules.

Data-parallel training is `jax.jit` over sharded arrays: the batch is split over
the mesh axis `data`, parameters are copied to every device, and the compiler
adds the sums over devices. To split parameters, change the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

# First match wins. Left: where in the train state or the variables, such as
# 'params/encoder/block_0/attn/qkv/kernel'. Right: mesh axis of each array axis.
RULES = (
  (r'.*', PartitionSpec()),  # everything is copied to every device
)
BATCH = PartitionSpec('data')  # clips are split over devices


def make_mesh() -> Mesh:
  """All devices of all hosts in one row; use it in `jax.set_mesh`."""
  # Auto lets the compiler place what lies between; the default of
  # jax.make_mesh is Explicit, under which flax's Dropout fails.
  return jax.make_mesh(
    (jax.device_count(),), ('data',), axis_types=(AxisType.Auto,)
  )


def ambient(mesh: Mesh):
  """Context in which traced code knows the mesh: attention's kernels need it.

  Like `jax.set_mesh`, but also inside a function that is being traced.
  """
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
  """Sharding of every leaf of `tree` (arrays or shapes), by RULES."""

  def one(path: tuple[Any, ...], _: Any) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    spec = next(spec for rule, spec in RULES if re.search(rule, name))
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(one, tree)


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict:
  """Rows of a batch on this host -> the global batch, split over `data`.

  Args:
    batch: arrays [B_local, ...]; B_local divides by this host's devices.
    mesh: from `make_mesh`.

  Returns:
    The same keys, arrays [B_local * hosts, ...].
  """
  split = NamedSharding(mesh, BATCH)
  return {
    name: jax.make_array_from_process_local_data(split, np.asarray(rows))
    for name, rows in batch.items()
  }
