"""Squares of faces: found in drawn and real clips, or given in tables."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import types

import cv2
import numpy as np
import pytest

from mira_jax.errors import MiraInputError
from mira_jax.prepare import boxes as face_boxes
from mira_jax.synthetic import faces
from mira_jax.video import decode, face_crop, geometry
from mira_jax.video.face_crop import Square

SAMPLES = pathlib.Path(os.environ.get('MIRA_SAMPLES', 'samples'))
needs_samples = pytest.mark.skipif(
  not SAMPLES.is_dir(), reason='MIRA_SAMPLES names no folder of samples'
)


def _pixels(square: Square, width: int, height: int) -> list[float]:
  """Left, top and the two sides in pixels."""
  values = (square.left, square.top, square.width, square.height)
  return [
    round(v * size, 6)
    for v, size in zip(values, (width, height) * 2, strict=True)
  ]


# Squares.


def test_the_largest_centred_square():
  assert _pixels(face_crop.center(640, 360), 640, 360) == [140, 0, 360, 360]
  assert _pixels(face_crop.center(90, 160), 90, 160) == [0, 35, 90, 90]


@pytest.mark.parametrize('shape', [(48, 64), (48, 65), (65, 48), (9, 9)])
def test_a_centred_square_is_what_resize_crops(shape):
  frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  square = face_crop.center(shape[1], shape[0])
  expected = geometry.resize(frame, min(shape), 'crop')
  np.testing.assert_array_equal(geometry.apply(frame, square), expected)


def test_a_square_in_whole_pixels_is_cut_exactly():
  frame = np.random.default_rng(0).integers(0, 256, (37, 101, 3), np.uint8)
  for side in range(1, 38, 4):
    for left, top in ((0, 0), (13, 0), (101 - side, 37 - side)):
      box = np.array([[left, top, side, side]], float)
      square = face_crop.from_boxes(box, 101, 37)
      expected = frame[top : top + side, left : left + side]
      np.testing.assert_array_equal(geometry.apply(frame, square), expected)


@pytest.mark.parametrize('shape', [(1, 1), (360, 640), (33, 20), (8, 3000)])
def test_a_cut_is_square_and_never_empty(shape):
  frame = np.zeros((*shape, 3), np.uint8)
  for share in (0.0, 1e-9, 0.3, 0.999, 1.0):
    square = Square(left=share, top=share, width=share, height=share)
    side, other, channels = geometry.apply(frame, square).shape
    assert side == other >= 1
    assert channels == 3
    assert abs(side - max(1, share * min(shape))) <= 1


# Boxes to squares.


@pytest.mark.parametrize(
  ('box', 'expected'),
  [
    ([100, 50, 40, 60], [90, 50, 60, 60]),  # the longer side counts
    ([-20, -20, 60, 60], [0, 0, 60, 60]),  # moved into the frame
    ([600, 330, 80, 80], [560, 280, 80, 80]),
    ([100, -50, 500, 500], [170, 0, 360, 360]),  # shrunk to it
    ([-5000, -5000, 10000, 10000], [0, 0, 360, 360]),
  ],
)
def test_a_box_becomes_a_square_inside_the_frame(box, expected):
  square = face_crop.from_boxes(np.array([box], float), 640, 360)
  assert _pixels(square, 640, 360) == expected


@pytest.mark.parametrize(
  'box', [[640, 9, 9, 9], [9, 360, 9, 9], [-9, 9, 9, 9], [9, -99, 9, 9]]
)
def test_a_box_outside_the_frame_is_none(box):
  assert face_crop.from_boxes(np.array([box], float), 640, 360) is None


def test_boxes_of_a_clip_become_their_median():
  boxes = [[100, 100, 50, 50], [500, 300, 9, 9], [110, 104, 50, 50]]
  boxes = np.array(boxes, float)
  square = face_crop.from_boxes(boxes, 640, 360)
  assert _pixels(square, 640, 360) == [110, 104, 50, 50]


# Faces.


def _background(width: int, height: int, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  blobs = rng.integers(60, 190, (6, 8, 3), np.uint8)
  return cv2.resize(blobs, (width, height), interpolation=cv2.INTER_CUBIC)


def _scene(*drawn: tuple[int, int, int, int]) -> np.ndarray:
  """Eight frames of 640 x 360 with faces at (index, left, top, size)."""
  frames = np.stack([_background(640, 360)] * 8)
  for index, left, top, size in drawn:
    face = faces.draw_clip(
      index, seed=1, split='train', difficulty='macro', size=224, num_frames=8
    )
    for frame, picture in zip(frames, face.frames, strict=True):
      picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
      frame[top : top + size, left : left + size] = picture
  return frames


def _assert_shows(square: Square, left: int, top: int, size: int) -> None:
  """The square is about the drawn picture, and no smaller than its face."""
  x, y, side, _ = _pixels(square, 640, 360)
  assert abs(x + side / 2 - left - size / 2) < 0.12 * size
  assert abs(y + side / 2 - top - size / 2) < 0.12 * size
  assert 0.8 * size < side < 1.2 * size


@pytest.mark.parametrize(
  ('index', 'left', 'top', 'size'),
  [(0, 200, 80, 224), (8, 20, 10, 160), (16, 416, 136, 224)],
)
def test_a_drawn_face_is_found(index, left, top, size):
  frames = _scene((index, left, top, size))
  square = face_crop.haar(frames)
  _assert_shows(square, left, top, size)
  assert face_crop.haar(frames) == square
  x, y, side, height = _pixels(square, 640, 360)
  assert side == pytest.approx(height)
  assert min(x, y) >= 0
  assert x + side <= 640
  assert y + side <= 360


def test_a_square_holds_at_every_resolution():
  frames = _scene((0, 200, 80, 224))
  large = np.stack([cv2.resize(f, (1280, 720)) for f in frames])
  small = np.stack([geometry.cut(f, 'f', 200) for f in frames])
  for other in (large, small):
    _assert_shows(face_crop.haar(other), 200, 80, 224)


@pytest.mark.parametrize('larger_first', [True, False])
def test_of_two_faces_the_larger_one_wins(larger_first):
  small, large = (3, 30, 130, 150), (9, 320, 40, 290)
  drawn = (large, small) if larger_first else (small, large)
  _assert_shows(face_crop.haar(_scene(*drawn)), *large[1:])


def test_a_face_that_leaves_is_still_found():
  frames = _scene((0, 200, 80, 224))
  frames[3:] = _background(640, 360)
  _assert_shows(face_crop.haar(frames), 200, 80, 224)
  frames[1:] = _background(640, 360)
  assert face_crop.haar(frames) is None


def test_the_longer_stay_wins_over_the_larger_face():
  frames = _scene((3, 30, 100, 200))
  frames[2:4] = _scene((3, 30, 100, 200), (9, 340, 60, 250))[2:4]
  _assert_shows(face_crop.haar(frames), 30, 100, 200)


def test_a_face_that_moves_is_one_face():
  frames = np.stack([_scene((0, 50 * i, 80, 224))[i] for i in range(8)])
  square = face_crop.haar(frames)
  _assert_shows(square, 175, 80, 224)


@pytest.mark.parametrize('shape', [(120, 160), (8, 8), (8, 900), (1, 1)])
def test_nobody_is_found_in_noise_and_black(shape):
  noise = np.random.default_rng(0).integers(0, 256, (8, *shape, 3), np.uint8)
  assert face_crop.haar(noise) is None
  assert face_crop.haar(np.zeros_like(noise)) is None


def test_an_opencv_without_cascades(monkeypatch):
  def check(**attributes) -> None:
    monkeypatch.setattr(face_crop, 'cv2', types.SimpleNamespace(**attributes))
    with pytest.raises(MiraInputError, match=r'no_cascade.*headless>=4.10,<5'):
      face_crop._cascade()

  folder = types.SimpleNamespace(haarcascades='/absent/')
  empty = types.SimpleNamespace(empty=lambda: True)
  check(error=cv2.error)
  check(error=cv2.error, data=folder)
  check(error=cv2.error, data=folder, CascadeClassifier=lambda name: empty)
  check(error=cv2.error, data=folder, CascadeClassifier=cv2.CascadeClassifier)


@needs_samples
def test_a_real_face_is_found():
  path = SAMPLES / 'clips' / 'talking_face_224px_25fps.mp4'
  frames, width, height = decode.glance(path, 8, None)
  assert (len(frames), width, height) == (8, 224, 224)
  scene = np.stack([_background(640, 360)] * 8)
  scene[:, 100:324, 300:524] = frames
  x, y, side, _ = _pixels(face_crop.haar(scene), 640, 360)
  # By hand: the head is about 150 pixels tall, around (400, 180).
  assert abs(x + side / 2 - 400) < 25
  assert abs(y + side / 2 - 180) < 25
  assert 130 < side < 200


# Tables of boxes.


def _write(path: pathlib.Path, content: str | bytes) -> pathlib.Path:
  data = content.encode() if isinstance(content, str) else content
  path.write_bytes(data)
  return path


def _plain(boxes: dict[str, np.ndarray]) -> dict[str, list]:
  return {clip: found.tolist() for clip, found in boxes.items()}


CSV = 'path,x,y,width,height\na/1.mp4,1,2,3,4\nb.mp4,5,6,7.5,8\na/1.mp4,2,2,3,4'
WANTED = {'a/1.mp4': [[1, 2, 3, 4], [2, 2, 3, 4]], 'b.mp4': [[5, 6, 7.5, 8]]}


@pytest.mark.parametrize(
  'content',
  [
    CSV.encode(),
    CSV.replace(',', ';').encode(),
    CSV.replace(',', '\t').replace('\n', '\r\n').encode(),
    b'\xef\xbb\xbf' + CSV.encode(),
    gzip.compress(CSV.encode(), mtime=0),
    CSV.replace('path,x,y,width,height', 'Clip,Left,TOP, w,h').encode(),
    CSV.replace('path,x,y', 'file_name,left,y').replace('a/', 'a\\').encode(),
    CSV.replace('a/1', './a//1').replace(',4', ', 4 ').encode(),
    CSV.replace('mp4,', 'mp4,"some, text",').replace('path', 'path,t').encode(),
  ],
)
def test_dialects_of_csv(tmp_path, content):
  assert (
    _plain(face_boxes.read_boxes(_write(tmp_path / 't', content))) == WANTED
  )


@pytest.mark.parametrize(
  'content',
  [
    [
      {'path': 'a/1.mp4', 'x': 1, 'y': 2, 'width': 3, 'height': 4},
      {'Clip': 'b.mp4', 'left': 5, 'top': 6, 'w': 7.5, 'h': '8', 'score': 1},
      {'filename': 'a/1.mp4', 'h': 4, 'w': 3, 'y': 2, 'x': 2},
    ],
    {'a/1.mp4': [[1, 2, 3, 4], [2, 2, 3, 4]], 'b.mp4': [5, 6, 7.5, 8]},
    {**WANTED, 'nobody.mp4': []},
  ],
)
def test_dialects_of_json(tmp_path, content):
  data = json.dumps(content, indent=1).encode()
  for same in (data, b'\xef\xbb\xbf' + data, gzip.compress(data)):
    path = _write(tmp_path / 't.json', same)
    assert _plain(face_boxes.read_boxes(path)) == WANTED


HEADER = 'clip,x,y,w,h\na,1,2,3,4\n'


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('', 'bad_table.*no column for the clip'),
    ('clip,x,y,w\na,1,2,3\n', 'bad_table.*no column for the height'),
    ('name,x,y,w,h\na,1,2,3,4\n', 'bad_table.*filename'),
    ('clip,x,y,w,h\n', 'bad_table.*no box'),
    (HEADER + ',1,2,3,4\n', 'bad_table.*line 3: it names no clip'),
    (HEADER + 'a,"' + 'x' * 200_000, 'bad_table.*not a CSV file'),
    (b'PK\x03\x04', 'bad_table.*no readable Excel'),
    (b'\x1f\x8bno', 'bad_table'),
    (HEADER + 'b,1,2,3,\n', 'bad_box.*line 3'),
    (HEADER + 'b,1,2\n', 'bad_box.*line 3'),
    (HEADER + '\nb,one,2,3,4\n', 'bad_box.*line 4.*one'),
    (HEADER + 'b,nan,2,3,4\n', 'bad_box.*line 3'),
    (HEADER + 'b,1,inf,3,4\n', 'bad_box.*line 3'),
    (HEADER + 'b,1,2,0,4\n', 'bad_box.*line 3.*positive'),
    (HEADER + 'b,1,2,3,-4\n', 'bad_box.*line 3.*positive'),
    ('[', 'bad_table.*line 1'),
    ('{"a": [1, 2,\n 3 4]}', 'bad_table.*line 2'),
    ('[' * 100_000, 'bad_table.*JSON'),
    ('[]', 'bad_table.*no box'),
    ('{}', 'bad_table.*no box'),
    ('[[1, 2, 3, 4]]', 'bad_table.*entry 1'),
    ('[{"clip": "a", "x": 1, "y": 2, "w": 3}]', 'bad_table.*entry 1.*height'),
    ('[{"clip": 7, "x": 1, "y": 2, "w": 3, "h": 4}]', 'bad_table.*no clip'),
    ('[{"clip": "a", "x": [], "y": 2, "w": 3, "h": 4}]', 'bad_box.*entry 1'),
    ('{"": [1, 2, 3, 4]}', 'bad_table.*no clip'),
    ('{"a": [1, 2, 3]}', 'bad_box.*clip a'),
    ('{"a": [1, 2, 3, 0]}', 'bad_box.*clip a'),
    ('{"a": [1, 2, 3, NaN]}', 'bad_box.*clip a'),
    ('{"a": [[1, 2, 3, 4], [1, 2, 3]]}', 'bad_box.*clip a'),
    ('{"a": [[1, 2, 3, 4], null]}', 'bad_box.*clip a'),
    ('{"a": "1234"}', 'bad_box.*clip a'),
    ('{"a": null}', 'bad_box.*clip a'),
    ('{"a": [1, 2, 3, 1' + '0' * 400 + ']}', 'bad_box.*clip a'),
  ],
)
def test_tables_that_are_refused(tmp_path, content, message):
  path = _write(tmp_path / 't', content)
  with pytest.raises(MiraInputError, match=f'(?s){message}') as caught:
    face_boxes.read_boxes(path)
  assert caught.value.path == str(path)


def test_a_table_that_is_not_there(tmp_path):
  with pytest.raises(MiraInputError, match='not_found'):
    face_boxes.read_boxes(tmp_path / 'absent.csv')


@pytest.mark.parametrize(
  ('name', 'clip_id'),
  [
    ('happy/1.mp4', 'happy/1.mp4'),
    ('happy/1', 'happy/1.mp4'),
    ('happy/1.mp4', 'happy/1'),  # a folder of its frames
    ('happy/1.AVI', 'happy/1.mp4'),
    ('1.mp4', 'happy/1.mp4'),
    ('1', 'train/happy/1.mp4'),
    ('/home/author/data/happy/1.mp4', 'happy/1.mp4'),
    ('author/S01.2', 'S01.2'),
  ],
)
def test_a_clip_is_looked_up_by_the_end_of_its_name(name, clip_id):
  boxes = {'other/2.mp4': np.zeros((1, 4)), name: np.ones((2, 4))}
  assert face_boxes.look_up(boxes, clip_id) is boxes[name]


@pytest.mark.parametrize(
  'clip_id', ['11.mp4', 'sad/1.mp4', 'happy/2.mp4', 'S01', 'happy']
)
def test_a_clip_without_boxes(clip_id):
  boxes = {'happy/1.mp4': np.ones((1, 4)), 'S01.2': np.ones((1, 4))}
  assert face_boxes.look_up(boxes, clip_id) is None


def test_a_name_that_two_rows_fit():
  boxes = {'happy/1.mp4': np.zeros((1, 4)), 'happy/1.avi': np.ones((1, 4))}
  assert face_boxes.look_up(boxes, 'happy/1.avi') is boxes['happy/1.avi']
  with pytest.raises(MiraInputError, match=r'ambiguous: happy/1: .*1\.avi'):
    face_boxes.look_up(boxes, 'happy/1')
