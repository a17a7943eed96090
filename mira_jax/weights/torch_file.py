"""PyTorch files (.pth, .pt, .bin) as numpy arrays, without PyTorch or trust.

Such a file is a zip of one pickle, NAME/data.pkl, and of the bytes of its
tensors, NAME/data/0, NAME/data/1, ... `pickles` reads the first without running
it; here are the few names that describe tensors, and the bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from mira_jax.errors import (
  MiraInputError,
  checkpoint_error,
  not_readable,
  short,
)
from mira_jax.weights import pickles
from mira_jax.weights.pickles import Inert

# Names, lists and numbers, but no tensors: the largest known ones are below 1.
_PICKLE_BYTES = 64 * 2**20
_INDEX_BYTES = 16 * 2**20  # of the list of a zip's members
# Bytes that may be read, over the size of the file. Tensors may share their
# bytes; a thousand of them on the same ones is an attack.
_SHARED = 16
_BIGGEST = 2**48  # a number of a shape
_MOST_ARGUMENTS = 16  # of a function within a call
# The number with which torch.save began its files before they were zips.
_LEGACY = 0x1950A86A20F9469CFC6C.to_bytes(10, 'little')

_STORAGES = {
  'DoubleStorage': 'float64',
  'FloatStorage': 'float32',
  'HalfStorage': 'float16',
  'BFloat16Storage': 'bfloat16',
  'LongStorage': 'int64',
  'IntStorage': 'int32',
  'ShortStorage': 'int16',
  'CharStorage': 'int8',
  'ByteStorage': 'uint8',
  'BoolStorage': 'bool',
}
_TYPED = {
  f'{module}.{name}': jnp.dtype(dtype)
  for name, dtype in _STORAGES.items()
  for module in ('torch', 'torch.cuda', 'torch.storage')
}
# What else makes a tensor: quantised, sparse, of another device, ...
_REBUILDS = ('torch._utils._rebuild_', 'torch._tensor._rebuild_')


@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Storage:
  """Bytes of tensors: a member of the zip, which may be absent."""

  key: str
  kind: str  # the name of its type
  size: int  # in elements of that type


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tensor:
  """A tensor of a file; `read` gets its elements."""

  shape: tuple[int, ...]  # () of one that cannot be read
  dtype: np.dtype
  needs: str  # the global without which it cannot be read, or ''
  _strides: tuple[int, ...]  # in elements
  _offset: int
  _storage: _Storage | None
  _file: _File

  def __repr__(self) -> str:
    return f'<tensor {self.shape}>'

  def read(self) -> np.ndarray:
    """A copy of its elements, or MiraInputError."""
    return self._file.take(self)


@contextlib.contextmanager
def open_pth(path: str | os.PathLike[str]) -> Iterator[Any]:
  """The tree of a file: dicts, lists, numbers, `Tensor`; others are `Inert`.

  Tensors can be read until the context ends.

  Raises:
    MiraInputError: not a file of PyTorch, of a version before 1.6, damaged, or
      its pickle is none that a program writes.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise checkpoint_error('not_found', path, 'there is no such file')
  try:
    stream = _Stream(io.FileIO(path))
  except OSError as error:
    raise not_readable(path, error) from error
  with stream, _open_zip(path, stream) as archive:
    yield _File(path, archive).tree()


