"""PyTorch files are read without PyTorch, and nothing in them is run."""

from __future__ import annotations

import collections
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

import torch_files
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.weights import torch_file
from torch_files import (
  FLAT,
  Bytes,
  Call,
  Global,
  code,
  pickled,
  read_all,
  save,
  tensor,
)


def load(path, name='x'):
  with torch_file.open_pth(path) as tree:
    return tree[name].read()


def test_every_dtype_comes_out_bit_by_bit(tmp_path):
  arrays = {
    name: np.arange(6).reshape(2, 3).astype(jnp.dtype(name))
    for name in torch_files.STORAGES
  }
  with torch_file.open_pth(save(tmp_path / 'a.pth', arrays)) as tree:
    for name, array in arrays.items():
      got = tree[name].read()
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


# ----- attacks -----

REBUILD = 'torch._utils._rebuild_'


DEPENDENT = {
  'theirs.Wrapper': Call(Global('theirs.Wrapper'), FLAT, 3),
  f'{REBUILD}qtensor': Call(
    Global(f'{REBUILD}qtensor'), Bytes(FLAT), 0, (8,), (1,), ('affine', 1, 0)
  ),
  'theirs.rebuild': Call(
    Global('torch._tensor._rebuild_from_type_v2'),
    Global('theirs.rebuild'), Global('theirs.Tensor'), (FLAT,), {},
  ),
  'torch.storage._load_from_bytes': Call(
    Global(f'{REBUILD}tensor_v2'),
    Call(Global('torch.storage._load_from_bytes'), b'x'), 0, (1,), (1,),
  ),
  'torch.ComplexFloatStorage': tensor(
    FLAT, Bytes(FLAT, kind='torch.ComplexFloatStorage', size=4), shape=(4,)
  ),
  'torch.Tensor.neg': Call(
    Global(f'{REBUILD}tensor_v2'),
    Bytes(FLAT), 0, (8,), (1,), False, {}, {'neg': True},
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', DEPENDENT)
def test_only_a_tensor_that_depends_on_a_global_is_refused(tmp_path, name):
  odd = DEPENDENT[name]
  inner = Call(Global(f'{REBUILD}parameter'), odd, True, {})
  path = save(tmp_path / 'a.pth', {'x': FLAT, 'odd': odd, 'inner': inner})
  with torch_file.open_pth(path) as tree:
    assert tree['x'].read().tolist() == FLAT.tolist()
    for key in ('odd', 'inner'):
      with pytest.raises(MiraInputError, match='unsupported') as caught:
        tree[key].read()
      assert f'depends on {name},' in str(caught.value)


def test_tensors_in_every_way_that_pytorch_saves_them(tmp_path):
  """Parameters with attributes, subclasses, storages without or with types."""
  state = collections.OrderedDict()
  plain = tensor(FLAT)
  value = {
    'old': Call(Global(f'{REBUILD}tensor'), Bytes(FLAT), 0, (8,), (1,)),
    'state': Call(
      Global(f'{REBUILD}parameter_with_state'), FLAT, True, state, {'a': 1}
    ),
    'subclass': Call(
      Global('torch._tensor._rebuild_from_type_v2'),
      plain.function, Global('torch.nn.parameter.Buffer'), plain.args, {'a': 1},
    ),
    'cuda': tensor(FLAT, Bytes(FLAT, kind='torch.cuda.FloatStorage')),
    'typed': tensor(FLAT, Bytes(FLAT, kind='torch.storage.FloatStorage')),
    'expanded': tensor(FLAT, shape=(2, 8), strides=(0, 1)),
  }  # fmt: skip
  with torch_file.open_pth(save(tmp_path / 'a.pth', value)) as tree:
    for name in value:
      np.testing.assert_array_equal(
        tree[name].read(), [FLAT, FLAT] if name == 'expanded' else FLAT
      )


def test_a_zip_whose_list_is_longer_than_any(tmp_path, monkeypatch):
  monkeypatch.setattr(torch_file, '_INDEX_BYTES', 10**5)
  monkeypatch.setattr(torch_file._Stream, 'limit', 10**5)
  path = tmp_path / 'a.pth'
  with zipfile.ZipFile(path, 'w') as archive:
    for i in range(2000):
      archive.writestr(f'a/data/{i}', b'')
  assert code(path) == 'damaged'


MISSHAPEN = {
  'beyond': tensor(FLAT, offset=4, shape=(5,), strides=(1,)),
  'repeated': tensor(FLAT, shape=(10**9, 10**9), strides=(0, 0)),
  'negative offset': tensor(FLAT, offset=-1, shape=(2,), strides=(1,)),
  'negative stride': tensor(FLAT, offset=7, shape=(8,), strides=(-1,)),
  'huge': tensor(FLAT, shape=(1 << 70,), strides=(1,)),
  'float': tensor(FLAT, shape=(2.0,), strides=(1,)),
  'no storage': Call(
    Global('torch._utils._rebuild_tensor_v2'), 'x', 0, (1,), (1,)
  ),
}


def test_a_tensor_outside_of_its_storage(tmp_path):
  for name, odd in MISSHAPEN.items():
    path = save(tmp_path / 'a.pth', {'x': odd})
    assert code(path) == 'unsafe_pickle', name


@pytest.mark.parametrize(
  ('pid', 'expected'),
  [
    (('storage', Global('torch.FloatStorage'), '../../x', 'cpu', 8), 'unsafe'),
    (('storage', Global('torch.FloatStorage'), '7', 'cpu', 8), 'damaged'),
    (('storage', Global('torch.FloatStorage'), '0', 'cpu', 9), 'damaged'),
    (('module', Global('torch.FloatStorage'), '0', 'cpu', 8), 'unsafe'),
    ([[], {}], 'unsafe'),
  ],
)
def test_a_storage_that_is_named_oddly(tmp_path, pid, expected):
  storage = Bytes(FLAT, pid=pid)
  path = save(tmp_path / 'a.pth', {'x': tensor(FLAT, storage)})
  assert code(path).startswith(expected)


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


@pytest.mark.parametrize(
  ('value', 'words'),
  [
    (0x1950A86A20F9469CFC6C, 'legacy_pth.*weights_only=True'),
    ({'x': [1.0, 2.0]}, 'not_weights.*it is a pickle'),
  ],
)
def test_pickles_that_are_no_file_of_today(tmp_path, value, words):
  path = tmp_path / 'a.pth'
  path.write_bytes(pickle.dumps(value, protocol=2))
  with pytest.raises(MiraInputError, match=words):
    load(path)


def test_a_file_that_was_cut_or_changed(tmp_path):
  path = save(tmp_path / 'a.pth', {'x': FLAT})
  whole = path.read_bytes()
  for end in (len(whole) // 2, len(whole) - 30, 4):
    path.write_bytes(whole[:end])
    assert code(path) == 'damaged'
  data = bytearray(whole)
  data[data.index(FLAT.tobytes())] ^= 1
  path.write_bytes(data)
  assert code(path) == 'damaged'


@pytest.mark.parametrize('part', ['pickle', 'file'])
def test_damage_anywhere_is_an_error_or_harmless(tmp_path, part):
  """Of the file: of headers and lists of members too."""
  path = save(tmp_path / 'a.pth', {'x': FLAT, 'y': [1, 2.5, None]})
  with zipfile.ZipFile(path) as archive:
    whole = archive.read('archive/data.pkl')
  if part == 'file':
    whole = path.read_bytes()
  rng = np.random.default_rng(0)
  seen = []
  for _ in range(200):
    data = bytearray(whole)
    for place in rng.integers(len(data), size=rng.integers(1, 4)):
      data[place] = rng.integers(256)
    path.write_bytes(data)
    if part == 'pickle':
      pickled(path, bytes(data))
    try:
      read_all(path)
    except MiraInputError as error:
      seen.append(error)
    except AttributeError:  # the tree is a number, for example
      pass
  assert {'damaged', 'unsafe_pickle'} <= {error.code for error in seen}
  assert {error.exit_code for error in seen} == {ExitCode.CHECKPOINT}
  assert all(str(error).isprintable() for error in seen)


@pytest.mark.parametrize('flag', [0x01, 0x08])
def test_flags_of_members(tmp_path, flag):
  """Encrypted ones, and names that should be UTF-8 and are not."""
  path = save(tmp_path / 'a.pth', {'x': FLAT})
  whole = bytearray(path.read_bytes())
  whole[6] |= flag
  whole[32] = 0x88
  path.write_bytes(whole)
  assert code(path) == 'damaged'


def test_files_that_are_not_of_pytorch(tmp_path):
  path = save(tmp_path / 'a.pth', {'x': FLAT}, byteorder=b'big')
  assert code(path) == 'not_weights'
  for content in (b'', b'text', b'PK\x05\x06' + bytes(18)):
    path.write_bytes(content)
    assert code(path) == 'not_weights'
  assert code(tmp_path / 'absent.pth') == 'not_found'
