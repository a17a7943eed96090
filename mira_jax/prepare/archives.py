"""Unpack what owners of datasets deliver: zip, tar, and pieces of either.

An archive is untrusted. Its members are streamed one by one into one folder as
plain files; nothing of it is run, and links and devices are refused. A zip is
refused by its index, before anything is written; a tar has none, so it is
refused at the member that offends.

Pieces (`vox2_dev_mp4_partaa` to `partai`, `clips.zip.001`) are read as the one
file they were cut from, without joining them on disk.
"""

from __future__ import annotations

import bisect
import bz2
import contextlib
import copy
import dataclasses
import errno
import functools
import gzip
import io
import itertools
import lzma
import math
import os
import pathlib
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

import rich.console
import rich.markup
import rich.progress

from mira_jax.data import workers
from mira_jax.errors import MiraInputError, data_error

MAX_MEMBERS = 3_000_000
MAX_RATIO = 200  # deflate reaches 1032 on zeros; video and images stay near 1
RATIO_FLOOR = 1 << 20  # what is smaller than this is no bomb at any ratio
MAX_HEADER = 4 << 20  # of a tar's member; tarfile holds it in memory
PART_SUFFIX = '.mira.part'  # of a file that is not yet whole
_CHUNK = 1 << 20

_SUFFIXES = (
  *('.zip', '.tar', '.tar.gz', '.tgz'),
  *('.tar.bz2', '.tbz2', '.tar.xz', '.txz'),
)
# Every name of a piece: what it is cut from, and which piece it is.
_PIECES = (
  re.compile(r'(?P<stem>.+?[._-]?part[._-]?)(?P<number>[a-z]{2,3}|\d{1,3})'),
  re.compile(r'(?P<stem>.+\.)(?P<number>\d{3})'),
  re.compile(r'(?P<stem>.+\.(zip|tar|tgz|gz)\.)(?P<number>[a-z]{2,3})'),
)
_DRIVE = re.compile(r'[A-Za-z]:')
_DAMAGE = (
  *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
  *(struct.error, EOFError, OverflowError, ValueError, NotImplementedError),
)
_SEVEN_ZIP = 'unpack it with 7-Zip, then give the folder to `mira prepare`'
_MANY_DISKS = (
  'a zip over several disks (.z01, .z02, ...): join it with `zip -s 0 IN.zip '
  '--out whole.zip`'
)


@dataclasses.dataclass
class Summary:
  """What came of it.

  Attributes:
    files: written now.
    size: bytes of these.
    skipped: files that were there already, with the right size.
  """

  files: int = 0
  size: int = 0
  skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Archive:
  """One archive: the pieces of it in order, or the one file it is."""

  pieces: tuple[pathlib.Path, ...]

  @property
  def path(self) -> pathlib.Path:
    """What errors call it."""
    return self.pieces[0]

  @property
  def size(self) -> int:
    """Bytes on disk."""
    return sum(piece.stat().st_size for piece in self.pieces)


@dataclasses.dataclass(frozen=True)
class _Member:
  parts: tuple[str, ...]  # of its name, checked
  size: int
  folder: bool
  encrypted: bool = False
  open: Callable[[], IO[bytes]] = io.BytesIO

  @property
  def name(self) -> str:
    return '/'.join(self.parts)


def unpack(
  paths: Iterable[str | os.PathLike[str]],
  out: str | os.PathLike[str],
  *,
  ask: Callable[[str], str] | None = None,
) -> Summary:
  """Unpacks archives into the folder `out`, which is made if need be.

  Files that are there with the right size are left alone, so that a second
  call goes on where an interrupted one stopped.

  Args:
    paths: archives; pieces of one are joined, see `group`.
    out: may hold files already.
    ask: gives the password of the archive of a name.

  Raises:
    MiraInputError: 'unsafe_archive' for what could harm this machine,
      'bad_archive' for damage or another kind of file, 'no_password',
      'bad_password', 'disk_full', and those of `group`.
  """
  summary = Summary()
  for archive in group(paths):
    _unpack(archive, pathlib.Path(out), ask, summary)
  return summary


