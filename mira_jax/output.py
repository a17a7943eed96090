"""Folders that are written to: those of results, and the cache."""

from __future__ import annotations

import atexit
import functools
import os
import pathlib
import tempfile

from mira_jax import terminal
from mira_jax.errors import not_written

PROBE = 1 << 16  # bytes


def open_folder(path: str | os.PathLike[str]) -> pathlib.Path:
  """Makes a folder when it is missing, and writes to it for a moment.

  What is written reaches the disk, because a full one, or a used-up quota, may
  be told no earlier.

  Raises:
    MiraInputError: it cannot be made, is read-only, or has no room
      ('not_written').
  """
  folder = pathlib.Path(path)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
      file.write(bytes(PROBE))
      file.flush()
      os.fsync(file.fileno())
  except OSError as error:
    hint = f'results must have room there ({error.strerror or error})'
    raise not_written(path, hint) from error
  return folder


def cache() -> pathlib.Path:
  """The user's folder for what can be made again, such as compiled programs.

  Where a user has no home, as in some containers, it is one for temporary files
  that nobody else can write to.
  """
  folder = os.environ.get('XDG_CACHE_HOME')
  if folder:
    return pathlib.Path(folder) / 'mira_jax'
  try:
    return pathlib.Path.home() / '.cache' / 'mira_jax'
  except RuntimeError:
    return _temporary()


@functools.cache
def _temporary() -> pathlib.Path:
  folder = tempfile.TemporaryDirectory(prefix='mira_jax_')
  atexit.register(folder.cleanup)
  terminal.say(
    f'mira: there is no home: what is compiled is kept in {folder.name} until '
    'the end; set XDG_CACHE_HOME to keep it',
    error=True,
  )
  return pathlib.Path(folder.name)
