"""`mira predict`: timelines of long clips, and the faces in them."""

from __future__ import annotations

import csv
import io
import json
import re

import av
import cv2
import numpy as np
import pytest

import yunet_file
from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode
from mira_jax.inference import find_clips
from mira_jax.inference.faces import Crop
from mira_jax.video import encode
from predictions import face, predict
from small_models import NAMES

pytestmark = pytest.mark.usefixtures('compile_cache')


# ----- long clips -------------------------------------------------------------


def test_a_timeline_is_printed_and_drawn(capsys, tmp_path, model):
  clip = tmp_path / 'long.mp4'
  encode.write_video(clip, face(1, count=120), 25)
  arguments = [clip, f'--weights={model}', '--timeline', '--stride=0.3']
  (row,) = json.loads(predict(capsys, *arguments, '--json')[0])
  seconds = [x['second'] for x in row['timeline']]
  assert seconds == list(range(int(np.ceil(120 / row['fps']))))
  text, _ = predict(capsys, *arguments, '--format=csv')
  table = list(csv.DictReader(io.StringIO(text)))
  assert [int(x['second']) for x in table] == seconds
  out = tmp_path / 'pictures'
  code = cli.main(['predict', *map(str, arguments), f'--out={out}'])
  assert code == ExitCode.OK
  assert 'seconds' in capsys.readouterr().out
  arrays = np.load(out / 'long.npz')
  assert arrays['timeline'].shape == (len(seconds), 7)
  assert (out / 'long.png').stat().st_size > 10_000


def test_frames_have_no_seconds_without_a_rate(capsys, tree, model):
  folder = tree / 'b' / 'deep' / 'frames'
  arguments = (folder, f'--weights={model}', '--timeline')
  assert 'no_fps' in predict(capsys, *arguments, fails=True)[1]
  text, _ = predict(capsys, *arguments, '--fps=5', '--json')
  assert len(json.loads(text)[0]['timeline']) == 4


def test_times_are_above_zero(capsys, tree):
  with pytest.raises(SystemExit) as caught:
    cli.main(['predict', str(tree), '--timeline', '--stride=nan'])
  assert caught.value.code == ExitCode.USAGE
  assert 'is not above 0' in capsys.readouterr().err


# ----- faces ------------------------------------------------------------------


def test_threads_find_the_same_faces(capsys, tmp_path, model):
  for clip in range(4):
    scene = np.full((8, 160, 200, 3), 90, np.uint8)
    x, y = 16 * clip, 10 * clip
    scene[:, y : y + 96, x : x + 96] = face(clip, 96, 8)
    encode.write_video(tmp_path / f'{clip}.mp4', scene, 25)
  arguments = [tmp_path, f'--weights={model}', '--crop-face', '--json']
  one, four = (
    json.loads(predict(capsys, *arguments, f'--threads={n}')[0]) for n in (1, 4)
  )
  assert len({row['probability'] for row in one}) == 4
  assert one == four


def test_the_face_of_a_gif_is_cut_out_on_request(capsys, tmp_path, model):
  """Every hop from the flags to the decoder has the same options."""
  scene = np.full((12, 160, 240, 3), 90, np.uint8)
  scene[:, 30:150, 110:230] = face(3, 120, 12)
  with av.open(str(tmp_path / 'a.gif'), 'w') as file:
    stream = file.add_stream('gif', rate=25)
    stream.width, stream.height, stream.pix_fmt = 240, 160, 'gray'
    for frame in scene:
      file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, 'rgb24')))
    file.mux(stream.encode())
  flags = [f'--weights={model}', '--json', '--allow-gif']
  whole, cut = (
    json.loads(predict(capsys, tmp_path, *flags, *more)[0])[0]
    for more in ([], ['--crop-face'])
  )
  assert cut['frames'] == whole['frames'] == 12
  assert cut['classes'] != whole['classes']


@pytest.fixture
def face_model(tmp_path):
  return yunet_file.write(tmp_path / 'yunet.onnx')


def _video(path, *shown: bool):
  """A second of 8 frames for each argument: with a white face, or without."""
  frames = np.full((8 * len(shown), 160, 320, 3), 40, np.uint8)
  frames[np.repeat(shown, 8), 64:96, 96:128] = 255
  return encode.write_video(path, frames, 8)


