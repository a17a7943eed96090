"""Which implementation of attention runs, and why.

An implementation is three operations; `choose` picks one for what is asked and
the device it will run on, and `refusal` returns why one cannot serve. Kernels
are imported when they are first needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mira_jax.devices import partition
from mira_jax.kernels import cudnn, reference, streaming, vjp
from mira_jax.kernels.operations import Operations

Array = jax.Array
Mode = Literal['plain', 'flashlite', 'exact']


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
  device = device or jax.config.values['jax_default_device']
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
  batch //= partition.count(partition.clip_axes(batch))
  heads //= partition.count(partition.head_axes(heads))
  return Request((batch, length, heads, dim), q.dtype, mode, target())


def choose(asked: Request) -> tuple[str, str]:
  """The implementation for a request, a key of IMPLEMENTATIONS, and why."""
  batch, length, heads, _ = asked.shape
  platform, kind = asked.target
  if platform == 'cpu':
    if length <= 256:
      return 'reference', f'maps of {length} tokens are small'
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
  return 'reference', '; '.join([*reasons, reason])


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


# ----- the implementations ----------------------------------------------------
# Pallas takes a while to import: only when its kernels are asked for.


def _pallas_gpu() -> Operations:
  from mira_jax.kernels.gpu import passes

  return vjp.operations(passes.PASSES)


def _pallas_tpu() -> Operations:
  from mira_jax.kernels.tpu import passes as pallas_tpu

  return vjp.operations(pallas_tpu.PASSES)


def _refusal_gpu(asked: Request) -> str | None:
  if asked.target.platform != 'gpu' or not HOPPER.match(asked.target.kind):
    return f'it runs on NVIDIA H100 and H200, not on {asked.target.kind}'
  try:
    from mira_jax.kernels.gpu import passes as pallas_gpu
  except ImportError as error:
    if not (error.name or '').startswith('jax'):  # a mistake of our own
      raise
    return f'this jax has no Mosaic GPU ({error})'
  return pallas_gpu.refusal(asked.shape, asked.dtype)


def _refusal_tpu(asked: Request) -> str | None:
  if asked.target.platform != 'tpu' or not TPU.match(asked.target.kind):
    return f'it runs on TPU v5e, v5p and v6e, not on {asked.target.kind}'
  from mira_jax.kernels.tpu import passes as pallas_tpu

  return pallas_tpu.refusal(asked.shape, asked.dtype)


def _refusal_cudnn(asked: Request) -> str | None:
  kind = asked.target.kind
  if not kind.startswith('NVIDIA') or BEFORE_AMPERE.search(kind):
    return f'it runs on NVIDIA GPUs since Ampere, not on {kind}'
  return cudnn.refusal(asked.shape, asked.dtype, asked.mode)


IMPLEMENTATIONS = {
  'reference': Implementation(lambda: reference.OPERATIONS, lambda _: None),
  'streaming': Implementation(lambda: streaming.OPERATIONS, lambda _: None),
  'pallas_gpu': Implementation(_pallas_gpu, _refusal_gpu),
  'pallas_tpu': Implementation(_pallas_tpu, _refusal_tpu),
  'cudnn': Implementation(lambda: cudnn.OPERATIONS, _refusal_cudnn),
}