def _unpack(
  archive: Archive,
  out: pathlib.Path,
  ask: Callable[[str], str] | None,
  summary: Summary,
) -> None:
  with _guard(archive), io.BufferedReader(Joined(archive.pieces)) as file:
    total = None
    kind = _kind(archive, file)
    if kind == 'zip':
      members = _zip_members(archive, file, ask)
      total = sum(member.size for member in members)
      if total > _free(out):  # what is there already needs no room
        missing = (m.size for m in members if not _is_there(out, m))
        _check_room(archive, sum(missing), out)
    else:
      members = _tar_members(archive, _decompressed(file, kind))
    column = rich.progress.DownloadColumn()
    title = archive.path.name
    with workers.progress_bar(title, total, column) as advance:
      writer = _Writer(archive, out, summary, advance)
      for member in members:
        writer.write(member)


# Which files are one archive.


def group(paths: Iterable[str | os.PathLike[str]]) -> list[Archive]:
  """The archives that files are, or are pieces of.

  Several pieces of one archive are taken as all of it, in the order of their
  numbers. Of a single piece the others are looked for beside it.

  Raises:
    MiraInputError: 'not_found', or 'missing_piece' with its name.
  """
  groups: dict[str, list[pathlib.Path]] = {}
  for path in dict.fromkeys(map(pathlib.Path, paths)):
    if not path.is_file():
      raise MiraInputError('not_found', path, 'no such file')
    stem, _ = _piece(path.name)
    groups.setdefault(stem or str(path), []).append(path)
  return [_archive(files) for files in groups.values()]


def find_archives(
  folder: str | os.PathLike[str],
) -> list[list[pathlib.Path]]:
  """The archives in a folder or one level below, each with all its pieces."""
  folder = pathlib.Path(folder)
  found = []
  for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
    groups: dict[str, list[pathlib.Path]] = {}
    for entry in os.scandir(place):
      stem, _ = _piece(entry.name)
      if (stem or _has_suffix(entry.name)) and entry.is_file():
        groups.setdefault(stem or entry.name, []).append(place / entry.name)
    for _, files in sorted(groups.items()):
      files.sort(key=lambda path: _piece(path.name)[1])
      # Frames may be numbered like pieces; only their content tells.
      if _has_suffix(files[0].name) or _starts_archive(files[0]):
        found.append(files)
  return found


def _archive(files: list[pathlib.Path]) -> Archive:
  first = files[0]
  stem, _ = _piece(first.name)
  if not stem:
    return Archive((first,))
  if len(files) == 1:
    beside = (p for p in first.parent.iterdir() if _piece(p.name)[0] == stem)
    files = [path for path in beside if path.is_file()]
  numbered = {_piece(path.name)[1]: path for path in files}
  # Letters count from aa, digits from 0 or 1.
  least = min(1, *numbered) if first.name[-1].isdigit() else 0
  for number in range(least, max(numbered)):
    if number not in numbered:
      path = first.with_name(_renumbered(first.name, number))
      hint = f'a piece of {stem!r} that is missing; it has {len(files)} others'
      raise data_error('missing_piece', path, hint)
  return Archive(tuple(numbered[number] for number in sorted(numbered)))


def _piece(name: str) -> tuple[str, int]:
  """What a piece is cut from and its number; '' and 0 for other files."""
  for pattern in () if _has_suffix(name) else _PIECES:
    if match := pattern.fullmatch(name):
      digits = match['number']
      if digits.isdigit():
        return match['stem'] + '0', int(digits)
      number = 0
      for letter in digits:
        number = 26 * number + ord(letter) - ord('a')
      return match['stem'] + 'a' * len(digits), number
  return '', 0


