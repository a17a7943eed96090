"""Weights files: written whole or not at all, and held to what was written.

Those that come from elsewhere may say anything: an error names it.
"""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import os
import pathlib
import struct

import jax
import numpy as np
import pytest
import safetensors.numpy

import runs
import torch_files
from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.weights import metadata, sources, torch_names, weights_file
from small_weights import CONFIG, variables

CARD = {
  'model': dataclasses.asdict(CONFIG),
  'pretrain': None,
  'class_names': ['angry', 'happy', 'sad'],
  'preprocessing': {'rate': 1, 'fit': 'crop'},
}
PRETRAIN = {
  'decoder_dim': 8, 'decoder_depth': 1, 'decoder_heads': 2, 'mask': 'tube',
  'mask_ratio': 0.9, 'normalise_targets': True,
}  # fmt: skip


def save(path, told=CARD):
  tree = variables()
  return weights_file.save_weights(path, tree['params'], tree['mira'], told)


def raw(path, header, data=b''):
  """A safetensors file with any header."""
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  path.write_bytes(struct.pack('<Q', len(header)) + header + data)
  return path


def refused(path):
  """The error of a file, which is that of the command, too."""
  with pytest.raises(MiraInputError) as caught:
    sources.read(path)
  assert caught.value.exit_code == ExitCode.CHECKPOINT
  assert len(str(caught.value)) < 900
  assert str(caught.value).isprintable()
  return caught.value


# ----- writing -----


def test_a_full_disk_is_one_line_and_harms_nothing(tmp_path, capsys):
  tree = variables()
  state = torch_names.to_torch(tree, torch_names.CLASSIFIER)
  source = torch_files.save(tmp_path / 'a.pth', state)
  flags = ('--image-size=16', '--heads=2', '--frames=4', '--force')
  out = save(tmp_path / 'out.safetensors')
  before = out.read_bytes()
  for name in ('out.safetensors', 'new.torch.safetensors'):
    with runs.file_limit(5000):
      code = cli.main(['convert', str(source), str(tmp_path / name), *flags])
    err = capsys.readouterr().err
    assert (code, err.count('\n')) == (ExitCode.NOT_WRITTEN, 1)
    assert err.startswith(f'mira: not_written: {tmp_path / name}: ')
  assert out.read_bytes() == before
  assert sorted(os.listdir(tmp_path)) == ['a.pth', 'out.safetensors']


def test_weights_are_read_as_they_were_written(tmp_path):
  matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
  path, card = tmp_path / 'w', {'class_names': ['Freude', 'Ärger']}
  weights_file.save_weights(path, {'a': matrix}, {'b': matrix[0]}, card)
  variables, read = weights_file.load_weights(path)
  assert read == card
  np.testing.assert_array_equal(variables['params']['a'], matrix)
  np.testing.assert_array_equal(variables['mira']['b'], matrix[0])
  safetensors.numpy.save_file({'a': matrix}, path)
  with pytest.raises(MiraInputError, match='bad_metadata'):
    weights_file.load_weights(path)


def test_the_umask_decides_who_may_read(tmp_path):
  before = os.umask(0o027)
  try:
    path = save(tmp_path / 'w.safetensors')
  finally:
    os.umask(before)
  assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_of_another_user_is_not_called_damaged(tmp_path, monkeypatch):
  path = save(tmp_path / 'w.safetensors')

  def refuse(*args, **options):
    raise PermissionError(errno.EACCES, 'Permission denied', str(path))

  # Root may read anything, and most containers run as root.
  monkeypatch.setattr(pathlib.Path, 'open', refuse)
  error = refused(path)
  assert error.code == 'not_readable'
  assert 'this user may not read it' in error.hint


# ----- what was written is what is read -----


@pytest.mark.parametrize('names', ['ours', 'torch'])
def test_a_flipped_bit_anywhere_is_seen(tmp_path, names):
  path = tmp_path / 'w.safetensors'
  save(path)
  if names == 'torch':
    state = torch_names.to_torch(variables(), torch_names.CLASSIFIER)
    header = {'format': 'pt', weights_file.TORCH_METADATA: json.dumps(CARD)}
    weights_file.write_arrays(path, state, header)
  whole = path.read_bytes()
  size = 8 + int.from_bytes(whole[:8], 'little')
  rng = np.random.default_rng(0)
  places = [*rng.integers(8, size, 30), *rng.integers(size, len(whole), 20), 1]
  for place in places:
    data = bytearray(whole)
    data[place] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    if b'mira_sha256' in data and data != whole:
      assert refused(path).code in (
        'damaged', 'not_weights', 'not_finite', 'bad_metadata', 'bad_weights',
        'unsupported',
      ), place  # fmt: skip
  path.write_bytes(whole)
  assert sources.read(path).metadata == CARD


