"""Checkpoints and weights: exact, sealed, and never silently wrong."""

from __future__ import annotations

import dataclasses
import errno
import logging
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from mira_jax import files
from mira_jax.devices import sharding
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.train import (
  build,
  checkpoint,
  checkpoint_reader,
  manifest,
  optim,
)
from mira_jax.train import step as steps

IDENTITY = {'seed': 1, 'model': {'dim': 8, 'mira': None}}


def state(value: float) -> steps.TrainState:
  params = {
    'head': {'kernel': jnp.full((50, 40), value), 'bias': jnp.ones(3)},
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


def abstract(state):
  return sharding.abstract(state, sharding.make_mesh())


def target():
  return abstract(state(0))


def save(directory, accuracies: dict[int, float]):
  with checkpoint.Checkpoints(directory, IDENTITY) as checkpoints:
    for step, accuracy in accuracies.items():
      checkpoints.save(step, state(step), accuracy)


def restore(directory, identity=IDENTITY, like=None, defaults=None, **options):
  with checkpoint.Checkpoints(directory, identity, defaults) as checkpoints:
    return checkpoints.restore(target() if like is None else like, **options)


def test_round_trip_is_exact(tmp_path):
  assert restore(tmp_path) is None
  save(tmp_path, {5: 0.5})
  restored, expected = restore(tmp_path), state(5)
  jax.tree.map(np.testing.assert_array_equal, restored, expected)
  types = (jax.tree.map(lambda x: x.dtype, x) for x in (restored, expected))
  assert next(types) == next(types)


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


def warnings(caplog):
  texts = [record.getMessage() for record in caplog.records]
  caplog.clear()
  return texts


def test_damage_falls_back_to_the_step_before(tmp_path, caplog):
  save(tmp_path, {1: 0.1, 2: 0.2})
  flip_a_bit(tmp_path / '2')
  with caplog.at_level(logging.WARNING):
    restored = restore(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, restored, state(1))
  (text,) = warnings(caplog)
  assert f'{tmp_path / "2"} is damaged' in text
  assert text.endswith('going back to 1')
  assert (tmp_path / '2.corrupt').is_dir()
  save(tmp_path, {2: 0.2})  # its number is free again
  assert restore(tmp_path).step == 2
  shutil.rmtree(tmp_path / '2' / 'state')  # and may be damaged again
  assert restore(tmp_path).step == 1
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ['1', '2.corrupt']


def test_a_step_that_was_not_committed_is_as_if_it_had_never_been(
  tmp_path, caplog
):
  save(tmp_path, {1: 0.1, 2: 0.2})
  (tmp_path / '2').rename(tmp_path / '2.orbax-checkpoint-tmp-7')
  (tmp_path / '0.removed').mkdir()
  assert restore(tmp_path).step == 1
  assert not warnings(caplog)
  assert [path.name for path in tmp_path.iterdir()] == ['1']


def test_strictly_a_damaged_newest_step_is_an_error(tmp_path, caplog):
  save(tmp_path, {1: 0.1, 2: 0.2})
  assert restore(tmp_path, strict=True).step == 2
  flip_a_bit(tmp_path / '2')
  with pytest.raises(MiraInputError, match='--resume=auto') as caught:
    restore(tmp_path, strict=True)
  assert caught.value.exit_code == ExitCode.CHECKPOINT
  assert caught.value.path == str(tmp_path / '2')
  assert not warnings(caplog)
  assert restore(tmp_path).step == 1  # nothing was touched


def test_nothing_sound_is_an_error_not_a_fresh_start(tmp_path):
  save(tmp_path, {1: 0.1, 2: 0.2})
  flip_a_bit(tmp_path / '1')
  flip_a_bit(tmp_path / '2')
  with pytest.raises(MiraInputError, match='every older') as caught:
    restore(tmp_path)
  assert caught.value.exit_code == ExitCode.CHECKPOINT


def test_another_run_is_refused_unless_forced(tmp_path, caplog):
  save(tmp_path, {1: 0.1})
  other = IDENTITY | {'model': {'dim': 9, 'mira': None}}
  with pytest.raises(MiraInputError, match=r'model\.dim 8, not 9') as caught:
    restore(tmp_path, other)
  assert caught.value.exit_code == ExitCode.CHECKPOINT
  assert restore(tmp_path, other, force=True).step == 1
  (text,) = warnings(caplog)
  assert 'started with model.dim 8, not 9' in text
  wide = dataclasses.replace(state(1), params={'kernel': jnp.ones((5, 3))})
  with pytest.raises(MiraInputError, match='run_changed') as caught:
    restore(tmp_path, like=abstract(wide), force=True)
  assert caught.value.exit_code == ExitCode.CHECKPOINT


def test_a_run_of_an_older_version_resumes(tmp_path):
  """Fields that it lacked, also of groups in groups, had their defaults."""
  old = {'seed': 1, 'model': {'dim': 8, 'mira': {'mode': 'exact'}}}
  with checkpoint.Checkpoints(tmp_path, old) as checkpoints:
    checkpoints.save(1, state(1))
  mira = {'mode': 'exact', 'floor': 0.5}
  new = {'seed': 1, 'model': {'dim': 8, 'mira': mira}, 'pretrain': None}
  defaults = {'model.mira.floor': 0.5}
  assert restore(tmp_path, new, defaults=defaults).step == 1
  for group, value, named in (
    ('model', new['model'] | {'mira': None}, r'model.mira \{.*\}, not None'),
    ('pretrain', {'mask': 'tube'}, r'pretrain None, not \{'),
  ):
    with pytest.raises(MiraInputError, match=f'started with {named}'):
      restore(tmp_path, new | {group: value}, defaults=defaults)
  defaults['model.mira.floor'] = 0.0
  with pytest.raises(MiraInputError, match=r'floor 0\.0, not 0\.5'):
    restore(tmp_path, new, defaults=defaults)


# ----- saving ---------------------------------------------------------------


def test_training_goes_on_while_a_state_is_saved(tmp_path):
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  kernel = {'kernel': jnp.full((2000, 1000), 3.0)}
  one = dataclasses.replace(state(1), params=kernel)
  expected = jax.device_get(one)
  with checkpoint.Checkpoints(tmp_path, IDENTITY) as checkpoints:
    checkpoints.save(1, one)
    for _ in range(5):
      one = step(one)  # into the memory of the one before
    jax.block_until_ready(one)
  restored = restore(tmp_path, like=abstract(expected))
  jax.tree.map(np.testing.assert_array_equal, restored, expected)


def full(*_):
  raise OSError(errno.ENOSPC, 'No space left on device')


def test_the_steps_before_stay_until_the_new_one_is_sealed(
  tmp_path, caplog, monkeypatch
):
  save(tmp_path, {1: 0.5, 2: 0.1})
  with checkpoint.Checkpoints(tmp_path, IDENTITY) as checkpoints:
    monkeypatch.setattr(files, 'write_text', full)
    checkpoints.save(3, state(3), 0.9)
    with pytest.raises(MiraInputError, match='not_written'):
      checkpoints.wait()
  assert checkpoint_reader.steps(tmp_path) == [1, 2, 3]
  assert restore(tmp_path).step == 2  # as after a kill between the two
  assert len(warnings(caplog)) == 1


def test_names_that_are_no_steps(tmp_path, caplog):
  save(tmp_path, {1: 0.9})
  for name in ('007', '\u0663', '9' * 240):
    (tmp_path / name).mkdir()
  (tmp_path / '2').write_text('a file')
  assert checkpoint_reader.steps(tmp_path) == [1]
  save(tmp_path, {2: 0.5})
  (text,) = warnings(caplog)
  assert f'{tmp_path / "2"} is damaged (it is not a folder)' in text
  assert (tmp_path / '2.damaged').read_text() == 'a file'
  assert restore(tmp_path).step == 2


@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_step_that_vanishes_while_it_is_read_is_chosen_anew(
  tmp_path, caplog, monkeypatch, when
):
  """As when the run saves three more while one is verified, or read."""
  save(tmp_path, {1: 0.9, 2: 0.2, 3: 0.3})
  verify, vanished = manifest.verify, []

  def verify_meanwhile(folder, part=''):
    def vanish():
      if len(vanished) < 2:
        vanished.append(folder.rename(tmp_path / f'{folder.name}.removed'))

    if when == 'before':
      vanish()
    trouble = verify(folder, part)
    if when == 'after':
      vanish()
    return trouble

  monkeypatch.setattr(manifest, 'verify', verify_meanwhile)
  wanted = abstract({'params': state(1).params, 'mira': state(1).mira})
  step, found = checkpoint_reader.read_weights(tmp_path, 'newest', wanted)
  assert (step, len(vanished)) == (1, 2)
  expected = {'params': state(1).params, 'mira': state(1).mira}
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert not warnings(caplog)
  other = abstract({'params': {'head': {'kernel': jnp.zeros((7, 7))}}})
  with pytest.raises(MiraInputError, match='run_changed'):
    checkpoint_reader.read_weights(tmp_path, '1', other)
  monkeypatch.setattr(checkpoint_reader, '_TRIES', 3)
  monkeypatch.setattr(checkpoint_reader, '_read_if_it_stays', lambda *_: None)
  with pytest.raises(MiraInputError, match='removed 3 steps while'):
    checkpoint_reader.read_weights(tmp_path, 'newest', wanted)


# ----- other devices --------------------------------------------------------


def real_state(**axes):
  """What train.py starts from, and its shapes, on a mesh of so many devices."""
  count = math.prod(axes.values())
  mesh = sharding.make_mesh(**axes, devices=jax.devices()[:count])
  cfg = runs.tiny('', model={'dim': 64, 'num_classes': 3})
  made = build.training(cfg, build.make(cfg, mesh), mesh, 3)
  where = jax.tree.map(lambda x: x.sharding, made.target)
  return jax.jit(made.init, out_shardings=where), made.target


@pytest.fixture(scope='module')
def sharded(tmp_path_factory):
  """A checkpoint of eight devices, split in every way."""
  folder = tmp_path_factory.mktemp('sharded')
  init, _ = real_state(data=2, fsdp=2, model=2)
  one = init(jax.random.key(3))
  specs = {str(x.sharding.spec) for x in jax.tree.leaves(one)}
  assert any('fsdp' in spec and 'model' in spec for spec in specs)
  with checkpoint.Checkpoints(folder, IDENTITY) as checkpoints:
    checkpoints.save(1, one, 0.5)
  return folder, jax.device_get(one)


@pytest.mark.parametrize(
  'axes',
  [{'data': 1, 'fsdp': 1, 'model': 1}, {'data': 1, 'fsdp': 4, 'model': 2}],
  ids=str,
)
def test_a_state_is_the_same_on_other_devices(sharded, axes):
  folder, expected = sharded
  _, target = real_state(**axes)
  with checkpoint.Checkpoints(folder, IDENTITY) as checkpoints:
    restored = checkpoints.restore(target)
  jax.tree.map(np.testing.assert_array_equal, restored, expected)
  for array, asked in zip(
    jax.tree.leaves(restored), jax.tree.leaves(target), strict=True
  ):
    assert array.sharding.is_equivalent_to(asked.sharding, array.ndim)


def test_weights_are_read_without_the_optimiser(sharded, tmp_path):
  folder = shutil.copytree(sharded[0], tmp_path / 'copy')
  shutil.rmtree(folder / '1' / 'state')
  _, target = real_state(data=1, fsdp=1, model=2)
  wanted = {'average': target.average, 'mira': target.mira}
  step, found = checkpoint_reader.read_weights(folder, 'newest', wanted)
  assert step == 1
  expected = {'average': sharded[1].average, 'mira': sharded[1].mira}
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  with pytest.raises(MiraInputError, match='can be used are 1;') as caught:
    checkpoint_reader.choose(folder, '7')
  assert caught.value.exit_code == ExitCode.CHECKPOINT


def test_a_checkpoint_to_score_is_chosen_among_the_sound(tmp_path, caplog):
  save(tmp_path, {1: 0.9, 2: 0.2, 3: 0.4})
  assert checkpoint_reader.choose(tmp_path, 'best') == 1
  assert checkpoint_reader.choose(tmp_path, 'newest') == 3
  (tmp_path / '3' / manifest.MANIFEST).unlink()  # is being written
  assert checkpoint_reader.choose(tmp_path, 'newest') == 2
  assert not warnings(caplog)
  shutil.rmtree(tmp_path / '1' / 'weights')
  assert checkpoint_reader.choose(tmp_path, 'best') == 2
  assert len(warnings(caplog)) == 1
  with pytest.raises(MiraInputError, match='damaged'):
    checkpoint_reader.choose(tmp_path, '1')
  assert len(list(tmp_path.iterdir())) == 3  # nothing was touched