def _renumbered(name: str, number: int) -> str:
  """The name of another piece of the same archive."""
  digits = next(m['number'] for p in _PIECES if (m := p.fullmatch(name)))
  base = name[: -len(digits)]
  if digits.isdigit():
    return f'{base}{number:0{len(digits)}}'
  letters = []
  for _ in digits:
    number, letter = divmod(number, 26)
    letters.append(chr(ord('a') + letter))
  return base + ''.join(reversed(letters))


def _has_suffix(name: str) -> bool:
  return name.lower().endswith(_SUFFIXES)


def _starts_archive(path: pathlib.Path) -> bool:
  with path.open('rb') as file:
    return _magic(file.read(512)) in ('zip', 'tar', 'gz', 'bz2', 'xz')


class Joined(io.RawIOBase):
  """Files one after the other as one that can be read and sought.

  One of them is open at a time; nothing is copied.
  """

  def __init__(self, paths: Sequence[pathlib.Path]):
    super().__init__()
    self._paths = paths
    sizes = (path.stat().st_size for path in paths)
    self._ends = list(itertools.accumulate(sizes))
    self._position = 0
    self._index = -1
    self._file: IO[bytes] | None = None

  def readable(self) -> bool:
    """Always."""
    return True

  def seekable(self) -> bool:
    """Always."""
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    """Moves; before the start is an OSError, as for a file."""
    base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}
    target = offset + base.get(whence, self._ends[-1])
    if target < 0:
      raise OSError(errno.EINVAL, 'seek before the start')
    self._position = target
    return target

  def tell(self) -> int:
    """The position in all files together."""
    return self._position

  def readinto(self, buffer) -> int:
    """Fills the buffer as far as the current file goes."""
    index = bisect.bisect_right(self._ends, self._position)
    if index == len(self._ends):
      return 0
    file = self._at(index)
    file.seek(self._position - (self._ends[index - 1] if index else 0))
    count = file.readinto(buffer)
    if not count:
      raise EOFError(f'{self._paths[index]} became shorter while it was read')
    self._position += count
    return count

  def close(self) -> None:
    """Closes the file that is open."""
    if self._file:
      self._file.close()
    super().close()

  def _at(self, index: int) -> IO[bytes]:
    if index != self._index:
      if self._file:
        self._file.close()
      self._file = self._paths[index].open('rb', buffering=0)
      self._index = index
    return self._file


# What an archive holds.


def _magic(head: bytes) -> str:
  """The kind of a file by its first bytes; '' if unknown."""
  kinds = {
    **{b'PK\3\4': 'zip', b'PK\5\6': 'zip', b'PK\7\x08': 'disks'},
    **{b'\x1f\x8b': 'gz', b'BZh': 'bz2', b'\xfd7zXZ\0': 'xz'},
    **{b'Rar!': 'RAR', b"7z\xbc\xaf'\x1c": '7z'},
  }
  kind = next((kind for m, kind in kinds.items() if head.startswith(m)), '')
  return 'tar' if head[257:262] == b'ustar' else kind


def _kind(archive: Archive, file: io.BufferedReader) -> str:
  """What to read an archive as: zip, tar, or what a tar is compressed with."""
  kind = _magic(file.read(512))
  file.seek(0)
  path = archive.path
  if kind == 'disks' or (kind == 'zip' and path.with_suffix('.z01').exists()):
    raise data_error('bad_archive', path, _MANY_DISKS)
  if kind in ('RAR', '7z'):
    raise data_error('bad_archive', path, f'{kind} is not read: {_SEVEN_ZIP}')
  if not kind and path.suffix.lower() == '.tar':
    return 'tar'  # one older than its magic number
  if not kind and path.suffix.lower() == '.zip':
    return 'zip'  # damaged, or with something in front of it
  if not kind:
    raise data_error('bad_archive', path, 'not an archive: neither zip nor tar')
  return kind


