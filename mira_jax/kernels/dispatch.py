"""Which implementation of attention runs, and why.

An implementation is three operations; `choose` picks one for what is asked and
the device it will run on, and `refusal` says why one cannot serve. Kernels are
imported when they are first needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mira_jax.kernels import cudnn, flash, meaning, streaming
from mira_jax.kernels.operations import Operations

Array = jax.Array
Mode = Literal['plain', 'flashlite', 'exact']

# Axes of a mesh that split clips, and the one that splits heads.
CLIP_AXES = ('data', 'fsdp')
HEAD_AXIS = 'model'

# Names of devices, such as 'NVIDIA H200' and 'TPU v5 lite'.
HOPPER = re.compile(r'NVIDIA G?H\d{2,3}\b')
TPU = re.compile(r'TPU v[56]')
BEFORE_AMPERE = re.compile(r'[KPV]100|P4|T4|GTX|RTX 20[678]0|TITAN|Quadro')

# Above this a fallback gives up its speed for memory: training keeps several
# maps per block.
LARGEST_MAP = 2**30  # bytes


class RefusalError(ValueError):
  """A named implementation cannot serve."""


class Target(NamedTuple):
  """The device that the traced program will run on."""

  platform: str  # 'cpu', 'gpu' or 'tpu'
  kind: str  # such as 'NVIDIA H200' or 'TPU v5 lite'


class Request(NamedTuple):
  """What attention is asked to do on each device."""

  shape: tuple[int, ...]  # [B, L, H, D] of q, k and v
  dtype: Any
  mode: Mode
  target: Target


class Implementation(NamedTuple):
  """One way to compute attention."""

  operations: Callable[[], Operations]
  refusal: Callable[[Request], str | None]  # why not, or None


def target() -> Target:
  """The device of the ambient mesh (`jax.set_mesh`), else the default one."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  device = device or jax.config.jax_default_device
  if device is None or isinstance(device, str):  # the name of a platform
    device = jax.devices(device)[0]
  platform = 'gpu' if device.platform == 'cuda' else device.platform
  return Target(platform, device.device_kind)


def request(q: Array, k: Array, v: Array, mode: Mode) -> Request:
  """What these arrays ask of each device.

  Raises:
    ValueError: arrays that differ in shape or dtype.
  """
  kinds = {(x.shape, jnp.dtype(x.dtype).name) for x in (q, k, v)}
  if len(kinds) > 1 or q.ndim != 4:
    found = ', '.join(f'{x.shape} {jnp.dtype(x.dtype)}' for x in (q, k, v))
    raise ValueError(
      f'q, k, v are {found}; they must be [B, L, H, D] of one shape and dtype'
    )
  batch, length, heads, dim = q.shape
  batch //= _count(_clip_axes(batch))
  heads //= _count(_head_axes(heads))
  return Request((batch, length, heads, dim), q.dtype, mode, target())


def choose(asked: Request) -> tuple[str, str]:
  """The implementation for a request.

  Returns:
    Its name, a key of IMPLEMENTATIONS, and why.
  """
  batch, length, heads, _ = asked.shape
  platform, kind = asked.target
  if platform == 'cpu':
    if length <= 256:
      return 'meaning', f'maps of {length} tokens are small'
    return 'streaming', 'tiles of the map stay in the cache'
  kernels = {'tpu': ('pallas_tpu',), 'gpu': ('pallas_gpu', 'cudnn')}
  reasons = []
  for name in kernels.get(platform, ()):
    reason = refusal(name, asked)
    if reason is None:
      return name, f'made for {kind}'
    reasons.append(f'{name} cannot: {reason}')
  size = 4 * batch * heads * length**2
  if size > LARGEST_MAP:
    reason = f'maps of {size / 2**30:.1f} GiB would fill the memory'
    return 'streaming', '; '.join([*reasons, reason])
  reason = f'one head at a time would leave a {platform} idle'
  return 'meaning', '; '.join([*reasons, reason])


def refusal(name: str, asked: Request) -> str | None:
  """Why an implementation cannot serve a request; None if it can.

  Raises:
    ValueError: an unknown implementation.
  """
  if name not in IMPLEMENTATIONS:
    raise ValueError(
      f'implementation is {name!r}; use one of {tuple(IMPLEMENTATIONS)}'
    )
  return IMPLEMENTATIONS[name].refusal(asked)


def resolve(name: str | None, asked: Request) -> str:
  """The name of the implementation that will run.

  Raises:
    ValueError: an unknown one.
    RefusalError: a named one that cannot serve.
  """
  if name is None:
    return choose(asked)[0]
  reason = refusal(name, asked)
  if reason is not None:
    raise RefusalError(
      f'implementation {name!r} cannot serve: {reason}; use None, which takes '
      f'{choose(asked)[0]!r} here'
    )
  return name


