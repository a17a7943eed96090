"""Folders that are written to: those of results, and the cache."""

from __future__ import annotations

import os
import pathlib
import tempfile

from mira_jax.errors import MiraInputError

PROBE = 1 << 16  # bytes


def open_folder(path: str | os.PathLike[str]) -> pathlib.Path:
  """Makes a folder when it is missing, and writes to it for a moment.

  What is written reaches the disk, because a full one, or a used-up quota, may
  be told no earlier.

  Raises:
    MiraInputError: it cannot be made, is read-only, or has no room
      ('not_writable').
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
    raise MiraInputError('not_writable', path, hint) from error
  return folder


def cache() -> pathlib.Path:
  """The user's folder for what can be made again, such as compiled programs."""
  default = pathlib.Path.home() / '.cache'
  return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or default) / 'mira_jax'
