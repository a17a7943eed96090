"""Pickles are read in bounded time, and what they name is not run."""

from __future__ import annotations

import argparse
import collections
import functools
import os
import pathlib
import pickle

import numpy as np
import pytest

from mira_jax.errors import ExitCode
from mira_jax.weights import pickles, torch_file
from mira_jax.weights.pickles import Inert
from torch_files import (
  FLAT,
  Bytes,
  Call,
  Global,
  Stateful,
  code,
  pickled,
  save,
  tensor,
)

ATTACKS = {
  'posix.system': lambda file: (f'touch {file}',),
  'builtins.getattr': lambda _: (Global('os.path'), 'os'),
  'torch.storage._load_from_bytes': lambda _: (b'',),
  'mira_jax.weights.pickles.Inert': lambda _: (),
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


@pytest.mark.parametrize('protocol', [1, 2, 5])
def test_what_training_leaves_beside_the_tensors(tmp_path, protocol):
  """Numbers of NumPy, paths, sets, enums, functions, objects of classes."""
  beside = {
    'rate': np.float64(0.1),
    'table': Call(Global('theirs.Table'), state={'rows': [1, 2]}),
    'set': {1, 2, (3, 4)},
    'frozen': frozenset([1]),
    'queue': collections.deque([1, 2]),
    'partial': functools.partial(print, 1),
    'code': ExitCode.DATA,
    'big': 10**400,
    'bytes': bytearray(b'x'),
    'size': Call(Global('torch.Size'), (1, 2)),
    'state': collections.OrderedDict(a=1.5),
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
    assert (tree['size'], tree['state']) == ((1, 2), {'a': 1.5})
    assert isinstance(tree['args']['data'], Inert)
    assert len(tree) == len(value)
    assert repr(tree['queue']) == '<collections.deque>'


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (b'\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.', 'posix.system'),
    (b'(\x8c\x04trueiposix\nsystem\n.', 'damaged'),  # of Python 2
    (b'cposix\nsystem\n)\x81.', 'posix.system'),
    (b'\x82\x01\x8c\x04true\x85R.', 'damaged'),  # there are no extensions
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


def test_a_state_changes_no_class(tmp_path):
  """BUILD would set attributes of the class itself."""
  made = pickle.dumps((None, {'__setstate__': 1}), 2)[2:-1]
  text = b'\x80\x02cargparse\nNamespace\n' + made + b'b.'
  with torch_file.open_pth(pickled(tmp_path / 'a', text)) as tree:
    assert tree.name == 'argparse.Namespace'
    assert not hasattr(tree, '__dict__')
  assert not hasattr(argparse.Namespace, '__setstate__')


@pytest.mark.parametrize(
  'thing', [tensor(FLAT), Bytes(FLAT), Call(Global('torch.Size'), (2,))]
)
def test_a_state_of_a_tensor(tmp_path, thing):
  """It would point out of the bytes of the file, into those of the process."""
  odd = Stateful(thing, {'shape': (1 << 40,)})
  assert code(save(tmp_path / 'a.pth', {'x': odd})) == 'unsafe_pickle'


@pytest.mark.parametrize(
  'state', [{'values': 3, 'items': 3}, {3: 4}, (None, {'values': 3})]
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
  'numbers as keys': (b'(' + b''.join(
    b'\x8a\x10' + (i * (2**61 - 1)).to_bytes(16, 'little') + b'N'
    for i in range(40000)
  ) + b'd.', None),
  'memo': (b'Nr\x00\x00\x00 .', None),
  'pairs': (b'N' + NEST + b'.', 'unsafe_pickle'),
  'pairs that are a name': (b'N' + NEST + b'2\x93.', 'damaged'),
  'names that are long': (
    TEXT + b'q\x000' + b'h\x00h\x00\x930' * 20000 + b'N.', None
  ),
  'text that is missing': (b'X\xff\xff\xff\x7fa.', 'damaged'),
  'digits': (b'I' + b'9' * 10**6 + b'\n.', 'damaged'),
  'long digits': (b'\x8b\x00\x00\x01\x00' + b'\x7f' * 65536 + b'.', None),
  'itself': (b']q\x00h\x00a.', 'unsafe_pickle'),
  'deep': (b']' * 10**5 + b'a' * (10**5 - 1) + b'.', 'unsafe_pickle'),
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
def test_a_pickle_that_would_take_an_eternity(tmp_path, name, monkeypatch):
  """Time and memory are those of its bytes; what is read can be printed."""
  monkeypatch.setattr(pickles, 'MAX_OPCODES', 2**19)
  monkeypatch.setattr(pickles, 'MAX_NODES', 2**19)
  text, expected = DENIALS[name]
  path = pickled(tmp_path / 'a.pth', b'\x80\x04' + text)
  if expected:
    assert code(path) == expected
  else:
    with torch_file.open_pth(path) as tree:
      assert len(repr(tree)) < 10**7


def test_a_pickle_of_too_many_steps(tmp_path, monkeypatch):
  monkeypatch.setattr(pickles, 'MAX_OPCODES', 10**5)
  path = pickled(tmp_path / 'a.pth', b'\x80\x04(' + b'}' * 10**5 + b't.')
  assert code(path) == 'unsafe_pickle'