def _parts(archive: Archive, name: str) -> tuple[str, ...]:
  """The folders and the name of a member, which stays inside any folder."""
  parts = tuple(part for part in name.split('/') if part not in ('', '.'))
  odd = '\\' in name or '\0' in name or name.startswith('/')
  if odd or '..' in parts or _DRIVE.match(name):
    raise _unsafe(archive, f'{name!r} would be written outside the folder')
  return parts


def _is_rubbish(parts: tuple[str, ...]) -> bool:
  """Whether macOS put it there: Finder's files and resource forks."""
  if not parts:  # the folder itself, as ./ in a tar
    return True
  return '__MACOSX' in parts or parts[-1].startswith(('.DS_Store', '._'))


def _decode(names: list[bytes]) -> list[str]:
  """Names of unknown encoding, all in the first one that reads all of them.

  Hardly a name is UTF-8 by chance, but many are GB18030, which then reads as
  rare characters. Any name is cp437, which a zip means where it says nothing.
  """
  with contextlib.suppress(UnicodeDecodeError):
    return [name.decode('utf-8') for name in names]
  with contextlib.suppress(UnicodeDecodeError):
    decoded = [name.decode('gb18030') for name in names]
    if _is_common_chinese(''.join(decoded)):
      return decoded
  return [name.decode('cp437') for name in names]


def _is_common_chinese(text: str) -> bool:
  """Whether half of what is not ASCII is among the 6763 common characters."""
  foreign = ''.join(letter for letter in text if not letter.isascii())
  common = foreign.encode('gb2312', 'ignore').decode('gb2312')
  return 2 * len(common) >= len(foreign)


def _zip_members(
  archive: Archive,
  file: io.BufferedReader,
  ask: Callable[[str], str] | None,
) -> list[_Member]:
  """Members of a zip whose whole index is harmless."""
  opened = zipfile.ZipFile(file)
  infos = opened.infolist()
  if len(infos) > MAX_MEMBERS:
    raise _unsafe(archive, f'{len(infos)} members are too many')
  names = _zip_names(infos)
  checked = [_parts(archive, name) for name in names]
  for info, name in zip(infos, names, strict=True):
    _check_info(archive, info, name)
  _check_ratio(archive, 'all', sum(i.file_size for i in infos), archive.size)
  if any(info.flag_bits & 1 for info in infos):
    opened.setpassword(_password(archive, ask))
  return [
    _Member(
      parts,
      0 if name.endswith('/') else info.file_size,
      folder=name.endswith('/'),
      encrypted=bool(info.flag_bits & 1),
      open=functools.partial(_open, opened, info),
    )
    for info, name, parts in zip(infos, names, checked, strict=True)
    if not _is_rubbish(parts)
  ]


def _zip_names(infos: list[zipfile.ZipInfo]) -> list[str]:
  """Names as their owner wrote them; see bit 11 of the flags."""
  unknown = [info for info in infos if not info.flag_bits & 0x800]
  # zipfile cuts `filename` at a NUL, which would hide what follows.
  raw = [info.orig_filename.encode('cp437') for info in unknown]
  decoded = dict(zip(map(id, unknown), _decode(raw), strict=True))
  return [decoded.get(id(info), info.orig_filename) for info in infos]


def _check_info(archive: Archive, info: zipfile.ZipInfo, name: str) -> None:
  """One entry of the index of a zip."""
  kind = stat.S_IFMT(info.external_attr >> 16)
  if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
    raise _unsafe(archive, f'{name!r} is a link or a device')
  if info.compress_type == 99 or info.flag_bits & 0x40:
    hint = f'{name!r} is encrypted with AES: {_SEVEN_ZIP}'
    raise data_error('bad_archive', archive.path, hint)
  # The others are rare, and zipfile does not bound what they expand to.
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    hint = f'{name!r} is compressed by method {info.compress_type}'
    raise data_error('bad_archive', archive.path, f'{hint}: {_SEVEN_ZIP}')
  _check_ratio(archive, repr(name), info.file_size, info.compress_size)


