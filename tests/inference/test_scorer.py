"""Batches, windows, timelines, and which clips a clip's result depends on."""

from __future__ import annotations

import threading

import cv2
import jax
import numpy as np
import pytest

from mira_jax.errors import MiraInputError
from mira_jax.inference import engine, find_clips, load
from mira_jax.inference.faces import Crop
from mira_jax.mira import MiraConfig
from mira_jax.synthetic import faces
from mira_jax.video import decode
from small_models import save_model
from videos import make_video

pytestmark = pytest.mark.usefixtures('compile_cache')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp('model') / 'weights.safetensors'
  return save_model(path, MiraConfig(), depth=1)


def one_device():
  shape = np.array(jax.devices()[:1]).reshape(1, 1, 1)
  return jax.sharding.Mesh(shape, ('data', 'fsdp', 'model'))


def noise(count, frames=16):
  shape = (count, frames, 32, 32, 3)
  return np.random.default_rng(count).integers(0, 256, shape, np.uint8)


# ----- batches ----------------------------------------------------------------


def test_few_batch_sizes_are_compiled(model):
  whole, _ = load.load_engine(model, 13)
  parts = len(jax.devices())
  assert whole.buckets == (parts, 2 * parts)
  variables = jax.device_get(whole._variables)
  scorer = engine.Engine(whole.model, variables, 5, one_device())
  assert scorer.buckets == (1, 2, 4, 5)
  video = noise(12)
  expected = scorer.probabilities(video)
  assert scorer._score._cache_size() == 2  # 5, 5, 2
  for count in (1, 2, 3, 5):
    np.testing.assert_allclose(
      scorer.probabilities(video[:count]), expected[:count], atol=1e-6
    )
  assert scorer._score._cache_size() == 4


@pytest.mark.parametrize(
  ('statistics', 'alone'), [('instance', True), ('batch', False)]
)
def test_the_statistics_decide_what_a_clip_depends_on(
  tmp_path, statistics, alone
):
  mira = MiraConfig(statistics=statistics)
  path = save_model(tmp_path / 'w.safetensors', mira, depth=1, head_scale=1.0)
  found, _ = load.load_engine(path)
  scorer = engine.Engine(
    found.model, jax.device_get(found._variables), 2, one_device()
  )
  video = noise(3)
  video[0] //= 8
  video[0, 3] = 255
  first = scorer.logits(video[[0, 1]])[0]
  other = scorer.logits(video[[0, 2]])[0]
  assert np.allclose(first, other, rtol=1e-5) == alone


# ----- long clips -------------------------------------------------------------


def test_every_second_has_its_own_probabilities(model):
  scorer, _ = load.load_engine(model, 8)
  fps, rate, span = 10.0, 2, 32
  (frames,) = noise(1, 97)
  clip = decode.of_frames('clip', frames, fps)
  found = scorer.timeline(clip, rate=rate, fit='crop', stride=0.7)
  assert found.shape == (10, 7)
  np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
  # By hand: windows every 7 frames, and one that ends with the clip.
  starts = [*range(0, 65, 7), 65]
  windows = np.stack([frames[s : s + span : rate] for s in starts])
  rows = scorer.probabilities(windows).astype(np.float64)
  for second in range(10):
    seen = {*range(10 * second, 10 * second + 10)}
    weights = [len(seen & {*range(s, s + span)}) for s in starts]
    expected = np.average(rows, axis=0, weights=weights)
    np.testing.assert_allclose(found[second], expected, rtol=1e-5)


def test_a_short_clip_has_a_timeline_too(model):
  scorer, _ = load.load_engine(model, 8)
  clip = decode.of_frames('clip', noise(1, 5)[0], 20.0)
  found = scorer.timeline(clip, rate=2, fit='crop', stride=99)
  assert found.shape == (1, 7)
  assert np.isfinite(found).all()


# ----- finding and reading clips ----------------------------------------------


def test_names_stand_for_clips(tmp_path):
  (tmp_path / 'b' / 'deep' / 'frames').mkdir(parents=True)
  (tmp_path / 'b' / 'deep' / 'empty').mkdir()
  cv2.imwrite(str(tmp_path / 'b/deep/frames/1.png'), np.zeros((9, 9), np.uint8))
  for name in ('a.mp4', 'b/c.mkv'):
    make_video(tmp_path / name, count=2)
  clips = [str(tmp_path / x) for x in ('a.mp4', 'b/c.mkv', 'b/deep/frames')]
  for name, expected in {
    '.': clips,
    '*.mp4': clips[:1],
    '**/*.mkv': clips[1:2],
    'b/deep/frames': clips[2:],
    '*.avi': [str(tmp_path / '*.avi')],
    'b/deep/empty': [str(tmp_path / 'b/deep/empty')],
  }.items():
    assert find_clips.expand(str(tmp_path / name)).clips == expected


def test_clips_are_read_ahead_and_come_in_order():
  started, gate = [], threading.Event()

  def read(name):
    started.append(name)
    if name == 'bad':
      raise MiraInputError('not_video', name, 'no')
    gate.wait(5)
    return name.upper()

  names = ['a', 'b', 'bad', 'c', 'd', 'e']
  results = find_clips.ahead(read, names, threads=2)
  gate.set()
  first = next(results)
  assert first == ('a', 'A')
  assert len(started) <= 4  # not all at once
  rest = list(results)
  assert [name for name, _ in rest] == names[1:]
  assert rest[1][1].code == 'not_video'


def test_the_largest_face_is_cut_out(tmp_path):
  face = faces.draw_clip(
    3, split='test', seed=0, size=160, num_frames=16, difficulty='macro'
  ).frames
  scene = np.full((16, 320, 480, 3), 90, np.uint8)
  scene[:, 100:260, 280:440] = face
  scene[:, 20:84, 30:94] = [cv2.resize(f, (64, 64)) for f in face]
  for i, frame in enumerate(scene):
    cv2.imwrite(str(tmp_path / f'{i:02}.png'), frame[..., ::-1])
  cut = find_clips.read(tmp_path, short_side=64, crop=Crop())
  assert cut.frames.shape[1:] == (64, 64, 3)
  # More of the large face than of the grey around both.
  grey = (np.abs(cut.frames.astype(int) - 90).max(-1) < 3).mean()
  assert grey < 0.35


def test_a_gif_is_a_clip_only_where_it_is_allowed(tmp_path):
  gif = make_video(tmp_path / 'a.gif', codec='gif', pixels='rgb8')
  with pytest.raises(MiraInputError, match='format_not_allowed'):
    find_clips.read(gif)
  assert find_clips.read(gif, allow_gif=True).count == 24
  assert find_clips.expand(str(tmp_path)).clips != [str(gif)]
  assert find_clips.expand(str(tmp_path), True).clips == [str(gif)]
