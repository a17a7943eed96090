"""The files of a run: locked, damaged, repeated, on a full disk.

A run goes on with one line where it can, and ends with one where it cannot.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess

import jax
import numpy as np
import pytest

import runs
from mira_jax import files
from mira_jax.devices import platform
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import results
from mira_jax.train import (
  checkpoint,
  checkpoint_reader,
  log,
  loop,
  run_folder,
  snapshot,
)
from mira_jax.weights import weights_file

pytestmark = pytest.mark.usefixtures('compile_cache')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return runs.levels(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def whole(tmp_path_factory, data, compile_cache):
  """An undisturbed run."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  loop.train(runs.tiny(data), run_folder.open_workdir(str(folder)))
  return folder


@pytest.fixture
def run(whole, tmp_path):
  return shutil.copytree(whole, tmp_path / 'run')


def texts(caplog):
  found = [
    r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING
  ]
  caplog.clear()
  return found


def test_a_run_leaves_everything_behind(whole):
  names = {path.name for path in whole.iterdir()}
  assert names == {
    '.lock', 'checkpoints', 'config.json', 'curves.npz', 'curves.png',
    'eval_history.jsonl', 'metadata.json', 'metrics.jsonl', 'outcome.json',
    'tensorboard', 'weights-last.safetensors', 'weights.safetensors',
  }  # fmt: skip
  losses = [row['loss'] for row in log.read(whole) if 'loss' in row]
  assert len(losses) == 12
  assert losses[-1] < losses[0]
  _, metadata = weights_file.load_weights(whole / weights_file.WEIGHTS)
  assert metadata['class_names'] == list(runs.CLASSES)
  assert metadata['model']['num_classes'] == 2
  early = json.loads((whole / 'metadata.json').read_text())
  assert early == metadata | {'step': 0}


# ----- two trainings in one folder ------------------------------------------


@pytest.mark.slow
def test_two_trainings_in_one_folder(data, tmp_path):
  """The second one ends at once; a kill frees the lock; readers need none."""
  folder = tmp_path / 'two'
  call = runs.command(
    tmp_path / 'cache', 'train.py', *runs.FLAGS, '--config.train.epochs=2000',
    f'--config.data.dataset={data}', f'--workdir={folder}',
  )  # fmt: skip
  with subprocess.Popen(
    **call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
  ) as first:
    for line in first.stdout:
      if line.startswith('step 3/'):
        break
    before = (folder / 'config.json').read_bytes()
    with pytest.raises(MiraInputError, match='locked') as second:
      loop.train(runs.tiny(data), folder)
    assert second.value.exit_code == ExitCode.CHECKPOINT
    where = f'process {first.pid} on {os.uname().nodename}, since 20'
    assert where in second.value.hint
    assert (folder / 'config.json').read_bytes() == before
    assert run_folder.read_config(folder).train.epochs == 2000
    first.kill()
    first.communicate()
  with files.lock(folder / '.lock'):  # though its words are there
    pass


def test_a_lock_that_says_nothing_of_its_holder(tmp_path, monkeypatch):
  monkeypatch.setattr(files, '_PATIENCE', 1)
  path = tmp_path / '.lock'
  for content in (b'', b'\xff\x00', b'[]', b'{"pid": 1}'):
    with path.open('ab') as other:
      fcntl.flock(other, fcntl.LOCK_EX)
      path.write_bytes(content)
      with (
        pytest.raises(MiraInputError, match='another process writes here'),
        files.lock(path),
      ):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
  def flock(*_):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(fcntl, 'flock', flock)
  with files.lock(tmp_path / '.lock'):
    (text,) = texts(caplog)
  assert 'Operation not supported): do not start a second' in text


