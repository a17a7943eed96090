"""What to do when a device has too little memory, from what a program needs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
from collections.abc import Callable, Iterator

import jax

from mira_jax.errors import MiraInputError

Remedy = Callable[[float], str]
_USABLE = 0.9  # of a device: some of it is always taken, or in pieces


@dataclasses.dataclass(kw_only=True, frozen=True)
class Need:
  """Bytes that a compiled program takes on every device.

  Attributes:
    fixed: of arguments and results, such as weights, whatever the batch.
    temporary: of what is computed in between, which grows with the batch.
  """

  fixed: int
  temporary: int


def need(program: jax.stages.Lowered) -> Need | None:
  """What a program needs; None where the compiler does not say."""
  try:
    found = program.compile().memory_analysis()
  except RuntimeError:  # that of a TPU refuses what does not fit
    return None
  if found is None:
    return None
  fixed = found.argument_size_in_bytes + found.output_size_in_bytes
  fixed += found.generated_code_size_in_bytes - found.alias_size_in_bytes
  return Need(fixed=fixed, temporary=found.temp_size_in_bytes)


def capacity() -> int:
  """Bytes that a program may take on a device of this host."""
  device = jax.local_devices()[0]
  stats = device.memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit']
  # Devices that do not say are those of the CPU, and share its memory.
  total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
  if allowed != resource.RLIM_INFINITY:
    total = min(total, allowed)
  return total // jax.local_device_count()


@contextlib.contextmanager
def explained(name: str = '') -> Iterator[None]:
  """Turns memory that is exhausted, whatever wanted it, into a clear error.

  Args:
    name: what wanted it, such as a clip; else what was said about it.

  Raises:
    MiraInputError: instead of JAX's or NumPy's error ('out_of_memory').
  """
  try:
    yield
  except (RuntimeError, MemoryError) as error:
    if not _exhausted(error):
      raise
    line = (str(error).strip() or 'there is not enough memory').splitlines()[0]
    hint = f'a device has {_gib(capacity())}; take a smaller batch or model'
    if name:
      hint = f'{line.rstrip(".")}; {hint}'
    where = name or line.rstrip('.')
    raise MiraInputError('out_of_memory', where, hint) from error


@contextlib.contextmanager
def measured(
  program: Callable[[], jax.stages.Lowered], name: str, remedy: Remedy
) -> Iterator[None]:
  """As `explained`, with what a program that ran inside needs.

  Args:
    program: lowers it, for the arguments that it ran with; only called when
      memory was exhausted.
    name: what it is, such as 'a step of 32 clips'.
    remedy: what to do, when temporary arrays must shrink to a share, from 0 to
      1, of what they are; 0 when even the rest does not fit.

  Raises:
    MiraInputError: see `explained`.
  """
  with explained():
    try:
      yield
    except (RuntimeError, MemoryError) as error:
      found = need(program()) if _exhausted(error) else None
      room = int(_USABLE * capacity())
      # What fits is not what failed.
      if found is None or found.fixed + found.temporary <= room:
        raise
      share = max(0.0, (room - found.fixed) / found.temporary)
      hint = (
        f'it needs {_gib(found.fixed + found.temporary)} of a device that has '
        f'{_gib(capacity())}, and {_gib(found.temporary)} of them grow with '
        'the batch; '
      )
      hint += remedy(share)
      raise MiraInputError('out_of_memory', name, hint) from error


def _exhausted(error: Exception) -> bool:
  return isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)


def _gib(size: int) -> str:
  return f'{size / 2**30:.1f} GiB'
