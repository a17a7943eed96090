"""Runs that are stopped, killed, moved and changed: they end the same."""

from __future__ import annotations

import io
import json
import os
import pathlib
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
from mira_jax.train import checkpoint_reader, loop, snapshot
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
  """A standard output that sends SIGTERM when a step is printed."""

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
  """An undisturbed run."""
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
  assert checkpoint_reader.steps(folder / 'checkpoints')[-1] == step


@pytest.mark.slow
@pytest.mark.parametrize(
  ('step', 'threads'),
  [
    (1, 1),
    (5, 8),  # one after a save
    (6, 8),  # a validation is due, and waits
    (TOTAL, 1),  # nothing is left but to validate
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


# ----- without its datasets -------------------------------------------------


def test_a_checkpoint_is_scored_without_its_datasets(tmp_path, monkeypatch):
  """The class names are in metadata.json, from the start of the run."""
  data = runs.levels(tmp_path / 'data')
  train_until(monkeypatch, runs.tiny(data), tmp_path / 'run', 2)
  data.rename(tmp_path / 'elsewhere')
  scorer, metadata = snapshot.load(tmp_path / 'run', 'newest')
  assert metadata['class_names'] == list(runs.CLASSES)
  assert metadata['step'] == 2
  assert metadata['datasets'][0]['name'] == 'levels'
  probabilities = scorer.probabilities(runs.batch(2)['video'])
  assert probabilities.shape == (2, 2)
  # A run of an older version has none, and a damaged one is not used.
  for damage in (pathlib.Path.unlink, lambda path: path.write_text('{}')):
    damage(tmp_path / 'run' / 'metadata.json')
    with pytest.raises(MiraInputError, match='not_a_dataset'):
      snapshot.load(tmp_path / 'run', 'newest')
    (tmp_path / 'elsewhere').rename(data)
    assert snapshot.load(tmp_path / 'run', '2')[1] == metadata
    data.rename(tmp_path / 'elsewhere')


# ----- processes, as a user starts them -------------------------------------


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return tmp_path_factory.mktemp('processes')


def train(place, data, folder, devices=8, **options):
  """The command that trains `runs.tiny`."""
  path = place / 'tiny.py'
  cfg = f'runs.tiny({str(data)!r})'
  path.write_text(f'import runs\n\n\ndef get_config():\n  return {cfg}\n')
  flags = (f'--config={path}', f'--workdir={folder}')
  return runs.command(
    place / 'cache', 'train.py', *flags, devices=devices, **options
  )


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_bitwise_the_same(
  place, data, whole, tmp_path
):
  """Before anything is saved, and while a later state is."""
  draw = random.Random(4)
  for step, until in ((2, None), (8, '8.orbax*')):
    call = train(place, data, tmp_path)
    with subprocess.Popen(**call, stdout=subprocess.PIPE) as process:
      for line in process.stdout:
        if line.startswith(f'step {step}/'):
          break
      while until and not list((tmp_path / 'checkpoints').glob(until)):
        assert process.poll() is None
      time.sleep(0.01 * draw.random())
      process.kill()
      process.communicate()
    assert process.returncode == -signal.SIGKILL
  loop.train(runs.tiny(data), tmp_path)
  assert_same(whole, tmp_path)


@pytest.mark.slow
def test_other_devices_go_on_with_the_same_losses(
  place, data, whole, tmp_path, monkeypatch
):
  train_until(monkeypatch, runs.tiny(data), tmp_path, 6)
  done = runs.finish(train(place, data, tmp_path, devices=2))
  assert (done.returncode, done.stderr) == (0, '')
  for a, b in zip(rows(whole), rows(tmp_path), strict=True):
    assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_one_line(place, data, tmp_path):
  call = train(place, data, tmp_path)
  call['args'].append('--config.model.mlp_ratio=64')
  call['env']['JAX_ENABLE_COMPILATION_CACHE'] = 'false'  # it needs room, too
  # No file above 80 kB: more than the log has, less than a state.
  limited = ['bash', '-c', 'ulimit -f 80; exec "$@"', 'bash', *call['args']]
  done = runs.finish(call | {'args': limited})
  assert done.returncode == ExitCode.NOT_WRITTEN, done.stderr
  (line,) = done.stderr.splitlines()
  assert f'not_written: {tmp_path / "checkpoints"}: ' in line
  # It ends at a step soon after the save, and leaves nothing in the way.
  assert rows(tmp_path)[-1]['step'] < TOTAL
  cfg = runs.tiny(data)
  cfg.model.mlp_ratio = 64.0
  loop.train(cfg, tmp_path)
  assert not list((tmp_path / 'checkpoints').glob('*tmp*'))
  assert [r['step'] for r in rows(tmp_path) if 'loss' in r] == [*range(1, 13)]
