"""Several real processes that meet on loopback train one run."""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import runs
from mira_jax.cli import hosts
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.weights.weights_file import load_weights

WAIT = '--host-timeout=1'
DEVICES = 4  # of all processes together
STEPS = 12
FLAGS = (
  *runs.FLAGS, '--config.model.heads=4', '--config.model.dim=32',
  '--config.train.epochs=4', '--config.train.eval_every=2',
)  # fmt: skip


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with a prepared dataset of 30 clips to learn from, 9 to test."""
  folder = tmp_path_factory.mktemp('hosts')
  runs.levels(folder / 'data', train=30)
  return folder


def free_port():
  with socket.socket() as server:
    server.bind(('127.0.0.1', 0))
    return server.getsockname()[1]


def start(place, script, count, *flags, cluster='flags'):
  """Starts a command on some hosts; every device is a simulated one."""
  port, processes = free_port(), []
  for i in range(count):
    mine, slurm = [], {}
    if cluster == 'slurm':  # the variables of srun; the port comes from the job
      mine = ['--distributed']
      slurm = {
        'SLURM_JOB_ID': str(port),
        'SLURM_STEP_NODELIST': '127.0.0.1',
        'SLURM_NTASKS': str(count),
        'SLURM_PROCID': str(i),
        'SLURM_LOCALID': str(i),
        'SLURM_STEP_NUM_NODES': '1',
      }
    elif count > 1:
      mine = [f'--coordinator=127.0.0.1:{port}', f'--hosts={count}']
      mine.append(f'--host={i}')
    call = runs.command(
      place / f'cache-{count}', script, *mine, *flags,
      devices=DEVICES // count,
    )  # fmt: skip
    call['env'] |= slurm
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    processes.append(subprocess.Popen(**call, **pipes))
  return processes


def finish(processes):
  """Waits for all; their exit codes, and what each said."""
  try:
    said = [process.communicate(timeout=300) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [process.returncode for process in processes], said


def train(place, name, count, *flags, **options):
  flags = [
    *FLAGS, f'--config.data.dataset={place / "data"}',
    f'--workdir={place / name}', *flags,
  ]  # fmt: skip
  return start(place, 'train.py', count, *flags, **options)


def losses(run):
  rows = [json.loads(x) for x in (run / 'metrics.jsonl').read_text().split('\n')
          if x]  # fmt: skip
  found = {row['step']: row['loss'] for row in rows if 'loss' in row}
  assert list(found) == list(range(1, STEPS + 1))
  return np.array(list(found.values()))


def weights(run):
  return load_weights(run / 'weights-last.safetensors')[0]


@pytest.fixture(scope='module')
def alone(place):
  codes, said = finish(train(place, 'alone', 1))
  assert codes == [0], said
  return place / 'alone'


def assert_same_run(run, alone):
  np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
    weights(run),
    weights(alone),
  )
  for name in ('eval_history.jsonl', 'outcome.json'):
    assert (run / name).read_text() == (alone / name).read_text()


@pytest.mark.slow
def test_hosts_train_the_run_of_one(place, alone):
  """Heads of one clip on two hosts, which then read the same clips."""
  model = '--config.mesh.model=4'
  codes, said = finish(train(place, 'two', 2, model, cluster='slurm'))
  assert codes == [0, 0], said
  assert_same_run(place / 'two', alone)
  assert 'of 2 hosts' in said[0][0]
  assert 'step' not in said[1][0]  # host 0 speaks for all


@pytest.mark.slow
def test_hosts_select_the_steps_of_a_refit_together(place):
  """The first one writes and reads them."""
  flags = ('--config.train.refit', '--config.eval.min_val_clips=0')
  codes, said = finish(
    train(place, 'refit', 2, *flags, '--config.train.epochs=1')
  )
  assert codes == [0, 0], said
  for folder in ('refit', 'refit/selection'):
    _, metadata = load_weights(place / folder / 'weights.safetensors')
    assert metadata['step'] == 3


@pytest.mark.slow
def test_a_signal_to_one_host_stops_all_and_one_host_goes_on(place, alone):
  # Parameters are split between the hosts.
  flags = ['--config.mesh.fsdp=4', '--config.train.eval_every=0']
  processes = train(place, 'stopped', 2, *flags)
  for line in processes[0].stdout:
    if line.startswith('step 3/'):
      processes[1].send_signal(signal.SIGTERM)
      break
  codes, said = finish(processes)
  assert codes == [ExitCode.PREEMPTED] * 2, said
  assert 'the same command resumes' in said[0][0]
  assert not (place / 'stopped' / 'weights-last.safetensors').exists()
  codes, said = finish(train(place, 'stopped', 1, flags[1]))
  assert codes == [0], said
  np.testing.assert_allclose(
    losses(place / 'stopped'), losses(alone), rtol=1e-5
  )


@pytest.mark.slow
def test_hosts_score_every_clip_once(place, alone):
  codes, said = finish(
    start(place, 'eval.py', 2, f'--workdir={alone}', '--views=2')
  )
  assert codes == [0, 0], said
  (path,) = (alone / 'eval').glob('*/scores.json')
  assert json.loads(path.read_text())['scores']['clips'] == 9
  assert 'WAR' in said[0][0]
  lines = said[1][0].splitlines()  # host 0 speaks for all
  assert all(line.startswith('[Gloo]') for line in lines)


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--hosts=2', '--host=1'], 'bad_flag: --coordinator: name all three'),
    (
      ['--coordinator=127.0.0.1:1', '--hosts=2', '--host=2'],
      'bad_flag: --host=2: hosts are counted from 0: use 0 to 1',
    ),
    (
      ['--coordinator=127.0.0.1:1', '--hosts=2', '--host=1', WAIT],
      'no_host: 127.0.0.1:1: host 0 does not answer',
    ),
  ],
)
def test_hosts_that_cannot_meet(flags, words):
  parser = argparse.ArgumentParser()
  hosts.add_arguments(parser)
  with pytest.raises(MiraInputError) as caught:
    hosts.join(parser.parse_args(flags))
  assert words in str(caught.value)


def test_no_cluster_is_one_line(tmp_path):
  """In a process of its own, where jax has not started."""
  done = subprocess.run(
    [sys.executable, 'train.py', '--config=quickstart', '--distributed',
     f'--workdir={tmp_path}/run'],
    cwd=runs.ROOT, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == ExitCode.USAGE
  line = 'train.py: no_cluster: --distributed: this is no TPU pod'
  assert done.stderr.startswith(line)
