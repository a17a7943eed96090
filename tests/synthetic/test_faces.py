"""The built-in dataset: what is drawn, and that it is drawn again alike."""

from __future__ import annotations

import collections
import dataclasses
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mira_jax.data import dataset
from mira_jax.errors import MiraInputError
from mira_jax.synthetic import dataset as synthetic
from mira_jax.synthetic import drawing, faces

_STILL = {'shift': 0.0, 'turn': 0.0, 'light': 0.0, 'noise': 0.0}


def _draw(index, *, split='train', difficulty='macro', seed=3, **kwargs):
  return faces.draw_clip(
    index, seed=seed, split=split, difficulty=difficulty, **kwargs
  )


@pytest.fixture
def still(monkeypatch):
  """Adds both difficulties without motion, light and noise."""
  for name in ('macro', 'micro'):
    level = dataclasses.replace(faces.DIFFICULTIES[name], **_STILL)
    monkeypatch.setitem(faces.DIFFICULTIES, f'still_{name}', level)


def _rows(frame, low, high):
  """The middle of a frame between two heights, each in [-1, 1]."""
  size = len(frame)
  top, bottom = (round((y + 1) / 2 * size) for y in (low, high))
  return frame[top:bottom, size // 4 : -size // 4].astype(float)


def _change(clip):
  """Mean change from frame 0 to the apex of the brows and of the mouth."""
  first, apex = clip.frames[0], clip.frames[clip.apex]
  return [
    np.abs(_rows(apex, *rows) - _rows(first, *rows)).mean()
    for rows in ((-0.5, -0.2), (0.35, 0.7))
  ]


def test_a_clip_is_a_function_of_its_arguments():
  np.random.seed(0)
  one = _draw(5)
  _draw(9)
  np.random.seed(1)
  two = _draw(5)
  np.testing.assert_array_equal(one.frames, two.frames)
  assert one.frames.shape == (32, 64, 64, 3)
  assert one.frames.dtype == np.uint8
  assert (one.frames != _draw(5, seed=4).frames).any()
  assert (one.frames != _draw(5, split='test').frames).any()


def test_the_names_are_those_of_dfew_in_order():
  names = 'Happy Sad Neutral Angry Surprise Disgust Fear'
  assert ' '.join(faces.CLASS_NAMES) == names


def test_every_person_shows_every_class_once():
  clips = [_draw(i, size=16, num_frames=8) for i in range(21)]
  labels = collections.defaultdict(list)
  for clip in clips:
    labels[clip.subject].append(clip.label)
  assert [sorted(own) for own in labels.values()] == [list(range(7))] * 3
  assert len({tuple(own) for own in labels.values()}) > 1


def test_no_person_is_in_both_splits():
  train, test = (
    [_draw(i, split=split, size=16, num_frames=8) for i in range(0, 70, 7)]
    for split in ('train', 'test')
  )
  assert not {c.subject for c in train} & {c.subject for c in test}
  people = {c.frames[0].tobytes() for c in train + test}
  assert len(people) == 20


def test_action_units_are_the_prototypes():
  for index in range(21):
    clip = _draw(index, size=16, num_frames=12)
    always, maybe = faces.PROTOTYPES[faces.CLASS_NAMES[clip.label]]
    shown = {int(unit) for unit in clip.action_units.split('+') if unit}
    assert set(always) <= shown <= {*always, *maybe}
    assert set(always) | set(maybe) <= set(faces.ACTION_UNITS)


@pytest.mark.parametrize('difficulty', ['macro', 'micro'])
@pytest.mark.parametrize('num_frames', [8, 32])
def test_the_apex_lies_between_onset_and_offset(difficulty, num_frames):
  for index in range(28):
    clip = _draw(index, difficulty=difficulty, size=16, num_frames=num_frames)
    if faces.CLASS_NAMES[clip.label] == 'Neutral':
      assert (clip.onset, clip.apex, clip.offset) == (-1, -1, -1)
      continue
    assert 1 <= clip.onset <= clip.apex <= clip.offset <= num_frames - 2
    if difficulty == 'micro' and num_frames == 32:
      assert clip.offset - clip.onset <= 0.35 * 32


@pytest.mark.usefixtures('still')
def test_only_expressions_move_brows_and_mouth():
  for index in range(14):
    clip = _draw(index, difficulty='still_macro')
    if faces.CLASS_NAMES[clip.label] == 'Neutral':
      mouths = [_rows(frame, 0.35, 0.7) for frame in clip.frames]
      assert all((mouth == mouths[0]).all() for mouth in mouths)
    else:
      assert max(_change(clip)) > 5


@pytest.mark.usefixtures('still')
def test_micro_expressions_are_weaker():
  macro, micro = (
    np.mean(
      [
        _change(clip)
        for clip in (_draw(i, difficulty=name) for i in range(14))
        if clip.apex >= 0
      ]
    )
    for name in ('still_macro', 'still_micro')
  )
  assert micro < 0.8 * macro


def test_micro_clips_move_more():
  steps = [
    np.mean([np.abs(np.diff(_draw(i, difficulty=d).frames[:, ::4, ::4].astype(
      float), axis=0)).mean() for i in range(7)])
    for d in ('macro', 'micro')
  ]  # fmt: skip
  assert steps[1] > 1.2 * steps[0]


def _disc(size):
  """A white disc of radius 0.5 on black, [size, size] in [0, 1]."""
  zero = np.zeros(1)
  pose = drawing.Pose(
    x=zero, y=zero, roll=zero, yaw=zero, pitch=zero, scale=zero + 1
  )
  person = faces.sample_identity(np.random.default_rng(0))
  picture = drawing.Picture(person, {}, 1)
  disc = drawing.ellipse(0.0, 0.0, 0.5, 0.5, 96)
  picture.fill(disc, (255, 255, 255))
  canvas = np.zeros((drawing.canvas_size(size),) * 2 + (3,), np.uint8)
  return picture.render(pose, canvas, size)[0, ..., 0] / 255


def test_edges_are_anti_aliased():
  disc = _disc(64)
  edge = disc[(disc > 0) & (disc < 1)]
  assert len(np.unique(edge)) > 20
  # A hard edge would put no pixel, a blurred one far more, between the two.
  assert 0.8 < edge.size / (2 * np.pi * 16) < 3
  np.testing.assert_allclose(4 * disc.mean(), np.pi * 0.5**2, rtol=0.04)
  centre = [(disc.sum(axis) * np.arange(64)).sum() for axis in (0, 1)]
  np.testing.assert_allclose(centre / disc.sum(), 31.5, atol=0.1)


@pytest.mark.usefixtures('still')
def test_the_picture_does_not_depend_on_the_size():
  small, large = (
    _draw(1, difficulty='still_macro', size=size, num_frames=8).frames[3]
    for size in (64, 256)
  )
  reduced = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA)
  difference = np.abs(small.astype(float) - reduced)
  assert difference.mean() < 3
  assert np.percentile(difference, 99) < 40