class _File:
  """The zip, checked."""

  def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile):
    self.path, self.archive = path, archive
    names, size = archive.namelist(), path.stat().st_size
    roots = [n[: -len('data.pkl')] for n in names if n.endswith('data.pkl')]
    if len(roots) != 1 or roots[0].count('/') > 1:
      raise self.error('not_weights', 'a zip, but not one of torch.save')
    self.root = roots[0]
    self._budget = _SHARED * size
    self._last = ('', b'')
    if sum(i.compress_size for i in archive.infolist()) > size:
      hint = 'its members overlap, which torch.save never does'
      raise self.error('unsafe_pickle', hint)
    order = f'{self.root}byteorder'
    if order in names and self.member(order).strip() != b'little':
      raise self.error('not_weights', 'it was written on a big-endian machine')
    self._calls = {
      'collections.OrderedDict': lambda: {},
      'torch.Size': lambda sizes=(): sizes,
      'torch._utils._rebuild_tensor': self._tensor,
      'torch._utils._rebuild_tensor_v2': self._tensor,
      'torch._utils._rebuild_parameter': lambda data, *_: data,
      'torch._utils._rebuild_parameter_with_state': lambda data, *_: data,
      # Those of subclasses, such as a parameter with attributes.
      'torch._tensor._rebuild_from_type': self._of_subclass,
      'torch._tensor._rebuild_from_type_v2': self._of_subclass,
    }

  def error(self, code: str, hint: str) -> MiraInputError:
    return checkpoint_error(code, self.path, hint)

  def member(self, name: str) -> bytes:
    """Its bytes, which take no more memory than the file does."""
    try:
      if self.archive.getinfo(name).compress_type == zipfile.ZIP_STORED:
        return self.archive.read(name)
    except MemoryError:
      raise
    # Damaged headers make anything: encryption, names that are no text, ...
    except Exception as error:
      hint = f'{short(name)}: {short(str(error))}; copy it again'
      raise self.error('damaged', hint) from error
    hint = f'{short(name)} is compressed, which torch.save never does'
    raise self.error('unsafe_pickle', hint)

  def tree(self) -> Any:
    """The tree of its pickle."""
    data = self.member(f'{self.root}data.pkl')
    if len(data) > _PICKLE_BYTES:
      hint = f'its pickle has {len(data)} bytes; tensors belong beside it'
      raise self.error('unsafe_pickle', hint)
    try:
      return pickles.load(data, self._call, self._storage)
    except MiraInputError:
      raise
    except pickles.RefusedError as error:
      raise self.error('unsafe_pickle', str(error)) from error
    except ValueError as error:
      hint = f'its pickle cannot be read ({error}); copy it again'
      raise self.error('damaged', hint) from error

  # ----- what its pickle names -----

  def _storage(self, pid: Any) -> _Storage:
    match pid:
      case ('storage', Inert() as kind, str(key), _, int(size)) if (
        key.isascii() and key.isdecimal() and 0 <= size < _BIGGEST
      ):
        return _Storage(key, kind.name, size)
    hint = 'it names bytes in a way that torch.save does not'
    raise self.error('unsafe_pickle', hint)

  def _call(self, function: Inert, args: tuple[Any, ...]) -> Any:
    """What a global makes; an unknown one makes a tensor if it takes one."""
    if function.name in self._calls:
      return self._calls[function.name](*args)
    inner = [a for a in args if type(a) is tuple and len(a) <= _MOST_ARGUMENTS]
    makes = function.name.startswith(_REBUILDS) or any(
      isinstance(x, (Tensor, _Storage)) for a in (args, *inner) for x in a
    )
    return self._unreadable(function.name) if makes else Inert(function.name)

  def _tensor(
    self, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any
  ) -> Tensor:
    """A tensor; whether it is within its storage is checked on reading.

    The rest are requires_grad, hooks and metadata.
    """
    if isinstance(storage, Inert):  # of an unknown function
      return self._unreadable(storage.name)
    # Numbers first: there is no end to what else could be printed or computed.
    if (
      not isinstance(storage, _Storage)
      or not all(isinstance(x, tuple) for x in (shape, strides))
      or not len(shape) == len(strides) <= 32
      or not all(
        type(n) is int and 0 <= n < _BIGGEST for n in (offset, *shape, *strides)
      )
    ):
      raise self.error('unsafe_pickle', 'a tensor has no proper shape')
    if rest[2:] and isinstance(rest[2], dict) and rest[2]:  # {'neg': True}
      return self._unreadable(f'torch.Tensor.{next(iter(rest[2]))}')
    dtype = _TYPED.get(storage.kind)
    if dtype is None:
      return self._unreadable(storage.kind)
    return Tensor(shape, dtype, '', strides, offset, storage, self)

  def _of_subclass(self, function: Any, _type: Any, args: Any, *_: Any) -> Any:
    if not isinstance(function, Inert) or not isinstance(args, tuple):
      raise self.error('unsafe_pickle', 'a tensor is made by no function')
    if len(args) > _MOST_ARGUMENTS or function.name not in self._calls:
      return self._unreadable(function.name)
    return self._calls[function.name](*args)

  def _unreadable(self, needs: str) -> Tensor:
    return Tensor((), np.dtype(np.float32), needs, (), 0, None, self)

  # ----- its bytes -----

  def take(self, tensor: Tensor) -> np.ndarray:
    """See `Tensor.read`."""
    storage, size = tensor._storage, tensor.dtype.itemsize
    if storage is None:
      hint = f'a tensor depends on {tensor.needs[:99]}, which is not supported;'
      raise self.error('unsupported', f'{hint} save it as a plain float32 one')
    count = math.prod(tensor.shape)
    self._spend(count * size)
    data = self._bytes(storage)
    last = tensor._offset + sum(
      (n - 1) * s for n, s in zip(tensor.shape, tensor._strides, strict=True)
    )
    if (last + 1 if count else tensor._offset) * size > len(data):
      hint = f'a tensor {short(tensor.shape)} is not within its bytes'
      raise self.error('unsafe_pickle', hint)
    strides = [s * size for s in tensor._strides]
    start = tensor._offset * size
    # Which checks them once more.
    return np.ndarray(tensor.shape, tensor.dtype, data, start, strides).copy()

  def _bytes(self, storage: _Storage) -> bytes:
    name = f'{self.root}data/{storage.key}'
    if self._last[0] != name:  # neighbours often share one
      data = self.member(name)
      self._spend(len(data))
      self._last = name, data
    data, dtype = self._last[1], _TYPED.get(storage.kind)
    if len(data) != storage.size * (dtype.itemsize if dtype else 1):
      hint = f'{short(name)} has {len(data)} bytes for {storage.size} elements;'
      raise self.error('damaged', f'{hint} copy it again')
    return data

  def _spend(self, count: int) -> None:
    self._budget -= count
    if self._budget < 0:
      raise self.error('unsafe_pickle', 'its tensors are larger than the file')


