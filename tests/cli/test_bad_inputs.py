"""What a person sees who hands over a bad clip, table, archive or dataset.

One line, with a code, the path and what to do; never a traceback, never pixels;
and the other clips of the same command are done. Numbers are those of the list
that docs/errors.md shows.
"""

from __future__ import annotations

import json
import os
import pathlib
import socket
import struct
import time
import zipfile

import cv2
import numpy as np
import pytest

import miniatures
from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.mira import MiraConfig
from mira_jax.video import container, decode, footage
from small_models import save_model
from videos import make_sound, make_video

_LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp('model') / 'weights.safetensors'
  return str(save_model(path, MiraConfig(), depth=1))


@pytest.fixture
def predict(weights, capsys):
  """Gives `predict(paths)`: exit code, and an answer by file name."""

  def predict(*paths, options=()) -> tuple[int, dict[str, dict]]:
    names = [os.fspath(path) for path in paths]
    flags = ['--weights', weights, '--no-picture', '--json', '--views=1']
    code = cli.main(['predict', *flags, *options, '--', *names])
    out, err = capsys.readouterr()
    assert 'Traceback' not in err
    assert len(err) < 600 * len(paths)  # no pixels
    return code, {
      pathlib.Path(row['clip']).name: row for row in json.loads(out)
    }

  return predict


def test_1_to_17_files_that_are_no_clip(tmp_path, predict, monkeypatch):
  """All in one command, with a good clip last."""

  def no_network(*args, **kwargs):
    raise AssertionError('the network was used')

  monkeypatch.setattr(socket, 'socket', no_network)
  whole = make_video(tmp_path / 'good.mp4').read_bytes()
  with zipfile.ZipFile(tmp_path / 'archive.mp4', 'w') as archive:
    archive.writestr('a.txt', 'x' * 500)
  png, jpg = (
    cv2.imencode(x, np.zeros((9, 9)))[1].tobytes() for x in ('.png', '.jpg')
  )
  contents = {
    'empty.mp4': (b'', 'empty'),
    'text.mp4': (b'hello ' * 99, 'not_video'),
    'noise.mp4': (np.random.default_rng(0).bytes(9999), 'not_video'),
    'cut.mp4': (whole[: len(whole) // 2], 'not_video'),
    'hls.mp4': (b'#EXTM3U\nhttp://127.0.0.1:9/x\n', 'format_not_allowed'),
    'concat.mp4': (b'ffconcat version 1.0\nfile x', 'format_not_allowed'),
    'lfs.mp4': (_LFS, 'git_lfs_pointer'),
    'image.mp4': (png, 'not_video'),
    'face.jpg': (jpg, 'not_video'),
  }
  for name, (content, _) in contents.items():
    (tmp_path / name).write_bytes(content)
  os.mkfifo(tmp_path / 'fifo.mp4')
  make_sound(tmp_path / 'sound.mp4')
  make_video(tmp_path / 'a.gif', codec='gif', pixels='rgb8')
  make_video(tmp_path / 'large.mp4', count=1, width=4608, height=4608)
  make_video(tmp_path / 'dot.mkv', count=2, codec='ffv1', width=2, height=2)
  (tmp_path / 'folder').mkdir()
  expected = {name: code for name, (_, code) in contents.items()} | {
    'absent.mp4': 'not_found',
    'folder': 'empty',
    'fifo.mp4': 'not_regular_file',
    'archive.mp4': 'not_video',
    'sound.mp4': 'no_video_stream',
    'a.gif': 'format_not_allowed',
    'large.mp4': 'too_large',
    'dot.mkv': 'too_small',
  }
  code, rows = predict(*(tmp_path / n for n in (*expected, 'good.mp4')))
  assert code == ExitCode.USAGE
  assert {n: r['error'] for n, r in rows.items() if 'error' in r} == expected
  assert 'truncated' in rows['cut.mp4']['hint']
  assert 'git lfs pull' in rows['lfs.mp4']['hint']
  assert 'a folder of pictures' in rows['face.jpg']['hint']
  assert rows['good.mp4']['frames'] == 24
  assert predict('/dev/zero')[1]['zero']['error'] == 'not_regular_file'


def test_7_to_11_clips_that_are_short_or_broken(tmp_path, predict):
  webm = make_video(tmp_path / 'half.webm', codec='libvpx-vp9', count=48)
  webm.write_bytes(webm.read_bytes()[: webm.stat().st_size // 2])
  make_video(tmp_path / 'one.mp4', count=1)
  make_video(tmp_path / 'few.mp4', count=5)
  code, rows = predict(
    *(tmp_path / n for n in ('half.webm', 'one.mp4', 'few.mp4'))
  )
  assert code == ExitCode.OK
  assert any(f.startswith('short:') for f in rows['half.webm']['flags'])
  assert rows['one.mp4']['flags'] == ['static']
  assert rows['few.mp4']['flags'] == ['repeated:5/16']
  for row in rows.values():
    assert np.isfinite(list(row['classes'].values())).all()


@pytest.mark.parametrize('box', [b'stts', b'stsc'])
def test_15_a_header_that_promises_more_frames(tmp_path, box):
  path = make_video(tmp_path / 'a.mp4')
  data = bytearray(path.read_bytes())
  at = data.index(box) + 12
  data[at : at + 4] = struct.pack('>I', 2**24)
  path.write_bytes(data)
  start = time.monotonic()
  try:
    assert len(decode.read_clip(path).frames) == 24
  except MiraInputError as error:
    if error.code not in ('too_long', 'damaged', 'not_video'):
      raise
  assert time.monotonic() - start < 20


def test_23_names_of_every_kind(tmp_path, predict, monkeypatch):
  monkeypatch.chdir(tmp_path)
  video = make_video(tmp_path / 'a.mp4').read_bytes()
  names = [
    '-leading.mp4',
    'two words.mp4',
    '顔のビデオ.mp4',
    'é' * 125 + '.mp4',
  ]
  for name in names:
    pathlib.Path(name).write_bytes(video)
  code, rows = predict(*names)
  assert code == ExitCode.OK
  assert set(rows) == set(names)


def test_39_a_folder_that_cannot_be_written(tmp_path, capsys):
  miniatures.images(tmp_path / 'root/a/1', miniatures.face(0))
  (tmp_path / 'file').write_text('')
  paths = [f'--root={tmp_path}/root', f'--out={tmp_path}/file']
  assert cli.main(['prepare', 'folder', *paths]) == ExitCode.NOT_WRITTEN
  assert 'mira: not_written: ' in capsys.readouterr().err


def test_limits_are_those_that_are_documented():
  assert container.MAX_FILE_BYTES == 64 << 30
  assert container.MAX_PIXELS == 16_000_000
  assert decode.MAX_FRAMES == 1_000_000
  assert footage.MAX_DECODED_BYTES == 4 << 30
