"""Decoding of real files, made here with PyAV: sound, odd and hostile."""

from __future__ import annotations

import functools
import os
import pathlib

import av
import cv2
import numpy as np
import pytest

from mira_jax.errors import MiraInputError
from mira_jax.video import (
  container,
  decode,
  footage,
  geometry,
  images,
  upright,
)
from videos import make_video

SAMPLES = pathlib.Path(os.environ.get('MIRA_SAMPLES', 'samples'))
needs_samples = pytest.mark.skipif(
  not SAMPLES.is_dir(), reason='MIRA_SAMPLES names no folder of samples'
)


def _code(path, read=decode.read_clip) -> str:
  with pytest.raises(MiraInputError) as caught:
    read(path)
  assert caught.value.path == os.fspath(path)
  return caught.value.code


@pytest.mark.parametrize(
  ('name', 'codec', 'pixels'),
  [
    ('a.mp4', 'libx264', 'yuv420p'),
    ('a.webm', 'libvpx-vp9', 'yuv420p'),
    ('a.avi', 'mpeg4', 'yuv420p'),
    ('a.ts', 'libx264', 'yuv420p'),
    ('ten_bit.mkv', 'libx264', 'yuv420p10le'),
    ('alpha.mkv', 'ffv1', 'bgra'),
    ('-leading: dash ü.mp4', 'libx264', 'yuv420p'),
  ],
)
def test_every_frame_comes_as_rgb(tmp_path, name, codec, pixels):
  path = make_video(tmp_path / name, codec=codec, pixels=pixels)
  video = decode.read_clip(path)
  assert video.frames.shape == (24, 64, 96, 3)
  assert video.frames.dtype == np.uint8
  assert video.fps == 25
  assert video.flags == ()
  np.testing.assert_allclose(video.frames[0, 8, 8], (255, 0, 0), atol=6)
  gray = video.frames[:, 48, 72].astype(int)
  assert np.abs(gray - 8 * np.arange(24)[:, None]).max() <= 8


def test_frames_shrink_while_decoding_but_never_grow(tmp_path):
  path = make_video(tmp_path / 'a.mkv', codec='ffv1', width=99, height=66)
  assert decode.read_clip(path, short_side=33).size == (33, 50)
  assert decode.read_clip(path, short_side=500).size == (66, 99)


def test_an_impossible_rate_is_unknown_and_one_frame_is_flagged(tmp_path):
  path = make_video(tmp_path / 'a.mp4', fps=1000, count=1)
  video = decode.read_clip(path)
  assert (video.fps, video.flags) == (0, ('static',))


def test_damaged_packets_give_the_frames_before_them(tmp_path):
  # Every frame is a key frame of its own, and the second half is noise.
  path = make_video(tmp_path / 'a.mp4', count=40, g='1', bf='0')
  with av.open(str(path)) as file:
    starts = [p.pos for p in file.demux(video=0) if p.pos]
  data = bytearray(path.read_bytes())
  noise = np.random.default_rng(0).bytes(starts[-1] - starts[20])
  data[starts[20] : starts[-1]] = noise
  path.write_bytes(data)
  video = decode.read_clip(path)
  assert 'partial' in video.flags
  assert 4 <= len(video.frames) < 40
  data[starts[2] : starts[20]] = data[starts[20] : starts[20] + 1] * (
    starts[20] - starts[2]
  )
  path.write_bytes(data)
  assert _code(path) == 'damaged'


def test_a_playlist_reads_no_other_file(tmp_path):
  make_video(tmp_path / 'secret.mp4')
  path = tmp_path / 'list.mp4'
  for start, code in (('', 'format_not_allowed'), ('\n# x\n', 'not_video')):
    path.write_text(f'{start}ffconcat version 1.0\nfile secret.mp4\n')
    assert _code(path) == code


def test_limits(tmp_path, monkeypatch):
  path = make_video(tmp_path / 'a.mp4')
  wide = make_video(tmp_path / 'b.mp4', count=1, width=4608, height=4608)
  assert _code(wide) == 'too_large'
  tiny = make_video(tmp_path / 'a.mkv', codec='ffv1', width=2, height=2)
  assert _code(tiny) == 'too_small'
  whole = decode.read_clip(path).frames
  monkeypatch.setattr(footage, 'MAX_DECODED_BYTES', 20 * 64 * 96 * 3)
  long = decode.read_clip(path)
  with pytest.raises(MiraInputError, match='too_long'):
    long.frames  # noqa: B018, it decodes
  np.testing.assert_array_equal([*long.take([3, 3, 23])], whole[[3, 3, 23]])
  # The limit is of what is kept.
  assert len(decode.read_clip(path, short_side=32).frames) == 24
  square = geometry.Square(left=0, top=0, width=1 / 3, height=1 / 2)
  assert len(decode.read_clip(path, square=square).frames) == 24
  monkeypatch.setattr(decode, 'MAX_FRAMES', 23)
  assert _code(path) == 'too_long'
  monkeypatch.setattr(container, 'MAX_FILE_BYTES', 100)
  assert _code(path) == 'too_large'


