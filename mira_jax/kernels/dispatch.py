"""Which implementation of attention runs, and why.

An implementation is three operations; `choose` picks one for what is asked and
the device it will run on, and `refusal` says why one cannot serve. Kernels are
imported when they are first needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import PartitionSpec

from mira_jax.kernels import cudnn, flash, meaning, streaming
from mira_jax.kernels.operations import Operations

Mode = Literal['plain', 'flashlite', 'exact']

HOPPER = re.compile(r'\bG?H\d{2,3}\b')  # in names such as 'NVIDIA H200'


class Target(NamedTuple):
  """The device that the traced program will run on."""

  platform: str  # 'cpu', 'gpu' or 'tpu'
  kind: str  # such as 'NVIDIA H200' or 'TPU v5 lite'


class Request(NamedTuple):
  """What attention is asked to do."""

  shape: tuple[int, ...]  # [B, L, H, D]
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
  device = device or jax.devices()[0]
  platform = 'gpu' if device.platform == 'cuda' else device.platform
  return Target(platform, device.device_kind)


def choose(request: Request) -> tuple[str, str]:
  """The implementation for a request.

  Returns:
    Its name, a key of IMPLEMENTATIONS, and why.
  """
  platform, kind = request.target
  length = request.shape[1]
  if platform == 'cpu':
    if length <= 256:
      return 'meaning', f'maps of {length} tokens are small'
    return 'streaming', 'tiles of the map stay in the cache'
  fused = {'tpu': ('pallas_tpu',), 'gpu': ('pallas_gpu', 'cudnn')}
  refusals = []
  for name in fused.get(platform, ()):
    reason = refusal(name, request)
    if reason is None:
      return name, f'the fastest on {kind}'
    refusals.append(f'{name} cannot: {reason}')
  if length > 4096:
    reason = f'maps of {length} tokens would fill the memory'
    return 'streaming', '; '.join([*refusals, reason])
  reason = f'one head at a time would leave a {platform} idle'
  return 'meaning', '; '.join([*refusals, reason])


def refusal(name: str, request: Request) -> str | None:
  """Why an implementation cannot serve a request; None if it can.

  Raises:
    ValueError: an unknown implementation.
  """
  if name not in IMPLEMENTATIONS:
    raise ValueError(
      f'implementation is {name!r}; use one of {tuple(IMPLEMENTATIONS)}'
    )
  return IMPLEMENTATIONS[name].refusal(request)


def resolve(name: str | None, request: Request) -> str:
  """The name of the implementation that will run.

  Raises:
    ValueError: an unknown one, or a named one that cannot serve.
  """
  if name is None:
    return choose(request)[0]
  reason = refusal(name, request)
  if reason is not None:
    raise ValueError(
      f'implementation {name!r} cannot serve: {reason}; use None, which takes '
      f'{choose(request)[0]!r} here'
    )
  return name


def over_clips(operation: Callable) -> Callable:
  """`operation` on the clips of each device, where a mesh splits the batch.

  A compiler that splits programs over devices cannot look into a kernel, nor
  split a loop over clips. Arguments and results have clips first, [B, ...]; B
  is split over the mesh axis 'data'. Without such an axis, or where B does not
  divide by it, nothing changes.
  """

  def apply(*arrays):
    mesh = jax.sharding.get_abstract_mesh()
    size = mesh.shape.get('data', 1)
    split = size > 1 and 'data' not in mesh.manual_axes
    if not split or arrays[0].shape[0] % size:
      return operation(*arrays)
    clips = PartitionSpec('data')
    return jax.shard_map(
      operation, in_specs=clips, out_specs=clips, check_vma=False
    )(*arrays)

  return apply


# ----- the implementations ----------------------------------------------------
# Pallas takes a while to import: only when its kernels are asked for.


def _pallas_gpu() -> Operations:
  from mira_jax.kernels import pallas_gpu

  return flash.operations(pallas_gpu.PASSES)


def _pallas_tpu() -> Operations:
  from mira_jax.kernels import pallas_tpu

  return flash.operations(pallas_tpu.PASSES)


def _never(request: Request) -> str | None:
  del request
  return None


def _refusal_gpu(request: Request) -> str | None:
  if request.target.platform != 'gpu' or not HOPPER.search(request.target.kind):
    return f'it runs on NVIDIA H100 and H200, not on {request.target.kind}'
  from mira_jax.kernels import pallas_gpu

  return pallas_gpu.refusal(request.shape, request.shape, request.dtype)


def _refusal_tpu(request: Request) -> str | None:
  if request.target.platform != 'tpu':
    return f'it runs on TPUs, not on {request.target.kind}'
  from mira_jax.kernels import pallas_tpu

  return pallas_tpu.refusal(request.shape, request.shape, request.dtype)


def _refusal_cudnn(request: Request) -> str | None:
  if request.target.platform != 'gpu':
    return f'it runs on NVIDIA GPUs, not on {request.target.kind}'
  return cudnn.refusal(request.shape, request.dtype, request.mode)


IMPLEMENTATIONS = {
  'meaning': Implementation(lambda: meaning.OPERATIONS, _never),
  'streaming': Implementation(lambda: streaming.OPERATIONS, _never),
  'pallas_gpu': Implementation(_pallas_gpu, _refusal_gpu),
  'pallas_tpu': Implementation(_pallas_tpu, _refusal_tpu),
  'cudnn': Implementation(lambda: cudnn.OPERATIONS, _refusal_cudnn),
}
