"""Too little memory on a device, as one clear error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mira_jax.errors import MiraInputError


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
