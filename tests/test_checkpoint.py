"""Checkpoints and weights: exact, sealed, and never silently wrong."""

from __future__ import annotations

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mira_jax import checkpoint, optim, sharding, steps, weights
from mira_jax.errors import ExitCode, MiraInputError

IDENTITY = {'seed': 1, 'model': {'dim': 8, 'mira': None}}


def state(value: float) -> steps.TrainState:
  params = {
    'dense': {'kernel': jnp.full((50, 40), value), 'bias': jnp.ones(3)},
    'positions': jnp.full((4, 2), -value),
  }
  optimizer = optim.adamw(lambda step: 1e-3, clip_norm=1.0)
  return steps.TrainState(
    step=jnp.asarray(round(value), jnp.int32),
    params=params,
    mira={'block': {'confidence': jnp.full((4,), 0.25)}},
    opt_state=optimizer.init(params),
    average={},
  )


def target():
  mesh = sharding.make_mesh()
  return steps.abstract(lambda key: state(0), jax.random.key(0), mesh)


def save(directory, accuracies: dict[int, float]):
  with checkpoint.Checkpoints(directory, IDENTITY) as checkpoints:
    for step, accuracy in accuracies.items():
      checkpoints.save(step, state(step), accuracy)


def restore(directory, identity=IDENTITY):
  with checkpoint.Checkpoints(directory, identity) as checkpoints:
    return checkpoints.restore(target())


def test_round_trip_is_exact(tmp_path):
  assert restore(tmp_path) is None
  save(tmp_path, {5: 0.5})
  restored, expected = restore(tmp_path), state(5)
  assert jax.tree.structure(restored) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True
  ):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_keeps_the_newest_two_and_the_best_across_restarts(tmp_path):
  save(tmp_path, {1: 0.2, 2: 0.9, 3: 0.5, 4: 0.4})
  save(tmp_path, {5: -1.0, 6: 0.3})  # a resumed run still knows the best
  kept = sorted(int(path.name) for path in tmp_path.iterdir())
  assert kept == [2, 5, 6]


def flip_a_bit(folder):
  path = max(folder.rglob('d/*'), key=lambda path: path.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def truncate(folder):
  path = max(folder.rglob('d/*'), key=lambda path: path.stat().st_size)
  path.write_bytes(path.read_bytes()[:10])


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


DAMAGE = {
  'flipped bit': flip_a_bit,
  'truncated': truncate,
  'empty': empty,
  'not sealed': lambda folder: (folder / checkpoint.MANIFEST).unlink(),
  'no metadata': lambda folder: (folder / 'state/_METADATA').unlink(),
  'no state': lambda folder: shutil.rmtree(folder / 'state'),
}


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_falls_back_to_the_step_before(tmp_path, caplog, damage):
  save(tmp_path, {1: 0.1, 2: 0.2})
  damage(tmp_path / '2')
  with caplog.at_level(logging.WARNING):
    restored = restore(tmp_path)
  assert restored.step == 1
  assert str(tmp_path / '2') in caplog.text
  assert (tmp_path / '2.corrupt').is_dir()
  save(tmp_path, {2: 0.2})  # its number is free again
  assert restore(tmp_path).step == 2
  damage(tmp_path / '2')  # and may be damaged again
  assert restore(tmp_path).step == 1


def test_nothing_sound_is_an_error_not_a_fresh_start(tmp_path):
  save(tmp_path, {1: 0.1})
  flip_a_bit(tmp_path / '1')
  for _ in range(2):
    with pytest.raises(MiraInputError, match='damaged') as caught:
      restore(tmp_path)
    assert caught.value.exit_code == ExitCode.CHECKPOINT


@pytest.mark.parametrize(
  ('name', 'value'), [('seed', 2), ('model', {'dim': 9, 'mira': None})]
)
def test_another_run_is_refused(tmp_path, name, value):
  save(tmp_path, {1: 0.1})
  with pytest.raises(MiraInputError, match=f'with {name}') as caught:
    restore(tmp_path, IDENTITY | {name: value})
  assert caught.value.exit_code == ExitCode.CHECKPOINT


def test_weights_round_trip(tmp_path):
  card = {'model': {'dim': 8}, 'class_names': ['Freude', 'Ärger']}
  one = state(3)
  path = weights.save_weights(tmp_path / 'w', one.params, one.mira, card)
  variables, read = weights.load_weights(path)
  assert read == card
  jax.tree.map(np.testing.assert_array_equal, variables, one.variables)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['w']


def test_weights_of_a_transposed_array_keep_their_values(tmp_path):
  matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
  path = weights.save_weights(tmp_path / 'w', {'a': matrix}, {}, {})
  variables, _ = weights.load_weights(path)
  np.testing.assert_array_equal(variables['params']['a'], matrix)


def test_bad_weights_are_refused(tmp_path):
  path = tmp_path / 'w'

  def refused(code):
    with pytest.raises(MiraInputError, match=code) as caught:
      weights.load_weights(path)
    assert caught.value.exit_code == ExitCode.CHECKPOINT

  refused('not_found')
  path.write_bytes(b'PK\x03\x04 not safetensors')
  refused('not_weights')
  safetensors.numpy.save_file({'a': np.ones(3)}, path)
  refused('no card')
  weights.save_weights(path, {'a': np.array([1.0, np.nan])}, {}, {})
  refused('not_finite')
  path.write_bytes(path.read_bytes()[:-4])
  refused('not_weights')
  header = {'card': json.dumps([])[:-1]}
  safetensors.numpy.save_file({'a': np.ones(3)}, path, metadata=header)
  refused('not_weights')


def test_the_best_step_is_restored_and_a_damaged_one_passed_over(tmp_path):
  save(tmp_path, {1: 0.5, 2: 0.9, 3: 0.2, 4: -1.0})
  with checkpoint.Checkpoints(tmp_path, IDENTITY) as checkpoints:
    step, best = checkpoints.restore_best(target())
    assert (step, int(best.step)) == (2, 2)
    (tmp_path / '2' / checkpoint.MANIFEST).unlink()
    step, best = checkpoints.restore_best(target())
    assert (step, int(best.step)) == (3, 3)
