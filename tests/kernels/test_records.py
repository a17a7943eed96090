"""Times that were measured decide which attention runs."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import pytest

from mira_jax.kernels import dispatch, records, streaming
from mira_jax.kernels.records import Records, Row

SHAPE = (4, 1568, 12, 64)
ROW = Row(
  SHAPE, 'float32', 'exact', True, {'reference': 2.0, 'streaming': 3.0}, {}
)
H200 = dispatch.Target('gpu', 'NVIDIA H200')


def nearest(rows, shape=SHAPE, dtype='float32', mode='exact', training=True):
  return records.nearest(rows, shape, dtype, mode, training)


def test_the_nearest_row_tells_of_a_request():
  rows = [
    ROW,
    dataclasses.replace(ROW, training=False),
    dataclasses.replace(ROW, shape=(4, 1400, 12, 64)),
    dataclasses.replace(ROW, shape=(64, 1568, 12, 64)),
  ]
  assert nearest(rows) is rows[0]
  assert nearest(rows, training=False) is rows[1]
  assert nearest(rows, (4, 1390, 12, 64)) is rows[2]
  assert nearest(rows, (32, 1568, 16, 64)) is rows[3]
  assert nearest(rows[1:2]) is rows[1]
  for other in (
    {'shape': (4, 1100, 12, 64)},
    {'shape': (4, 2000, 12, 64)},
    {'shape': (4, 1568, 12, 80)},
    {'dtype': 'bfloat16'},
    {'mode': 'plain'},
  ):
    assert nearest(rows, **other) is None


@pytest.mark.parametrize(
  'fields',
  [
    {'shape': [1, 64]},
    {'shape': [1, 0, 2, 16]},
    {'milliseconds': {'reference': None}},
    {'milliseconds': ['reference']},
    {'unknown': 1},
  ],
)
def test_a_damaged_file_is_none_of_times(fields):
  rows = [dataclasses.asdict(ROW) | fields]
  text = json.dumps({'device': 'x', 'date': 'today', 'rows': rows})
  with pytest.raises((ValueError, TypeError)):
    records.parse(text, 'here')


@pytest.fixture
def known(monkeypatch):
  """Sets what is known of this process's device."""

  def know(*rows, **facts):
    target = dispatch.target()
    measured = Records('a processor', 'measured here, today', rows)
    facts = {'target': target, 'measured': measured} | facts
    monkeypatch.setattr(dispatch, '_known', dispatch.Known(**facts))

  return know


def test_what_was_measured_here_is_chosen_with_its_tuning(known):
  asked = dispatch.Request(SHAPE, 'float32', 'exact', dispatch.target(), True)
  assert dispatch.choose(asked).why.endswith('assumed')
  known(ROW)
  choice = dispatch.choose(asked)
  assert choice[:2] == ('reference', 'the fastest of 2, measured here, today')
  tiles = {'numbers': 4096, 'at_once': 'clip'}
  fast = {'reference': 2.0, 'streaming': 1.0}
  tunings = {'streaming': {'tiles': tiles}}
  known(dataclasses.replace(ROW, milliseconds=fast, tunings=tunings))
  choice = dispatch.choose(asked)
  assert choice.tunings == (('tiles', streaming.Tiling(4096, 'clip')),)
  assert choice.operations is streaming.operations(
    streaming.Tiling(4096, 'clip')
  )
  assert dispatch.resolve('streaming', asked).tunings == choice.tunings
  # Another version has other names and fields.
  fast, tiles = {'newer': 0.5, **fast}, {'newer': 1, **tiles}
  tunings = {'streaming': {'tiles': tiles}}
  known(dataclasses.replace(ROW, milliseconds=fast, tunings=tunings))
  choice = dispatch.choose(asked)
  assert (choice.name, choice.tunings) == ('streaming', ())
  known(ROW, failed={'reference': 'it is wrong'})
  assert dispatch.choose(asked).name == 'streaming'
  elsewhere = asked._replace(target=H200)
  assert dispatch.choose(elsewhere).why.endswith('assumed')


def test_times_of_a_kind_of_device_come_with_the_package(tmp_path, monkeypatch):
  row = dataclasses.replace(
    ROW,
    dtype='bfloat16',
    milliseconds={'pallas_gpu': 1.0, 'reference': 9.0},
    tunings={'pallas_gpu': {'attend': {'rows': 64, 'columns': 96}}},
  )
  fields = {'device': 'NVIDIA H200', 'date': '2026-12-01'}
  fields['rows'] = [dataclasses.asdict(row)]
  (tmp_path / 'h200.json').write_text(json.dumps(fields))
  monkeypatch.setattr(records, 'SHIPPED', tmp_path)
  records.shipped.cache_clear()
  try:
    asked = dispatch.Request(SHAPE, jnp.bfloat16, 'exact', H200, True)
    choice = dispatch.choose(asked)
    assert choice.why == 'the fastest of 2, measured on this kind, 2026-12-01'
    ((name, tuning),) = choice.tunings
    assert (name, tuning.columns) == ('attend', 96)
    assert dispatch.choose(
      asked._replace(target=H200._replace(kind='NVIDIA H100'))
    ).why.endswith('assumed')
  finally:
    monkeypatch.undo()
    records.shipped.cache_clear()


def test_shipped_times_are_readable():
  for found in records.shipped():
    target = dispatch.Target('gpu', found.device)
    assert found.rows
    for row in found.rows:
      asked = dispatch.Request(row.shape, row.dtype, row.mode, target)
      for name in row.milliseconds:
        tunings = row.tunings.get(name, ())
        assert len(dispatch._tunings(name, row)) == len(tunings)
        assert name in dispatch.IMPLEMENTATIONS
      assert dispatch.choose(asked)
