"""The files of a run: locked, damaged, repeated, on a full disk.

A run goes on with one line where it can, and ends with one where it cannot.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import resource
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import runs
from mira_jax import files
from mira_jax.devices import platform
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import results
from mira_jax.train import (
  log,
  loop,
  run_folder,
  snapshot,
)
from mira_jax.weights import weights_file

pytestmark = pytest.mark.usefixtures('compile_cache')


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
    'predictions.csv', 'tensorboard', 'weights-last.safetensors',
    'weights.safetensors',
  }  # fmt: skip
  losses = [row['loss'] for row in log.read(whole) if 'loss' in row]
  assert len(losses) == 12
  assert losses[-1] < losses[0]
  _, metadata = weights_file.load_weights(whole / weights_file.WEIGHTS)
  assert metadata['class_names'] == list(runs.CLASSES)
  assert metadata['model']['num_classes'] == 2
  early = json.loads((whole / 'metadata.json').read_text())
  assert early.pop('environment')['jax'] == jax.__version__
  assert early == metadata | {'step': 0}


def test_a_checkpoint_is_scored_without_its_datasets(run):
  """The class names are in metadata.json, from the start of the run."""
  path = run / 'config.json'
  path.write_text(re.sub('"dataset": ".*"', '"dataset": "x"', path.read_text()))
  scorer, metadata = snapshot.load(run, 'newest')
  assert metadata['class_names'] == list(runs.CLASSES)
  assert metadata['step'] == 12
  assert metadata['datasets'][0]['name'] == 'levels'
  probabilities = scorer.probabilities(runs.batch(2)['video'])
  assert probabilities.shape == (2, 2)
  (run / 'metadata.json').write_text('{}')
  with pytest.raises(MiraInputError, match='bad_metadata'):
    snapshot.load(run, 'newest')


# ----- two trainings in one folder ------------------------------------------


_HOLD = """
import pathlib, sys, time
from mira_jax import files
with files.lock(pathlib.Path(sys.argv[1])):
  print('held', flush=True)
  time.sleep(60)
"""


def test_two_trainings_in_one_folder(data, run):
  """The second one ends at once; a kill frees the lock; readers need none."""
  before = (run / 'config.json').read_bytes()
  call = [sys.executable, '-c', _HOLD, run / '.lock']
  with subprocess.Popen(call, stdout=subprocess.PIPE, cwd=runs.ROOT) as first:
    assert first.stdout.readline() == b'held\n'
    with pytest.raises(MiraInputError, match='locked') as second:
      loop.train(runs.tiny(data, top={'seed': 1}), run)
    assert second.value.exit_code == ExitCode.CHECKPOINT
    where = f'process {first.pid} on {os.uname().nodename}, since 20'
    assert where in second.value.hint
    assert (run / 'config.json').read_bytes() == before
    assert run_folder.read_config(run).seed == 0
    first.kill()
  with files.lock(run / '.lock'):  # though its words are there
    pass


def test_a_lock_that_says_nothing_of_its_holder(tmp_path):
  path = tmp_path / '.lock'
  for content in (b'', b'\xff\x00', b'{"pid": 1}'):
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


def test_too_few_open_files_are_noticed_at_the_start(monkeypatch):
  monkeypatch.setattr(resource, 'getrlimit', lambda _: (64, 64))
  with pytest.raises(MiraInputError, match='ulimit -n 64: ') as caught:
    platform.start('cpu')
  assert caught.value.code == 'too_many_files'
  assert f'ulimit -n {platform.FILES}' in caught.value.hint
  assert caught.value.exit_code == ExitCode.USAGE


# ----- damaged files beside the checkpoints ---------------------------------


def noise(path):
  path.write_bytes(np.random.default_rng(0).bytes(3000))


def truncated(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


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
  noise, truncated, other_types, deep, huge, absurd, a_folder, a_fifo
)  # fmt: skip
SIDE_FILES = (
  'config.json', 'metadata.json', 'metrics.jsonl', 'eval_history.jsonl',
  'outcome.json', '.lock', 'curves.png', 'curves.npz', 'weights.safetensors',
  'weights-last.safetensors',
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('first', [0, 5])
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
