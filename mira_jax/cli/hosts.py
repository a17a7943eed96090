"""Several hosts that run the same command together."""

from __future__ import annotations

import socket
import time

import jax
from absl import flags

from mira_jax.errors import MiraInputError

_DISTRIBUTED = flags.DEFINE_bool(
  'distributed',
  False,
  'one of several hosts that all run this command: a TPU pod slice, Slurm, '
  'Open MPI and Kubernetes say which; elsewhere name it by the next flags.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of host 0, where the hosts meet.'
)
_HOSTS = flags.DEFINE_integer('hosts', None, 'how many hosts.', 1)
_HOST = flags.DEFINE_integer('host', None, 'which of them, from 0.', 0)
_PATIENCE = flags.DEFINE_integer(
  'host_timeout', 300, 'seconds to wait for the other hosts.', 1
)


def join() -> None:
  """Meets the other hosts that the flags speak of; before any other use of jax.

  Raises:
    MiraInputError: they are named in part, cannot be found or do not come.
  """
  named = {'coordinator': _COORDINATOR, 'hosts': _HOSTS, 'host': _HOST}
  missing = [f'--{name}' for name, x in named.items() if x.value is None]
  if len(missing) == len(named) and not _DISTRIBUTED.value:
    return
  if 0 < len(missing) < len(named):
    hint = 'name all three: --coordinator=HOST:PORT --hosts=N --host=I'
    raise MiraInputError('bad_flag', ', '.join(missing), hint)
  if not missing and _HOST.value >= _HOSTS.value:
    hint = f'hosts are counted from 0: use 0 to {_HOSTS.value - 1}'
    raise MiraInputError('bad_flag', f'--host={_HOST.value}', hint)
  if _HOST.value:
    _wait_for(_COORDINATOR.value, _PATIENCE.value)
  try:
    jax.distributed.initialize(
      _COORDINATOR.value,
      _HOSTS.value,
      _HOST.value,
      initialization_timeout=_PATIENCE.value,
    )
  except ValueError as error:  # nothing says who the others are
    hint = (
      'this is no TPU pod slice, Slurm step, MPI or Kubernetes job that jax '
      'knows; name the hosts by --coordinator=HOST:PORT --hosts=N --host=I'
    )
    raise MiraInputError('no_cluster', '--distributed', hint) from error


def _wait_for(coordinator: str, patience: float) -> None:
  """Waits until host 0 answers: jax would end the process, and not nicely."""
  host, _, port = coordinator.rpartition(':')
  if not (host and port.isdecimal()):
    hint = 'give the address of host 0, such as 10.0.0.1:1234'
    raise MiraInputError('bad_flag', f'--coordinator={coordinator}', hint)
  until = time.monotonic() + patience
  while True:
    try:
      socket.create_connection((host, int(port)), timeout=1).close()
      return
    except OSError as error:
      if time.monotonic() > until:
        hint = f'host 0 does not answer ({error}); is it running this command?'
        raise MiraInputError('no_host', coordinator, hint) from error
    time.sleep(0.2)
