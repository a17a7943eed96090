"""PyTorch files (.pth, .pt, .bin) as numpy arrays, without PyTorch or trust.

Such a file is a zip of one pickle, NAME/data.pkl, and of the bytes of its
tensors, NAME/data/0, NAME/data/1, ... A pickle is a program, which names the
functions it calls. Those named below are answered with our own, which describe
tensors; any other name stops the reading before anything is called.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import math
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from mira_jax.errors import MiraInputError, checkpoint_error

# Names, lists and numbers, but no tensors: the largest known ones are below 1.
_PICKLE_BYTES = 64 * 2**20
# What all tensors that are read may take, over the size of the file. Tensors
# may share their bytes; a thousand of them on the same ones is an attack.
_SHARED = 8

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


@dataclasses.dataclass(frozen=True)
class _Storage:
  """Bytes of tensors: a member of the zip."""

  member: str
  dtype: np.dtype
  size: int  # in elements


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor that is in a file; `read` gets it out.

  Attributes:
    shape: its shape.
    dtype: of its elements, as numpy has it.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  _strides: tuple[int, ...]  # in elements
  _offset: int
  _storage: _Storage
  _file: _File

  def read(self) -> np.ndarray:
    """A copy of its elements.

    Raises:
      MiraInputError: its bytes are damaged.
    """
    return self._file.take(self)


class Namespace:
  """Stands for an `argparse.Namespace`, whose fields are in `values`."""

  def __init__(self):
    self.values: dict[str, Any] = {}

  def __setstate__(self, state: dict[str, Any]):
    self.values = dict(state)


@contextlib.contextmanager
def open_pth(path: str | os.PathLike[str]) -> Iterator[Any]:
  """What is in a file: dicts, lists, numbers, `Tensor` and `Namespace`.

  Tensors can be read until the context ends.

  Raises:
    MiraInputError: not a file of PyTorch, of a version before 1.6, damaged, or
      its pickle names something that a list of tensors has no need of.
  """
  file = _File(pathlib.Path(path))
  with file.archive:
    yield _Unpickler(file).load_all()


class _File:
  """The zip, checked."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.archive = _open_zip(path)
    names = self.archive.namelist()
    roots = [n[: -len('data.pkl')] for n in names if n.endswith('data.pkl')]
    if len(roots) != 1 or roots[0].count('/') > 1:
      raise self.error('not_weights', 'a zip, but not one of torch.save')
    self.root = roots[0]
    self._budget = _SHARED * path.stat().st_size
    self._last = ('', b'')
    self._check()

  def _check(self) -> None:
    """That nothing can be larger than the file, and its bytes little-endian."""
    infos, order = self.archive.infolist(), f'{self.root}byteorder'
    # torch.save stores bytes as they are: nothing can explode on the way out.
    if any(i.compress_type != zipfile.ZIP_STORED for i in infos) or (
      sum(i.file_size for i in infos) > self.path.stat().st_size
    ):
      hint = 'members are compressed or overlap, which torch.save never does'
      raise self.error('unsafe_pickle', hint)
    known = self.archive.namelist()
    if order in known and self.member(order).strip() != b'little':
      raise self.error('not_weights', 'it was written on a big-endian machine')

  def error(self, code: str, hint: str) -> MiraInputError:
    return checkpoint_error(code, self.path, hint)

  def size(self, member: str) -> int:
    try:
      return self.archive.getinfo(member).file_size
    except KeyError as error:
      raise self.error('damaged', f'it lacks {member}') from error

  def member(self, name: str) -> bytes:
    self.size(name)
    try:
      return self.archive.read(name)
    except (
      zipfile.BadZipFile,
      OSError,
      EOFError,
      NotImplementedError,
    ) as error:
      raise self.error('damaged', f'{name}: {error}') from error

  def take(self, tensor: Tensor) -> np.ndarray:
    count = math.prod(tensor.shape)
    self._budget -= count * tensor.dtype.itemsize
    if self._budget < 0:
      raise self.error('unsafe_pickle', 'its tensors are larger than the file')
    storage = tensor._storage
    if self._last[0] != storage.member:  # neighbours often share one
      self._last = storage.member, self.member(storage.member)
    flat = np.frombuffer(self._last[1], storage.dtype, storage.size)
    strides = [s * flat.itemsize for s in tensor._strides]
    view = np.lib.stride_tricks.as_strided(
      flat[tensor._offset :], tensor.shape, strides
    )
    return view.copy()


