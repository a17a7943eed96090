"""The built-in dataset: its clips, and that they never change."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mira_jax.data import dataset
from mira_jax.errors import MiraInputError
from mira_jax.synthetic import dataset as synthetic
from mira_jax.synthetic import faces
from mira_jax.video import images

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


DIGESTS = {
  ('macro', 'train'): '3af332ac09d925bd',
  ('macro', 'test'): '77f7cd3d07e295f5',
  ('micro', 'train'): 'f2bdb234a57396d1',
  ('micro', 'test'): '4155b5453a6ad052',
}


@pytest.mark.parametrize(('difficulty', 'split'), DIGESTS)
def test_every_pixel_is_that_of_earlier_versions(difficulty, split):
  np.random.seed(0)  # the global generator has no part in it
  digest = hashlib.sha256()
  for index in (*range(21), 250):
    clip = _draw(
      index, split=split, difficulty=difficulty, size=40, num_frames=8
    )
    assert clip.frames.shape == (8, 40, 40, 3)
    facts = (clip.label, clip.subject, clip.onset, clip.apex, clip.offset)
    digest.update(clip.frames.tobytes() + repr(facts).encode())
    digest.update(clip.action_units.encode())
  assert digest.hexdigest()[:16] == DIGESTS[difficulty, split]


def test_every_person_shows_every_class_once():
  names = 'Happy Sad Neutral Angry Surprise Disgust Fear'
  assert ' '.join(faces.CLASS_NAMES) == names  # DFEW's order
  labels = collections.defaultdict(list)
  for i in range(21):
    clip = _draw(i, size=16, num_frames=12)
    labels[clip.subject].append(faces.CLASS_NAMES[clip.label])
    always, maybe = faces.PROTOTYPES[faces.CLASS_NAMES[clip.label]]
    shown = {int(unit) for unit in clip.action_units.split('+') if unit}
    assert set(always) <= shown <= {*always, *maybe} <= {*faces.ACTION_UNITS}
  assert len({tuple(own) for own in labels.values()}) > 1
  for person, own in enumerate(labels.values()):
    assert own == faces.class_order(person, seed=3, split='train')
    assert sorted(own) == sorted(faces.CLASS_NAMES)


@pytest.mark.parametrize(
  ('difficulty', 'num_frames'), [('macro', 8), ('micro', 32)]
)
def test_the_apex_lies_between_onset_and_offset(difficulty, num_frames):
  for index in range(14):
    clip = _draw(index, difficulty=difficulty, size=16, num_frames=num_frames)
    if faces.CLASS_NAMES[clip.label] == 'Neutral':
      assert (clip.onset, clip.apex, clip.offset) == (-1, -1, -1)
      continue
    assert 1 <= clip.onset <= clip.apex <= clip.offset <= num_frames - 2
    if difficulty == 'micro':
      assert clip.offset - clip.onset <= 0.35 * 32


@pytest.mark.usefixtures('still')
def test_only_expressions_move_brows_and_mouth_and_micro_ones_less():
  changes = collections.defaultdict(list)
  for name in ('still_macro', 'still_micro'):
    for index in range(7):
      clip = _draw(index, difficulty=name)
      if faces.CLASS_NAMES[clip.label] == 'Neutral':
        mouths = [_rows(frame, 0.35, 0.7) for frame in clip.frames]
        assert all((mouth == mouths[0]).all() for mouth in mouths)
      else:
        changes[name].append(_change(clip))
  assert np.max(changes['still_macro'], axis=1).min() > 5
  assert np.mean(changes['still_micro']) < 0.8 * np.mean(changes['still_macro'])


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


def test_a_dataset_is_the_same_for_any_number_of_workers(tmp_path):
  marks, opened = [], []
  for workers in (0, 2):
    out = tmp_path / str(workers)
    synthetic.build(
      out, train_clips=14, test_clips=7, size=32, num_frames=8, workers=workers
    )
    opened.append(dataset.open(out))
    marks.append(dataset.fingerprint(opened[-1]))
  assert marks[0] == marks[1]
  assert list(opened[0].source('train')) == list(opened[1].source('train'))
  assert opened[0].name == 'synthetic_faces_macro'
  assert opened[0].class_names == faces.CLASS_NAMES
  assert opened[0].splits == {'train': 14, 'test': 7}
  drawn = _draw(3, seed=0, split='test', size=32, num_frames=8)
  kept = opened[0].source('test')[3]
  assert (kept.label, kept.subject, kept.apex, kept.action_units) == (
    drawn.label, drawn.subject, drawn.apex, drawn.action_units,
  )  # fmt: skip
  frame = images.decode_jpeg(kept.frames[2])
  assert np.abs(frame - drawn.frames[2].astype(float)).mean() < 4


@pytest.mark.parametrize('bad', [{'difficulty': 'hard'}, {'size': 8}])
def test_a_bad_value_is_named(tmp_path, bad):
  with pytest.raises(MiraInputError, match=f'bad_value: {next(iter(bad))}'):
    synthetic.build(tmp_path / 'out', **bad)
  assert not (tmp_path / 'out').exists()


def test_workers_never_import_jax():
  code = (
    'import sys, mira_jax.synthetic.dataset; assert "jax" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
