"""Videos come as players show them; images that are bombs are refused."""

from __future__ import annotations

import os
import pathlib
import resource
import struct

import av
import cv2
import numpy as np
import pytest

from mira_jax.data import records
from mira_jax.errors import MiraInputError
from mira_jax.prepare import prepare
from mira_jax.video import decode, geometry, images
from videos import make_video

_ONE = 1 << 16


def shown_by(
  path: pathlib.Path, matrix: tuple[float, float, float, float]
) -> pathlib.Path:
  """Writes (a, b, c, d) of x' = a x + c y, y' = b x + d y into an mp4."""
  data = bytearray(path.read_bytes())
  a, b, c, d = (round(_ONE * x) for x in matrix)
  whole = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
  struct.pack_into('>9i', data, data.index(b'tkhd') + 44, *whole)
  path.write_bytes(data)
  return path


# Each of Exif's eight orientations as a change of an image [H, W, 3].
ORIENTATIONS = {
  (1, 0, 0, 1): lambda x: x,
  (-1, 0, 0, 1): lambda x: x[:, ::-1],
  (-1, 0, 0, -1): lambda x: x[::-1, ::-1],
  (1, 0, 0, -1): lambda x: x[::-1],
  (0, 1, 1, 0): lambda x: x.swapaxes(0, 1),
  (0, 1, -1, 0): lambda x: np.rot90(x, -1),
  (0, -1, -1, 0): lambda x: np.rot90(x, 2).swapaxes(0, 1),
  (0, -1, 1, 0): lambda x: np.rot90(x),
  (0.98, 0.17, -0.17, 0.98): lambda x: x,  # by ten degrees
  (-2, 0, 0, 2): lambda x: x[:, ::-1],  # and twice as large
  (0, 0, 0, 0): lambda x: x,
}


@pytest.mark.parametrize('matrix', ORIENTATIONS)
def test_eight_orientations(tmp_path, matrix):
  path = make_video(tmp_path / 'a.mp4', count=3)
  plain = decode.read_clip(path).frames[2]
  shown_by(path, matrix)
  expected = ORIENTATIONS[matrix](plain)
  frames = decode.read_clip(path).frames
  np.testing.assert_array_equal(frames[2], expected)
  kept, width, height = decode.glance(path, 3, None)
  np.testing.assert_array_equal(kept, frames)
  assert (height, width) == expected.shape[:2]
  stored = path.read_bytes()
  clip = records.Clip(clip_id='a', label=0, video=stored, video_frames=3)
  np.testing.assert_array_equal(records.read_frames(clip, [2])[2], expected)
  corner = geometry.Square(left=0.5, top=0, width=0.5, height=0.5)
  cut = decode.read_clip(path, square=corner).frames[2]
  np.testing.assert_array_equal(cut, geometry.apply(expected, corner))


@pytest.mark.parametrize(
  ('suffix', 'aspect', 'width'),
  [
    ('mp4', (2, 1), 192),
    ('mkv', (8, 9), 85),
    ('ts', (2, 1), 192),
    ('avi', (900, 1), 96),
  ],
)
def test_pixels_that_are_not_square(tmp_path, suffix, aspect, width):
  path = make_video(tmp_path / f'a.{suffix}', count=6, aspect=aspect)
  assert decode.read_clip(path).size == (64, width)
  half = decode.read_clip(path, short_side=32)
  assert half.size == (32, round(width / 2))
  assert decode.glance(path, 1, None)[1:] == (width, 64)
  if suffix == 'mp4':
    turned = decode.read_clip(shown_by(path, (0, 1, -1, 0)))
    assert turned.size == (width, 64)


def test_the_larger_of_two_pictures(tmp_path):
  path = tmp_path / 'a.mkv'
  with av.open(str(path), 'w') as file:
    streams = []
    for width, height in ((64, 48), (160, 120)):
      stream = file.add_stream('libx264', rate=30)
      stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
      streams.append(stream)
    for i in range(9):
      for stream in streams:
        image = np.full((stream.height, stream.width, 3), 20 * i, np.uint8)
        frame = av.VideoFrame.from_ndarray(image, 'rgb24')
        file.mux(stream.encode(frame))
    for stream in streams:
      file.mux(stream.encode())
  video = decode.read_clip(path)
  assert (video.count, video.size) == (9, (120, 160))


