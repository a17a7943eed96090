"""PyTorch files are read without PyTorch, and nothing in them is run."""

from __future__ import annotations

import argparse
import collections
import functools
import os
import pathlib
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

import torch_files
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.weights import pickles, torch_file
from mira_jax.weights.pickles import Inert
from torch_files import Bytes, Call, Global, Stateful, save, tensor


def load(path, name='x'):
  with torch_file.open_pth(path) as tree:
    return tree[name].read()


def read_all(path):
  with torch_file.open_pth(path) as tree:
    for value in tree.values():
      if isinstance(value, torch_file.Tensor):
        value.read()


def code(path):
  with pytest.raises(MiraInputError) as caught:
    read_all(path)
  assert caught.value.exit_code == ExitCode.CHECKPOINT
  assert len(str(caught.value)) < 600
  return caught.value.code


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


def test_what_lies_beside_the_tensors(tmp_path):
  value = {
    'args': argparse.Namespace(lr=0.5, names=['a', None], size=(2, 16)),
    'size': Call(Global('torch.Size'), (1, 2)),
    'device': Call(Global('torch.device'), 'cuda', 0),
    'state': collections.OrderedDict(a=1.5),
  }
  with torch_file.open_pth(save(tmp_path / 'a.pth', value)) as tree:
    settings = {'lr': 0.5, 'names': ['a', None], 'size': (2, 16)}
    assert tree['args'] == settings
    assert tree['size'] == (1, 2)
    assert tree['device'].name == 'torch.device'
    assert tree['state'] == {'a': 1.5}


# ----- attacks -----

ATTACKS = {
  'posix.system': lambda file: (f'touch {file}',),
  'builtins.eval': lambda file: (f'open({str(file)!r}, "w")',),
  'builtins.getattr': lambda _: (Global('os.path'), 'os'),
  'collections.OrderedDict.fromkeys': lambda _: ([1],),
  'torch.storage._load_from_bytes': lambda _: (b'',),
  'mira_jax.weights.pickles.Namespace': lambda _: (),
}


@pytest.mark.parametrize('name', ATTACKS)
def test_a_global_is_named_and_never_called(tmp_path, name):
  args = ATTACKS[name](tmp_path / 'touched')
  attack = Call(Global(name), *args, state={'path': 'x'})
  value = {
    'x': np.ones(2, np.float32),
    'value': attack,
    'key': {Global(name): 1},
    'args': argparse.Namespace(a=attack),
    'state': Call(collections.OrderedDict, state={'_metadata': attack}),
  }
  with torch_file.open_pth(save(tmp_path / 'a.pth', value)) as tree:
    assert tree['x'].read().tolist() == [1, 1]
    assert tree['value'].name == tree['args']['a'].name == name
    assert [key.name for key in tree['key']] == [name]
    assert tree['state'] == {}
  assert os.listdir(tmp_path) == ['a.pth']


FLAT = np.arange(8, dtype=np.float32)
REBUILD = 'torch._utils._rebuild_'


