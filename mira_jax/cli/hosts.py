"""Several hosts that run the same command together."""

from __future__ import annotations

import argparse
import socket
import time

import jax

from mira_jax.cli.arguments import at_least
from mira_jax.errors import MiraInputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that name the hosts, for `join`."""
  group = parser.add_argument_group('several hosts')
  add = group.add_argument
  add(
    '--distributed',
    action='store_true',
    help='all hosts run this command: a TPU pod slice, Slurm, Open MPI and '
    'Kubernetes name them; elsewhere the next three flags do',
  )
  add('--coordinator', metavar='HOST:PORT', help='of host 0')
  add('--hosts', type=at_least(1), help='how many')
  add('--host', type=at_least(0), help='which one, from 0')
  wait = 'seconds to wait for the other hosts'
  add('--host-timeout', type=at_least(1), default=300, help=wait)


def join(args: argparse.Namespace) -> None:
  """Meets the other hosts, before any other use of jax.

  Raises:
    MiraInputError: they are named in part, cannot be found or do not come.
  """
  named = {
    name: getattr(args, name) for name in ('coordinator', 'hosts', 'host')
  }
  missing = [f'--{name}' for name, value in named.items() if value is None]
  if len(missing) == len(named) and not args.distributed:
    return
  if 0 < len(missing) < len(named):
    hint = 'name all three: --coordinator=HOST:PORT --hosts=N --host=I'
    raise MiraInputError('bad_flag', ', '.join(missing), hint)
  if not missing and args.host >= args.hosts:
    hint = f'hosts are counted from 0: use 0 to {args.hosts - 1}'
    raise MiraInputError('bad_flag', f'--host={args.host}', hint)
  if args.host:
    _wait_for(args.coordinator, args.host_timeout)
  try:
    jax.distributed.initialize(
      *named.values(), initialization_timeout=args.host_timeout
    )
  except ValueError as error:  # the environment names no cluster
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