def over_clips(operation: Callable, *arrays: Array) -> Array:
  """`operation(*arrays)`, each device of a mesh on its own clips.

  A compiler that splits programs over devices cannot look into a kernel, nor
  split a loop over clips. Arguments and results have clips first, [B, ...].
  They are split over CLIP_AXES of the ambient mesh; where it has none, or B
  does not divide by them, every device computes all clips.
  """
  if not _splits():
    return operation(*arrays)
  clips = PartitionSpec(_clip_axes(arrays[0].shape[0]))
  return jax.shard_map(
    operation, in_specs=clips, out_specs=clips, check_vma=False
  )(*arrays)


def over_heads(
  operation: Callable, *arrays: Array, mean: bool = False
) -> Array:
  """`operation(*arrays)`, each device on its own clips and heads.

  Args:
    operation: of arrays [B, L, H, D] first, which HEAD_AXIS splits as
      CLIP_AXES do in `over_clips`, and of arrays [B, L] that belong to keys.
    *arrays: its arguments.
    mean: whether the result is [B, L], a mean over heads, not [B, L, H, D].
  """
  if not _splits():
    return operation(*arrays)
  clips = _clip_axes(arrays[0].shape[0])
  heads = _head_axes(arrays[0].shape[2])
  tokens, keys = PartitionSpec(clips, None, heads), PartitionSpec(clips)

  def local(*arrays: Array) -> Array:
    result = operation(*arrays)
    return jax.lax.pmean(result, heads) if mean and heads else result

  return jax.shard_map(
    local,
    in_specs=tuple(tokens if x.ndim == 4 else keys for x in arrays),
    out_specs=keys if mean else tokens,
    check_vma=False,
  )(*arrays)


def split_clips(x: Array) -> Array:
  """`x` [B, ...], and a promise that clips are all that devices share of it.

  Left to itself, a compiler that splits parameters over 'fsdp' at times moves
  the tokens of all clips instead of the few weights.
  """
  clips = _clip_axes(x.shape[0])
  if not clips or not _splits():
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(clips))


def _splits() -> bool:
  """Whether there are devices to share work that no `shard_map` shared yet."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.size > 1 and not mesh.manual_axes


def _clip_axes(batch: int) -> tuple[str, ...]:
  return _dividing(CLIP_AXES, batch)


def _head_axes(heads: int) -> tuple[str, ...]:
  return _dividing((HEAD_AXIS,), heads)


def _dividing(axes: tuple[str, ...], size: int) -> tuple[str, ...]:
  """Those of the axes that the ambient mesh has, if they divide a size."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(x for x in axes if x in mesh.shape and not mesh.manual_axes)
  return () if size % _count(axes) else axes


def _count(axes: tuple[str, ...]) -> int:
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[axis] for axis in axes)


# ----- the implementations ----------------------------------------------------
# Pallas takes a while to import: only when its kernels are asked for.


def _pallas_gpu() -> Operations:
  from mira_jax.kernels import pallas_gpu

  return flash.operations(pallas_gpu.PASSES)


def _pallas_tpu() -> Operations:
  from mira_jax.kernels import pallas_tpu

  return flash.operations(pallas_tpu.PASSES)


def _never(asked: Request) -> str | None:
  del asked
  return None


def _refusal_gpu(asked: Request) -> str | None:
  if asked.target.platform != 'gpu' or not HOPPER.match(asked.target.kind):
    return f'it runs on NVIDIA H100 and H200, not on {asked.target.kind}'
  try:
    from mira_jax.kernels import pallas_gpu
  except (ImportError, AttributeError) as error:  # Mosaic GPU still moves
    return f'this jax has no Mosaic GPU that it knows ({error})'
  return pallas_gpu.refusal(asked.shape, asked.dtype)


def _refusal_tpu(asked: Request) -> str | None:
  if asked.target.platform != 'tpu' or not TPU.match(asked.target.kind):
    return f'it runs on TPU v5e, v5p and v6e, not on {asked.target.kind}'
  from mira_jax.kernels import pallas_tpu

  return pallas_tpu.refusal(asked.shape, asked.dtype)


def _refusal_cudnn(asked: Request) -> str | None:
  kind = asked.target.kind
  if not kind.startswith('NVIDIA') or BEFORE_AMPERE.search(kind):
    return f'it runs on NVIDIA GPUs since Ampere, not on {kind}'
  return cudnn.refusal(asked.shape, asked.dtype, asked.mode)


IMPLEMENTATIONS = {
  'meaning': Implementation(lambda: meaning.OPERATIONS, _never),
  'streaming': Implementation(lambda: streaming.OPERATIONS, _never),
  'pallas_gpu': Implementation(_pallas_gpu, _refusal_gpu),
  'pallas_tpu': Implementation(_pallas_tpu, _refusal_tpu),
  'cudnn': Implementation(lambda: cudnn.OPERATIONS, _refusal_cudnn),
}
