"""Phases of an expression: weights, dynamic images, halves, and training."""

from __future__ import annotations

import itertools
from typing import Any

import grain
import numpy as np
import pytest

import runs
from mira_jax import config
from mira_jax.data import phased, pipeline
from mira_jax.data.dataset import Clip
from mira_jax.devices import sharding
from mira_jax.errors import MiraInputError
from mira_jax.synthetic import faces
from mira_jax.systems import phases
from mira_jax.train import task
from mira_jax.video import images

KINDS = ('simple', 'rank_pool')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('count', [1, 2, 3, 17])
def test_weights_sum_to_zero_and_are_those_of_their_definition(kind, count):
  weights = phases.rank_pool_weights(count, kind)
  assert weights.shape == (count,)
  assert abs(weights.sum()) < 1e-12
  t = np.arange(1, count + 1)
  simple = 2 * t - count - 1
  if kind == 'simple':
    np.testing.assert_array_equal(weights, simple)
    return
  # The weight of a frame, by definition: what its unit adds to the sum of
  # means. Row t of the matrix is the mean of frames 1 to t.
  means = np.tril(np.ones((count, count))) / t[:, None]
  np.testing.assert_allclose(weights, simple @ means, atol=1e-12)


def test_kinds_of_weights_differ_and_others_are_refused():
  assert not np.allclose(*(phases.rank_pool_weights(5, k) for k in KINDS))
  with pytest.raises(ValueError, match="'svm'; use 'simple'"):
    phases.rank_pool_weights(5, 'svm')
  with pytest.raises(ValueError, match='num_frames is 0'):
    phases.rank_pool_weights(0)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('count', [1, 6, 31])
def test_a_constant_clip_is_grey(kind, count):
  frame = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
  clip = np.repeat(frame[None], count, 0)
  image = phases.dynamic_image(clip, kind=kind)
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, np.full((4, 5, 3), phases.GREY))


@pytest.mark.parametrize('kind', KINDS)
def test_a_dynamic_image_shows_the_direction_of_change(kind):
  clip = np.full((6, 2, 3, 1), 90, np.uint8)
  clip[:, 0, 0, 0] = 10 * np.arange(6)  # rises
  clip[:, 1, 2, 0] = 10 * np.arange(6)[::-1]
  image = phases.dynamic_image(clip, kind=kind)[..., 0]
  assert (image[0, 0], image[1, 2]) == (255, 0)
  assert len(np.unique(image)) == 3  # and what stays lies between
  back = phases.dynamic_image(clip[::-1], kind=kind)[..., 0]
  assert (back[0, 0], back[1, 2]) == (0, 255)
  # Not of frames outside, and a brighter scene changes nothing.
  longer = np.concatenate([clip[3:4], clip, clip[:1]])
  np.testing.assert_array_equal(
    phases.dynamic_image(longer + 5, 1, 6, kind)[..., 0], image
  )


@pytest.mark.parametrize('ends', [(-1, 3), (4, 3), (0, 6)])
def test_frames_that_a_clip_lacks_are_refused(ends):
  with pytest.raises(ValueError, match='not in a clip of 6'):
    phases.dynamic_image(np.zeros((6, 2, 2, 3)), *ends)


def test_the_apex_is_the_farthest_frame_from_the_first():
  clip = np.zeros((7, 2, 2, 3), np.uint8)
  clip[4] = 200
  clip[5] = 100
  assert phases.apex_of(clip) == 4
  assert phases.apex_of(clip[:1]) == 0


def test_the_found_apex_is_near_the_drawn_one():
  """Where only the expression moves; the label is not used."""
  errors = []
  for index in range(14):
    drawing = {'seed': 0, 'split': 'train', 'difficulty': 'macro', 'size': 32}
    clip = faces.draw_clip(index, **drawing)
    still = faces.draw_clip(index, neutral=True, **drawing)
    if clip.apex < 0:
      continue
    shown = clip.frames.astype(float) - still.frames
    found = phases.apex_of(shown)
    errors.append(clip.intensity.max() - clip.intensity[found])
  assert len(errors) == 12
  assert max(errors) < 0.15


@pytest.mark.parametrize(
  ('marks', 'expected'),
  [
    ((2, 5, 8), ((2, 5), (5, 8))),
    ((-1, 5, -1), ((0, 5), (5, 9))),
    ((2, 2, 8), ((2, 3), (3, 8))),  # the apex is no end
    ((2, 8, 8), ((2, 7), (7, 8))),
    ((2, 5, 99), ((2, 5), (5, 9))),  # a mark of another clip
    ((8, 5, 3), ((0, 2), (2, 3))),  # an onset after the offset is none
  ],
)
def test_halves_meet_at_the_apex(marks, expected):
  assert phases.halves(10, *marks) == expected


