"""Files as torch.save writes them, made by hand: PyTorch is not installed."""

from __future__ import annotations

import argparse
import collections
import io
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.weights import torch_file

FLAT = np.arange(8, dtype=np.float32)
STORAGES = {
  'float64': 'DoubleStorage',
  'float32': 'FloatStorage',
  'float16': 'HalfStorage',
  'bfloat16': 'BFloat16Storage',
  'int64': 'LongStorage',
  'int32': 'IntStorage',
  'int16': 'ShortStorage',
  'int8': 'CharStorage',
  'uint8': 'ByteStorage',
  'bool': 'BoolStorage',
}


class Global:
  """A name in a pickle, whether or not there is such a thing."""

  def __init__(self, name: str):
    self.module, _, self.name = name.rpartition('.')

  def __call__(self):
    raise AssertionError('only its name is written')


class Call:
  """What unpickling computes: a function of arguments, then a state."""

  def __init__(self, function, *args, state=None):
    self.function, self.args, self.state = function, args, state


class Bytes:
  """A storage, which a pickle names and a zip has beside it."""

  def __init__(self, array, **changes):
    self.array, self.changes = np.ascontiguousarray(array), changes


class Stateful:
  """A thing, and a state that unpickling shall give it."""

  def __init__(self, thing, state):
    self.thing, self.state = thing, state


class Pickler(pickle._Pickler):
  """Writes globals that cannot be imported, arrays as tensors."""

  def __init__(self, file, protocol=2):
    super().__init__(file, protocol)
    self.storages = []

  def save_global(self, obj, name=None):
    if not isinstance(obj, Global):
      return super().save_global(obj, name)
    text = f'{obj.module}\n{obj.name}\n'
    self.write(pickle.GLOBAL + text.encode())
    return self.memoize(obj)

  def save_stateful(self, obj):
    self.save(obj.thing)
    self.save(obj.state)
    self.write(pickle.BUILD)

  dispatch = pickle._Pickler.dispatch | {
    Global: save_global,
    Stateful: save_stateful,
  }

  def reducer_override(self, obj):
    if isinstance(obj, Call):
      return obj.function, obj.args, obj.state
    if isinstance(obj, np.ndarray):
      return tensor(obj).function, tensor(obj).args
    return NotImplemented

  def persistent_id(self, obj):
    if not isinstance(obj, Bytes):
      return None
    if 'pid' in obj.changes:
      return obj.changes['pid']
    known = [i for i, x in enumerate(self.storages) if x is obj.array]
    if not known:
      known = [len(self.storages)]
      self.storages.append(obj.array)
    kind = STORAGES.get(obj.array.dtype.name, 'UntypedStorage')
    kind = Global(obj.changes.get('kind', f'torch.{kind}'))
    key = obj.changes.get('key', str(known[0]))
    size = obj.changes.get('size', obj.array.size)
    return ('storage', kind, key, 'cpu', size)


def tensor(array, storage=None, offset=0, shape=None, strides=None) -> Call:
  """A tensor over all of an array, unless a shape says otherwise."""
  array = np.asarray(array)
  if shape is None:
    shape = array.shape
  if strides is None:
    strides = tuple(np.cumprod((1, *shape[:0:-1]))[::-1].tolist())[: len(shape)]
  return Call(
    Global('torch._utils._rebuild_tensor_v2'),
    storage or Bytes(array),
    offset,
    shape,
    strides,
    False,
    collections.OrderedDict(),
  )


def save(
  path: pathlib.Path,
  value,
  compression=zipfile.ZIP_STORED,
  byteorder=b'little',
  protocol=2,
) -> pathlib.Path:
  """Writes a value, arrays within it as tensors."""
  stream = io.BytesIO()
  pickler = Pickler(stream, protocol)
  pickler.dump(value)
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', stream.getvalue())
    archive.writestr('archive/byteorder', byteorder)
    for i, array in enumerate(pickler.storages):
      archive.writestr(f'archive/data/{i}', array.tobytes())
    archive.writestr('archive/version', b'3\n')
  return path


def pickled(path, text):
  """Writes a file with a pickle that no module can write."""
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('a/data.pkl', text)
    archive.writestr('a/data/0', FLAT.tobytes())
  return path


def read_all(path):
  with torch_file.open_pth(path) as tree:
    return [x.read() for x in tree.values() if isinstance(x, torch_file.Tensor)]


def code(path):
  """The code of the error that reading all tensors of a file is."""
  with pytest.raises(MiraInputError) as caught:
    read_all(path)
  assert caught.value.exit_code == ExitCode.CHECKPOINT
  assert len(str(caught.value)) < 600
  assert str(caught.value).isprintable()
  return caught.value.code


def checkpoint(state, **settings) -> dict:
  """What the authors' code saves, with the settings of its run."""
  return {
    'model': collections.OrderedDict(state),
    'epoch': 3,
    'optimizer': {
      'state': {0: {'step': np.array(3)}},
      'param_groups': [{'lr': np.float64(1e-3), 'decoupled': {True}}],
    },
    'scaler': {'scale': 65536.0},
    'args': argparse.Namespace(lr=1e-3, window=(8, 14, 14), **settings),
  }