def test_seconds_without_a_face_enter_no_mean(
  capsys, tmp_path, model, face_model
):
  clip = _video(tmp_path / 'clip.mp4', True, False, True, True, False)
  flags = [f'--weights={model}', '--timeline', '--stride=0.25']
  flags = [clip, *flags, '--crop-face', f'--face-model={face_model}']
  (row,) = json.loads(predict(capsys, *flags, '--json')[0])
  seconds = row['timeline']
  labels = [second['label'] for second in seconds]
  assert [label == 'no face' for label in labels] == [
    False, True, False, False, True,
  ]  # fmt: skip
  assert [second['classes'] is None for second in seconds] == [
    label == 'no face' for label in labels
  ]
  for name in NAMES:
    shown = [x['classes'][name] for x in seconds if x['classes']]
    assert row['classes'][name] == pytest.approx(np.mean(shown), abs=1e-6)
  text, _ = predict(capsys, *flags, '--format=csv')
  table = list(csv.DictReader(io.StringIO(text)))
  assert [line['label'] for line in table] == labels
  assert {table[1][name] for name in ('probability', *NAMES)} == {''}
  out = tmp_path / 'pictures'
  assert cli.main(['predict', *map(str, flags), f'--out={out}']) == ExitCode.OK
  assert re.search('1-2 +no face', capsys.readouterr().out)
  drawn = np.load(out / 'clip.npz')['timeline']
  assert np.isnan(drawn).all(1).tolist() == [x == 'no face' for x in labels]


def test_faces_of_a_second_follow_the_rate_that_is_given(tmp_path, face_model):
  """Also where frames have no rate of their own, or less than one a second."""
  clip = _video(tmp_path / 'clip.mp4', True, False, True)
  crop = Crop(model=face_model, by_second=True)
  found = {
    fps: find_clips.read(clip, fps=fps, crop=crop).faces.tolist()
    for fps in (None, 4, 24, 0.5)
  }
  assert found[None] == [True, False, True]
  assert found[4] == [True, True, False, False, True, True]
  assert found[24] == [True]
  assert found[0.5] == [True] * 16 + [False] * 16 + [True] * 16


def test_a_clip_without_the_face_is_an_error(
  capsys, tmp_path, model, face_model
):
  clip = _video(tmp_path / 'clip.mp4', False, False)
  flags = [f'--weights={model}', '--timeline', '--crop-face']
  _, err = predict(
    capsys, clip, *flags, f'--face-model={face_model}', fails=True
  )
  assert err.startswith(f'mira: no_face: {clip}: ')


@pytest.mark.parametrize(
  ('flags', 'code'),
  [
    (['--face-model=x.onnx'], 'bad_flag: --face-model'),
    (['--crop-face', '--face-model=x.onnx'], 'not_found: x.onnx'),
    (['--track', '--face-model=x.onnx'], 'not_found: x.onnx'),  # a former name
  ],
)
def test_a_missing_model_is_one_error(capsys, tree, model, flags, code):
  out, err = predict(capsys, tree, f'--weights={model}', *flags, fails=True)
  assert (out, err.count('\n')) == ('', 1)
  assert err.startswith(f'mira: {code}')


def test_the_face_before_a_camera_is_cut_out(
  capsys, tmp_path, model, face_model, monkeypatch
):
  """A file is read in place of the camera, by the same part of OpenCV."""
  clip = str(_video(tmp_path / 'clip.mp4', True, False))
  camera = cv2.VideoCapture
  monkeypatch.setattr(cv2, 'VideoCapture', lambda index: camera(clip))
  flags = ['--webcam', '--seconds=2', '--timeline', '--json']
  flags = [f'--weights={model}', *flags, '--crop-face']
  out, _ = predict(capsys, *flags, f'--face-model={face_model}')
  (row,) = json.loads(out)
  labels = [second['label'] for second in row['timeline']]
  assert [label == 'no face' for label in labels] == [False, True]


def test_clips_shorter_than_the_model_are_counted(capsys, tmp_path, model):
  for name, count in (('a', 2), ('b', 40)):
    encode.write_video(tmp_path / f'{name}.mp4', face(1, count=count), 25)
  for more in ([], ['--timeline']):
    flags = (tmp_path, f'--weights={model}', '--json', *more)
    out, err = predict(capsys, *flags)
    assert err == (
      'mira: warning: 1 of 2 clips have fewer frames than the 16 that the '
      'model takes; their last frame is repeated\n'
    )
    assert json.loads(out)[0]['flags'] == ['repeated:2/16']
