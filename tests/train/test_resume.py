"""Runs that are stopped, killed, moved and changed: they end the same."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

import runs
from mira_jax import config
from mira_jax.cli import main
from mira_jax.devices import sharding
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.train import checkpoint, log, loop, run_folder
from stopped_runs import (
  Killed,
  assert_same,
  assert_same_weights,
  rows,
  train_until,
)

pytestmark = pytest.mark.usefixtures('compile_cache')
TOTAL = 12  # steps of `runs.tiny`


# ----- in this process: stopped after any step ------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
  ('step', 'threads'),
  [
    (5, 1),  # one after a save
    (6, 8),  # a validation is due, and waits
    (TOTAL, 1),  # nothing is left but to validate
  ],
)
def test_stopped_at_any_step_it_ends_bitwise_the_same(
  whole, data, tmp_path, monkeypatch, step, threads
):
  train_until(monkeypatch, runs.tiny(data), tmp_path, step)
  before = log.read(tmp_path)[-1]['seconds']
  loop.train(runs.tiny(data, data={'threads': threads}), tmp_path)
  assert_same(whole, tmp_path)
  seconds = [row['seconds'] for row in log.read(tmp_path)]
  assert seconds == sorted(seconds)  # they accumulate
  assert seconds[-1] > before > 0


def test_a_validation_that_was_killed_is_not_written_twice(
  data, whole, tmp_path, monkeypatch
):
  """SIGTERM when one is due, then SIGKILL when it has been written."""
  train_until(monkeypatch, runs.tiny(data), tmp_path, 6)

  def killed(*_):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, 'rate', killed)
    with pytest.raises(Killed):
      loop.train(runs.tiny(data), tmp_path)
  assert rows(tmp_path) == rows(whole)[: len(rows(tmp_path))]
  loop.train(runs.tiny(data), tmp_path)
  assert_same(whole, tmp_path)


def test_rows_are_the_same_when_a_run_is_stopped_between_two(
  data, whole, tmp_path, monkeypatch
):
  """They are means of the steps since the last one, here of 9 and 10."""

  def stop(self, at, metrics):
    add(self, at, metrics)
    if at == 9:
      os.kill(os.getpid(), signal.SIGTERM)

  cfg = functools.partial(runs.tiny, data, train={'log_every': 5})
  add = log.Log.add
  with monkeypatch.context() as patch:
    patch.setattr(log.Log, 'add', stop)
    with pytest.raises(SystemExit):
      loop.train(cfg(), tmp_path)
  loop.train(cfg(), tmp_path)
  every = {row['step']: row['loss'] for row in rows(whole) if 'loss' in row}
  found = {row['step']: row['loss'] for row in rows(tmp_path) if 'loss' in row}
  assert list(found) == [1, 4, 5, 6, 8, 10, 12]
  assert found[10] == np.mean([every[9], every[10]])
  assert_same_weights(whole, tmp_path)


@pytest.mark.slow
def test_other_devices_go_on_with_the_same_losses(
  whole, data, tmp_path, monkeypatch
):
  """Four instead of eight, which share clips, parameters and heads."""
  train_until(monkeypatch, runs.tiny(data), tmp_path, 6)
  four = functools.partial(sharding.make_mesh, devices=jax.devices()[:4])
  monkeypatch.setattr(sharding, 'make_mesh', four)
  resumed = runs.tiny(data)
  resumed.mesh = config.MeshConfig(fsdp=2, model=2)
  loop.train(resumed, tmp_path)
  for a, b in zip(rows(whole), rows(tmp_path), strict=True):
    assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize(
  ('group', 'field', 'value', 'named'),
  [
    ('data', 'dataset', 28, r'with dataset \['),
    ('data', 'batch_size', 16, 'with data.batch_size 8, not 16'),
    ('top', 'seed', 7, 'with seed 0, not 7'),
  ],
)
def test_a_changed_run_is_refused(
  whole, data, run, tmp_path, group, field, value, named
):
  if field == 'dataset':
    value = str(runs.levels(tmp_path / 'data', train=value))
  with pytest.raises(MiraInputError, match=named) as caught:
    loop.train(runs.tiny(data, **{group: {field: value}}), run)
  assert caught.value.code == 'run_changed'
  assert caught.value.exit_code == ExitCode.CHECKPOINT
  assert_same(whole, run)


def test_classes_in_another_order_are_neither_resumed_nor_scored(
  data, tmp_path, capsys
):
  """The table may move within a run; what it says may not change."""
  table, run = tmp_path / 'classes.csv', tmp_path / 'run'
  head = 'dataset,class,common\n'
  table.write_text(f'{head}levels,dark,a\nlevels,bright,b\n')
  cfg = runs.tiny(data, data={'classes': str(table)}, train={'epochs': 1})
  loop.train(cfg, run_folder.open_workdir(str(run)))
  command = ['eval', f'--workdir={run}']
  assert main.main(command) == ExitCode.OK
  table.write_text(f'{head}levels,dark,b\nlevels,bright,a\n')
  capsys.readouterr()
  assert main.main(command) == ExitCode.DATA
  assert 'the model learned a, b, in this order' in capsys.readouterr().err
  with pytest.raises(MiraInputError, match='class_names') as caught:
    loop.train(cfg, run)
  assert caught.value.code == 'run_changed'


def test_a_full_disk_ends_a_run_that_then_ends_bitwise_the_same(
  data, whole, tmp_path
):
  with (
    runs.file_limit(20_000),  # more than the log has, less than a state
    pytest.raises(MiraInputError, match='not_written') as caught,
  ):
    loop.train(runs.tiny(data), tmp_path)
  assert caught.value.exit_code == ExitCode.NOT_WRITTEN
  assert caught.value.path == str(tmp_path / 'checkpoints')
  assert '\n' not in str(caught.value)
  assert rows(tmp_path)[-1]['step'] < TOTAL  # soon after the save
  loop.train(runs.tiny(data), tmp_path)
  assert not list((tmp_path / 'checkpoints').glob('*tmp*'))
  assert_same(whole, tmp_path)


# ----- a process, as a user starts it ----------------------------------------


@pytest.mark.slow
def test_killed_in_a_save_it_ends_bitwise_the_same(
  compiled, data, whole, tmp_path
):
  path, folder = tmp_path / 'tiny.py', tmp_path / 'run'
  cfg = f'runs.tiny({str(data)!r})'
  path.write_text(f'import runs\n\n\ndef get_config():\n  return {cfg}\n')
  flags = (f'--config={path}', f'--workdir={folder}')
  call = runs.command(compiled, 'train.py', *flags, devices=8)
  with subprocess.Popen(**call, stdout=subprocess.PIPE) as process:
    for line in process.stdout:
      if line.startswith('step 8/'):
        break
    while not list((folder / 'checkpoints').glob('8.orbax*')):
      assert process.poll() is None
    time.sleep(0.01 * random.Random(4).random())
    process.kill()
    process.communicate()
  assert process.returncode == -signal.SIGKILL
  loop.train(runs.tiny(data), folder)
  assert_same(whole, folder)