def _build(out, workers):
  synthetic.build(
    out, train_clips=14, test_clips=7, size=32, num_frames=8, workers=workers
  )
  prepared = dataset.open(out)
  clips = {
    split: list(map(prepared.source(split).__getitem__, range(count)))
    for split, count in prepared.splits.items()
  }
  return prepared, clips


def test_a_dataset_is_the_same_for_any_number_of_workers(tmp_path):
  prepared, alone = _build(tmp_path / 'alone', 1)
  assert prepared.name == 'synthetic_faces_macro'
  assert prepared.class_names == faces.CLASS_NAMES
  assert prepared.splits == {'train': 14, 'test': 7}
  assert _build(tmp_path / 'shared', 2)[1] == alone
  drawn = faces.draw_clip(
    3, seed=0, split='test', difficulty='macro', size=32, num_frames=8
  )
  kept = alone['test'][3]
  assert (kept.label, kept.subject, kept.apex, kept.action_units) == (
    drawn.label, drawn.subject, drawn.apex, drawn.action_units,
  )  # fmt: skip
  frame = cv2.imdecode(np.frombuffer(kept.frames[2], np.uint8), 1)[..., ::-1]
  assert np.abs(frame - drawn.frames[2].astype(float)).mean() < 4


@pytest.mark.parametrize(
  'bad',
  [
    {'difficulty': 'hard'},
    {'train_clips': 0},
    {'size': 8},
    {'num_frames': 4},
    {'seed': -1},
    {'test_clips': 1.5},
  ],
)
def test_a_bad_value_is_named(tmp_path, bad):
  with pytest.raises(MiraInputError) as caught:
    synthetic.build(tmp_path / 'out', **bad)
  assert caught.value.code == 'bad_value'
  assert next(iter(bad)) in caught.value.path
  assert not (tmp_path / 'out').exists()


def test_workers_never_import_jax():
  module = 'mira_jax.synthetic.dataset'
  code = f'import sys, {module}; assert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)