class _Stream(io.BufferedReader):
  """A file of which not all is read as the list of a zip's members."""

  limit: int | None = _INDEX_BYTES

  def read(self, size: int | None = -1) -> bytes:
    if self.limit and size and size > self.limit:
      raise zipfile.BadZipFile(f'its list of members has {size} bytes')
    return super().read(size)


def _open_zip(path: pathlib.Path, stream: _Stream) -> zipfile.ZipFile:
  start = stream.peek(64)
  try:
    archive = zipfile.ZipFile(stream)
  except Exception as error:  # damaged headers make anything
    code, hint = 'not_weights', 'it is neither a file of torch.save nor '
    hint += 'safetensors'
    if start[:2] == b'PK':
      code, hint = 'damaged', 'its end is missing or damaged '
      hint += f'({short(str(error))}); copy it again'
    elif start[:1] == b'\x80' and _LEGACY in start[:64]:
      code, hint = 'legacy_pth', 'it is of PyTorch before 1.6; save it anew: '
      hint += "torch.save(torch.load('OLD', weights_only=True), 'NEW')"
    elif start[:1] == b'\x80':
      hint = 'it is a pickle, but not one of torch.save; save its tensors with '
      hint += 'torch.save or as safetensors'
    raise checkpoint_error(code, path, hint) from error
  stream.limit = None
  return archive
