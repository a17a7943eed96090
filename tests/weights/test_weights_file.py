"""Weights in one file: exact, and refused when damaged."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.weights import weights_file


def test_weights_round_trip(tmp_path):
  card = {'model': {'dim': 8}, 'class_names': ['Freude', 'Ärger']}
  params = {'dense': {'kernel': np.full((50, 40), 3.0, np.float32)}}
  mira = {'block': {'confidence': np.full((4,), 0.25, np.float32)}}
  path = weights_file.save_weights(tmp_path / 'w', params, mira, card)
  variables, read = weights_file.load_weights(path)
  assert read == card
  expected = {'params': params, 'mira': mira}
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['w']


def test_weights_of_a_transposed_array_keep_their_values(tmp_path):
  matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
  path = weights_file.save_weights(tmp_path / 'w', {'a': matrix}, {}, {})
  variables, _ = weights_file.load_weights(path)
  np.testing.assert_array_equal(variables['params']['a'], matrix)


def test_bad_weights_are_refused(tmp_path):
  path = tmp_path / 'w'

  def refused(code):
    with pytest.raises(MiraInputError, match=code) as caught:
      weights_file.load_weights(path)
    assert caught.value.exit_code == ExitCode.CHECKPOINT

  refused('not_found')
  path.write_bytes(b'PK\x03\x04 not safetensors')
  refused('not_weights')
  safetensors.numpy.save_file({'a': np.ones(3)}, path)
  refused('no card')
  weights_file.save_weights(path, {'a': np.array([1.0, np.nan])}, {}, {})
  refused('not_finite')
  path.write_bytes(path.read_bytes()[:-4])
  refused('damaged')
  header = {'card': json.dumps([])[:-1]}
  safetensors.numpy.save_file({'a': np.ones(3)}, path, metadata=header)
  refused('bad_card')
