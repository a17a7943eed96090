"""How much memory was taken, and too little of it as one clear error."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator

from mira_jax.errors import MiraInputError


def peak() -> int:
  """Bytes that were taken at most, of a device; of a CPU, by this process."""
  import jax  # slow, and processes that draw need none

  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  most = max(x.get('peak_bytes_in_use', 0) for x in stats)
  unit = 1 if sys.platform == 'darwin' else 1024
  return most or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
    line = line.rstrip('.')
    hint = f'{line}; {advice}' if name else advice
    raise MiraInputError('out_of_memory', name or line, hint) from error