def test_a_file_of_an_older_version_has_no_digest(tmp_path):
  tree = variables()
  path = tmp_path / 'w.safetensors'
  safetensors.numpy.save_file(
    weights_file.flatten(tree), path, {'card': json.dumps(CARD)}
  )
  got, told = weights_file.load_weights(path)
  jax.tree.map(np.testing.assert_array_equal, got, tree)
  assert told == CARD


# ----- hostile files -----

F32 = {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}
NEXT = F32 | {'data_offsets': [4, 8]}
HOSTILE = {
  'deep JSON': (b'{"a":' * 10**5, 'damaged'),
  'a negative size': ({'a': F32 | {'shape': [-1]}}, 'damaged'),
  'a size that overflows': ({'a': F32 | {'shape': [2**40, 2**40]}}, 'damaged'),
  'an unknown type': ({'a': F32 | {'dtype': 'F33'}}, 'damaged'),
  'a card that is a number': (
    {'__metadata__': {'card': 3}, 'a': F32}, 'damaged'),
  'numbers of 8 bits': (
    {'blocks.0': F32 | {'dtype': 'F8_E4M3', 'shape': [4]}}, 'unsupported'),
  'complex numbers': (
    {'blocks.0': {'dtype': 'C64', 'shape': [1], 'data_offsets': [0, 8]}},
    'unsupported'),
  'names within names': ({'a': F32, 'a/b': NEXT}, 'bad_weights'),
  'a deep name': ({'a/' * 10**4: F32, 'b': NEXT}, 'bad_weights'),
}  # fmt: skip


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_header(tmp_path, name):
  header, code = HOSTILE[name]
  sizes = (
    [x['data_offsets'][1] for x in header.values() if 'dtype' in x]
    if (isinstance(header, dict))
    else [0]
  )
  path = tmp_path / 'w.safetensors'
  assert refused(raw(path, header, bytes(max(sizes)))).code == code
  if isinstance(header, dict) and '__metadata__' not in header:
    whole = {'__metadata__': {'card': json.dumps(CARD)}} | header
    assert refused(raw(path, whole, bytes(max(sizes)))).code == code


TENSOR = {'blocks.0.norm1.weight': np.ones(1, np.float32)}
BROKEN = {
  'model.dim': [0, True, '16', None, 10**400, 15],
  'model.depth': [0, 10**8],
  'model.heads': [3, 2**70],
  'model.image_size': [10**9, 20],
  'model.patch': [5],
  'model.frames': [10**9],
  'model.mlp_ratio': [float('nan'), '4'],
  'model.gelu': ['relu', ['exact']],
  'model.scan': ['yes'],
  'model.mira': [3, {'mode': 'fast'}, {'power': -1}, {'x': 1},
                 {'uniform_mix': float('nan')}],
  'model.what': [1],
  'model.\x1b[31m': [1],
  'model': [None, 3, {}],
  'class_names': [None, ['a'], ['a', 'b', 3], ['a', 'b', 'c\nd'],
                  ['a', 'b', 'c' * 10**6]],
  'preprocessing': [None, {'rate': 1}],
  'preprocessing.rate': [0, 2.5, 10**9],
  'preprocessing.fit': ['pad', None],
  'pretrain': [[], {}, PRETRAIN | {'decoder_dim': 9}, PRETRAIN | {'mask': 3}],
}  # fmt: skip


@pytest.mark.parametrize('name', BROKEN)
def test_every_field_of_metadata_has_a_type_and_a_range(tmp_path, name):
  group, _, field = name.partition('.')
  for value in BROKEN[name]:
    told = copy.deepcopy(CARD)
    (told[group] if field else told)[field or group] = value
    for key in ('card', weights_file.TORCH_METADATA):
      path = tmp_path / 'w.safetensors'
      safetensors.numpy.save_file(TENSOR, path, {key: json.dumps(told)})
      error = refused(path)
      assert error.code == 'bad_metadata', (key, value)
      named = (field, group, 'decoder_dim', 'image_size', 'class')
      assert any(x and x in error.hint.lower() for x in named)


def test_metadata_may_be_of_an_older_or_a_younger_version():
  told = copy.deepcopy(CARD)
  for name in ('gelu', 'scan', 'remat', 'layer_scale', 'mira', 'dtype'):
    del told['model'][name]
  del told['pretrain']
  told['preprocessing']['mean'] = [0.5] * 3
  told['new'] = {'anything': [1]}
  assert metadata.check_metadata(told, 'w') == told
  assert metadata.check_metadata(CARD | {'pretrain': PRETRAIN}, 'w')
