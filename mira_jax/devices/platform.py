"""Which devices JAX computes on, chosen before it starts."""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
from collections.abc import Callable

import jax

from mira_jax.devices import hardware
from mira_jax.errors import MiraInputError

# Beside an accelerator the CPU stays, second, for what is made on the host.
PLATFORMS = {'cpu': 'cpu', 'gpu': 'cuda,cpu', 'tpu': 'tpu,cpu'}
FILES = 512  # that a process may have open
_EXTRAS = {'gpu': '.[cuda]', 'tpu': '.[tpu]'}

# Options of mallopt in malloc.h: one arena, which no large array bypasses, and
# whose end is never given back.
_KEEP = ((-8, 1), (-4, 0), (-1, -1))


def add_argument(parser: argparse.ArgumentParser) -> None:
  """Adds --device, for `start`."""
  text = 'devices to compute on; by default the fastest ones that are there'
  parser.add_argument('--device', choices=tuple(PLATFORMS), help=text)


def start(
  kind: str | None = None, *, meet: Callable[[], None] | None = None
) -> None:
  """Starts JAX; call it before any array is made.

  Args:
    kind: 'cpu', 'gpu' or 'tpu'; None leaves it to JAX, and to JAX_PLATFORMS.
    meet: finds the other hosts of a run, as `hosts.join`.

  Raises:
    MiraInputError: there is no such device ('no_device'), or this process may
      not open enough files ('too_many_files').
  """
  _allow_files()
  if kind:
    jax.config.update('jax_platforms', PLATFORMS[kind])
  if meet:
    meet()
  found = _platforms()
  if kind in (None, *found[:1]) and found:
    return
  named = os.environ.get('JAX_PLATFORMS', '')
  asked = f'--device={kind}' if kind else f'JAX_PLATFORMS={named}'
  jax.config.update('jax_platforms', '')
  there = ', '.join(_platforms()) or 'nothing'
  hint = f'JAX finds {there} here; leave that out'
  if kind in _EXTRAS:
    hint += f", or on a machine with a {kind} pip install '{_EXTRAS[kind]}'"
  raise MiraInputError('no_device', asked, hint)


def keep_memory(kind: str | None = None) -> bool:
  """Lets this process keep what it frees, where it computes on a CPU.

  Every call of a program allocates its intermediate arrays at once. glibc maps
  that much anew and gives it back afterwards, so that each step of a training
  would fault in every page, some 0.4 GB in the quickstart. Call it before
  `start`: threads of XLA have arenas of their own otherwise, which always map.
  Other C libraries are left as they are.

  Args:
    kind: as in `start`.

  Returns:
    Whether memory is kept.
  """
  if kind not in (None, 'cpu') or (kind is None and hardware.accelerators()):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # not glibc
    return False
  return all([mallopt(option, value) for option, value in _KEEP])


def _allow_files() -> None:
  """Raises the limit of open files as far as it goes, if that's enough.

  Without this, whatever library opens the last one fails in a way of its own.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if hard == resource.RLIM_INFINITY or hard >= FILES:
    wanted = max(soft, FILES) if soft >= 0 else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return
  hint = f'shards, checkpoints and libraries need {FILES}; raise the limit of '
  hint += f'open files: ulimit -n {FILES}'
  raise MiraInputError('too_many_files', f'ulimit -n {hard}', hint)


def _platforms() -> list[str]:
  """The kinds of devices, the default first; [] when JAX cannot start."""
  try:
    default = jax.devices()
  # JAX asserts that one is left when cuda is asked for and there is no GPU.
  except (RuntimeError, AssertionError):
    return []
  return list(dict.fromkeys(device.platform for device in default))
