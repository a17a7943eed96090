"""What a run has done so far, kept so that a second start can go on.

A file of entries that are only ever appended. A process that is killed while
it writes leaves a torn last entry, which the next start cuts off.
"""

from __future__ import annotations

import os
import pathlib
import struct
import threading
import zlib
from types import TracebackType

from mira_jax.data.dataset import disk_errors

_ENTRY = struct.Struct('<QQI')  # number, length and CRC-32 of what follows


class Journal:
  """Bytes by number, in a file that survives the process.

  Args:
    path: of the file; made when missing.
    key: what the entries depend on. Those of another key are thrown away.

  Raises:
    MiraInputError: the disk is full or cannot be written ('not_written').
  """

  def __init__(self, path: str | os.PathLike[str], key: str):
    self._path = pathlib.Path(path)
    self._lock = threading.Lock()
    self._places: dict[int, tuple[int, int]] = {}
    with disk_errors(self._path):
      self._path.touch()
      self._file = self._path.open('r+b', buffering=0)
      self._start(key.encode() + b'\n')

  def __enter__(self) -> Journal:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._file.close()

  def __contains__(self, number: int) -> bool:
    return number in self._places

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, number: int) -> bytes:
    place, length = self._places[number]
    return os.pread(self._file.fileno(), length, place)

  def put(self, number: int, data: bytes) -> None:
    """Adds an entry; may be called from any thread."""
    entry = _ENTRY.pack(number, len(data), zlib.crc32(data)) + data
    with self._lock, disk_errors(self._path):
      start = self._file.seek(0, os.SEEK_END)
      if self._file.write(entry) != len(entry):  # a disk that filled up
        self._file.truncate(start)
        raise OSError('no space left')
      self._places[number] = (start + _ENTRY.size, len(data))

  def remove(self) -> None:
    """Deletes the file; there is nothing left to go on with."""
    self._path.unlink(missing_ok=True)

  def _start(self, header: bytes) -> None:
    if self._file.read(len(header)) != header:
      self._file.seek(0)
      self._file.truncate()
      self._file.write(header)
      return
    end = len(header)
    while entry := self._read(end):
      number, length = entry
      self._places[number] = (end + _ENTRY.size, length)
      end += _ENTRY.size + length
    self._file.truncate(end)

  def _read(self, start: int) -> tuple[int, int] | None:
    """Number and length of the whole entry at a place; None for a torn one."""
    head = os.pread(self._file.fileno(), _ENTRY.size, start)
    if len(head) < _ENTRY.size:
      return None
    number, length, crc = _ENTRY.unpack(head)
    if start + len(head) + length > os.path.getsize(self._path):
      return None
    data = os.pread(self._file.fileno(), length, start + len(head))
    whole = len(data) == length and zlib.crc32(data) == crc
    return (number, length) if whole else None