def test_too_few_open_files_are_noticed_at_the_start(tmp_path):
  call = runs.command(
    tmp_path, 'train.py', *runs.FLAGS, f'--workdir={tmp_path / "run"}'
  )
  limited = ['bash', '-c', 'ulimit -n 64; exec "$@"', 'bash', *call['args']]
  done = runs.finish(call | {'args': limited})
  assert done.returncode == ExitCode.USAGE
  (line,) = done.stderr.splitlines()
  assert line.startswith('train.py: too_many_files: ulimit -n 64: ')
  assert f'ulimit -n {platform.FILES}' in line


# ----- damaged files beside the checkpoints ---------------------------------


def empty(path):
  path.write_bytes(b'')


def noise(path):
  path.write_bytes(np.random.default_rng(0).bytes(3000))


def truncated(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def other_json(path):
  path.write_text('[1, {"step": "two"}, null]\n{"step": 1, "loss": "low"}\n')


def other_types(path):
  text = path.read_text('latin-1')
  for a, b in (('1', '"one"'), ('[', '{"a": ['), (']', ']}')):
    text = text.replace(a, b)
  path.write_text(text)


def deep(path):
  path.write_text('[' * 100_000 + '\n')


def huge(path):
  path.write_text(f'{{"step": {"9" * 5000}, "loss": 1}}\n')


def absurd(path):
  path.write_text(f'{{"step": 3, "loss": {10**400}, "val": [[1e99]]}}\n')


def a_folder(path):
  path.unlink()
  path.mkdir()
  (path / 'inside').write_text('kept')


def a_fifo(path):
  path.unlink()
  os.mkfifo(path)


DAMAGE = (
  empty, noise, truncated, other_json, other_types, deep, huge, absurd,
  a_folder, a_fifo,
)  # fmt: skip
SIDE_FILES = (
  'config.json', 'metadata.json', 'metrics.jsonl', 'eval_history.jsonl',
  'outcome.json', '.lock', 'curves.png', 'curves.npz', 'weights.safetensors',
  'weights-last.safetensors',
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('first', [0, 3, 7])
def test_damaged_side_files_do_not_stop_a_run(data, run, whole, caplog, first):
  """Every file in another way, all at once."""
  shutil.rmtree(run / 'checkpoints' / '12')  # so that steps are left
  kinds = {
    name: DAMAGE[(first + i) % len(DAMAGE)] for i, name in enumerate(SIDE_FILES)
  }
  for name, damage in kinds.items():
    damage(run / name)
  (run / 'config.json.part').mkdir()
  shutil.rmtree(run / 'tensorboard')
  (run / 'tensorboard').write_text('no folder')
  loop.train(runs.tiny(data), run)
  said = texts(caplog)
  for name in ('config.json', 'metadata.json'):
    assert (run / name).read_bytes() == (whole / name).read_bytes()
  assert any('tensorboard is damaged (it is not a folder)' in x for x in said)
  assert (run / 'tensorboard.damaged').read_text() == 'no folder'
  for name, damage in kinds.items():
    if damage in (a_folder, a_fifo):
      assert any(f'{run / name} is damaged (it is not a f' in x for x in said)
      assert (run / f'{name}.damaged').exists()
  a, b = (
    weights_file.load_weights(x / weights_file.LAST)[0] for x in (run, whole)
  )
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert log.read(run)[-1]['step'] == 12
  assert results.read(run)[0].matrix.sum() == 9


def test_sound_rows_of_a_damaged_log_are_kept(data, run, whole, caplog):
  path = run / log.METRICS
  lines = path.read_text().splitlines(keepends=True)
  shutil.rmtree(run / 'checkpoints' / '12')
  damaged = ''.join([*lines[:4], '{"step": 4, \0\n', *lines[4:]])
  path.write_text(damaged)
  loop.train(runs.tiny(data), run)
  (text,) = texts(caplog)
  assert f'{path} is damaged (line 5 is not a row)' in text
  assert (run / 'metrics.jsonl.damaged').read_text() == damaged
  found, expected = (
    [(row['step'], row.get('loss')) for row in log.read(x)]
    for x in (run, whole)
  )
  assert found == expected


@pytest.mark.parametrize('damage', DAMAGE, ids=lambda f: f.__name__)
def test_readers_of_a_damaged_run(run, caplog, damage):
  """They change nothing, and end in one line where they cannot go on."""
  for name in (
    'config.json',
    'metrics.jsonl',
    'eval_history.jsonl',
    'outcome.json',
  ):
    damage(run / name)
  if damage is not a_fifo:  # which no process writes into
    assert isinstance(log.read(run), list)
    assert log.EvalHistory(run, 2).read().keys() <= {6, 12}
    assert results.read(run) == []
    assert 'outcome.json is damaged and left out' in texts(caplog)[-1]
  for read in (
    run_folder.read_config,
    lambda run: snapshot.load(run, 'newest'),
  ):
    with pytest.raises(MiraInputError) as caught:
      read(run)
    assert caught.value.code in ('bad_config', 'not_a_run')
    assert str(run) in caught.value.path
    assert len(str(caught.value)) < 600
    assert '\n' not in str(caught.value)
  assert not list(run.glob('*.damaged*'))


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('model.heads', 0),
    ('model.frames', 10**400),
    ('model.depth', 2.5),
    ('model.mlp_ratio', float('nan')),
    ('data.dataset', 7),
    ('model.mira', {'mode': 'x' * 10**5}),
    ('model', None),
  ],
)
def test_absurd_values_of_config_json(run, field, value):
  content = json.loads((run / 'config.json').read_text())
  group, _, name = field.partition('.')
  if name:
    content[group][name] = value
  else:
    content[group] = value
  (run / 'config.json').write_text(json.dumps(content))
  with pytest.raises(MiraInputError) as caught:
    snapshot.load(run, 'newest')
  assert caught.value.code == 'bad_config'
  assert group in str(caught.value)
  assert len(str(caught.value)) < 600


