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

from mira_jax import config
from mira_jax.data import dataset
from mira_jax.errors import MiraInputError
from mira_jax.synthetic import dataset as synthetic
from mira_jax.synthetic import faces, styles
from mira_jax.train import datasets
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


@pytest.mark.parametrize('difficulty', ['macro', 'micro'])
def test_every_unit_of_an_expression_is_shown_at_its_apex(difficulty):
  for index in range(14):
    clip = _draw(index, difficulty=difficulty, size=16)
    assert clip.units.shape == (32, len(faces.ACTION_UNITS))
    stored = np.rint(5 * clip.units)
    names = {int(unit) for unit in clip.action_units.split('+') if unit}
    shown = stored >= synthetic.POSITIVE_FROM
    for k, unit in enumerate(faces.ACTION_UNITS):
      assert shown[clip.apex, k] == (unit in names)
      assert not shown[[0, -1], k].any()
    if names:
      active = clip.units[:, clip.units.any(0)]
      np.testing.assert_allclose(active.mean(1), clip.intensity)


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
  assert opened[0].action_units[:3] == ('AU1', 'AU2', 'AU4')
  assert opened[0].positive_from == 2
  np.testing.assert_array_equal(kept.intensities, np.rint(5 * drawn.units))
  frame = images.decode_jpeg(kept.frames[2])
  assert np.abs(frame - drawn.frames[2].astype(float)).mean() < 4


@pytest.mark.parametrize(
  'bad', [{'difficulty': 'hard'}, {'size': 8}, {'style': 'moon'}]
)
def test_a_bad_value_is_named(tmp_path, bad):
  with pytest.raises(MiraInputError, match=f'bad_value: {next(iter(bad))}'):
    synthetic.build(tmp_path / 'out', **bad)
  assert not (tmp_path / 'out').exists()


def test_workers_never_import_jax():
  code = (
    'import sys, mira_jax.synthetic.dataset; assert "jax" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


# ----- styles -----------------------------------------------------------------


# Class, apex and mean colour: pixels are rounded otherwise on other processors.
STREET = (
  ('Fear', 3, (132.28, 111.4, 75.11)),
  ('Angry', 3, (148.94, 112.43, 93.46)),
  ('Happy', 3, (98.46, 80.64, 55.16)),
)


@pytest.mark.parametrize('index', range(3))
def test_the_street_is_that_of_earlier_versions(index):
  clip = _draw(index, style='street', size=40, num_frames=8)
  name, apex, colour = STREET[index]
  assert (faces.CLASS_NAMES[clip.label], clip.apex) == (name, apex)
  assert clip.frames.mean((0, 1, 2)) == pytest.approx(colour, abs=0.02)


def test_the_street_is_darker_softer_and_has_other_people():
  def facts(style):
    drawn = [_draw(i, style=style, num_frames=8) for i in range(0, 28, 2)]
    frames = np.stack([clip.frames.astype(float) for clip in drawn])
    light = frames.mean((1, 2, 3, 4))
    warm = frames[..., 0].mean() / frames[..., 2].mean()
    edges = np.abs(np.diff(frames, axis=3)).mean() / light.mean()
    return light, warm, edges, drawn[0]

  studio, street = facts('studio'), facts('street')
  assert street[0].max() < studio[0].mean()
  assert street[0].min() > 50  # a face is still seen
  assert street[1] > 1.1 * studio[1]
  assert street[2] < studio[2]
  orders = {
    style: [
      faces.class_order(i, seed=3, split='train', style=style) for i in range(9)
    ]
    for style in styles.STYLES
  }
  assert orders['studio'] != orders['street']


def test_the_face_of_the_street_moves_with_the_expression():
  """The camera of a style and its noise hide nothing of what is added."""
  drawing = {'style': 'street', 'size': 48, 'num_frames': 12}
  for index in range(7):
    clip, still = (_draw(index, neutral=x, **drawing) for x in (False, True))
    change = np.abs(clip.frames.astype(float) - still.frames).mean((1, 2, 3))
    assert (change[clip.intensity == 0] == 0).all()
    if faces.CLASS_NAMES[clip.label] != 'Neutral':
      assert np.corrcoef(change, clip.intensity)[0, 1] > 0.95


def test_a_style_names_its_dataset_and_its_truth_is_drawn_again(tmp_path):
  out = tmp_path / 'synthetic_faces' / 'macro_street'
  cfg = config.DataConfig(dataset=str(out), train_clips=7, test_clips=2)
  (made,) = datasets.open_datasets(cfg)
  assert made.name == 'synthetic_faces_macro_street'
  drawn = _draw(1, seed=0, split='test', style='street')
  kept = images.decode_jpeg(made.source('test')[1].frames[3])
  assert np.abs(kept - drawn.frames[3].astype(float)).mean() < 5
  intensity, _ = synthetic.Truth(made)('test-000001')
  np.testing.assert_array_equal(intensity, drawn.intensity)
  changed = dataclasses.replace(styles.STYLES['street'], clutter=3)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(styles.STYLES, 'street', changed)
    with pytest.raises(MiraInputError, match='not_synthetic'):
      synthetic.Truth(made)
    with pytest.raises(MiraInputError, match='another version of mira_jax'):
      datasets.open_datasets(cfg)


def test_a_dataset_of_an_earlier_version_is_in_the_studio():
  about = {'difficulty': 'macro', 'level': synthetic.level('macro')}
  assert 'style' not in about['level']
  assert synthetic.is_current(about)
  assert not synthetic.is_current(about | {'style': 'street'})
  assert not synthetic.is_current(about | {'style': 'moon'})
