"""The log of a run: metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import pathlib
import re
import struct
import time

import pytest
from tensorboardX.proto import event_pb2

import runs
from mira_jax import terminal
from mira_jax.train import guard, log


@pytest.mark.parametrize('full', ['metrics.jsonl', 'tensorboard'])
def test_a_full_disk_stops_the_log_and_names_the_file(tmp_path, full):
  count = 500 if full == 'metrics.jsonl' else 0  # that are there already
  lines = (f'{{"step": 1, "a": {i}}}\n' for i in range(count))
  (tmp_path / 'metrics.jsonl').write_text(''.join(lines))

  def write_on():  # and nothing is raised, or waited for, when it is closed
    with log.Log(tmp_path, start=2, total=9, batch_size=1) as rows:
      for step in range(3, 3000):
        rows.write(step, {'a': 3.0, 'b': 0.5})

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
  kept, added = path.read_text().splitlines(keepends=True)
  assert kept == first
  assert json.loads(added).items() >= {'step': 3, 'a': 3.0}.items()
  assert f'{path} is damaged (line 2 is not a row)' in caplog.text
  assert (tmp_path / 'metrics.jsonl.damaged').read_text() == damaged


def test_seconds_accumulate_and_the_time_left_is_printed(tmp_path, capsys):
  """A row that a killed attempt wrote after its checkpoint counts no more."""
  before = '{"step": 2, "a": 1.0, "seconds": 5000.0}\n'
  lost = '{"step": 3, "a": 1.0, "seconds": 9000.0}\n'
  (tmp_path / 'metrics.jsonl').write_text(before + lost)
  policy = guard.Policy(1, 2)
  with log.Log(tmp_path, start=2, total=500, batch_size=8) as rows:
    for step in (3, 4, 5):
      rows.add(step, runs.log_row(step, 1.0))
      rows.judge(policy)
      time.sleep(0.01)
      rows.flush()
  _, *added = log.read(tmp_path)
  assert [row['step'] for row in added] == [3, 4, 5]
  seconds = [row['seconds'] - 5000 for row in added]
  assert 0 < seconds[0] < seconds[1] < seconds[2] < 60
  first, *others = capsys.readouterr().out.splitlines()
  assert 'left' not in first  # it would be that of compilation
  for step, line in enumerate(others, 4):
    assert re.search(r'  [\d.]+ s/step  \d+ (s|min) left$', line)
    each, left = re.findall(r'([\d.]+) s', line)
    assert float(left) > 0.9 * 0.01 * (500 - step)
    assert float(each) > 0.009


@pytest.mark.parametrize(
  ('seconds', 'words'),
  [(0.2, '0 s'), (99.4, '99 s'), (100, '2 min'), (3599, '1 h 0 min')],
)
def test_a_duration_in_words(seconds, words):
  assert terminal.duration(seconds) == words
