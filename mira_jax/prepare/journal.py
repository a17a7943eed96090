"""Finished work of an interrupted run, so that a second run can resume it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import struct
import zlib
from typing import Self

from mira_jax.data.dataset import disk_errors

_ENTRY = struct.Struct('<QI')  # length and CRC-32 of the bytes that follow


class Journal(contextlib.AbstractContextManager):
  """A sequence of bytes in a file that is only appended to.

  A process that is killed while it writes leaves a torn last entry, which the
  next run cuts off. Entries of another key are discarded.

  Raises:
    MiraInputError: the disk is full or cannot be written ('not_written').
  """

  def __init__(self, path: str | os.PathLike[str], key: str):
    self._path = pathlib.Path(path)
    self._entries: list[tuple[int, int]] = []  # start and length
    with disk_errors(self._path):
      self._path.touch()
      self._file = self._path.open('r+b', buffering=0)
      self._read(key.encode() + b'\n')

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self._file.close()

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, index: int) -> bytes:
    start, length = self._entries[index]
    return os.pread(self._file.fileno(), length, start)

  def is_empty(self, index: int) -> bool:
    """Whether an entry has no bytes."""
    return not self._entries[index][1]

  def append(self, data: bytes) -> None:
    """Adds an entry."""
    entry = _ENTRY.pack(len(data), zlib.crc32(data)) + data
    with disk_errors(self._path):
      start = self._file.seek(0, os.SEEK_END)
      if self._file.write(entry) != len(entry):  # a disk that filled up
        self._file.truncate(start)
        raise OSError('no space left')
      self._entries.append((start + _ENTRY.size, len(data)))

  def remove(self) -> None:
    """Deletes the file: the work is complete."""
    self._path.unlink(missing_ok=True)

  def _read(self, header: bytes) -> None:
    end = len(header)
    if self._file.read(end) != header:
      os.pwrite(self._file.fileno(), header, 0)
      self._file.truncate(end)
    while len(head := self._file.read(_ENTRY.size)) == _ENTRY.size:
      length, crc = _ENTRY.unpack(head)
      start = end + _ENTRY.size
      if start + length > os.path.getsize(self._path):
        break
      data = self._file.read(length)
      if len(data) != length or zlib.crc32(data) != crc:
        break
      self._entries.append((start, length))
      end = start + length
    self._file.truncate(end)