def test_a_size_that_changes_in_the_middle(tmp_path):
  joined = b''
  for width, height, count in ((64, 48, 8), (128, 96, 8), (4608, 4608, 1)):
    part = tmp_path / f'{width}.ts'
    make_video(part, count=count, width=width, height=height)
    joined += part.read_bytes()
  (tmp_path / 'a.ts').write_bytes(joined)
  video = decode.read_clip(tmp_path / 'a.ts')  # without the last part
  assert video.frames.shape[1:] == (48, 64, 3)
  assert 8 < video.count <= 16


# Images.


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.bmp'])
def test_an_image_of_too_many_pixels_is_not_decoded(
  tmp_path, monkeypatch, suffix
):
  folder = tmp_path / 'root/a/1'
  folder.mkdir(parents=True)
  bomb = cv2.imencode(suffix, np.zeros((4001, 4000), np.uint8))[1].tobytes()
  (folder / f'1{suffix}').write_bytes(bomb)

  def decoded(*_):
    raise AssertionError('it was decoded')

  monkeypatch.setattr(cv2, 'imdecode', decoded)
  for read in (
    decode.read_clip,
    lambda path: decode.glance(path, 8, None),
    lambda path: images.decode_jpeg(bomb),
    lambda path: images.whole_image(bomb, reduced=True),
  ):
    with pytest.raises(MiraInputError, match='too_large'):
      read(folder)
  with pytest.raises(MiraInputError, match=r'no_clips.*too_large'):
    prepare.prepare_folder(tmp_path / 'root', tmp_path / 'out', workers=0)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.bmp'])
@pytest.mark.parametrize('shape', [(40, 50, 3), (33, 17)])
def test_headers_hold_the_size(suffix, shape):
  data = cv2.imencode(suffix, np.zeros(shape, np.uint8))[1].tobytes()
  assert images.image_size(data) == shape[:2]
  assert images.whole_image(data).shape == (*shape[:2], 3)
  for cut in range(0, 40):
    images.image_size(data[:cut])  # raises nothing


def test_a_jpeg_with_odd_segments_is_measured():
  data = cv2.imencode('.jpg', np.zeros((40, 50, 3)))[1].tobytes()
  thumbnail = cv2.imencode('.jpg', np.zeros((8, 8, 3)))[1].tobytes()
  note = b'\xff\xe5' + (len(thumbnail) + 2).to_bytes(2) + thumbnail
  odd = data[:2] + note + b'\xff\xff\xff' + data[3:]
  assert images.image_size(odd) == (40, 50)
  assert images.whole_image(odd).shape == (40, 50, 3)
  assert images.image_size(b'\xff\xd8' + note) is None


def test_files_that_are_no_images_of_ours(tmp_path):
  data = cv2.imencode('.webp', np.zeros((40, 50, 3), np.uint8))[1].tobytes()
  (tmp_path / '1.png').write_bytes(data)
  with pytest.raises(MiraInputError, match='damaged'):
    decode.read_clip(tmp_path)
  with open(tmp_path / '2.jpg', 'wb') as file:
    file.truncate(images.MAX_IMAGE_BYTES + 1)  # takes no disk
  with pytest.raises(MiraInputError, match=r'too_large.*128 MiB'):
    decode.read_clip(tmp_path)


def test_no_frame_is_lost_where_few_files_may_be_open(tmp_path):
  video = make_video(tmp_path / 'a.mp4', count=9)
  folder = tmp_path / 'clip'
  folder.mkdir()
  for i in range(9):
    image = np.full((32, 32, 3), 20 * i, np.uint8)
    (folder / f'{i}.jpg').write_bytes(images.encode_jpeg(image))
  most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  used = len(os.listdir('/proc/self/fd'))
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 4, hard))
    for _ in range(20):  # files are closed
      assert decode.read_clip(folder).count == 9
      assert decode.read_clip(video).count == 9
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    for path in (video, folder, folder / '1.jpg'):
      with pytest.raises(MiraInputError, match='not_readable'):
        decode.read_clip(path)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
