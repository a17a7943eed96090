"""Unpacks zip and tar archives, which are untrusted input.

Paths that leave the folder, links, devices, repeated names and decompression
bombs are refused: in a zip before anything is written, in a tar at the member.
Split, encrypted and other archives are left to 7-Zip.
"""

from __future__ import annotations

import contextlib
import errno
import lzma
import pathlib
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from mira_jax.data import workers
from mira_jax.errors import MiraInputError, data_error
from mira_jax.files import Path

MAX_MEMBERS = 3_000_000
MAX_RATIO = 200  # deflate reaches 1032 on zeros; video and images stay near 1
RATIO_FLOOR = 1 << 20  # smaller contents are harmless at any ratio
MAX_HEADER = 1 << 20  # of a tar's member; tarfile holds it in memory
_OUTSIDE = re.compile(r'/|[A-Za-z]:|.*[\\\0]|(.*/)?\.\.(/|$)', re.DOTALL)
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)
_DAMAGE += (EOFError, ValueError, RuntimeError, OverflowError)
# Of names that are too long, or a file and a folder at once.
_PLACES = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
_Archive = zipfile.ZipFile | tarfile.TarFile
_Info = Any  # of a member: a ZipInfo or a TarInfo


def unpack(
  path: Path, out: Path, *, encoding: str = 'utf-8'
) -> tuple[int, int]:
  """Unpacks an archive into the folder `out`, which is made if missing.

  Args:
    path: a zip, or a tar that may be compressed by gzip, bzip2 or xz.
    out: may hold files already; those of the right size are skipped.
    encoding: of names whose encoding the archive does not state.

  Returns:
    How many files were unpacked, and how many skipped.

  Raises:
    MiraInputError: 'not_found', 'bad_encoding', 'unsafe_archive', or
      'bad_archive' where it is damaged, split, encrypted, or of another kind.
  """
  path, out, counts = pathlib.Path(path), pathlib.Path(out), [0, 0]
  if not path.is_file():
    raise MiraInputError('not_found', path, 'no such file')
  with (
    _errors(path),
    _opened(path, encoding) as file,
    workers.progress_bar(path.name, None) as advance,
  ):
    members = _checked(path, out, file)
    if isinstance(file, zipfile.ZipFile):
      members = list(members)  # refused before anything is written
    for info, target, size in members:
      is_there = target.is_file() and target.stat().st_size == size
      if not is_there:
        file.extract(info, out)
      if not target.is_dir():
        counts[is_there] += 1
        advance(1)
  return counts[0], counts[1]


@contextlib.contextmanager
def _opened(path: pathlib.Path, encoding: str) -> Iterator[_Archive]:
  with path.open('rb') as stream:
    is_zip = stream.read(2) == b'PK'
  if is_zip:
    with zipfile.ZipFile(path, metadata_encoding=encoding) as file:
      yield file
    return
  options: Any = {'encoding': encoding, 'errors': 'strict'}
  with tarfile.open(path, 'r:*', tarinfo=_Header, **options) as file:
    file.extraction_filter = tarfile.data_filter
    yield file
    while file.fileobj and file.fileobj.read(1 << 20):
      pass  # proves the checksum behind the last member


class _Header(tarfile.TarInfo):
  """A member's header. tarfile would take a damaged one for the end."""

  @classmethod
  def frombuf(cls, buf, encoding, errors):
    is_end = len(buf) == tarfile.BLOCKSIZE and not any(buf)
    try:
      info = super().frombuf(buf, encoding, errors)
    except tarfile.HeaderError as error:
      if is_end:
        raise
      raise tarfile.ReadError(f'no tar, or cut off ({error})') from error
    if not info.isfile() and info.size > MAX_HEADER:
      raise tarfile.ReadError('the header of a member is too long')
    return info


def _checked(
  path: pathlib.Path, out: pathlib.Path, file: _Archive
) -> Iterator[tuple[_Info, pathlib.Path, int]]:
  """Harmless members, their targets and sizes, without Finder's own files."""
  seen, total, root = set(), 0, out.resolve()
  limit = max(RATIO_FLOOR, MAX_RATIO * path.stat().st_size)
  infos = file if isinstance(file, tarfile.TarFile) else file.infolist()
  for count, info in enumerate(infos):
    name, size, kind = _facts(info)
    target, total, reason = out / name, total + size, ''
    if _OUTSIDE.match(name) or not target.resolve().is_relative_to(root):
      reason = f'{name!r} would be written outside the folder'
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
      reason = f'{name!r} is a link, a device or a sparse file'
    elif target in seen:
      reason = f'{name!r} is in it twice'
    elif total > limit or count >= MAX_MEMBERS:
      reason = f'a bomb: {count + 1} members of {total} bytes'
    if reason:
      raise data_error('unsafe_archive', path, reason)
    if kind != stat.S_IFDIR:
      seen.add(target)
    is_finders = target.name.startswith(('._', '.DS_Store'))
    if '__MACOSX' not in target.parts and not is_finders:
      yield info, target, size


def _facts(info: _Info) -> tuple[str, int, int]:
  """Name, bytes, and kind: S_IFREG, S_IFDIR, or another that is refused."""
  if isinstance(info, tarfile.TarInfo):
    kind = stat.S_IFREG if info.isfile() else stat.S_IFDIR * info.isdir() or -1
    # A sparse file is a few bytes that stand for terabytes of zeros.
    return info.name, info.size, -1 if info.issparse() else kind
  # The other methods are rare, and zipfile bounds no memory for them.
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise zipfile.BadZipFile(f'compressed by method {info.compress_type}')
  kind = stat.S_IFMT(info.external_attr >> 16)
  # zipfile cuts `filename` at a NUL, which would hide what follows.
  name = info.orig_filename
  return name, info.file_size, stat.S_IFDIR if info.is_dir() else kind


@contextlib.contextmanager
def _errors(path: pathlib.Path) -> Iterator[None]:
  """Turns errors of reading an archive into MiraInputErrors."""
  try:
    yield
  except MiraInputError:  # which is a ValueError
    raise
  except (UnicodeDecodeError, LookupError) as error:
    hint = f'{error}; name the encoding, such as --encoding=gb18030'
    raise data_error('bad_encoding', path, hint) from error
  except (*_DAMAGE, OSError) as error:
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number not in _PLACES:
      raise  # the disk's fault, not the archive's
    text = str(error).split('\n')[-1][:200] or 'it ends too early'
    hint = '; where it is not damaged, unpack it with 7-Zip: docs/datasets.md'
    raise data_error('bad_archive', path, text + hint) from error
