"""Squares of faces: centred, of boxes, found in synthetic and real clips."""

from __future__ import annotations

import os
import pathlib
import types

import cv2
import numpy as np
import pytest

from mira_jax.errors import MiraInputError
from mira_jax.synthetic import faces
from mira_jax.video import decode, face_crop, geometry
from mira_jax.video.geometry import Square

SAMPLES = pathlib.Path(os.environ.get('MIRA_SAMPLES', 'samples'))
needs_samples = pytest.mark.skipif(
  not SAMPLES.is_dir(), reason='MIRA_SAMPLES names no folder of samples'
)


def _pixels(square: Square, width: int, height: int) -> list[float]:
  """Left, top and the two sides in pixels."""
  sizes = {'left': width, 'top': height, 'width': width, 'height': height}
  return [round(getattr(square, k) * size, 6) for k, size in sizes.items()]


# Squares.


@pytest.mark.parametrize('shape', [(48, 64), (48, 65), (65, 48), (9, 9)])
def test_a_centred_square_is_what_resize_crops(shape):
  frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  square = face_crop.center(shape[1], shape[0])
  expected = geometry.resize(frame, min(shape), 'crop')
  np.testing.assert_array_equal(geometry.apply(frame, square), expected)


# Boxes to squares.


@pytest.mark.parametrize(
  ('boxes', 'expected'),
  [
    ([[100, 50, 40, 60]], [90, 50, 60, 60]),  # the longer side counts
    ([[-20, -20, 60, 60]], [0, 0, 60, 60]),  # moved into the frame
    ([[600, 330, 80, 80]], [560, 280, 80, 80]),
    ([[100, -50, 500, 500]], [170, 0, 360, 360]),  # shrunk to it
    (  # the median of several
      [[100, 100, 50, 50], [500, 300, 9, 9], [110, 104, 50, 50]],
      [110, 104, 50, 50],
    ),
  ],
)
def test_boxes_become_a_square_inside_the_frame(boxes, expected):
  square = face_crop.from_boxes(np.array(boxes, float), 640, 360)
  assert _pixels(square, 640, 360) == expected


@pytest.mark.parametrize(
  'box', [[640, 9, 9, 9], [9, 360, 9, 9], [-9, 9, 9, 9], [9, -99, 9, 9]]
)
def test_a_box_outside_the_frame_is_none(box):
  assert face_crop.from_boxes(np.array([box], float), 640, 360) is None


# Faces.


def _background() -> np.ndarray:
  blobs = np.random.default_rng(0).integers(60, 190, (6, 8, 3), np.uint8)
  return cv2.resize(blobs, (640, 360), interpolation=cv2.INTER_CUBIC)


def _scene(*drawn: tuple[int, int, int, int]) -> np.ndarray:
  """Eight frames of 640 x 360 with faces at (index, left, top, size)."""
  frames = np.stack([_background()] * 8)
  for index, left, top, size in drawn:
    face = faces.draw_clip(
      index, seed=1, split='train', difficulty='macro', size=224, num_frames=8
    )
    for frame, picture in zip(frames, face.frames, strict=True):
      picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
      frame[top : top + size, left : left + size] = picture
  return frames


def _assert_shows(square: Square | None, left: int, top: int, size: int):
  """The square is about the drawn picture, and no smaller than its face."""
  x, y, side, height = _pixels(square, 640, 360)
  assert abs(x + side / 2 - left - size / 2) < 0.12 * size
  assert abs(y + side / 2 - top - size / 2) < 0.12 * size
  assert 0.8 * size < side < 1.2 * size
  assert side == pytest.approx(height, rel=0.01)
  assert min(x, y, 640 - x - side, 360 - y - side) >= 0


def test_a_face_is_found_at_every_resolution():
  frames = _scene((0, 200, 80, 224))
  square = face_crop.find(frames)
  _assert_shows(square, 200, 80, 224)
  small = np.stack([geometry.cut(f, 'f', 200) for f in frames])
  _assert_shows(face_crop.find(small), 200, 80, 224)


def test_of_two_faces_the_larger_one_wins():
  small, large = (3, 30, 130, 150), (9, 320, 40, 290)
  _assert_shows(face_crop.find(_scene(small, large)), *large[1:])


def test_a_face_that_leaves_is_still_found():
  frames = _scene((0, 200, 80, 224))
  frames[3:] = _background()
  _assert_shows(face_crop.find(frames), 200, 80, 224)
  frames[1:] = _background()
  assert face_crop.find(frames) is None


def test_the_longer_stay_wins_over_the_larger_face():
  frames = _scene((3, 30, 100, 200))
  frames[2:4] = _scene((3, 30, 100, 200), (9, 340, 60, 250))[2:4]
  _assert_shows(face_crop.find(frames), 30, 100, 200)


@pytest.mark.parametrize('shape', [(8, 900), (1, 1)])
def test_no_face_is_found_in_noise_and_black(shape):
  noise = np.random.default_rng(0).integers(0, 256, (8, *shape, 3), np.uint8)
  assert face_crop.find(noise) is None
  assert face_crop.find(np.zeros_like(noise)) is None


def test_an_opencv_without_cascades(monkeypatch):
  monkeypatch.setattr(cv2, 'data', types.SimpleNamespace())
  with pytest.raises(MiraInputError, match=r'no_cascade.*headless>=4.12,<5'):
    face_crop._cascade(-1)


@needs_samples
def test_a_real_face_is_found():
  path = SAMPLES / 'clips' / 'talking_face_224px_25fps.mp4'
  frames, width, height = decode.glance(path, 8, None)
  assert (len(frames), width, height) == (8, 224, 224)
  scene = np.stack([_background()] * 8)
  scene[:, 100:324, 300:524] = frames
  x, y, side, _ = _pixels(face_crop.find(scene), 640, 360)
  # By hand: the head is about 150 pixels tall, around (400, 180).
  assert abs(x + side / 2 - 400) < 25
  assert abs(y + side / 2 - 180) < 25
  assert 130 < side < 200
