"""The log of a run: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import pathlib
import struct

import pytest
from tensorboardX.proto import event_pb2

import runs
from mira_jax.train import log


@pytest.mark.parametrize('full', ['metrics.jsonl', 'tensorboard'])
def test_a_full_disk_stops_the_log_and_names_the_file(tmp_path, full):
  count = 500 if full == 'metrics.jsonl' else 0  # that are there already
  lines = (f'{{"step": 1, "a": {i}}}\n' for i in range(count))
  (tmp_path / 'metrics.jsonl').write_text(''.join(lines))

  def write_on():  # and nothing is raised, or waited for, when it is closed
    with log.Log(tmp_path, start=2, total=9, batch_size=1) as rows:
      for step in range(3, 3000):
        rows.write(step, {'a': 3.0})

  with (
    runs.file_limit(10_000),
    pytest.raises(OSError, match='large') as caught,
  ):
    write_on()
  path = pathlib.Path(caught.value.filename)
  assert path.is_relative_to(tmp_path / full), path


def test_log_is_read_by_tensorboard(tmp_path):
  with log.Log(tmp_path, start=2, total=9, batch_size=1) as rows:
    rows.write(3, {'a': 3.0, 'b': 0.5})
    rows.write(4, {'a': 4.0})
  (path,) = (tmp_path / 'tensorboard').iterdir()
  assert path.name.startswith('events.out.tfevents.')
  data, events = path.read_bytes(), []
  while data:  # a length, its sum, the record, its sum
    (size,) = struct.unpack_from('<Q', data)
    events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  read = [
    (e.step, v.tag, v.simple_value) for e in events for v in e.summary.value
  ]
  assert read == [(3, 'a', 3), (3, 'b', 0.5), (4, 'a', 4)]


def test_log_keeps_the_valid_rows_before_the_resumed_step(tmp_path, caplog):
  path = tmp_path / 'metrics.jsonl'
  first = '{"step": 1, "a": 1}\n'
  damaged = first + '{"step": 2, \0\n{"step": 3, "a": 2}\n{"step": 2, "a"'
  path.write_text(damaged)
  with log.Log(tmp_path, start=2, total=9, batch_size=1) as rows:
    rows.write(3, {'a': 3.0})
  assert path.read_text() == first + '{"step": 3, "a": 3.0}\n'
  assert f'{path} is damaged (line 2 is not a row)' in caplog.text
  assert (tmp_path / 'metrics.jsonl.damaged').read_text() == damaged