def _write_frames(folder: pathlib.Path, names: list[str]) -> pathlib.Path:
  """Noise of 48 x 36 pixels that differs from frame to frame."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  for name in names:
    image = rng.integers(0, 256, (36, 48, 3), np.uint8)
    cv2.imwrite(str(folder / name), image)
  return folder


def test_frames_of_a_folder_come_in_numeric_order(tmp_path):
  names = ['1.png', '2.PNG', 'x_9.bmp', 'x_10.png']
  folder = _write_frames(tmp_path / 'clip', names)
  (folder / '3.png').touch()
  (folder / '.4.png').write_bytes(b'x')
  (folder / 'Thumbs.db').write_bytes(b'x')
  video = decode.read_clip(folder)
  expected = [cv2.imread(str(folder / name))[..., ::-1] for name in names]
  np.testing.assert_array_equal(video.frames, expected)
  assert (video.fps, video.flags) == (0, ())


def test_odd_folders(tmp_path):
  folder = _write_frames(tmp_path / 'clip', [])
  read = functools.partial(decode.glance, count=4, short_side=None)
  assert _code(folder) == _code(folder, read) == 'empty'
  for name, shape in (('1.png', (36, 48)), ('3.png', (18, 24))):
    cv2.imwrite(str(folder / name), np.zeros((*shape, 3), np.uint8))
  (folder / '4.jpg').write_bytes(b'no image')
  video = decode.read_clip(folder)
  assert video.frames.shape == (2, 36, 48, 3)
  assert video.flags == ('partial', 'low_signal')
  frames, width, height = read(folder)
  assert (frames.shape, width, height) == ((2, 36, 48, 3), 48, 36)
  for name in ('1.png', '3.png'):
    (folder / name).write_bytes(b'no image')
  assert _code(folder) == _code(folder, read) == 'damaged'


@pytest.mark.parametrize('kind', ['video', 'folder'])
def test_a_square_is_cut_before_frames_shrink(tmp_path, kind):
  if kind == 'video':
    path = make_video(tmp_path / 'a.mp4')
  else:
    path = _write_frames(tmp_path / 'clip', ['0.png', '1.png', '2.png'])
  whole = decode.read_clip(path).frames
  square = geometry.Square(left=0.25, top=0.1, width=0.5 * 3 / 4, height=0.5)
  cut = [geometry.apply(frame, square) for frame in whole]
  assert cut[0].base is None  # a view would keep the whole frame
  for short_side in (None, 12, 500):
    frames = decode.read_clip(path, square=square, short_side=short_side)
    expected = [geometry.cut(f, path, short_side) for f in cut]
    np.testing.assert_array_equal(frames.frames, expected)
  tiny = geometry.Square(left=0, top=0, width=1 / 24, height=1 / 16)
  with pytest.raises(MiraInputError, match='too_small'):
    decode.read_clip(path, square=tiny)


def test_a_glance_at_a_folder(tmp_path, monkeypatch):
  path = _write_frames(tmp_path / 'clip', [f'{i}.png' for i in range(24)])
  whole = decode.read_clip(path, short_side=20).frames
  read, imdecode = [], cv2.imdecode
  monkeypatch.setattr(
    cv2, 'imdecode', lambda *args: read.append(args) or imdecode(*args)
  )
  frames, width, height = decode.glance(path, 8, 20)
  np.testing.assert_array_equal(frames, whole[footage.spaced(24, 8)])
  assert (width, height, len(read)) == (48, 36, 8)


@pytest.mark.parametrize('count', [1, 3, 100])
def test_a_glance_at_a_video(tmp_path, count):
  path = make_video(tmp_path / 'a.mkv', codec='ffv1', pixels='bgra')
  whole = decode.read_clip(path, short_side=32).frames
  frames, width, height = decode.glance(path, count, 32)
  assert (width, height) == (96, 64)
  # Every frame has a gray value of its own, which identifies it.
  found = [int(np.flatnonzero((whole == f).all((1, 2, 3)))[0]) for f in frames]
  assert len(found) == min(count, 24)
  gaps = np.diff([*found, 24])
  assert 1 <= gaps.min() <= gaps.max() <= max(2 * 24 / count, 1)


def test_a_glance_holds_few_frames(tmp_path, monkeypatch):
  path = make_video(tmp_path / 'a.mp4', count=200)
  converted = []
  to_rgb = upright.to_rgb
  monkeypatch.setattr(
    upright, 'to_rgb', lambda *args: converted.append(1) or to_rgb(*args)
  )
  assert len(decode.glance(path, 4, None)[0]) == 4
  assert len(converted) < 40


def test_jpeg_keeps_the_colours():
  image = np.full((32, 32, 3), (200, 100, 30), np.uint8)
  data = images.encode_jpeg(image)
  for back in (images.decode_jpeg(data), images.whole_image(data)):
    np.testing.assert_allclose(back.astype(int), image, atol=4)
  stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
  assert stored[0, 0, 0] < stored[0, 0, 2]  # BGR


def test_resize_squashes_or_crops():
  image = np.zeros((4, 8, 3), np.uint8)
  image[:, 2:6] = 255  # the middle square is white
  assert (geometry.resize(image, 4, 'crop') == 255).all()
  squashed = geometry.resize(image, 4)
  assert squashed[0, :, 0].tolist() == [0, 255, 255, 0]
  assert geometry.resize(image, 16).shape == (16, 16, 3)
  with pytest.raises(ValueError, match='squash'):
    geometry.resize(image, 4, 'pad')


@needs_samples
@pytest.mark.parametrize(
  ('name', 'count', 'fps'),
  [
    ('clips/talking_face_224px_25fps.mp4', 107, 25),
    ('frames_jpg', 3, 0),
    ('frames_png', 3, 0),
  ],
)
def test_sample_clips(name, count, fps):
  video = decode.read_clip(SAMPLES / name)
  assert video.frames.shape == (count, 224, 224, 3)
  assert (video.fps, video.flags) == (fps, ())
