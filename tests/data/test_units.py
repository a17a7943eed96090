"""Action units: records, counts, pools, batches and protocols."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib

import numpy as np
import pytest

from mira_jax.data import dataset, pipeline, pool, protocol
from mira_jax.data.dataset import Clip
from mira_jax.errors import MiraInputError
from mira_jax.prepare import verify
from mira_jax.video import images

FRAME = images.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
NAMES = ('AU1', 'AU2', 'AU4')
# By frame, of the three units; the second is unknown in two frames.
ROWS = np.array(
  [[0, -1, 5], [1, -1, 4], [2, 3, 3], [3, 2, 2], [4, 1, 1], [5, 0, 0]], np.int8
)


def _clip(name: str, rows: np.ndarray, **fields) -> Clip:
  fields = {'label': 0, 'frames': [FRAME] * len(ROWS)} | fields
  return Clip(clip_id=name, intensities=rows, **fields)


def _clips() -> list[Clip]:
  """One with a row for each frame, one with a row for all of them."""
  return [
    _clip('by_frame', ROWS, subject='a'),
    _clip('whole', np.array([[2, -1, 0]], np.int8), subject='b'),
  ]


def _made(
  out: pathlib.Path,
  clips: list[Clip],
  names: tuple[str, ...] = NAMES,
  positive_from: int = 2,
  **settings,
) -> dataset.PreparedDataset:
  settings = {'name': out.name, 'class_names': ['face']} | settings
  about = {'action_units': list(names), 'positive_from': positive_from}
  dataset.write(
    out,
    splits={
      'train': lambda: clips,
      'test': lambda: [dataclasses.replace(clips[0], clip_id='test')],
    },
    description='',
    metadata=about if names else {},
    **settings,
  )
  return dataset.open(out)


def test_intensities_come_back_and_are_counted(tmp_path):
  made = _made(tmp_path / 'toy', _clips())
  assert (made.action_units, made.positive_from) == (NAMES, 2)
  for clip, kept in zip(_clips(), made.source('train'), strict=True):
    np.testing.assert_array_equal(kept.intensities, clip.intensities)
    assert kept.intensities.dtype == np.int8
  index = made.index('train')
  assert index.positive.tolist() == [[4, 2, 4], [6, 0, 0]]
  assert index.known.tolist() == [[6, 4, 6], [6, 0, 6]]  # one row: six frames
  assert dataset.unit_counts(made) == {
    'AU1': (14, 18),
    'AU2': (4, 8),
    'AU4': (8, 18),
  }
  shown = dataset.describe_units({'AU1': (14, 18), 'AU5': (0, 0)})
  assert shown == 'AU1 77.8%, AU5 never known'
  assert verify.verify(made, 0).problems == []


def test_without_units_the_files_are_those_of_older_versions(tmp_path):
  made = _made(
    tmp_path / 'toy', [Clip(clip_id='a', frames=[FRAME], label=0)], ()
  )
  assert 'intensities' not in (made.directory / 'features.json').read_text()
  assert 'positive' not in (made.directory / dataset.INDEX).read_text()
  assert (made.action_units, made.positive_from) == ((), 1)
  assert made.source('train')[0].intensities.shape == (0, 0)
  assert made.index('train').known.shape == (1, 0)
  assert dataset.unit_counts(made) == {}


def test_rows_that_are_not_those_of_the_frames_are_found(tmp_path):
  clips = [*_clips(), _clip('rows', ROWS[:4]), _clip('high', ROWS + 1)]
  made = _made(tmp_path / 'toy', clips)
  assert verify.verify(made, 0).problems == [
    'train[2] rows: 4 rows of action units for 6 frames',
    'train[3] high: an intensity that is none of -1 to 5',
  ]
  with pytest.raises(MiraInputError, match=r'damaged: rows: 4 rows'):
    made.source('train')[2].units_at([0])
  index = made.directory / dataset.INDEX
  index.write_text(index.read_text().replace('[6, 4, 6]', '[6, 5, 6]'))
  problems = verify.verify(made, 0).problems
  assert 'train[0] by_frame: the counts of its action units differ' in problems
  index.write_text(index.read_text().replace('[6, 5, 6]', '[6, 5]'))
  with pytest.raises(MiraInputError, match='damaged'):
    made.index('train')


# Pools.


def test_a_pool_keeps_chosen_units_in_their_order(tmp_path):
  whole = pool.of_dataset(_made(tmp_path / 'toy', _clips()), ['train'])
  assert whole.action_units == NAMES
  chosen = whole.with_units(('AU4', 'AU1'))
  assert chosen.action_units == ('AU4', 'AU1')
  assert chosen.positive.tolist() == [[4, 4], [0, 6]]
  assert chosen.known.tolist() == [[6, 6], [6, 6]]
  np.testing.assert_array_equal(chosen[0].intensities, ROWS[:, [2, 0]])
  again = chosen.with_units(('AU1',)).take(np.array([1]))
  assert (again[0].intensities.tolist(), again.positive.tolist()) == (
    [[2]],
    [[6]],
  )
  with pytest.raises(MiraInputError, match=r'bad_config.*AU9 is not there'):
    whole.with_units(('AU9',))


def test_joined_datasets_have_the_common_units(tmp_path):
  first = pool.of_dataset(_made(tmp_path / 'a', _clips()), ['train'])
  other = _made(tmp_path / 'b', _clips(), ('AU4', 'AU7', 'AU1'))
  joined = pool.join([first, pool.of_dataset(other, ['train', 'test'])])
  assert (joined.action_units, joined.positive_from) == (('AU1', 'AU4'), 2)
  np.testing.assert_array_equal(joined[0].intensities, ROWS[:, [0, 2]])
  for row in (2, 4):
    np.testing.assert_array_equal(joined[row].intensities, ROWS[:, [2, 0]])
  assert joined.positive[[0, 2]].tolist() == [[4, 4], [4, 4]]
  none = _made(tmp_path / 'c', [Clip(clip_id='a', frames=[FRAME], label=0)], ())
  bare = pool.join([first, pool.of_dataset(none, ['train'])])
  assert bare.action_units == ()
  assert bare[0].intensities.shape == (0, 0)


def test_joined_datasets_of_other_levels_say_shown_or_not(tmp_path):
  first = pool.of_dataset(_made(tmp_path / 'a', _clips()), ['train'])
  other = _made(tmp_path / 'b', [_clip('o', ROWS)], positive_from=1)
  joined = pool.join([first, pool.of_dataset(other, ['train'])])
  assert joined.positive_from == 1
  assert joined[0].intensities[:, 0].tolist() == [0, 0, 1, 1, 1, 1]
  assert joined[0].intensities[:, 1].tolist() == [-1, -1, 1, 1, 0, 0]
  assert joined[2].intensities[:, 0].tolist() == [0, 1, 1, 1, 1, 1]
  assert joined.positive.tolist() == [[4, 2, 4], [6, 0, 0], [5, 3, 5]]


# Batches.


def _eval(source, **changes) -> pipeline.Batch:
  options = {'frames': 4, 'rate': 1, 'size': 16, 'batch_size': 2} | changes
  return next(iter(pipeline.eval_batches(source, threads=1, **options)))


def test_a_window_has_the_units_of_its_middle_frame(tmp_path):
  source = pool.of_dataset(_made(tmp_path / 'toy', _clips()), ['train'])
  batch = _eval(source, units='middle')  # frames 1 to 4
  assert batch['frame'].tolist() == [3, 3]
  assert batch['units'].tolist() == [[3, 2, 2], [2, -1, 0]]
  assert (batch['units'].dtype, batch['frame'].dtype) == (np.int32, np.int32)
  second = _eval(source, units='middle', views=2)  # both views of a clip
  assert second['frame'].tolist() == [2, 4]
  assert second['units'][:, 0].tolist() == [2, 4]
  options = {'frames': 2, 'rate': 2, 'size': 16, 'batch_size': 1, 'seed': 0}
  batches = pipeline.train_batches(
    source.take(np.array([0])), units='middle', threads=1, **options
  )
  drawn = [b['units'][0] for b in itertools.islice(batches, 30)]
  assert {row[0] for row in drawn} == {2, 3, 4}  # frame 2 on, 2 apart
  assert all((row == ROWS[row[0]]).all() for row in drawn)


def test_a_token_has_the_largest_known_intensity_of_its_frames(tmp_path):
  source = pool.of_dataset(_made(tmp_path / 'toy', _clips()), ['train'])
  batch = _eval(source, frames=6, units='token')
  assert batch['units'].shape == (2, 3, 3)
  assert batch['units'][0].tolist() == [[1, -1, 5], [3, 3, 3], [5, 1, 1]]
  assert batch['units'][1].tolist() == [[2, -1, 0]] * 3
  three = _eval(source, frames=6, units='token', tubelet=3)['units'][0]
  assert three.tolist() == [[2, 3, 5], [5, 2, 2]]


def test_units_are_absent_where_none_are_asked_for_or_known(tmp_path):
  source = pool.of_dataset(_made(tmp_path / 'toy', _clips()), ['train'])
  assert not {'units', 'frame'} & _eval(source).keys()
  assert (
    not {'units', 'frame'} & _eval(source.with_units(()), units='token').keys()
  )
  with pytest.raises(ValueError, match="units is 'middel'; use one of none"):
    _eval(source, units='middel')


# Protocols.


def test_units_need_no_common_class(tmp_path):
  one = _made(tmp_path / 'a', _clips(), class_names=['happy'])
  two = _made(tmp_path / 'b', _clips(), class_names=['sad', 'angry'])
  rules = protocol.Rules(protocol='lodo', units=('AU4',), val_fraction=0)
  parts = protocol.parts([one, two], rules, 1)
  assert (len(parts.train), len(parts.test)) == (3, 3)
  assert parts.train.action_units == parts.test.action_units == ('AU4',)
  assert parts.test[0].intensities[:, 0].tolist() == [5, 4, 3, 2, 1, 0]
  every = protocol.parts([one, two], protocol.Rules(protocol='lodo', units=()))
  assert every.train.action_units == NAMES
  # Without them, classes are learned, and must be common.
  with pytest.raises(MiraInputError, match='no_common_classes'):
    protocol.parts([one, two], protocol.Rules(protocol='lodo'))
  bare = [Clip(clip_id='a', frames=[FRAME], label=0)]
  none = _made(tmp_path / 'c', bare, ())
  with pytest.raises(MiraInputError, match=r'c has no action units'):
    protocol.parts([none], protocol.Rules(units=()))