def _check_ratio(archive: Archive, what: str, size: int, packed: int) -> None:
  if size > RATIO_FLOOR and size > MAX_RATIO * packed:
    hint = f'{what} of {packed} bytes would become {size}, as a bomb does'
    raise _unsafe(archive, hint)


def _password(archive: Archive, ask: Callable[[str], str] | None) -> bytes:
  password = ask(archive.path.name) if ask else ''
  if not password:
    hint = 'encrypted; give its password with --ask-password'
    raise data_error('no_password', archive.path, hint)
  return password.encode()


def _open(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
  # zipfile stops at the size that the index promises. With more than is read
  # at once, a member that goes on is seen.
  info = copy.copy(info)
  info.file_size += 2 * _CHUNK
  return opened.open(info)


def _tar_members(archive: Archive, file: IO[bytes]) -> Iterator[_Member]:
  """Members of a tar as they come; each is to be read before the next."""
  reader = _Metered(archive, file)
  with tarfile.open(
    fileobj=reader,
    mode='r|',
    bufsize=tarfile.RECORDSIZE,
    encoding='utf-8',
    errors='surrogateescape',
  ) as tar:
    for count in itertools.count():
      info = tar.next()
      if info is None:
        break
      if count == MAX_MEMBERS:
        raise _unsafe(archive, f'more than {count} members')
      tar.members.clear()  # millions of them would fill the memory
      reader.limit = reader.position + info.size + MAX_HEADER
      raw = info.name.encode('utf-8', 'surrogateescape')
      (name,) = _decode([raw])
      parts = _parts(archive, name)
      _check_type(archive, info, name)
      if not _is_rubbish(parts):
        stream = functools.partial(tar.extractfile, info)
        yield _Member(parts, info.size, folder=info.isdir(), open=stream)
    reader.finish(tar.offset)


def _check_type(archive: Archive, info: tarfile.TarInfo, name: str) -> None:
  if not (info.isfile() or info.isdir()):
    raise _unsafe(archive, f'{name!r} is a link or a device')
  if info.issparse():  # a few bytes that claim to be terabytes of zeros
    raise _unsafe(archive, f'{name!r} is a sparse file')


def _decompressed(file: IO[bytes], kind: str) -> IO[bytes]:
  openers = {'gz': gzip.open, 'bz2': bz2.open, 'xz': lzma.open}
  return openers[kind](file) if kind in openers else file


class _Metered:
  """What tarfile reads from: bounded, and it knows where its zeros begin."""

  def __init__(self, archive: Archive, file: IO[bytes]):
    self._archive = archive
    self._file = file
    self._most = max(RATIO_FLOOR, MAX_RATIO * archive.size)
    self._used = 0  # where the last byte is that is not zero
    self.position = 0
    self.limit = MAX_HEADER

  def read(self, size: int) -> bytes:
    """Reads on, until it is more than a header or a harmless tar takes."""
    chunk = self._file.read(size)
    if used := len(chunk.rstrip(b'\0')):
      self._used = self.position + used
    self.position += len(chunk)
    if self.position > self._most:
      _check_ratio(self._archive, 'all', self.position, self._archive.size)
    if self.position > self.limit:
      raise _unsafe(self._archive, 'the header of a member has no end')
    return chunk

  def finish(self, end: int) -> None:
    """Reads the rest, which proves the checksum of what it is packed in.

    tarfile takes a damaged or missing header for the end, which is of zeros.
    """
    self.limit = math.inf
    while self.read(_CHUNK):
      pass
    if self._used > end or self.position <= end:
      raise tarfile.ReadError(f'neither a member nor the end at byte {end}')


# Writing.


class _Writer:
  """Writes members of one archive below a folder."""

  def __init__(
    self,
    archive: Archive,
    out: pathlib.Path,
    summary: Summary,
    advance: Callable[[int], None],
  ):
    self._archive = archive
    self._out = out
    self._root = out.resolve()
    self._summary = summary
    self._advance = advance
    self._ready: set[pathlib.Path] = set()
    self._seen: set[pathlib.Path] = set()

  def write(self, member: _Member) -> None:
    """Makes a folder, or a file unless it is there."""
    target = self._out.joinpath(*member.parts)
    self._make(target if member.folder else target.parent)
    if member.folder:
      return
    if target in self._seen:
      hint = f'{member.name!r} is in it twice, and only one could be kept'
      raise _unsafe(self._archive, hint)
    self._seen.add(target)
    if _is_there(self._out, member):
      self._summary.skipped += 1
      self._advance(member.size)
      return
    _check_room(self._archive, member.size, self._out)
    with _guard(self._archive, member):
      self._write_file(member, target)
    self._summary.files += 1
    self._summary.size += member.size

  def _make(self, folder: pathlib.Path) -> None:
    if folder in self._ready:
      return
    # A link that was there before may lead out of the folder.
    if not folder.resolve().is_relative_to(self._root):
      raise _unsafe(self._archive, f'{folder} is a link to elsewhere')
    folder.mkdir(parents=True, exist_ok=True)
    self._ready.add(folder)

  def _write_file(self, member: _Member, target: pathlib.Path) -> None:
    part = target.with_name(target.name + PART_SUFFIX)
    part.unlink(missing_ok=True)  # of a run that was killed
    try:
      with member.open() as source, part.open('xb') as sink:
        self._copy(member, source, sink)
      part.replace(target)
    finally:
      part.unlink(missing_ok=True)

  def _copy(self, member: _Member, source: IO[bytes], sink: IO[bytes]) -> None:
    left = member.size
    while chunk := source.read(min(_CHUNK, left + 1)):
      left -= len(chunk)
      if left < 0:
        hint = f'{member.name!r} is longer than the {member.size} bytes it says'
        raise _unsafe(self._archive, hint)
      sink.write(chunk)
      self._advance(len(chunk))
    if left:
      raise EOFError(f'{left} bytes are missing')


def _is_there(out: pathlib.Path, member: _Member) -> bool:
  try:
    found = out.joinpath(*member.parts).lstat()
  except (FileNotFoundError, NotADirectoryError):
    return False
  return stat.S_ISREG(found.st_mode) and found.st_size == member.size


def _free(out: pathlib.Path) -> int:
  """Bytes free where a folder is or will be."""
  out = out.absolute()
  return shutil.disk_usage(
    next(place for place in (out, *out.parents) if place.exists())
  ).free


def _check_room(archive: Archive, needed: int, out: pathlib.Path) -> None:
  free = _free(out)
  if needed > free:
    hint = f'{needed:,} bytes are to be written to {out}, {free:,} are free'
    raise data_error('disk_full', archive.path, hint)


# Errors.


@contextlib.contextmanager
def _guard(archive: Archive, member: _Member | None = None) -> Iterator[None]:
  """Turns what reading and writing an archive raises into one line."""
  at = f' at {member.name!r}' if member else ''
  try:
    yield
  except MiraInputError:  # which is a ValueError
    raise
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      hint = f'the disk is full{at}; make room and run this again'
      raise data_error('disk_full', archive.path, hint) from error
    if error.errno is not None:  # the disk's fault, not the archive's
      raise
    raise _damaged(archive, at, error) from error
  except (*_DAMAGE, RuntimeError) as error:
    if member and member.encrypted:
      # One wrong password in 256 passes the only check that a zip has.
      hint = f'the password is wrong, or the archive is damaged{at}'
      raise data_error('bad_password', archive.path, hint) from None
    raise _damaged(archive, at, error) from error


def _damaged(archive: Archive, at: str, error: Exception) -> MiraInputError:
  hint = f'damaged{at} ({error or "it ends too early"})'
  if len(archive.pieces) > 1:
    hint += f'; {archive.pieces[-1].name} was taken for the last piece'
  return data_error('bad_archive', archive.path, hint)


def _unsafe(archive: Archive, hint: str) -> MiraInputError:
  return data_error('unsafe_archive', archive.path, hint)
