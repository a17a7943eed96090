"""Which implementation of attention runs, and why.

An implementation is three operations; `choose` picks one for what is asked and
the device it will run on, and `refusal` returns why one cannot serve. What was
measured on the device decides, if anything was; `learn` tells of it, and of
kernels that failed there. Kernels are imported when they are first needed.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mira_jax.devices import partition
from mira_jax.errors import MiraInputError
from mira_jax.kernels import cudnn, fusible, records, reference, streaming, vjp
from mira_jax.kernels.operations import Operations
from mira_jax.kernels.records import Records, Tunings

Array = jax.Array
Mode = Literal['plain', 'flashlite', 'exact']


# Names of devices, such as 'NVIDIA H200' and 'TPU v5 lite'.
HOPPER = re.compile(r'NVIDIA G?H\d{2,3}\b')
TPU = re.compile(r'TPU v[56]')
BEFORE_AMPERE = re.compile(r'[KPV]100|P4|T4|GTX|RTX 20[678]0|TITAN|Quadro')

# Above this a fallback gives up its speed for memory: training keeps several
# maps per block.
LARGEST_MAP = 2**30  # bytes


class RefusalError(MiraInputError):
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
  training: bool = False  # whether gradients are wanted
  whole_map: bool = False  # whether something reads the whole attention map


class Implementation(NamedTuple):
  """One way to compute attention."""

  operations: Callable[[Tunings], Operations]
  refusal: Callable[[Request], str | None]  # why not, or None
  # What can be tuned, and candidates; the first is assumed to be the fastest.
  space: Callable[[Request], Mapping[str, Sequence[Any]]] = lambda _: {}
  tuning: Callable[..., Any] = dict  # a candidate, from its fields


class Choice(NamedTuple):
  """An implementation, and why it is the one."""

  name: str  # a key of IMPLEMENTATIONS
  why: str
  tunings: Tunings = ()

  @property
  def operations(self) -> Operations:
    return IMPLEMENTATIONS[self.name].operations(self.tunings)


class Known(NamedTuple):
  """What this process knows of its devices, see `learn`."""

  target: Target | None = None
  failed: Mapping[str, str] = {}  # implementation -> why it is not to be used
  measured: Records | None = None
  forced: str | None = None


_known = Known()


def learn(**facts: Any) -> None:
  """Sets fields of `Known`, for what is traced from now on."""
  global _known
  _known = _known._replace(**facts)


def known() -> Known:
  """What `learn` has set so far."""
  return _known


def target() -> Target:
  """The device of the ambient mesh (`jax.set_mesh`), else the default one."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  device = device or jax.config.values['jax_default_device']
  if device is None or isinstance(device, str):  # the name of a platform
    device = jax.devices(device)[0]
  platform = 'gpu' if device.platform == 'cuda' else device.platform
  return Target(platform, device.device_kind)


def request(
  q: Array,
  k: Array,
  v: Array,
  mode: Mode,
  training: bool = False,
  whole_map: bool = False,
) -> Request:
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
  shape = batch, length, heads, dim
  return Request(shape, q.dtype, mode, target(), training, whole_map)


def choose(asked: Request) -> Choice:
  """The implementation for a request, and why."""
  if asked.whole_map:
    return Choice('reference', 'the only one with whole maps')
  for row, source in _measured(asked):
    for name in row.by_speed():
      # Another version may know others.
      if name in IMPLEMENTATIONS and not _fault(name, asked):
        why = f'the fastest of {len(row.milliseconds)}, {source}'
        return Choice(name, why, _tunings(name, row))
  return _assume(asked)


def _measured(asked: Request) -> Iterator[tuple[records.Row, str]]:
  """Rows that tell of a request, and their source; this machine's first."""
  own = _known.measured
  found = [own] if own and asked.target == _known.target else []
  found += [x for x in records.shipped() if x.device == asked.target.kind]
  for rows, source in ((x.rows, x.source) for x in found):
    dtype = jnp.dtype(asked.dtype).name
    like = asked.shape, dtype, asked.mode, asked.training
    row = records.nearest(rows, *like)
    if row:
      yield row, source


def make_tunings(name: str, fields: Mapping[str, Mapping]) -> Tunings:
  """Tunings of an implementation from their fields.

  Raises:
    TypeError: unknown fields.
    ValueError: impossible ones.
  """
  make = IMPLEMENTATIONS[name].tuning
  return tuple((key, make(**x)) for key, x in sorted(fields.items()))


