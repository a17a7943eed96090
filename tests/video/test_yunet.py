"""YuNet's model files: found faces, and files that are no such model."""

from __future__ import annotations

import os

import numpy as np
import pytest

import yunet_file
from mira_jax.errors import MiraInputError
from mira_jax.video import face_crop, yunet


@pytest.fixture
def model(tmp_path) -> str:
  return yunet_file.write(tmp_path / 'yunet.onnx')


def scene(*places: tuple[int, int], size: int = 32) -> np.ndarray:
  """Eight frames of 320 x 640 that are dark but for white squares."""
  frames = np.full((8, 320, 640, 3), 40, np.uint8)
  for left, top in places:
    frames[:, top : top + size, left : left + size] = 255
  return frames


def test_boxes_are_in_pixels_of_the_frame(model):
  frame = scene((96, 64), (352, 192))[0]
  found = [box.tolist() for box in face_crop.boxes(frame, model)]
  assert sorted(found) == [[80, 48, 64, 64], [336, 176, 64, 64]]
  twice = np.kron(frame, np.ones((2, 2, 1), np.uint8))
  found = [box.tolist() for box in face_crop.boxes(twice, model)]
  assert sorted(found) == [[160, 96, 128, 128], [672, 352, 128, 128]]
  assert face_crop.boxes(scene()[0], model) == []


def test_a_clip_has_the_square_of_its_face(model):
  square = face_crop.find(scene((96, 64)), model)
  side = 64 * face_crop.MARGIN
  assert square.width * 640 == pytest.approx(side)
  assert square.height * 320 == pytest.approx(side)
  assert (square.left + square.width / 2) * 640 == pytest.approx(112)
  assert (square.top + square.height / 2) * 320 == pytest.approx(80)
  assert face_crop.find(scene(), model) is None
  assert face_crop.find(scene((96, 64))) is None  # no face for Haar's cascade


@pytest.mark.parametrize(
  ('data', 'code'),
  [
    (None, 'not_found'),
    (b'', 'bad_face_model'),
    (b'\x08\x07nonsense', 'bad_face_model'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'git_lfs_pointer'),
  ],
)
def test_a_file_that_is_no_model_is_one_error(tmp_path, capfd, data, code):
  path = tmp_path / 'x.onnx'
  if data is not None:
    path.write_bytes(data)
  with pytest.raises(MiraInputError) as caught:
    yunet.check(str(path))
  assert (caught.value.code, caught.value.path) == (code, str(path))
  assert '\n' not in str(caught.value)
  assert capfd.readouterr() == ('', '')  # OpenCV is silent


@pytest.mark.parametrize('changes', [{'drop': 'obj_8'}, {'channels': 2}])
def test_another_network_is_refused(tmp_path, changes):
  """OpenCV would read behind the ends of its outputs."""
  path = yunet_file.write(tmp_path / 'x.onnx', **changes)
  with pytest.raises(MiraInputError, match=f'bad_face_model.*{yunet.FILE}'):
    yunet.check(path)


def test_a_pipe_is_no_model(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(MiraInputError, match='not_regular_file'):
    yunet.check(str(tmp_path / 'pipe'))
