"""The input pipeline: the same rows for any hosts, threads and restarts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mira_jax.data import pipeline, sampling
from mira_jax.data.dataset import Clip
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.video import images

SHORT = {'frames': 4, 'rate': 2, 'size': 16}


def _clip(index: int, frames: int = 12) -> Clip:
  """Frames of one gray: 20 times the clip's index plus the frame's."""
  grays = [20 * index + j for j in range(frames)]
  pictures = [np.full((16, 16, 3), gray, np.uint8) for gray in grays]
  jpegs = [images.encode_jpeg(picture) for picture in pictures]
  return Clip(clip_id=str(index), frames=jpegs, label=index % 3)


SOURCE = [_clip(i) for i in range(10)]


def _train(steps: int, source=SOURCE, **changes) -> list[pipeline.Batch]:
  options = SHORT | {'batch_size': 4, 'seed': 3, 'threads': 2} | changes
  batches = pipeline.train_batches(source, **options)
  return list(itertools.islice(batches, steps))


def _eval(source=SOURCE, **changes) -> list[pipeline.Batch]:
  options = SHORT | {'batch_size': 4, 'views': 1, 'threads': 2} | changes
  return list(pipeline.eval_batches(source, **options))


def _assert_equal(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def _joined(hosts: list[list[pipeline.Batch]]) -> list[pipeline.Batch]:
  """The global batches of several hosts."""
  return [
    {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    for parts in zip(*hosts, strict=True)
  ]


def test_a_batch_holds_the_frames_that_were_sampled():
  (batch,) = _train(1)
  assert {key: (a.shape, a.dtype) for key, a in batch.items()} == {
    'video': ((4, 4, 16, 16, 3), np.uint8),
    'label': ((4,), np.int32),
    'clip': ((4,), np.int32),
    'mask': ((4,), bool),
  }
  assert batch['mask'].all()
  np.testing.assert_array_equal(batch['label'], batch['clip'] % 3)
  grays = batch['video'][:, :, 8, 8, 0].astype(int)
  np.testing.assert_array_equal(np.diff(grays), np.full((4, 3), 2))
  starts = grays[:, 0] - 20 * batch['clip']
  assert ((starts >= 0) & (starts <= 4)).all()


def test_every_epoch_has_every_clip_in_an_order_and_with_cuts_of_its_own():
  batches = _train(25)  # ten epochs
  clips = np.concatenate([b['clip'] for b in batches])
  first, second = clips[:10], clips[10:20]
  assert sorted(first) == sorted(second) == list(range(10))
  assert first.tolist() != second.tolist()
  starts = np.concatenate([b['video'][:, 0, 8, 8, 0] for b in batches])
  assert len(set(starts[clips == 0].tolist())) >= 3
  with pytest.raises(AssertionError):
    _assert_equal(_train(3), _train(3, seed=4))


def test_threads_hosts_and_restarts_do_not_change_the_batches():
  train, evaluated = _train(6), _eval(views=3)
  _assert_equal(_train(6, threads=8), train)
  _assert_equal(_eval(views=3, threads=1), evaluated)
  rows = np.split(np.arange(4), 2)  # of two hosts
  _assert_equal(_joined([_train(6, rows=own) for own in rows]), train)
  parts = [_eval(rows=own, views=3) for own in rows]
  _assert_equal(_joined(parts), evaluated)
  _assert_equal(_train(3, start_step=3), train[3:])


def test_fewer_clips_than_a_batch():
  batches = _train(3, source=SOURCE[:3], batch_size=8)
  clips = np.concatenate([b['clip'] for b in batches])
  assert np.bincount(clips).tolist() == [8, 8, 8]
  (last,) = _eval(source=SOURCE[:1], rows=[3])  # of a host without a clip
  assert last['mask'].tolist() == [False]


def test_every_clip_and_view_is_evaluated_once():
  batches = _eval(views=3, batch_size=4)
  assert len(batches) == 8  # 30 rows in batches of 4
  rows = _joined([[b] for b in batches])
  rows = {k: np.concatenate([b[k] for b in rows]) for k in rows[0]}
  assert rows['mask'].tolist() == [True] * 30 + [False] * 2
  pairs = list(zip(rows['clip'][:30], rows['view'][:30], strict=True))
  assert pairs == list(itertools.product(range(10), range(3)))
  # The last batch is filled with rows that come again.
  np.testing.assert_array_equal(rows['video'][30:], rows['video'][:2])
  grays = rows['video'][:30, :, 8, 8, 0]
  for (clip, view), gray in zip(pairs, grays, strict=True):
    frames = sampling.test_indices(12, 4, 2, view, 3)
    np.testing.assert_array_equal(gray, 20 * clip + frames)


class _Damaged(list):
  """A source whose clip 4 cannot be read."""

  def __getitem__(self, index):
    if index == 4:
      raise MiraInputError('damaged', 'clip 4', 'prepare it again')
    return super().__getitem__(index)


def test_a_damaged_clip_is_replaced_by_the_next(caplog):
  whole, damaged = _train(5), _train(5, source=_Damaged(SOURCE))
  for a, b in zip(whole, damaged, strict=True):
    clips = np.where(a['clip'] == 4, 5, a['clip'])
    np.testing.assert_array_equal(clips, b['clip'])
    assert b['mask'].all()
  (message,) = [r.getMessage() for r in caplog.records]
  assert 'clip 4 is damaged (1 so far)' in message
  # In evaluation, such a row does not count.
  rows = _eval(source=_Damaged(SOURCE), batch_size=10)[0]
  assert rows['clip'].tolist() == [0, 1, 2, 3, 5, 5, 6, 7, 8, 9]
  assert rows['mask'].tolist() == [i != 4 for i in range(10)]


def test_damaged_frames_and_too_many_of_them():
  broken = Clip(clip_id='b', frames=[b'no jpeg'] * 12, label=0)
  (batch,) = _train(1, source=[broken, *SOURCE[:2]], batch_size=3)
  assert sorted(batch['clip']) == [1, 1, 2]
  for source, share, code in (
    ([broken, *SOURCE[:2], broken], 0.3, 'too_many_damaged'),
    ([*SOURCE, broken], 0, 'too_many_damaged'),
    ([broken, broken], 1.0, 'damaged'),
  ):
    with pytest.raises(MiraInputError, match=code) as caught:
      _train(9, source=source, max_damaged=share)
    assert caught.value.exit_code == ExitCode.DATA


def test_whole_frames_or_their_centre():
  image = np.zeros((16, 32, 3), np.uint8)
  image[:, 8:24] = 255
  clip = Clip(clip_id='a', frames=[images.encode_jpeg(image)], label=0)
  (crop,) = _eval(source=[clip], batch_size=1, fit='crop')
  (whole,) = _eval(source=[clip], batch_size=1)
  assert crop['video'][0, 0].min() > 245
  assert whole['video'][0, 0, 8, 0].max() < 10
