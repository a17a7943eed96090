"""Atomic writes, digests, writable folders and locks."""

from __future__ import annotations

import atexit
import contextlib
import csv
import fcntl
import functools
import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil
import tempfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mira_jax import terminal
from mira_jax.errors import MiraInputError, data_error, not_written

Path = str | os.PathLike[str]
PROBE = 1 << 16  # bytes
# What reading a damaged zip raises, such as an .npz.
BAD_ZIP = (OSError, ValueError, LookupError, TypeError, EOFError)
BAD_ZIP += (RuntimeError, zipfile.BadZipFile, zlib.error)


# ----- files ------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: Path, *, shared: bool = False) -> Iterator[pathlib.Path]:
  """A file to write to, which replaces `path` at the end.

  A process that fails or is killed leaves what was at `path`. `shared`: several
  processes may write it at the same time.

  Raises:
    OSError: with the name of the file, which a full disk does not give.
  """
  path = pathlib.Path(path)
  middle = f'.{uuid.uuid4().hex}' if shared else ''
  part = path.with_name(f'{path.name}{middle}.part')
  clear_for_file(part)
  try:
    with naming(path):
      yield part
      os.replace(part, path)
  finally:
    with contextlib.suppress(OSError):
      part.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
  """Writes a file in UTF-8, see `atomic`."""
  write_bytes(path, text.encode(), shared=shared)


def write_bytes(path: Path, data: bytes, *, shared: bool = False) -> None:
  """Writes a file, see `atomic`."""
  with atomic(path, shared=shared) as part:
    part.write_bytes(data)


def write_csv(
  path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Writes a table, see `atomic`. Lines end as those of other text files."""
  with (
    atomic(path) as part,
    part.open('w', newline='', encoding='utf-8') as file,
  ):
    table = csv.writer(file, lineterminator='\n')
    table.writerow(header)
    table.writerows(rows)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
  """Adds the name of the file to an OSError that lacks it."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or os.fspath(path)
    raise


def sha256(path: Path) -> str:
  """The SHA-256 of a file, in hex."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def json_sha256(value: Any) -> str:
  """The SHA-256 of a JSON value, whatever the order of its keys, in hex."""
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def set_aside(path: pathlib.Path, why: str) -> pathlib.Path:
  """Renames what cannot be used, with a warning; returns its new path.

  The new name is NAME.damaged, NAME.damaged-2, ...
  """
  numbers = itertools.chain([''], (f'-{i}' for i in itertools.count(2)))
  names = (path.with_name(f'{path.name}.damaged{n}') for n in numbers)
  aside = next(name for name in names if not os.path.lexists(name))
  path.rename(aside)
  text = '%s is damaged (%s): kept as %s, the run goes on without it'
  logging.warning(text, path, why, aside.name)
  return aside


def clear_for_file(path: pathlib.Path) -> None:
  """Sets aside whatever is not a file at `path`."""
  if path.exists() and not path.is_file():
    set_aside(path, 'it is not a file')


def clear_for_folder(path: pathlib.Path) -> None:
  """Sets aside whatever is not a folder at `path`."""
  if os.path.lexists(path) and not path.is_dir():
    set_aside(path, 'it is not a folder')


# ----- folders ----------------------------------------------------------------


def open_folder(path: Path) -> pathlib.Path:
  """Makes a folder if it is missing; raises 'not_written' if it has no room.

  A probe is written to the disk: a full disk or quota may report no earlier.
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
  """The user's folder for what can be made again, such as compiled programs."""
  folder = os.environ.get('XDG_CACHE_HOME')
  if folder:
    return pathlib.Path(folder) / 'mira_jax'
  try:
    return pathlib.Path.home() / '.cache' / 'mira_jax'
  except RuntimeError:  # a user without a home, as in some containers
    return _temporary_cache()


def keep_newest(folder: Path, pattern: str, most: int) -> None:
  """Removes files of a cache that were used least lately, over `most` bytes.

  Where the file system does not note reads, it is the oldest ones.
  """
  found = []
  for path in pathlib.Path(folder).glob(pattern):
    with contextlib.suppress(OSError):  # another process removes them, too
      about = path.stat()
      found.append((max(about.st_atime, about.st_mtime), about.st_size, path))
  total = 0
  for _, size, path in sorted(found, reverse=True):
    total += size
    if total > most:
      with contextlib.suppress(OSError):
        path.unlink()


@functools.cache
def _temporary_cache() -> pathlib.Path:
  folder = tempfile.mkdtemp(prefix='mira_jax_')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  text = 'mira: no home folder: set XDG_CACHE_HOME to keep compiled programs'
  terminal.say(text, error=True)
  return pathlib.Path(folder)


# ----- locks ------------------------------------------------------------------


@contextlib.contextmanager
def lock(
  path: pathlib.Path,
  error: Callable[[str, pathlib.Path, str], MiraInputError] = data_error,
  *,
  wait: bool = False,
) -> Iterator[None]:
  """Holds a lock that the system releases when the process ends in any way.

  The file is made with its folder if missing, and never removed; its content is
  for messages only. Where the file system has no locks, this warns and goes on.
  `error` makes the error of a code, a path and a hint.

  Raises:
    MiraInputError: another process holds it and this one does not `wait`
      ('locked'), or the file cannot be written ('not_written').
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open('ab+', buffering=0)
  except OSError as reason:
    raise not_written(path.parent, str(reason)) from reason
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as reason:
      hint = f'{_holder(path)} writes here; wait until it ends, or stop it'
      raise error('locked', path.parent, hint) from reason
    except OSError as reason:
      text = '%s cannot be locked (%s): do not start a second process here'
      logging.warning(text, path, reason.strerror)
    else:
      since = time.strftime('%Y-%m-%d %H:%M:%S')
      holder = {'pid': os.getpid(), 'host': os.uname().nodename, 'since': since}
      with contextlib.suppress(OSError):  # a full disk is reported elsewhere
        file.truncate(0)
        file.write(json.dumps(holder).encode())
    yield


def _holder(path: pathlib.Path) -> str:
  """The process that holds a lock, in words."""
  try:
    holder = json.loads(path.read_bytes())
    where = f'{holder["pid"]} on {holder["host"]}, since {holder["since"]}'
    return f'process {where},'
  except (OSError, ValueError, LookupError, TypeError):
    return 'another process'  # which may be about to write that
