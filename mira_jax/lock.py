"""Locks on files, so that two processes never write into one folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator

from mira_jax.errors import MiraInputError, data_error, not_written

_PATIENCE = 5  # tenths of a second until the holder has written who it is


@contextlib.contextmanager
def hold(
  path: pathlib.Path,
  error: Callable[[str, pathlib.Path, str], MiraInputError] = data_error,
) -> Iterator[None]:
  """Holds a lock that the system releases when the process ends in any way.

  What the file says is for messages only: that of a process which was killed,
  or ran in another container, locks nothing. Where the file system has no
  locks, this warns and goes on.

  Args:
    path: of the lock file, made with its folder if missing; it is never
      removed.
    error: makes the error of a code, a path and a hint.

  Raises:
    MiraInputError: another process holds it ('locked'), or the file cannot be
      written ('not_written').
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open('ab+', buffering=0)
  except OSError as reason:
    raise not_written(path.parent, str(reason)) from reason
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as reason:
      hint = f'{_holder(path)} writes here; wait until it ends, or stop it'
      raise error('locked', path.parent, hint) from reason
    except OSError as reason:
      text = '%s cannot be locked (%s): do not start a second process here'
      logging.warning(text, path, reason.strerror)
    else:
      _sign(file.fileno())
    yield


def _sign(file: int) -> None:
  """Writes who holds the lock; a full disk is for others to report."""
  since = time.strftime('%Y-%m-%d %H:%M:%S')
  holder = {'pid': os.getpid(), 'host': os.uname().nodename, 'since': since}
  with contextlib.suppress(OSError):
    os.ftruncate(file, 0)
    os.write(file, json.dumps(holder).encode())


def _holder(path: pathlib.Path) -> str:
  """The process that holds a lock, in words."""
  for _ in range(_PATIENCE):
    try:
      told = json.loads(path.read_bytes())
      return f'process {told["pid"]} on {told["host"]}, since {told["since"]},'
    except (OSError, ValueError, LookupError, TypeError):
      time.sleep(0.1)  # it may be about to write that
  return 'another process'