def _tunings(name: str, row: records.Row) -> Tunings:
  """Those of a row; none where another version's have other fields."""
  with contextlib.suppress(TypeError, ValueError):
    return make_tunings(name, row.tunings.get(name, {}))
  return ()


def _fault(name: str, asked: Request) -> str | None:
  """Why an implementation cannot serve, or is not trusted to."""
  reason = refusal(name, asked)
  if reason is None and asked.target == _known.target:
    reason = _known.failed.get(name)
  return reason


def _assume(asked: Request) -> Choice:
  """The choice where nothing is measured."""
  batch, length, heads, _ = asked.shape
  platform, kind = asked.target
  reasons = []
  for name in KERNELS.get(platform, ()):
    reason = _fault(name, asked)
    if reason is None:
      return Choice(name, '; '.join([*reasons, f'made for {kind}; assumed']))
    reasons.append(f'{name} cannot: {reason}')
  size = 4 * batch * heads * length**2
  if platform == 'cpu':
    name, why = 'streaming', 'tiles of the map stay in the cache'
    if length <= 256:
      name, why = 'reference', f'maps of {length} tokens are small'
  elif size > LARGEST_MAP:
    name, why = 'streaming', f'maps of {size / 2**30:.1f} GiB fill the memory'
  else:
    name, why = 'reference', f'one head at a time leaves a {platform} idle'
  return Choice(name, '; '.join([*reasons, f'{why}; assumed']))


def refusal(name: str, asked: Request) -> str | None:
  """Why an implementation cannot serve a request; None if it can.

  Raises:
    ValueError: an unknown implementation.
  """
  if name not in IMPLEMENTATIONS:
    raise ValueError(
      f'implementation is {name!r}; use one of {tuple(IMPLEMENTATIONS)}'
    )
  if asked.whole_map and name != 'reference':
    return 'it never has the whole attention map, which this model reads'
  return IMPLEMENTATIONS[name].refusal(asked)


def resolve(name: str | Choice | None, asked: Request) -> Choice:
  """The implementation that will run: the named, the forced, or the best one.

  Raises:
    ValueError: an unknown one.
    RefusalError: a named one that cannot serve.
  """
  if isinstance(name, Choice):
    return name
  forced = name is None and _known.forced is not None
  name = name or _known.forced
  if name is None:
    return choose(asked)
  reason = refusal(name, asked)
  if reason is not None:
    hint = f'{reason}; leave it out, which takes {choose(asked).name!r} here'
    raise RefusalError('bad_value', f'attention={name}', hint)
  why = 'as asked for by --attention' if forced else 'as configured'
  rows = (row for row, _ in _measured(asked) if name in row.milliseconds)
  row = next(rows, None)
  return Choice(name, why, _tunings(name, row) if row else ())


# ----- the implementations ----------------------------------------------------
# Pallas takes a while to import: only when its kernels are asked for.


@functools.cache
def _pallas_gpu(tunings: Tunings) -> Operations:
  from mira_jax.kernels.gpu import passes

  return vjp.operations(passes.tuned(dict(tunings)))


def _pallas_gpu_space(asked: Request) -> Mapping[str, Sequence[Any]]:
  from mira_jax.kernels.gpu import passes

  return passes.candidates(asked.mode, asked.training, asked.shape[-1])


def _pallas_gpu_tuning(**fields: Any) -> Any:
  from mira_jax.kernels.gpu import passes

  return passes.Tuning(**fields)


def _pallas_tpu(tunings: Tunings) -> Operations:
  del tunings  # there are none
  from mira_jax.kernels.tpu import passes as pallas_tpu

  return vjp.operations(pallas_tpu.PASSES)


def _streaming(tunings: Tunings) -> Operations:
  return streaming.operations(dict(tunings).get('tiles', streaming.Tiling()))


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
  'reference': Implementation(lambda _: reference.OPERATIONS, lambda _: None),
  'streaming': Implementation(
    _streaming,
    lambda _: None,
    lambda asked: {'tiles': streaming.tilings(*asked.shape[:3])},
    streaming.Tiling,
  ),
  'fusible': Implementation(lambda _: fusible.OPERATIONS, lambda _: None),
  'pallas_gpu': Implementation(
    _pallas_gpu, _refusal_gpu, _pallas_gpu_space, _pallas_gpu_tuning
  ),
  'pallas_tpu': Implementation(_pallas_tpu, _refusal_tpu),
  'cudnn': Implementation(lambda _: cudnn.OPERATIONS, _refusal_cudnn),
}
# Other than plain XLA, by platform, in the order of preference.
KERNELS = {'tpu': ('pallas_tpu',), 'gpu': ('pallas_gpu', 'cudnn')}