@pytest.mark.parametrize('count', [1, 2, 3])
def test_halves_of_short_clips_stay_inside(count):
  for apex in range(-1, 4):
    (first, middle), (again, last) = phases.halves(count, -1, apex, -1)
    assert 0 == first <= middle == again <= last == count - 1
    assert count < 3 or first < middle < last


# ----- as training data -------------------------------------------------------


def _clip(index: int, apex: int) -> Clip:
  """Grey frames that rise up to frame 8 of 12, and fall."""
  grays = [20 * index + 2 * min(j, 16 - j) for j in range(12)]
  frames = [
    images.encode_png(np.full((16, 16, 3), gray, np.uint8)) for gray in grays
  ]
  name = str(index)
  return Clip(clip_id=name, frames=frames, label=index % 3, apex=apex)


SOURCE = [_clip(i, apex) for i, apex in enumerate((8, -1, 8, -1, 8))]


def _epoch(kind: str, **changes) -> dict[str, np.ndarray]:
  options = {
    'frames': 4, 'rate': 2, 'size': 16, 'batch_size': 5, 'seed': 3,
    'threads': 2, 'phases': kind,
  } | changes  # fmt: skip
  batches = pipeline.train_batches(SOURCE, **options)
  some = list(itertools.islice(batches, phased.samples(kind)))
  return {n: np.concatenate([b[n] for b in some]) for n in some[0]}


@pytest.mark.parametrize('kind', ['clips', 'images'])
def test_an_epoch_has_every_clip_and_its_two_halves(kind):
  rows = _epoch(kind)
  assert np.bincount(rows['clip']).tolist() == [3] * 5
  np.testing.assert_array_equal(rows['label'], rows['clip'] % 3)
  levels = rows['video'][:, :, 3, 3, 0].astype(int)
  for clip in range(5):
    own = (levels - 20 * clip)[rows['clip'] == clip].tolist()
    if kind == 'clips':  # frames 0, 3, 5, 8 and 8, 9, 10, 11; so is the found
      assert [0, 6, 10, 16] in own
      assert [16, 14, 12, 10] in own
    else:  # one level in the whole picture: no contrast
      grey = [phases.GREY - 20 * clip] * 4
      assert own.count(grey) == 2


def test_without_phases_the_order_is_that_of_earlier_versions():
  order: Any = grain.MapDataset.range(5).seed(3).shuffle().repeat()
  expected = [order[i] for i in range(5)]
  assert _epoch('none')['clip'].tolist() == expected


def test_threads_do_not_change_phases():
  one, four = (_epoch('clips', threads=n)['video'] for n in (1, 4))
  np.testing.assert_array_equal(one, four)


def test_a_dynamic_image_is_a_still_of_what_moved():
  frames = np.zeros((9, 16, 16, 3), np.uint8)
  frames[:5, :8] = 20 * np.arange(5)[:, None, None, None]
  clip = Clip(
    clip_id='a', frames=[images.encode_png(x) for x in frames], label=0, apex=4
  )
  video = phased.video(clip, 0, 4, 'images', lambda i: frames[i])
  assert video.shape == (4, 16, 16, 3)
  assert (video == video[0]).all()
  assert (video[0, :8] == 255).all()
  assert (video[0, 8:] == 0).all()


def test_a_run_counts_phases_as_clips_of_its_epochs(tmp_path):
  data = runs.levels(tmp_path / 'data', train=24)
  made = {}
  for kind in ('none', 'clips'):
    cfg = runs.tiny(data, data={'phases': kind, 'val_fraction': 0.0})
    made[kind] = task.make(cfg, tmp_path / kind, sharding.make_mesh())
  assert made['none'].steps_per_epoch == 3
  assert made['clips'].steps_per_epoch == 9
  assert 'train 24 and 2 phases of each' in made['clips'].summary
  rows = next(made['clips'].batches(0))
  assert rows['clip'].max() < 24


def test_pretraining_has_no_phases(tmp_path):
  cfg = runs.tiny(tmp_path, data={'phases': 'clips'})
  cfg.pretrain = config.PretrainConfig(decoder_dim=8, decoder_heads=2)
  with pytest.raises(MiraInputError, match=r"phases: 'clips' must be 'none'"):
    config.validate(cfg, 1)
