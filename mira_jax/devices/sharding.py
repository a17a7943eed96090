"""Where arrays live: one mesh, and the axes that `param_names.ROLES` splits.

A mesh has three axes. Clips are split over 'data' and 'fsdp'; 'fsdp' splits
parameters, too (fully sharded data parallelism; Rajbhandari et al., ZeRO, SC
2020), and 'model' the heads of attention and the hidden width of MLPs (tensor
parallelism; Shoeybi et al., Megatron-LM, arXiv 1909.08053). Training is
`jax.jit` over arrays that lie so, and the compiler adds the communication.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mira_jax import param_names
from mira_jax.devices.partition import CLIP_AXES, HEAD_AXIS

PyTree = Any

# Arrays of fewer numbers are not split over 'fsdp': fetching them costs more
# time than they cost memory.
FSDP_LEAST = 2**14
BATCH = PartitionSpec(CLIP_AXES)


def make_mesh(
  *,
  data: int = 0,
  fsdp: int = 1,
  model: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """A mesh of devices, all of all hosts by default; use it in `jax.set_mesh`.

  `data` 0 takes the devices that `fsdp` and `model` leave.

  Raises:
    ValueError: the three do not multiply to the number of devices, or data does
      not divide by the slices of TPUs that they are of.
  """
  devices = jax.devices() if devices is None else devices
  data = data or max(1, len(devices) // (fsdp * model))
  if data * fsdp * model != len(devices):
    raise ValueError(
      f'data {data} x fsdp {fsdp} x model {model} are not {len(devices)} '
      'devices; 0 for data takes those that are left'
    )
  # The default of jax.make_mesh, Explicit, fails in flax's Dropout.
  axes = (*CLIP_AXES, HEAD_AXIS)
  kinds = (AxisType.Auto,) * len(axes)
  slices = _slices(devices)
  if slices == 1:
    return jax.make_mesh((data, fsdp, model), axes, kinds, devices=devices)
  if data % slices:
    raise ValueError(
      f'data {data} does not divide by {slices} slices of TPUs; fsdp and model '
      'stay within one'
    )
  # Between slices is a slower network: only gradients cross it.
  grid = mesh_utils.create_hybrid_device_mesh(
    (data // slices, fsdp, model),
    (slices, 1, 1),
    devices,
    # 8 of the 16 chips of a side, as jax.make_mesh does.
    allow_split_physical_axes=True,
  )
  return Mesh(grid, axes, axis_types=kinds)


def _slices(devices: Sequence[Any]) -> int:
  """Number of TPU slices that the devices belong to."""
  tpus = [device for device in devices if device.platform == 'tpu']
  return len({getattr(device, 'slice_index', 0) for device in tpus}) or 1


def describe(mesh: Mesh) -> str:
  """One line: which devices, and how they share the work."""
  kind = mesh.devices.flat[0].device_kind
  axes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
  hosts = len({device.process_index for device in mesh.devices.flat})
  of_hosts = f' of {hosts} hosts' if hosts > 1 else ''
  return f'devices: {mesh.size} {kind}{of_hosts}, {axes}'


def ambient(mesh: Mesh):
  """Context that sets the mesh for attention's kernels, also while tracing."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


# ----- parameters -------------------------------------------------------------


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
  """Sharding of every leaf of `tree` (arrays or shapes), by role and size."""

  def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    name = param_names.path_name(path)
    return NamedSharding(mesh, partition(name, leaf.shape, mesh.shape))

  return jax.tree_util.tree_map_with_path(one, tree)


def abstract(tree: PyTree, mesh: Mesh) -> PyTree:
  """`tree` (arrays or shapes) as shapes with shardings."""
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    tree,
    shardings(tree, mesh),
  )


def partition(
  name: str, shape: tuple[int, ...], axes: Mapping[str, int]
) -> PartitionSpec:
  """The mesh axis of every axis of an array.

  'model' splits the axis of heads or of the hidden width, see `param_names`;
  'fsdp' the longest other axis, but not that of stacked blocks. An axis that
  does not divide stays whole. `name` is the '/'-joined path in a train state
  or in variables, `axes` has the size of each mesh axis.
  """
  role = param_names.find_role(name)
  spec: list[str | None] = [None] * len(shape)
  parts = axes[HEAD_AXIS]
  if role and role.split and parts > 1 and shape[-role.split] % parts == 0:
    spec[-role.split] = HEAD_AXIS
  first = int(param_names.is_stacked(name))
  free = [
    i
    for i in range(first, len(shape))
    if spec[i] is None and shape[i] % axes['fsdp'] == 0
  ]
  if free and axes['fsdp'] > 1 and math.prod(shape) >= FSDP_LEAST:
    spec[max(free, key=lambda i: shape[i])] = 'fsdp'
  while spec and spec[-1] is None:  # as the compiler writes it: a step's state
    spec.pop()  # must not look different from the one it came from
  return PartitionSpec(*spec)


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def meet(name: str) -> None:
  """Waits for all hosts; `name` identifies the barrier."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def gather(tree: PyTree, mesh: Mesh) -> PyTree:
  """Whole arrays on every host, as NumPy; a collective call."""
  whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
  return jax.device_get(whole)


# ----- batches ----------------------------------------------------------------


def clip_parts(mesh: Mesh) -> int:
  """Number of parts of a batch, which must divide its size."""
  return math.prod(mesh.shape[axis] for axis in CLIP_AXES)


def own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The rows of a global batch that this host's devices hold, in order.

  Hosts between which 'model' is split hold the same rows.
  """
  split = NamedSharding(mesh, BATCH)
  places = split.addressable_devices_indices_map((batch_size,))
  held = [np.arange(batch_size)[part] for part in places.values()]
  return np.unique(held)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict:
  """The `own_rows` of a batch -> the global batch, split over devices."""
  split = NamedSharding(mesh, BATCH)
  return {
    name: jax.make_array_from_process_local_data(split, np.asarray(rows))
    for name, rows in batch.items()
  }
