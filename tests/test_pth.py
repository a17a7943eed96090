"""PyTorch files are read without PyTorch, and nothing in them is run."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

import torch_files
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.interop import pth
from torch_files import Bytes, Call, Global, save, tensor


def load(path, name='x'):
  with pth.open_pth(path) as tree:
    return tree[name].read()


def read_all(path):
  with pth.open_pth(path) as tree:
    for value in tree.values():
      if isinstance(value, pth.Tensor):
        value.read()


def code(path):
  with pytest.raises(MiraInputError) as caught:
    read_all(path)
  assert caught.value.exit_code == ExitCode.CHECKPOINT
  assert len(str(caught.value)) < 600
  return caught.value.code


@pytest.mark.parametrize('dtype', torch_files.STORAGES)
def test_every_dtype_comes_out_bit_by_bit(tmp_path, dtype):
  array = np.arange(6).reshape(2, 3).astype(jnp.dtype(dtype))
  got = load(save(tmp_path / 'a.pth', {'x': array}))
  assert (got.dtype, got.shape) == (array.dtype, (2, 3))
  assert got.tobytes() == array.tobytes()


def test_views_of_one_storage(tmp_path):
  """Those of a matrix [[0 .. 5], [6 .. 11], ...] that PyTorch would make."""
  base = np.arange(24, dtype=np.float32)
  shared = Bytes(base)
  path = save(
    tmp_path / 'a.pth',
    {
      'transposed': tensor(base, shared, 0, (6, 4), (1, 6)),
      'part': tensor(base, shared, 8, (2, 3), (6, 1)),
      'last': tensor(base, shared, 23, (), ()),
      'none': tensor(base, shared, 24, (0, 4), (4, 1)),
    },
  )
  np.testing.assert_array_equal(load(path, 'transposed'), base.reshape(4, 6).T)
  assert load(path, 'part').tolist() == [[8, 9, 10], [14, 15, 16]]
  assert load(path, 'last') == 23
  assert load(path, 'none').shape == (0, 4)


@pytest.mark.parametrize('protocol', [2, 4])
def test_what_lies_beside_the_tensors(tmp_path, protocol):
  value = {
    'args': argparse.Namespace(lr=0.5, names=['a', None], size=(2, 16)),
    'size': Call(Global('torch.Size'), (1, 2)),
    'device': Call(Global('torch.device'), 'cuda', 0),
    'weight': Call(
      Global('torch._utils._rebuild_parameter'),
      np.ones(2, np.float32),
      True,
      collections.OrderedDict(),
    ),
    'state': collections.OrderedDict(a=1.5),
  }
  path = save(tmp_path / 'a.pth', value, protocol=protocol)
  with pth.open_pth(path) as tree:
    settings = {'lr': 0.5, 'names': ['a', None], 'size': (2, 16)}
    assert tree['args'].values == settings
    assert tree['size'] == (1, 2)
    assert tree['device'] == 'device'
    assert tree['state'] == {'a': 1.5}
    assert tree['weight'].read().tolist() == [1, 1]


# ----- attacks -----

ATTACKS = {
  'posix.system': lambda file: Call(Global('posix.system'), f'touch {file}'),
  'builtins.eval': lambda file: Call(
    Global('builtins.eval'), f'open({str(file)!r}, "w")'
  ),
  'builtins.getattr': lambda file: Call(
    Global('builtins.getattr'), Global('os.path'), 'os'
  ),
  'collections.OrderedDict.fromkeys': lambda file: Call(
    Global('collections.OrderedDict.fromkeys'), [1]
  ),
  'torch.storage._load_from_bytes': lambda file: Call(
    Global('torch.storage._load_from_bytes'), b''
  ),
  'tests.Stateful': lambda file: Call(
    Global('tests.Stateful'), state={'path': str(file)}
  ),
  'mira_jax.interop.pth.Namespace': lambda file: Call(
    Global('mira_jax.interop.pth.Namespace')
  ),
}


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('where', ['value', 'key', 'state'])
def test_a_global_is_refused_by_name_and_never_called(tmp_path, name, where):
  attack = ATTACKS[name](tmp_path / 'touched')
  value = {
    'value': {'x': np.zeros(2, np.float32), 'y': attack},
    'key': {'args': argparse.Namespace(a=attack)},
    'state': Call(collections.OrderedDict, state={'_metadata': attack}),
  }[where]
  path = save(tmp_path / 'a.pth', value)
  with pytest.raises(MiraInputError) as caught, pth.open_pth(path):
    pass
  assert caught.value.code == 'unsafe_pickle'
  assert name in str(caught.value)
  assert os.listdir(tmp_path) == ['a.pth']


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (b'\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.', 'unsafe_pickle'),
    (b'(\x8c\x04trueiposix\nsystem\n.', 'unsafe_pickle'),
    (b'\x82\x01\x8c\x04true\x85R.', 'damaged'),  # there are no extensions
  ],
)
def test_the_other_ways_to_name_a_global(tmp_path, text, expected):
  """STACK_GLOBAL, INST, and EXT1 of the registry of extensions."""
  path = tmp_path / 'a.pth'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('a/data.pkl', b'\x80\x04' + text)
  assert code(path) == expected


@pytest.mark.parametrize(
  'thing',
  ['torch._utils._rebuild_tensor_v2', 'argparse.Namespace', 'torch.Size'],
)
@pytest.mark.parametrize('state', [{'a': 1}, (None, {'__setstate__': 1})])
def test_what_a_pickle_may_name_it_may_not_change(tmp_path, thing, state):
  """BUILD would set attributes of the function or class itself."""
  path = tmp_path / 'a.pth'
  module, _, name = thing.rpartition('.')
  made = pickle.dumps(state, 2)[2:-1]
  with zipfile.ZipFile(path, 'w') as archive:
    text = f'\x80\x02c{module}\n{name}\n'.encode('latin-1')
    archive.writestr('a/data.pkl', text + made + b'b.')
  assert code(path) == 'damaged'
  assert '__setstate__' in vars(pth.Namespace)
  assert callable(pth.Namespace.__setstate__)


FLAT = np.arange(8, dtype=np.float32)
MISSHAPEN = {
  'beyond': tensor(FLAT, offset=4, shape=(5,), strides=(1,)),
  'strides': tensor(FLAT, shape=(2, 4), strides=(5, 1)),
  'repeated': tensor(FLAT, shape=(10**9, 10**9), strides=(0, 0)),
  'negative offset': tensor(FLAT, offset=-1, shape=(2,), strides=(1,)),
  'negative stride': tensor(FLAT, offset=7, shape=(8,), strides=(-1,)),
  'negative shape': tensor(FLAT, shape=(-2, -2), strides=(1, 1)),
  'huge': tensor(FLAT, shape=(1 << 70,), strides=(1,)),
  'float': tensor(FLAT, shape=(2.0,), strides=(1,)),
  'ranks': tensor(FLAT, shape=(2, 2), strides=(1,)),
  'no storage': Call(
    Global('torch._utils._rebuild_tensor_v2'), 'x', 0, (1,), (1,)
  ),
}


@pytest.mark.parametrize('name', MISSHAPEN)
def test_a_tensor_outside_of_its_storage(tmp_path, name):
  assert code(save(tmp_path / 'a.pth', {'x': MISSHAPEN[name]})) == (
    'unsafe_pickle'
  )


@pytest.mark.parametrize(
  ('pid', 'expected'),
  [
    (('storage', Global('torch.FloatStorage'), '../../x', 'cpu', 8), 'unsafe'),
    (('storage', Global('torch.FloatStorage'), '7', 'cpu', 8), 'damaged'),
    (('storage', Global('torch.FloatStorage'), '0', 'cpu', 2**60), 'unsafe'),
    (('storage', Global('torch.FloatStorage'), '0', 'cpu', -1), 'unsafe'),
    (('storage', 'FloatStorage', '0', 'cpu', 8), 'unsafe'),
    (('module', Global('torch.FloatStorage'), '0', 'cpu', 8), 'unsafe'),
    (('storage',), 'unsafe'),
    ('storage', 'unsafe'),
    ([[], {}], 'unsafe'),
  ],
)
def test_a_storage_that_is_named_oddly(tmp_path, pid, expected):
  storage = Bytes(FLAT, pid=pid)
  path = save(tmp_path / 'a.pth', {'x': tensor(FLAT, storage)})
  assert code(path).startswith(expected)


def test_a_storage_of_another_size_than_its_bytes(tmp_path):
  storage = Bytes(FLAT, size=9)
  assert code(save(tmp_path / 'a.pth', {'x': tensor(FLAT, storage)})) == (
    'damaged'
  )


def test_a_bomb(tmp_path):
  """Compressed zeros; one storage that is read again and again."""
  zeros = np.zeros(10**6, np.float32)
  path = tmp_path / 'a.pth'
  save(path, {'x': zeros}, compression=zipfile.ZIP_DEFLATED)
  assert path.stat().st_size < 10**5
  assert code(path) == 'unsafe_pickle'
  shared = Bytes(zeros[:10000])
  many = {str(i): tensor(zeros[:10000], shared) for i in range(50)}
  assert code(save(path, many)) == 'unsafe_pickle'


# ----- files of other kinds -----


def test_files_before_version_1_6_get_a_hint(tmp_path):
  path = tmp_path / 'a.pth'
  path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))
  assert code(path) == 'legacy_pth'
  with pytest.raises(MiraInputError, match='weights_only=True'):
    load(path)


def test_a_file_that_was_cut(tmp_path):
  path = save(tmp_path / 'a.pth', {'x': FLAT})
  whole = path.read_bytes()
  for end in (len(whole) // 2, len(whole) - 30, 4):
    path.write_bytes(whole[:end])
    assert code(path) == 'damaged'


def test_a_changed_byte_of_a_tensor(tmp_path):
  path = save(tmp_path / 'a.pth', {'x': FLAT})
  data = bytearray(path.read_bytes())
  data[data.index(FLAT.tobytes())] ^= 1
  path.write_bytes(data)
  assert code(path) == 'damaged'


def test_damage_anywhere_in_the_pickle_is_an_error_or_harmless(tmp_path):
  path = save(tmp_path / 'a.pth', {'x': FLAT, 'y': [1, 2.5, None]})
  with zipfile.ZipFile(path) as archive:
    whole = archive.read('archive/data.pkl')
  rng = np.random.default_rng(0)
  seen = set()
  for _ in range(300):
    data = bytearray(whole)
    data[rng.integers(len(data))] = rng.integers(256)
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('archive/data.pkl', bytes(data))
      archive.writestr('archive/data/0', FLAT.tobytes())
    try:
      with pth.open_pth(path):
        pass
    except MiraInputError as error:
      seen.add(error.code)
  assert seen == {'damaged', 'unsafe_pickle'}


@pytest.mark.parametrize(
  'content', [b'', b'text', b'PK\x05\x06' + bytes(18), bytes(999)]
)
def test_files_that_are_not_of_pytorch(tmp_path, content):
  path = tmp_path / 'a.pth'
  path.write_bytes(content)
  assert code(path) == 'not_weights'


def test_other_byte_orders_and_no_file(tmp_path):
  path = save(tmp_path / 'a.pth', {'x': FLAT}, byteorder=b'big')
  assert code(path) == 'not_weights'
  assert code(tmp_path / 'absent.pth') == 'not_found'