# ----- rows that kills would repeat -----------------------------------------


class Killed(BaseException):
  """Ends a run as SIGKILL does: nothing of it is written afterwards."""


def timeless(folder):
  """The rows of a log without how fast they were."""
  return [
    {n: x for n, x in row.items() if n != 'clips_per_second'}
    for row in log.read(folder)
  ]


def stop_after(monkeypatch, step, cfg, folder):
  """Trains until SIGTERM comes while a step is computed."""
  add = log.Log.add

  def add_and_stop(self, at, metrics):
    add(self, at, metrics)
    if at == step:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(log.Log, 'add', add_and_stop)
    with pytest.raises(SystemExit):
      loop.train(cfg, run_folder.open_workdir(str(folder)))
  assert checkpoint_reader.steps(folder / 'checkpoints')[-1] == step


def test_a_validation_that_was_killed_is_not_written_twice(
  data, whole, tmp_path, monkeypatch
):
  """SIGTERM when one is due, then SIGKILL when it has been written."""
  stop_after(monkeypatch, 6, runs.tiny(data), tmp_path)

  def killed(*_):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, 'rate', killed)
    with pytest.raises(Killed):
      loop.train(runs.tiny(data), tmp_path)
  assert timeless(tmp_path) == timeless(whole)[: len(timeless(tmp_path))]
  loop.train(runs.tiny(data), tmp_path)
  assert timeless(tmp_path) == timeless(whole)


def test_rows_are_the_same_when_a_run_is_stopped_between_two(
  data, tmp_path, monkeypatch
):
  """They are means of five steps, and the run is stopped after the ninth."""

  def cfg():
    made = runs.tiny(data)
    made.train.log_every = 5
    return made

  undisturbed = run_folder.open_workdir(str(tmp_path / 'undisturbed'))
  loop.train(cfg(), undisturbed)
  stop_after(monkeypatch, 9, cfg(), tmp_path / 'stopped')
  loop.train(cfg(), tmp_path / 'stopped')
  assert timeless(tmp_path / 'stopped') == timeless(undisturbed)