def _open_zip(path: pathlib.Path) -> zipfile.ZipFile:
  if not path.is_file():
    raise checkpoint_error('not_found', path, 'there is no such file')
  with path.open('rb') as file:
    start = file.read(2)
  try:
    return zipfile.ZipFile(path)
  except (zipfile.BadZipFile, OSError, ValueError) as error:
    if start == b'PK':
      hint = f'its end is missing or damaged ({error}); copy it again'
      raise checkpoint_error('damaged', path, hint) from error
    if start[:1] == b'\x80':
      hint = 'it is of PyTorch before 1.6; save it anew with PyTorch: '
      hint += "torch.save(torch.load('OLD', weights_only=True), 'NEW')"
      raise checkpoint_error('legacy_pth', path, hint) from error
    hint = 'it is neither a file of torch.save nor safetensors'
    raise checkpoint_error('not_weights', path, hint) from error


class _Global:
  """A name that a pickle may call; unlike a function it cannot be changed."""

  __slots__ = ('_call',)

  def __init__(self, call: Callable[..., Any]):
    object.__setattr__(self, '_call', call)

  def __call__(self, *args: Any) -> Any:
    return self._call(*args)

  def __setattr__(self, name: str, value: Any):
    raise pickle.UnpicklingError('a global may not be changed')


class _Unpickler(pickle.Unpickler):
  """Reads a pickle that can call nothing but what `_globals` lists."""

  def __init__(self, file: _File):
    self._file = file
    name = f'{file.root}data.pkl'
    if file.size(name) > _PICKLE_BYTES:
      hint = f'its pickle has {file.size(name)} bytes; tensors belong beside it'
      raise file.error('unsafe_pickle', hint)
    super().__init__(io.BytesIO(file.member(name)))
    # Made anew for every file: a pickle may set attributes of classes.
    inert = type('Namespace', (Namespace,), {})
    self._globals = {
      ('collections', 'OrderedDict'): collections.OrderedDict,
      ('argparse', 'Namespace'): inert,
      ('torch', 'Size'): _Global(tuple),
      ('torch', 'device'): _Global(lambda *_: 'device'),
      ('torch._utils', '_rebuild_tensor_v2'): _Global(self._tensor),
      ('torch._utils', '_rebuild_parameter'): _Global(_parameter),
      **{('torch', n): _Global(_refuse_call) for n in _STORAGES},
    }
    self._dtypes = {
      id(self._globals['torch', name]): jnp.dtype(dtype)
      for name, dtype in _STORAGES.items()
    }

  def load_all(self) -> Any:
    """The object.

    Raises:
      MiraInputError: 'unsafe_pickle' or 'damaged'.
    """
    try:
      return self.load()
    except MiraInputError:
      raise
    # Whatever damaged bytes make the machine of pickle do.
    except Exception as error:
      hint = f'its pickle cannot be read ({str(error)[:99]})'
      raise self._file.error('damaged', hint) from error

  def find_class(self, module: str, name: str) -> Any:
    """See pickle; raises MiraInputError for all but what is listed."""
    try:
      return self._globals[module, name]
    except KeyError as error:
      asked = f'{module}.{name}'[:99].encode('unicode_escape').decode()
      hint = f'it asks for {asked}, which weights have no need of; '
      hint += 'nothing was run. Do not open it with other programs'
      raise self._file.error('unsafe_pickle', hint) from error

  def persistent_load(self, pid: Any) -> _Storage:
    """A storage of ('storage', type, key, device, size)."""
    match pid:
      case ('storage', kind, str(key), str(), int(size)) if (
        id(kind) in self._dtypes and key.isdecimal() and 0 <= size < 2**48
      ):
        dtype = self._dtypes[id(kind)]
      case _:
        hint = 'it names bytes in a way that torch.save does not'
        raise self._file.error('unsafe_pickle', hint)
    member = f'{self._file.root}data/{key}'
    if self._file.size(member) != size * dtype.itemsize:
      hint = f'{member} has not the bytes of {size} numbers of {dtype}'
      raise self._file.error('damaged', hint)
    return _Storage(member, dtype, size)

  def _tensor(
    self,
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *_: Any,
  ) -> Tensor:
    """A tensor whose elements all are within its storage."""
    numbers = (offset, *shape, *strides)
    # Numbers first: there is no end to what else could be printed or computed.
    if (
      not isinstance(storage, _Storage)
      or not all(type(n) is int and 0 <= n < 2**48 for n in numbers)
      or not len(shape) == len(strides) <= 32
    ):
      raise self._file.error('unsafe_pickle', 'a tensor has no proper shape')
    last = offset + sum(
      (n - 1) * s for n, s in zip(shape, strides, strict=True)
    )
    count = math.prod(shape)
    if max(count, last + 1 if count else offset) > storage.size:
      hint = f'a tensor {tuple(shape)} at {offset} with strides '
      hint += f'{tuple(strides)} is not within its {storage.size} elements'
      raise self._file.error('unsafe_pickle', hint)
    return Tensor(
      tuple(shape), storage.dtype, tuple(strides), offset, storage, self._file
    )


def _parameter(data: Any, *_: Any) -> Any:
  return data


def _refuse_call(*_: Any) -> None:
  raise pickle.UnpicklingError('a type of storage is no function')
