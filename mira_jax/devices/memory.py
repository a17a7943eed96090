"""Too little memory on a device, as one clear error."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

import jax

from mira_jax.errors import MiraInputError


def capacity() -> int:
  """Bytes that a program may take on a device of this host."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit']
  # Devices without this number are those of the CPU, and share its memory.
  total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
  if allowed != resource.RLIM_INFINITY:
    total = min(total, allowed)
  return total // jax.local_device_count()


@contextlib.contextmanager
def explained(
  name: str = '', advice: str = 'take a smaller batch or model'
) -> Iterator[None]:
  """Turns exhausted memory, of a device or of the host, into a clear error.

  Args:
    name: what needed it, such as 'a step of 32 clips'; '': the message of JAX
      or NumPy.
    advice: what to do about it.

  Raises:
    MiraInputError: instead of JAX's or NumPy's error ('out_of_memory').
  """
  try:
    yield
  except (RuntimeError, MemoryError) as error:
    exhausted = 'RESOURCE_EXHAUSTED' in str(error)
    if not (exhausted or isinstance(error, MemoryError)):
      raise
    line = (str(error).strip() or 'there is not enough memory').splitlines()[0]
    hint = f'a device has {capacity() / 2**30:.1f} GiB; {advice}'
    if name:
      hint = f'{line.rstrip(".")}; {hint}'
    where = name or line.rstrip('.')
    raise MiraInputError('out_of_memory', where, hint) from error
