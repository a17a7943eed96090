"""Runs that are stopped, killed, moved and changed: they end the same."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

import runs
from mira_jax import config
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.train import checkpoint, loop
from mira_jax.weights import weights_file

TOTAL = 12  # steps of `runs.tiny`


def rows(folder):
  """The rows of a log without how fast they were."""
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return [
    {n: x for n, x in row.items() if n != 'clips_per_second'} for row in found
  ]


def assert_same(folder, other):
  """That two runs left the same behind, bit by bit."""
  for name in (weights_file.WEIGHTS, weights_file.LAST):
    (a, first), (b, second) = (
      weights_file.load_weights(path / name) for path in (folder, other)
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert first == second
  assert rows(folder) == rows(other)
  for name in ('eval_history.jsonl', 'outcome.json'):
    assert (folder / name).read_text() == (other / name).read_text()


# ----- in this process: stopped after any step ------------------------------


class StopAfter(io.StringIO):
  """A standard output that sends SIGTERM when a step is told of."""

  def __init__(self, step: int):
    super().__init__()
    self._line = f'step {step}/'

  def write(self, text: str) -> int:
    if text.startswith(self._line):
      self._line = 'never again'
      os.kill(os.getpid(), signal.SIGTERM)
    return super().write(text)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return runs.levels(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def whole(tmp_path_factory, data, compile_cache):
  """A run that nobody disturbed."""
  folder = tmp_path_factory.mktemp('whole')
  loop.train(runs.tiny(data), folder)
  assert [r['step'] for r in rows(folder) if 'loss' in r] == list(range(1, 13))
  return folder


def train_until(monkeypatch, cfg, folder, step):
  with monkeypatch.context() as patch:
    patch.setattr('sys.stdout', StopAfter(step))
    with pytest.raises(SystemExit) as stopped:
      loop.train(cfg, folder)
  assert stopped.value.code == ExitCode.PREEMPTED
  assert checkpoint.steps(folder / 'checkpoints')[-1] == step


@pytest.mark.slow
@pytest.mark.parametrize(
  ('step', 'threads'),
  [
    (1, 1),
    (3, 8),  # the end of an epoch
    (4, 2),  # saved here anyway
    (5, 1),  # and a step later
    (6, 8),  # a look is due, and waits
    (TOTAL, 1),  # with nothing left to do but to look
  ],
)
def test_stopped_at_any_step_it_ends_bitwise_the_same(
  whole, data, tmp_path, monkeypatch, step, threads
):
  train_until(monkeypatch, runs.tiny(data), tmp_path, step)
  resumed = runs.tiny(data)
  resumed.data.threads = threads
  loop.train(resumed, tmp_path)
  assert_same(whole, tmp_path)


@pytest.mark.slow
def test_another_mesh_goes_on_with_the_same_losses(
  whole, data, tmp_path, monkeypatch
):
  train_until(monkeypatch, runs.tiny(data), tmp_path, 6)
  resumed = runs.tiny(data)
  resumed.mesh = config.MeshConfig(fsdp=2, model=2)
  loop.train(resumed, tmp_path)
  for a, b in zip(rows(whole), rows(tmp_path), strict=True):
    assert a == pytest.approx(b, abs=1e-5)


def another_dataset(cfg, folder):
  cfg.data.dataset = str(runs.levels(folder / 'data', train=28))


def another_seed(cfg, folder):
  cfg.seed = 7


def another_batch(cfg, folder):
  cfg.data.batch_size = 16


@pytest.mark.parametrize(
  ('change', 'named'),
  [
    (another_dataset, r'with dataset \['),
    (another_seed, 'with seed 0, not 7'),
    (another_batch, 'with data.batch_size 8, not 16'),
  ],
)
def test_a_changed_run_is_refused(whole, data, tmp_path, change, named):
  folder = shutil.copytree(whole, tmp_path / 'run')
  cfg = runs.tiny(data)
  change(cfg, tmp_path)
  with pytest.raises(MiraInputError, match=named) as caught:
    loop.train(cfg, folder)
  assert caught.value.code == 'run_changed'
  assert caught.value.exit_code == ExitCode.CHECKPOINT
  assert_same(whole, folder)


# ----- processes, as a user starts them -------------------------------------

SAVES = ('--config.train.epochs=40', '--config.train.save_every=5')
LAST = 120


@pytest.fixture(scope='module')
def place(tmp_path_factory, data):
  return tmp_path_factory.mktemp('processes')


def train(place, data, name, *arguments, devices=1):
  return runs.command(
    place / 'cache',
    'train.py',
    *runs.FLAGS,
    *SAVES,
    f'--config.data.dataset={data}',
    f'--workdir={place / name}',
    *arguments,
    devices=devices,
  )


@pytest.fixture(scope='module')
def run(place, data):
  """A process that nobody disturbed."""
  done = runs.finish(train(place, data, 'whole'))
  assert done.returncode == 0, done.stderr
  return place / 'whole'


def signal_at(call, step, number, delay=0.0):
  """Sends a signal when a step is told of; returns the exit code."""
  with subprocess.Popen(
    **call, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  ) as process:
    for line in process.stdout:
      if line.startswith('step ') and int(line[5:].split('/')[0]) >= step:
        time.sleep(delay)
        process.send_signal(number)
        break
    process.communicate(timeout=300)
  return process.returncode


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_bitwise_the_same(place, data, run):
  draw = random.Random(4)
  call = train(place, data, 'killed')
  for step in (3, 30, 60, 90):  # every fifth step is saved: most kills hit one
    step, delay = step + draw.randrange(10), 0.05 * draw.random()
    assert signal_at(call, step, signal.SIGKILL, delay) == -signal.SIGKILL
  done = runs.finish(call)
  assert done.returncode == 0, done.stderr
  assert_same(run, place / 'killed')


@pytest.fixture(scope='module')
def stopped(place, data):
  """A run that was told to stop, on two devices."""
  call = train(place, data, 'stopped', devices=2)
  assert signal_at(call, 40, signal.SIGTERM) == ExitCode.PREEMPTED
  return place / 'stopped'


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 4])
def test_other_devices_go_on_with_the_same_losses(
  place, data, run, stopped, devices
):
  name = f'on-{devices}'
  shutil.copytree(stopped, place / name)
  done = runs.finish(train(place, data, name, devices=devices))
  assert done.returncode == 0, done.stderr
  for a, b in zip(rows(run), rows(place / name), strict=True):
    assert a['step'] == b['step']
    if 'loss' in a:
      assert a['loss'] == pytest.approx(b['loss'], abs=1e-5)
  (a, _), (b, _) = (
    weights_file.load_weights(folder / weights_file.LAST)
    for folder in (run, place / name)
  )
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-3), a, b)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_one_line(place, data, run, stopped):
  folder = shutil.copytree(stopped, place / 'full')
  before = checkpoint.steps(folder / 'checkpoints')
  call = train(place, data, 'full')
  # No file above 80 kB: more than the log has, less than a state.
  limited = ['bash', '-c', 'ulimit -f 80; exec "$@"', 'bash', *call['args']]
  done = runs.finish(call | {'args': limited})
  assert done.returncode == ExitCode.CHECKPOINT, done.stderr
  (line,) = done.stderr.splitlines()
  assert line.startswith(f'train.py: not_written: {folder / "checkpoints"}: ')
  assert before == checkpoint.steps(folder / 'checkpoints')
  # It ends at a step soon after, not at the end.
  assert rows(folder)[-1]['step'] < before[-1] + 20
  done = runs.finish(call)
  assert (done.returncode, done.stderr) == (0, '')
  assert not list((folder / 'checkpoints').glob('*tmp*'))
  assert rows(folder)[-1]['step'] == LAST


@pytest.mark.slow
def test_damage_is_told_in_one_line(place, data, stopped):
  folder = shutil.copytree(stopped, place / 'damaged')
  newest = checkpoint.steps(folder / 'checkpoints')[-1]
  path = folder / 'checkpoints' / str(newest)
  (path / 'state' / '_METADATA').unlink()
  done = runs.finish(train(place, data, 'damaged', '--resume=strict'))
  assert done.returncode == ExitCode.CHECKPOINT
  (line,) = done.stderr.splitlines()
  assert line.startswith(f'train.py: damaged: {path}: state/_METADATA is miss')
  done = runs.finish(train(place, data, 'damaged'))
  assert done.returncode == 0
  (line,) = done.stderr.splitlines()
  assert f'checkpoint {path} is damaged' in line
  assert path.with_name(f'{newest}.corrupt').is_dir()
  assert [r['step'] for r in rows(folder) if 'loss' in r] == [*range(1, 121)]


@pytest.mark.slow
def test_a_run_that_is_not_finished_is_scored(place, data, stopped):
  call = runs.command(place / 'cache', 'eval.py', f'--workdir={stopped}')
  done = runs.finish(call)
  assert done.returncode == ExitCode.CHECKPOINT
  assert 'eval.py --step=newest' in done.stderr
  newest = checkpoint.steps(stopped / 'checkpoints')[-1]
  call['args'].append('--step=newest')
  # Nine clips on three devices.
  call['env']['XLA_FLAGS'] = runs.xla_flags(3)
  done = runs.finish(call)
  assert done.returncode == 0, done.stderr
  folder = stopped / 'eval' / f'levels-test-step_{newest}'
  scores = json.loads((folder / 'scores.json').read_text())
  assert scores['scores']['clips'] == 9
  assert scores['metadata']['card']['step'] == newest
