"""What a person sees whose run, machine or report is not as it should be.

One line, with a code, the value and what to do; never a traceback. Numbers are
those of the list that docs/errors.md shows; test_bad_inputs.py has the first
42 of them.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
import pytest

import runs
from mira_jax import config, files
from mira_jax.cli import main as cli
from mira_jax.devices import memory
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import webcam
from mira_jax.train import manifest, run_folder
from mira_jax.video import decode
from mira_jax.weights import weights_file
from small_models import save_model
from small_runs import tiny, write
from videos import make_video

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ('Happy', 'Sad', 'Fear')


def start(*arguments: str, gib: float = 0) -> subprocess.Popen:
  """Starts a command, with an address space of so many GiB if not 0."""
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  environment.pop('XLA_FLAGS', None)
  if gib:
    limit = f'ulimit -v {int(gib * 2**20)} && exec "$@"'
    arguments = ('sh', '-c', limit, 'sh', *arguments)
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
  return subprocess.Popen(
    arguments, env=environment, cwd=ROOT, text=True, **pipes
  )


def refused(*arguments: str, gib: float = 0) -> str:
  """The one line of a command that must exit with USAGE."""
  with start(sys.executable, *arguments, gib=gib) as process:
    _, err = process.communicate(timeout=120)
  assert process.returncode == ExitCode.USAGE, err
  assert err.count('\n') == 1, err
  return err


@pytest.fixture(scope='module')
def levels(tmp_path_factory) -> str:
  folder = tmp_path_factory.mktemp('levels')
  return write(folder, 'levels', NAMES, {'train': 36, 'test': 9})


def save_run(run: pathlib.Path, cfg: config.Config) -> pathlib.Path:
  """What a run of an untrained model would leave."""
  cfg.model.num_classes = len(NAMES)
  fields = dataclasses.asdict(cfg.model)
  save_model(run, names=list(NAMES), **fields)
  (run / 'config.json').write_text(config.to_json(cfg))
  return run


@pytest.fixture(scope='module')
def small(levels, tmp_path_factory) -> pathlib.Path:
  return save_run(tmp_path_factory.mktemp('small') / 'run', tiny(levels))


# ----- 52: folders that cannot be written to --------------------------------


def test_52_a_disk_without_room(tmp_path):
  with (
    runs.file_limit(files.PROBE - 1),
    pytest.raises(MiraInputError, match='File too large') as caught,
  ):
    run_folder.open_workdir(str(tmp_path / 'run'))
  assert caught.value.code == 'not_written'
  assert files.open_folder(tmp_path / 'run') == tmp_path / 'run'
  assert not list((tmp_path / 'run').iterdir())


def test_52_a_file_where_a_folder_should_be(tmp_path, capsys, small, levels):
  (tmp_path / 'file').write_text('')
  run, out = f'--workdir={small}', f'--out={tmp_path}/file/x'
  clip = make_video(tmp_path / 'a.mp4')
  for command in (
    ['predict', str(clip), run, out],
    ['features', levels, run, f'{out}/f.npz'],
    ['train', '--config=quickstart', f'--workdir={tmp_path}/file/x'],
  ):
    assert cli.main(command) == ExitCode.NOT_WRITTEN
    shown, err = capsys.readouterr()
    assert err.startswith('mira: not_written: ')
    assert (err.count('\n'), shown) == (1, '')  # before any work


# ----- 55: cameras ----------------------------------------------------------


def test_55_a_camera_that_is_not_there(capfd, small):
  before = time.monotonic()
  code = cli.main(['predict', '--webcam=97', f'--workdir={small}'])
  _, err = capfd.readouterr()  # what OpenCV writes itself, too
  assert code == ExitCode.USAGE
  assert err.startswith('mira: no_camera: webcam 97: ')
  assert err.count('\n') == 1
  assert time.monotonic() - before < 30


@pytest.mark.parametrize(
  ('arguments', 'code'),
  [
    ([], 'bad_flag'),
    (['--webcam=0', 'a.mp4'], 'bad_flag'),
    (['--webcam=97', '--seconds=601'], 'too_long'),
  ],
)
def test_55_flags_that_do_not_go_together(capsys, small, arguments, code):
  run = f'--workdir={small}'
  assert cli.main(['predict', run, *arguments]) == ExitCode.USAGE
  assert capsys.readouterr().err.startswith(f'mira: {code}: ')


def test_55_frames_of_a_camera_are_a_clip(tmp_path):
  """A video file is read as a camera is, through the same class of OpenCV."""
  path = make_video(tmp_path / 'a.mp4', count=60, fps=20)
  whole = decode.read_clip(path, short_side=32)
  clip = webcam.read(cv2.VideoCapture(str(path)), 'file', 2, short_side=32)
  assert (len(clip.frames), clip.fps, clip.flags) == (40, 20, whole.flags)
  apart = np.abs(clip.frames.astype(int) - whole.frames[:40])
  assert apart.mean() < 4  # two decoders, RGB in both
  short = webcam.read(cv2.VideoCapture(str(path)), 'file', 9)
  assert short.frames.shape == (60, 64, 96, 3)
  with pytest.raises(MiraInputError, match=r'no_camera.*gives no pictures'):
    webcam.read(cv2.VideoCapture(), 'closed', 1)


# ----- 56: devices ----------------------------------------------------------


def test_56_a_device_that_is_not_there(tmp_path):
  if jax.default_backend() == 'gpu':
    pytest.skip('there is one')
  run = (f'--workdir={tmp_path}/run', '--device=gpu')
  line = refused('train.py', '--config=quickstart', *run)
  assert 'no_device: --device=gpu: JAX finds cpu here' in line
  assert "pip install '.[cuda]'" in line
  assert not list(tmp_path.iterdir())


# ----- 57: two interrupts ---------------------------------------------------


SHORT = (
  '--config=configs/quickstart.py:plain', '--config.model.dim=16',
  '--config.model.depth=1', '--config.model.heads=2',
  '--config.model.frames=4', '--config.model.image_size=16',
  '--config.model.patch=8', '--config.optim.name=adamw',
  '--config.data.batch_size=8', '--config.data.threads=2',
  '--config.train.epochs=2', '--config.train.log_every=1',
  '--config.train.eval_every=0', '--config.train.save_every=3',
  '--config.model.mlp_ratio=10000',  # 60 MB, which take a while to save
)  # fmt: skip


@pytest.mark.slow
def test_57_a_second_interrupt_while_the_first_is_handled(tmp_path, levels):
  call = (sys.executable, 'train.py', *SHORT, f'--config.data.dataset={levels}')
  call += (f'--workdir={tmp_path}',)
  saved = tmp_path / 'checkpoints'
  with start(*call) as process:
    for line in process.stdout:
      if line.startswith('step 4/'):
        break
    process.send_signal(signal.SIGINT)
    # It stops after a later step than 3, which was saved before.
    while not [p for p in saved.iterdir() if not p.name.startswith('3')]:
      assert process.poll() is None
      time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
  assert process.returncode == ExitCode.PREEMPTED
  sealed = [p.name for p in saved.iterdir() if (p / manifest.MANIFEST).exists()]
  assert sealed == ['3']  # the second one did not wait


# ----- 58: memory -----------------------------------------------------------

GIB = 5.0  # of address space, which is refused and never used


@pytest.mark.slow
def test_58_too_little_memory_to_train(tmp_path, levels):
  wide = [
    f'--config.data.dataset={levels}', f'--workdir={tmp_path}',
    '--config.model.mlp_ratio=16000', '--config.model.image_size=64',
    '--config.data.batch_size=32',
  ]  # fmt: skip
  line = refused('train.py', *SHORT, *wide, gib=GIB)
  assert 'out_of_memory: a step of 32 clips: ' in line
  assert 'try a smaller --config.data.batch_size' in line
  assert not (tmp_path / weights_file.WEIGHTS).exists()


def test_58_too_little_memory_to_score(small, capsys, monkeypatch):
  def full(*_):
    raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')

  monkeypatch.setattr(jax, 'device_get', full)
  code = cli.main(['eval', f'--workdir={small}', '--batch-size=8'])
  assert code == ExitCode.USAGE
  line = capsys.readouterr().err
  assert 'out_of_memory: 8 clips at once: ' in line
  assert 'use a smaller --batch-size' in line


def test_58_memory_that_only_numpy_wanted():
  with (
    pytest.raises(MiraInputError, match='out_of_memory: Unable to allocate'),
    memory.explained(),
  ):
    np.zeros(2**60, np.uint8)
