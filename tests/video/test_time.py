"""Time is that of the frames: rates that vary, long clips, odd headers."""

from __future__ import annotations

import fractions
import pathlib
import struct
import tracemalloc

import av
import numpy as np
import pytest

import miniatures
import runs
from mira_jax.data import dataset, records
from mira_jax.data.listing import Row
from mira_jax.errors import MiraInputError
from mira_jax.inference import scorer
from mira_jax.prepare import prepare, store
from mira_jax.prepare.resolve import Found
from mira_jax.video import decode, encode, footage, images, timing
from videos import make_video

_MS = fractions.Fraction(1, 1000)
# A second of 30 frames a second, then six of 5.
VARIABLE = [33 * i for i in range(30)] + [1000 + 200 * i for i in range(30)]


def timed_video(
  path: pathlib.Path,
  times: list[int],
  *,
  codec: str = 'libx264',
  sound: float = 0,
  size: int = 32,
  **options,
) -> pathlib.Path:
  """Frames whose mean gray level is 20 + 3 i, at times in ms."""
  with av.open(str(path), 'w', **options) as file:
    stream = file.add_stream(codec, rate=1000 if codec == 'libvpx' else 30)
    stream.width = stream.height = size
    stream.pix_fmt = 'yuv420p'
    stream.codec_context.time_base = _MS
    if codec == 'libx264':
      stream.options = {'preset': 'ultrafast'}
    audio = file.add_stream('aac', rate=8000) if sound else None
    for i, time in enumerate(times):
      image = np.full((size, size, 3), 10 + 3 * (i % 70), np.uint8)
      image[:, size // 2 :] += 20  # it shows something
      frame = av.VideoFrame.from_ndarray(image, 'rgb24')
      frame.pts, frame.time_base = time, _MS
      file.mux(stream.encode(frame))
    file.mux(stream.encode())
    if audio:
      wave = np.zeros((1, int(8000 * sound)), np.float32)
      silence = av.AudioFrame.from_ndarray(wave, 'fltp', 'mono')
      silence.sample_rate = 8000
      file.mux(audio.encode(silence))
      file.mux(audio.encode())
  return path


class Brightness(scorer.Scorer):
  """Two classes: how bright a window is, and how dark."""

  frames, image_size, batch_size, buckets = 8, 16, 4, (4,)

  def _scores(self, windows: np.ndarray) -> dict[str, np.ndarray]:
    bright = windows.mean(axis=(1, 2, 3, 4)) / 255
    rows = np.stack([bright, 1 - bright], axis=1).astype(np.float32)
    return {'probabilities': rows}


def _seconds(video: footage.Video, fps: float | None = None) -> np.ndarray:
  """Mean index of the frames in each second of a timeline."""
  video = video.at(fps) if fps else video
  rows = Brightness().timeline(video, rate=1, fit='squash', stride=0.1)
  return (rows[:, 0] * 255 - 20) / 3


@pytest.mark.parametrize('suffix', ['mp4', 'webm'])
def test_seconds_of_a_variable_rate(tmp_path, suffix):
  name = tmp_path / f'a.{suffix}'
  if suffix == 'webm':  # as a browser records: neither duration nor rate
    live = {'format': 'webm', 'options': {'live': '1'}, 'codec': 'libvpx'}
    video = decode.read_clip(timed_video(name, VARIABLE, **live))
  else:
    video = decode.read_clip(timed_video(name, VARIABLE))
  assert video.count == 60
  assert video.flags == ()
  assert video.fps == pytest.approx(30.3, abs=0.1)
  found = _seconds(video)
  assert len(found) == 7
  # In second 3 frames 40 to 44 are seen.
  expected = [14.5, *(32 + 5 * i for i in range(6))]
  np.testing.assert_allclose(found, expected, atol=1.3)
  # A rate that is given goes before: 12 frames a second.
  found = _seconds(video, 12.0)
  np.testing.assert_allclose(found, 5.5 + 12 * np.arange(5), atol=2.6)


def test_windows_are_cut_in_time(tmp_path):
  video = decode.read_clip(timed_video(tmp_path / 'a.mkv', VARIABLE))
  windows, indices = Brightness().cut_views(
    video, rate=6, views=7, fit='squash'
  )
  levels = (windows.mean(axis=(2, 3, 4)) - 20) / 3
  np.testing.assert_allclose(levels, indices, atol=0.7)
  assert indices[0, -1] >= 30  # 8 frames, 0.2 s apart: 1.6 s
  np.testing.assert_array_equal(np.diff(indices[3]), 1)  # of 5 a second


def _pace(milliseconds, header=30.0, last=0.0) -> timing.Pace:
  return timing.pace(np.array(milliseconds, float) / 1000, last, header)


@pytest.mark.parametrize(
  ('times', 'fps'),
  [
    ([round(100 * i / 3) for i in range(600)], 30),  # whole milliseconds
    ([5000 + 33.3 * i for i in range(90)], 30),  # begins late
    ([40 * i for i in range(60)], 25),  # the header is wrong
    ([5000 * i for i in range(20)], 0.2),  # a time lapse
    ([100 * i // 4 * 5 / 3 for i in range(60)], 24),  # of 24, shown at 60
  ],
)
def test_constant_rates(times, fps):
  found = _pace(times)
  assert found.shown is None
  assert found.flags == ()
  assert found.fps == pytest.approx(fps, rel=0.01)


def test_rates_that_vary():
  pause = _pace([33 * i + 300_000 * (i >= 30) for i in range(60)])
  assert len(pause.shown) == pytest.approx(302 * 30.3, rel=0.01)
  assert (pause.shown == 29).sum() == pytest.approx(300 * 30.3, rel=0.01)
  twice = _pace([0, 40, 40, 80, 120, 500, 540])
  assert 1 not in twice.shown  # a player goes on to the next at once
  assert twice.shown.tolist()[:3] == [0, 2, 3]
  last = _pace([0, 100, 200, 600, 700], last=1.0)
  assert last.seconds == pytest.approx(1.7)
  assert (last.shown == 4).sum() == 10


@pytest.mark.parametrize(
  'times',
  [
    [0, 40, np.nan, 120],
    [0, 40, 80, 20, 60],
    [0] * 9,
    [0, 40, 80, 9e9, 9e9 + 40],
  ],
)
def test_times_that_contradict_each_other(times):
  found = _pace(times, 25)
  assert (found.fps, found.shown, found.flags) == (25, None, ('times',))


@pytest.mark.parametrize('suffix', ['mp4', 'mkv'])
def test_the_length_is_the_picture_s(tmp_path, suffix):
  times = [33 * i for i in range(60)]
  path = timed_video(tmp_path / f'a.{suffix}', times, sound=60)
  video = decode.read_clip(path)
  assert (video.count, video.flags) == (60, ())
  assert video.shown is None
  assert decode.count_frames(path)[2] == ()


def test_what_a_header_promises_is_not_believed(tmp_path):
  path = make_video(tmp_path / 'a.mkv', codec='ffv1')
  data = bytearray(path.read_bytes())
  at = data.index(b'\x44\x89\x88') + 3  # the duration in ms
  data[at : at + 8] = struct.pack('>d', 7_200_000.0)
  path.write_bytes(data)
  assert decode.read_clip(path).flags == ()
  late = timed_video(tmp_path / 'b.mkv', [5000 + 33 * i for i in range(60)])
  assert decode.read_clip(late).flags == ()
  assert len(_seconds(decode.read_clip(late))) == 2


@pytest.mark.parametrize('suffix', ['mp4', 'mkv'])
def test_a_piece_of_a_file_is_short(tmp_path, suffix):
  more = {'options': {'movflags': 'faststart'}} if suffix == 'mp4' else {}
  times = [33 * i for i in range(120)]
  sound = 9 * (suffix == 'mkv')
  path = timed_video(
    tmp_path / f'a.{suffix}', times, size=128, sound=sound, **more
  )
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  video = decode.read_clip(path)
  (flag,) = (flag for flag in video.flags if flag.startswith('short:'))
  assert 1 <= int(flag[len('short:') : -1]) < 70


def test_delays_of_a_gif_are_times(tmp_path):
  path = make_video(tmp_path / 'a.gif', codec='gif', pixels='rgb8', fps=10)
  data = bytearray(path.read_bytes())
  at = -1
  for i in range(24):
    at = data.index(b'\x21\xf9\x04', at + 1)
    if i == 4:
      data[at + 4 : at + 6] = (200).to_bytes(2, 'little')  # hundredths
  path.write_bytes(data)
  video = decode.read_clip(path)
  assert (video.count, len(video)) == (24, 43)
  assert video.shown[4:24].tolist() == [4] * 20
  counted = decode.count_frames(path)
  assert (counted[0], counted[2]) == (24, ('variable',))


# What is prepared.


def test_prepared_clips_of_a_variable_rate_are_even_in_time(tmp_path):
  for i in range(2):
    (tmp_path / f'root/{"ab"[i]}').mkdir(parents=True)
    timed_video(tmp_path / f'root/{"ab"[i]}/1.mp4', VARIABLE)
  prepare.prepare_folder(
    tmp_path / 'root',
    tmp_path / 'out',
    workers=0,
    test_fraction=0,
    max_frames=36,
  )
  clip = dataset.open(tmp_path / 'out').source('train')[0]
  assert len(clip) == 36
  assert clip.fps == pytest.approx(36 / 7, rel=0.02)
  levels = [images.decode_jpeg(f)[0, 0, 0] for f in clip.frames]
  first = sum(level < 10 + 3 * 29.5 for level in levels)
  assert 5 <= first <= 7  # of seven seconds


def test_a_gif_that_is_listed_is_prepared(tmp_path):
  gif = make_video(tmp_path / '1.gif', codec='gif', pixels='rgb8')
  assert len(_stored(gif, crop='center')) == 24
  clip = _stored(gif, as_video=True)
  clip.video = gif.read_bytes()
  assert records.read_frames(clip, [5])[5].shape == (64, 96, 3)


def _stored(path: pathlib.Path, **options) -> records.Clip:
  row = Row(path=path.name, label='a')
  found = Found(row=row, path=path, clip_id=path.name)
  return store._store(found, {'a': 0}, store.Storage(**options)).clip


# Memory.


def test_hours_take_little_memory(tmp_path, monkeypatch):
  times = [4000 * i for i in range(600)]
  path = timed_video(tmp_path / 'long.mp4', times, size=96)
  monkeypatch.setattr(footage, 'HELD_BYTES', 1 << 20)
  tracemalloc.start()
  video = decode.read_clip(path)
  rows = Brightness().timeline(video, rate=1, fit='crop', stride=16.0)
  _, indices = Brightness().cut_views(video, rate=1, views=3, fit='crop')
  stored = _stored(path)
  _, most = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert most < 600 * 96 * 96 * 3 / 3
  assert video.held is None
  assert len(rows) == 2400
  assert indices[:, 0].tolist() == [96, 296, 496]
  assert len(stored) == 96


def test_a_clip_is_read_again_and_says_the_same(tmp_path, monkeypatch):
  path = timed_video(tmp_path / 'a.mkv', VARIABLE)
  whole = decode.read_clip(path)
  monkeypatch.setattr(footage, 'HELD_BYTES', 10_000)
  again = decode.read_clip(path)
  assert (whole.held is None, again.held is None) == (False, True)
  np.testing.assert_array_equal(_seconds(again), _seconds(whole))
  np.testing.assert_array_equal(again.frames, whole.frames)
  again = decode.read_clip(path)
  timed_video(path, VARIABLE[:20])
  with pytest.raises(MiraInputError, match='damaged'):
    _seconds(again)
  folder = tmp_path / 'folder'
  folder.mkdir()
  for i, frame in enumerate(whole.frames):
    (folder / f'{i}.jpg').write_bytes(images.encode_jpeg(frame))
  long = decode.read_clip(folder)
  assert (long.held, len(long)) == (None, 60)
  monkeypatch.setattr(footage, 'HELD_BYTES', 1 << 20)
  held = decode.read_clip(folder).frames
  np.testing.assert_array_equal(
    [*long.take([0, 7, 7, 59])], held[[0, 7, 7, 59]]
  )


def test_a_long_black_clip_is_still_one(tmp_path, monkeypatch):
  monkeypatch.setattr(footage, 'HELD_BYTES', 10_000)
  path = tmp_path / 'a.mkv'
  miniatures.video(path, np.zeros((200, 32, 32, 3), np.uint8))
  assert decode.read_clip(path).flags == ('low_signal',)
  assert decode.read_clip(make_video(tmp_path / 'b.mkv')).flags == ()


@pytest.mark.parametrize('fps', [1e-300, 1e-9])
def test_a_timeline_has_an_end(fps):
  clip = decode.of_frames('x', np.zeros((99, 16, 16, 3), np.uint8), fps)
  with pytest.raises(MiraInputError, match=r'too_long.*604800 seconds'):
    Brightness().timeline(clip, rate=1, fit='crop')
  clip = clip.at(1e300)
  found = Brightness().timeline(clip, rate=1, fit='crop', stride=1e300)
  assert found.shape == (1, 2)


def test_a_video_that_has_no_room_is_not_half_written(tmp_path):
  path = tmp_path / 'a.mp4'
  frames = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
  with (
    runs.file_limit(20_000),
    pytest.raises(MiraInputError, match='not_written'),
  ):
    encode.write_video(path, frames, 25)
  assert not path.exists()
  encode.write_video(path, frames, 25)
  assert decode.read_clip(path).count == 20
