"""Checkpoints and weights: exact, sealed, and never silently wrong."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import logging
import math
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from mira_jax import config, files
from mira_jax.devices import sharding
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.mira import MiraConfig
from mira_jax.train import (
  build,
  checkpoint,
  checkpoint_reader,
  manifest,
  optim,
  run_folder,
)
from mira_jax.train import step as steps

STORED = pathlib.Path(__file__).parents[1] / 'stored' / 'config_0.1.0.json'
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


def restore(directory, identity=IDENTITY, like=None):
  with checkpoint.Checkpoints(directory, identity) as checkpoints:
    return checkpoints.restore(target() if like is None else like)


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


def warnings(caplog):
  texts = [record.getMessage() for record in caplog.records]
  caplog.clear()
  return texts


@pytest.mark.parametrize(
  'damage', [flip_a_bit, lambda folder: shutil.rmtree(folder / 'state')]
)
def test_damage_falls_back_to_the_step_before(tmp_path, caplog, damage):
  save(tmp_path, {1: 0.1, 2: 0.2})
  damage(tmp_path / '2')
  with caplog.at_level(logging.WARNING):
    restored = restore(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, restored, state(1))
  (text,) = warnings(caplog)
  assert f'{tmp_path / "2"} is damaged' in text
  assert text.endswith('going back to 1')
  assert (tmp_path / '2.corrupt').is_dir()
  save(tmp_path, {2: 0.2})  # its number is free again
  assert restore(tmp_path).step == 2
  damage(tmp_path / '2')  # and may be damaged again
  assert restore(tmp_path).step == 1
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ['1', '2.corrupt']


def test_a_step_that_was_not_committed_is_as_if_it_had_never_been(
  tmp_path, caplog
):
  save(tmp_path, {1: 0.1, 2: 0.2})
  (tmp_path / '2').rename(tmp_path / '2.orbax-checkpoint-tmp-7')
  (tmp_path / '0.removed').mkdir()
  (tmp_path / '2.manifest').write_text('{')
  assert restore(tmp_path).step == 1
  assert not warnings(caplog)
  assert [path.name for path in tmp_path.iterdir()] == ['1']


def test_strictly_a_damaged_newest_step_is_an_error(tmp_path, caplog):
  def restore_strictly():
    with checkpoint.Checkpoints(tmp_path, IDENTITY) as checkpoints:
      return checkpoints.restore(target(), strict=True)

  assert restore_strictly() is None
  save(tmp_path, {1: 0.1, 2: 0.2})
  assert restore_strictly().step == 2
  flip_a_bit(tmp_path / '2')
  with pytest.raises(MiraInputError, match='--resume=auto') as caught:
    restore_strictly()
  assert caught.value.exit_code == ExitCode.CHECKPOINT
  assert caught.value.path == str(tmp_path / '2')
  assert not warnings(caplog)
  assert restore(tmp_path).step == 1  # nothing was touched


def test_nothing_sound_is_an_error_not_a_fresh_start(tmp_path):
  save(tmp_path, {1: 0.1, 2: 0.2})
  flip_a_bit(tmp_path / '1')
  flip_a_bit(tmp_path / '2')
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


def facts_0_1_0(stored):
  """What a checkpoint of version 0.1.0 holds of a configuration."""
  facts = {'dataset': ['levels']}
  for group, fields in stored.items():
    ignored = run_folder._MAY_CHANGE.get(group, ())
    if isinstance(fields, dict):
      kept = {n: x for n, x in fields.items() if n not in ignored}
      facts |= {f'{group}.{n}': x for n, x in kept.items()}
    else:
      facts[group] = fields
  return facts


@pytest.mark.parametrize('pretrained', [True, False])
def test_a_run_of_an_older_version_resumes(tmp_path, pretrained):
  stored = json.loads(STORED.read_text())
  stored['pretrain'] = stored['pretrain'] if pretrained else None
  with checkpoint.Checkpoints(tmp_path, facts_0_1_0(stored)) as checkpoints:
    checkpoints.save(1, state(1))

  def resume(group=None, field=None, value=None):
    changed = copy.deepcopy(stored)
    if field:
      changed[group][field] = value
    elif group:
      changed[group] = value
    cfg = config.from_json(json.dumps(changed))
    mine, defaults = run_folder.identity(cfg, ['levels']), config.defaults()
    # As if this version had added two fields.
    mine['optim']['added'] = defaults['optim.added'] = 3
    if cfg.model.mira:
      mine['model']['mira']['new'] = defaults['model.mira.new'] = [1]
    with checkpoint.Checkpoints(tmp_path, mine, defaults) as checkpoints:
      return checkpoints.restore(target())

  assert resume().step == 1
  other = None if pretrained else {'mask': 'tube'}
  for change, named in (
    (('seed', None, 7), 'seed 0, not 7'),
    (('model', 'dim', 64), 'model.dim 128, not 64'),
    (('model', 'mira', None), r'model.mira \{.*\}, not None'),
    (('model', 'mira', {'floor': 0.5}), 'model.mira.floor 0.001, not 0.5'),
    (('pretrain', None, other), r'pretrain .*, not'),
  ):
    with pytest.raises(MiraInputError, match=f'started with {named}'):
      resume(*change)


# ----- saving ---------------------------------------------------------------


def test_training_goes_on_while_a_state_is_saved(tmp_path):
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  with checkpoint.Checkpoints(tmp_path, IDENTITY) as checkpoints:
    one = big_state(1)
    checkpoints.save(1, one)
    for _ in range(5):
      one = step(one)  # into the memory of the one before
    jax.block_until_ready(one)
  restored = restore(tmp_path, like=abstract(big_state(1)))
  jax.tree.map(np.testing.assert_array_equal, restored, big_state(1))


def big_state(value):
  small = state(value)
  kernel = jnp.full((2000, 1000), value, jnp.float32)
  return dataclasses.replace(small, params={'kernel': kernel})


def test_a_full_disk_is_reported_at_the_next_step(tmp_path):
  save(tmp_path, {1: 0.1})
  before = manifest.read(tmp_path / '1')
  rng = np.random.default_rng(0)  # that cannot be compressed
  noise = {'kernel': jnp.asarray(rng.normal(size=(1000, 250)), jnp.float32)}

  def save_and_go_on():
    with checkpoint.Checkpoints(tmp_path, IDENTITY) as checkpoints:
      checkpoints.save(2, dataclasses.replace(state(2), params=noise))
      for _ in range(1000):
        checkpoints.check()
        time.sleep(0.01)
      raise AssertionError('nobody noticed')

  with (
    runs.file_limit(100_000),
    pytest.raises(MiraInputError, match='not_written') as caught,
  ):
    save_and_go_on()
  error = caught.value
  assert error.exit_code == ExitCode.NOT_WRITTEN
  assert error.path == str(tmp_path)
  assert 'of 1 MB could not be written' in error.hint
  assert 'MB are free' in error.hint
  assert '\n' not in str(error)
  assert any('tmp' in path.name for path in tmp_path.iterdir())
  assert restore(tmp_path).step == 1
  assert manifest.verify(tmp_path / '1') == ''
  assert manifest.read(tmp_path / '1') == before
  assert [path.name for path in tmp_path.iterdir()] == ['1']


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
  for name in ('007', '\u0663', '9' * 240, '-1', '1e3', '2 '):
    (tmp_path / name).mkdir()
  (tmp_path / '2').write_text('a file')
  (tmp_path / 'x.removed').symlink_to(tmp_path / '1')
  assert checkpoint_reader.steps(tmp_path) == [1]
  save(tmp_path, {2: 0.5})
  (text,) = warnings(caplog)
  assert f'{tmp_path / "2"} is damaged (it is not a folder)' in text
  assert (tmp_path / '2.damaged').read_text() == 'a file'
  assert restore(tmp_path).step == 2
  shutil.move(tmp_path, tmp_path.with_name('moved'))
  tmp_path.write_text('')
  with pytest.raises(MiraInputError, match='it is not a folder'):
    restore(tmp_path)


@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_step_that_vanishes_while_it_is_read_is_chosen_anew(
  tmp_path, caplog, monkeypatch, when
):
  save(tmp_path, {1: 0.01})
  wanted = abstract({'params': state(1).params, 'mira': state(1).mira})
  verify, verified = manifest.verify, []
  with checkpoint.Checkpoints(tmp_path, IDENTITY) as checkpoints:

    def train_on():  # what is chosen is removed by the third save
      last = checkpoint_reader.steps(tmp_path)[-1]
      for step in range(last + 1, last + 4):
        checkpoints.save(step, state(step), step / 100)
        checkpoints.wait()

    def verify_meanwhile(folder, part=''):
      verified.append(folder.name)
      if when == 'before' and len(verified) < 3:
        train_on()
      trouble = verify(folder, part)
      if when == 'after' and len(verified) < 3:
        train_on()
      return trouble

    for which, newest in (('newest', 7), ('best', 13)):
      verified.clear()
      with monkeypatch.context() as patch:
        patch.setattr(manifest, 'verify', verify_meanwhile)
        step, found = checkpoint_reader.read_weights(tmp_path, which, wanted)
      assert step == newest
      assert verified[0] == str(newest - 6)
      assert verified[-1] == str(newest)
      assert len(verified) > 2
      expected = {'params': state(step).params, 'mira': state(step).mira}
      jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert not warnings(caplog)


def test_a_step_that_always_vanishes_ends_in_one_line(tmp_path, monkeypatch):
  save(tmp_path, {1: 0.9})
  wanted = {'params': target().params}
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint_reader, '_TRIES', 3)
    patch.setattr(checkpoint_reader, '_read_if_it_stays', lambda *_: None)
    with pytest.raises(MiraInputError, match='removed 3 steps while'):
      checkpoint_reader.read_weights(tmp_path, 'newest', wanted)
  other = {'params': {'head': {'kernel': jnp.zeros((7, 7))}}}
  with pytest.raises(MiraInputError, match='run_changed'):
    checkpoint_reader.read_weights(tmp_path, '1', abstract(other))


def test_a_step_gets_its_accuracy_later(tmp_path):
  with checkpoint.Checkpoints(tmp_path, IDENTITY) as checkpoints:
    checkpoints.save(1, state(1), 0.5)
    checkpoints.save(2, state(2))
    checkpoints.wait()
    assert checkpoints.accuracy(1) == 0.5
    assert checkpoints.accuracy(2) is None
    checkpoints.rate(2, 0.75)
    step, best = checkpoints.restore_best(target())
    assert (step, int(best.step)) == (2, 2)
  assert manifest.verify(tmp_path / '2') == ''


# ----- other devices --------------------------------------------------------


def real_state(**axes):
  """What train.py starts from, and its shapes, on a mesh of so many devices."""
  count = math.prod(axes.values())
  mesh = sharding.make_mesh(**axes, devices=jax.devices()[:count])
  cfg = config.Config(
    model=config.ModelConfig(
      dim=64, depth=1, heads=2, frames=4, image_size=16, patch=8, num_classes=3
    ),
    optim=config.OptimConfig(ema_decay=0.9),
  )
  cfg.model.mira = MiraConfig(statistics='batch_ema')
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
  for which in ('newest', 'best', '1'):
    assert checkpoint_reader.choose(folder, which) == 1
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
