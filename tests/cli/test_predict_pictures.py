"""`mira predict`: pictures, which another process draws."""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import cv2
import pytest

from mira_jax import figures, terminal
from mira_jax.cli import main as cli
from mira_jax.cli import pictures
from mira_jax.cli import predict as predict_command
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import predictor
from small_models import NAMES

pytestmark = pytest.mark.usefixtures('compile_cache')


def test_pictures_are_those_of_this_process(tree, model, tmp_path):
  """Byte by byte, although another process draws them."""
  loaded = predictor.load(model, views=2)
  clip = str(tree / 'a.mp4')
  found = loaded.predict(clip, records=True)
  with pictures.Drawer(tmp_path) as drawer:
    drawn = [drawer.draw(clip, found, NAMES) for _ in range(2)]
    paths = [pathlib.Path(one.wait()) for one in drawn]
  assert [path.name for path in paths] == ['a.png', 'a_2.png']
  figure, arguments = pictures._figure(clip, found, NAMES)
  here = getattr(figures, figure)(**arguments).save(tmp_path / 'here.png')
  for path in paths:
    for suffix in ('.png', '.npz'):
      ours, other = (x.with_suffix(suffix).read_bytes() for x in (here, path))
      assert ours == other


def test_an_error_of_drawing_is_the_clips(tmp_path):
  found = pictures._draw('clip', str(tmp_path / 'x.png'), 'clip_figure', {})
  assert found[:2] == ('unexpected', 'clip')
  assert 'TypeError' in found[2]


def test_a_killed_process_ends_the_command(tree, model, tmp_path):
  found = predictor.load(model, views=2).predict(
    str(tree / 'a.mp4'), records=True
  )
  with pictures.Drawer(tmp_path) as drawer:
    drawer.draw('a.mp4', found, NAMES).wait()
    for process in multiprocessing.active_children():
      process.kill()
      process.join()
    with pytest.raises(MiraInputError, match='worker_died'):
      drawer.draw('b.mp4', found, NAMES).wait()


def test_many_clips_are_pictured_on_request(
  capsys, tree, model, tmp_path, monkeypatch
):
  assert predict_command._PICTURES == 20
  monkeypatch.setattr(predict_command, '_PICTURES', 2)
  monkeypatch.chdir(tmp_path)
  flags = ['predict', str(tree), f'--weights={model}', '--views=1', '--json']
  line = 'mira: no pictures of more than 2 clips; --picture draws them\n'
  for more, expected in [
    ([], line),
    (['--no-picture'], ''),
    (['--picture'], ''),
    (['--out=p'], ''),
  ]:
    code = cli.main([*flags, *more])
    text, err = capsys.readouterr()
    others = 'mira: passed over: '  # lines of the other files
    assert (code, err.partition(others)[0]) == (ExitCode.OK, expected)
    rows = json.loads(text)
    assert len(rows) == 3
    for row in rows:
      assert ('picture' in row) == (more in (['--picture'], ['--out=p']))
  for folder in ('predictions', 'p'):
    pictures_here = {path.name for path in (tmp_path / folder).glob('*.png')}
    assert pictures_here == {'a.png', 'c.png', 'frames.png'}


def test_an_interrupt_leaves_no_half_of_a_picture(tree, model, tmp_path):
  """Also of the process that draws, which says nothing of it."""
  out = tmp_path / 'pictures'
  clips = [str(tree / 'a.mp4')] * 30
  flags = [f'--weights={model}', f'--out={out}', '--format=jsonl']
  process = subprocess.Popen(
    [sys.executable, '-m', 'mira_jax.cli.main', 'predict', *clips, *flags],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    env=os.environ | {'XDG_CACHE_HOME': str(tmp_path)},
  )  # fmt: skip
  row = json.loads(process.stdout.readline())
  os.killpg(process.pid, signal.SIGINT)  # as a terminal does
  _, err = process.communicate(timeout=60)
  assert (process.returncode, err) == (
    terminal.INTERRUPTED, b'mira: interrupted\n'
  )  # fmt: skip
  assert pathlib.Path(row['picture']).name == 'a.png'
  pictures_here = [path.stem for path in out.glob('*.png')]
  assert 'a' in pictures_here
  for stem in pictures_here:
    assert cv2.imread(str(out / f'{stem}.png')) is not None
  assert not [*out.glob('*.part')]
  assert _none_left(process.pid)


def _none_left(group):
  """Whether every process of a group has ended, within a few seconds."""
  for _ in range(100):
    try:
      os.killpg(group, 0)
    except ProcessLookupError:
      return True
    time.sleep(0.1)
  return False


def test_numbers_are_announced_or_left_out(tree, model, tmp_path, capsys):
  clip = str(tree / 'a.mp4')
  for flag, there in (('--arrays', True), ('--no-arrays', False)):
    out = tmp_path / flag
    flags = [f'--weights={model}', f'--out={out}', flag]
    assert cli.main(['predict', clip, *flags]) == ExitCode.OK
    assert (out / 'a.png').is_file()
    assert (out / 'a.npz').is_file() == there
    said = 'numbers: beside each picture' in capsys.readouterr().out
    assert said == there