DEPENDENT = {
  'theirs.Wrapper': Call(Global('theirs.Wrapper'), FLAT, 3),
  'theirs.wrap': Call(Global('theirs.wrap'), 1, (FLAT, FLAT)),
  f'{REBUILD}qtensor': Call(
    Global(f'{REBUILD}qtensor'), Bytes(FLAT), 0, (8,), (1,), ('affine', 1, 0)
  ),
  f'{REBUILD}meta_tensor_no_storage': Call(
    Global(f'{REBUILD}meta_tensor_no_storage'), Global('torch.float32'), (3,)
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
  f'{REBUILD}tensor_v3': Call(
    Global(f'{REBUILD}tensor_v3'), Bytes(FLAT), 0, (8,), (1,), False, {},
    Global('torch.float8_e4m3fn'),
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


@pytest.mark.parametrize('protocol', [1, 2, 5])
def test_what_training_leaves_beside_the_tensors(tmp_path, protocol):
  """Numbers of NumPy, paths, sets, enums, functions, objects of classes."""
  beside = {
    'rate': np.float64(0.1),
    'table': Call(Global('theirs.Table'), state={'rows': [1, 2]}),
    'path': pathlib.PosixPath('/data'),
    'set': {1, 2, (3, 4)},
    'frozen': frozenset([1]),
    'counter': collections.Counter('aab'),
    'queue': collections.deque([1, 2]),
    'partial': functools.partial(print, 1),
    'code': ExitCode.DATA,
    'dtype': np.dtype('f4'),
    'complex': 1j,
    'big': 10**400,
    'bytes': bytearray(b'x'),
    (1, (2, 3)): 'a key that is a tuple',
    ExitCode.USAGE: 'one that is an enum',
  }
  history = collections.defaultdict(list, {'loss': [0.5, 0.25]})
  args = argparse.Namespace(lr=np.float32(1), data=pathlib.PosixPath('/a'), n=3)
  value = {'model': {'x': FLAT}, 'history': history, 'args': args} | beside
  path = save(tmp_path / 'a.pth', value, protocol=protocol)
  with torch_file.open_pth(path) as tree:
    assert tree['model']['x'].read().tolist() == FLAT.tolist()
    assert tree['history'] is not history
    assert dict(tree['history']) == {'loss': [0.5, 0.25]}
    assert tree['args']['n'] == 3
    assert isinstance(tree['args']['data'], Inert)
    assert len(tree) == len(value)
    assert repr(tree['queue']) == '<collections.deque>'


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


def pickled(path, text):
  """A file with a pickle that no module can write."""
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('a/data.pkl', text)
    archive.writestr('a/data/0', FLAT.tobytes())
  return path


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (b'\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.', 'posix.system'),
    (b'(\x8c\x04trueiposix\nsystem\n.', 'damaged'),  # of Python 2
    (b'(\x8c\x05posix\x8c\x06system\x93\x8c\x04trueo.', 'damaged'),
    (b'cposix\nsystem\n)\x81.', 'posix.system'),
    (b'\x82\x01\x8c\x04true\x85R.', 'damaged'),  # there are no extensions
    (b'K\x01)R.', 'damaged'),
    (b'cposix\nsystem\nK\x01R.', 'damaged'),
    (b'K\x01\x8c\x06system\x93.', 'damaged'),
  ],
)
def test_the_other_ways_to_call_a_global(tmp_path, text, expected):
  """STACK_GLOBAL, NEWOBJ; INST, OBJ and EXT1, which are not answered."""
  path = pickled(tmp_path / 'a.pth', b'\x80\x04' + text)
  if expected == 'damaged':
    assert code(path) == expected
  else:
    with torch_file.open_pth(path) as tree:
      assert (type(tree), tree.name) == (Inert, expected)


@pytest.mark.parametrize(
  'thing', ['torch._utils._rebuild_tensor_v2', 'argparse.Namespace']
)
def test_a_state_changes_no_function_or_class(tmp_path, thing):
  """BUILD would set attributes of the function or class itself."""
  module, _, name = thing.rpartition('.')
  made = pickle.dumps((None, {'__setstate__': 1}), 2)[2:-1]
  text = f'\x80\x02c{module}\n{name}\n'.encode('latin-1')
  before = dir(pickles.Namespace)
  with torch_file.open_pth(
    pickled(tmp_path / 'a', text + made + b'b.')
  ) as tree:
    assert (tree.name, dict(tree)) == (thing, {})
    assert not hasattr(tree, '__dict__')
  assert dir(pickles.Namespace) == before


@pytest.mark.parametrize(
  'thing', [tensor(FLAT), Bytes(FLAT), Call(Global('torch.Size'), (2,))]
)
def test_a_state_of_a_tensor(tmp_path, thing):
  """It would point out of the bytes of the file, into those of the process."""
  odd = Stateful(thing, {'shape': (1 << 40,)})
  assert code(save(tmp_path / 'a.pth', {'x': odd})) == 'unsafe_pickle'


@pytest.mark.parametrize(
  'state', [{'values': 3, 'items': 3}, {3: 4}, (None, {'values': 3}), ({}, {})]
)
def test_a_state_of_others_is_data(tmp_path, state):
  things = [argparse.Namespace(), collections.OrderedDict(), {1}]
  value = {'x': FLAT, 'y': [Stateful(thing, state) for thing in things]}
  with torch_file.open_pth(save(tmp_path / 'a.pth', value, protocol=4)) as tree:
    assert tree['x'].read().tolist() == FLAT.tolist()
    repr(tree)


NEST = b'\x86'.join([b'2'] * 60) + b'\x86'  # a pair of a pair of a pair ...
TEXT = b'X' + (10**6).to_bytes(4, 'little') + b'a' * 10**6
DENIALS = {
  'key of pairs': (b'}N' + NEST + b'Ns.', None),
  'key that is long': (b'}' + TEXT + b'Ns.', None),
  'numbers as keys': (b'(' + b''.join(
    b'\x8a\x10' + (i * (2**61 - 1)).to_bytes(16, 'little') + b'N'
    for i in range(40000)
  ) + b'd.', None),
  'memo': (b'Nr\x00\x00\x00 .', None),
  'pairs': (b'N' + NEST + b'.', 'unsafe_pickle'),
  'pairs that are a name': (b'N' + NEST + b'2\x93.', 'damaged'),
  'name that is long': (TEXT + b'2' + b'\x93.', None),
  'names that are long': (
    TEXT + b'q\x000' + b'h\x00h\x00\x930' * 20000 + b'N.', None
  ),
  'text that is missing': (b'X\xff\xff\xff\x7fa.', 'damaged'),
  'bytes that are missing': (b'\x8e' + b'\xff' * 7 + b'\x7fa.', 'damaged'),
  'digits': (b'I' + b'9' * 10**6 + b'\n.', 'damaged'),
  'long digits': (b'\x8b\x00\x00\x01\x00' + b'\x7f' * 65536 + b'.', None),
  'itself': (b']q\x00h\x00a.', 'unsafe_pickle'),
  'deep': (b']' * 10**5 + b'a' * (10**5 - 1) + b'.', 'unsafe_pickle'),
  'marks': (b'(' * 10**5 + b't' * 10**5 + b'.', 'unsafe_pickle'),
  'calls': (
    b'ca\nb\nq\x00(' + b'N' * 10**5 + b'tq\x01' + b'h\x00h\x01R0' * 100 + b'.',
    'unsafe_pickle',
  ),
  'states': (
    b'cargparse\nNamespace\n)\x81q\x00('
    + b''.join(b'\x8c\x05%05dN' % i for i in range(50000))
    + b'dq\x01' + b'h\x00h\x01b0' * 200 + b'N.',
    'unsafe_pickle',
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', DENIALS)
def test_a_pickle_that_would_take_an_eternity(tmp_path, name):
  """Time and memory are those of its bytes; what is read can be printed."""
  text, expected = DENIALS[name]
  path = pickled(tmp_path / 'a.pth', b'\x80\x04' + text)
  if expected:
    with (
      pytest.raises(MiraInputError, match=expected) as caught,
      torch_file.open_pth(path),
    ):
      pass
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()
  else:
    with torch_file.open_pth(path) as tree:
      assert len(repr(tree)) < 10**7


def test_a_pickle_of_too_many_steps(tmp_path, monkeypatch):
  monkeypatch.setattr(pickles, 'MAX_OPCODES', 10**5)
  path = pickled(tmp_path / 'a.pth', b'\x80\x04(' + b'}' * 10**5 + b't.')
  assert code(path) == 'unsafe_pickle'


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
    (('storage', Global('torch.FloatStorage'), '0', 'cpu', 2**60), 'unsafe'),
    (('storage', Global('torch.FloatStorage'), '0', 'cpu', -1), 'unsafe'),
    (('storage', 'FloatStorage', '0', 'cpu', 8), 'unsafe'),
    (('module', Global('torch.FloatStorage'), '0', 'cpu', 8), 'unsafe'),
    ('storage', 'unsafe'),
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


def test_files_before_version_1_6_get_a_hint(tmp_path):
  path = tmp_path / 'a.pth'
  path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))
  assert code(path) == 'legacy_pth'
  with pytest.raises(MiraInputError, match='weights_only=True'):
    load(path)


def test_a_plain_pickle_is_said_to_be_one(tmp_path):
  path = tmp_path / 'a.pkl'
  path.write_bytes(pickle.dumps({'x': [1.0, 2.0]}))
  assert code(path) == 'not_weights'
  with pytest.raises(MiraInputError, match='it is a pickle'):
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
  for _ in range(400):
    data = bytearray(whole)
    for place in rng.integers(len(data), size=rng.integers(1, 4)):
      data[place] = rng.integers(256)
    path.write_bytes(data)
    if part == 'pickle':
      pickled(path, bytes(data))
    try:
      with torch_file.open_pth(path) as tree:
        [x.read() for x in tree.values() if isinstance(x, torch_file.Tensor)]
    except MiraInputError as error:
      seen.append(error)
    except AttributeError:  # the tree is a number, for example
      assert not isinstance(tree, dict)
  assert {'damaged', 'unsafe_pickle'} <= {error.code for error in seen}
  assert {error.exit_code for error in seen} == {ExitCode.CHECKPOINT}
  assert all(str(error).isprintable() for error in seen)


@pytest.mark.parametrize('flag', [0x01, 0x08, 0x20, 0x40])
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
