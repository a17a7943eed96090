"""A child of `bench/card.py`: computes a share of a part, row by row."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import pathlib
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import plain_passes
from bench.card_parts import checks, counters, peers, times
from bench.card_parts.setting import Setting, Task
from mira_jax.kernels import dispatch, vjp


def _step(setting: Setting) -> Iterable[Task]:
  from bench.card_parts import step  # flax, optax: only here

  return step.step(setting)


PARTS = checks.PARTS | {
  'ours': times.ours,
  'peers': peers.peers,
  'tunings': times.tunings,
  'ncu': counters.ncu,
  'step': _step,
}
# A dry run interprets the kernels of its first task, which takes seconds.
INTERPRETED = 'smoke'


class Rows:
  """Appends to card.jsonl, a line at once."""

  def __init__(self, path: pathlib.Path, part: str):
    self._path, self._part = path, part

  def add(self, name: str, row: Mapping[str, Any]) -> None:
    row = {'part': self._part, 'name': name, 'status': 'ok', **row}
    with self._path.open('a') as file:
      file.write(json.dumps({key: _plain(x) for key, x in row.items()}) + '\n')


def _plain(value: Any) -> Any:
  """For JSON, which has no nan."""
  if isinstance(value, float):
    return float(f'{value:.5g}') if math.isfinite(value) else str(value)
  return value


def do(task: Task, rows: Rows, faults: Sequence[str]) -> None:
  """Runs a task; what it raises is a row, too."""
  if f'hang:{task.name}' in faults:
    time.sleep(1e6)
  if f'crash:{task.name}' in faults:
    os.abort()
  try:
    for row in task.run():
      rows.add(task.name, row)
  except Exception as error:  # a kernel that does not compile, no memory
    traceback.print_exc()
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    rows.add(task.name, {'status': 'failed', 'error': text[:500]})
    # After some errors of CUDA nothing runs in a process any more.
    jax.block_until_ready(jnp.zeros(8) + 1)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('part')
  parser.add_argument('--share', default='0/1', help='I/N')
  parser.add_argument('--first', type=int, default=0, help='task')
  parser.add_argument('--skip', default='', help='passes that hang')
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--now', type=pathlib.Path, required=True)
  parser.add_argument('--interpret', action='store_true')
  parser.add_argument('--fault', action='append', help='hang:TASK, in a test')
  args = parser.parse_args()

  setting = Setting(args.interpret)
  share, count = map(int, args.share.split('/'))
  mine = [
    task
    for i, task in enumerate(PARTS[args.part](setting))
    if (i if task.pool is None else task.pool) % count == share
  ]
  rows = Rows(args.out / 'card.jsonl', args.part)
  with _interpreter(args.interpret):
    for i, task in enumerate(mine[args.first :], args.first):
      if hung := set(task.uses) & set(args.skip.split(',')):
        why = f'{", ".join(sorted(hung))} hung before'
        rows.add(task.name, {'status': 'skipped', 'error': why})
        continue
      now = {'index': i, 'name': task.name, 'uses': task.uses}
      args.now.write_text(json.dumps(now))
      setting.kernels = not args.interpret or (
        i == 0 and args.part == INTERPRETED
      )
      do(task, rows, args.fault or ())
  args.now.unlink(missing_ok=True)


@contextlib.contextmanager
def _interpreter(wanted: bool) -> Iterator[None]:
  """What a CPU needs instead of a card, if it is wanted."""
  if not wanted:
    yield
    return
  import kernel_interpreters  # needs pytest

  dispatch.IMPLEMENTATIONS['pallas_gpu'] = dispatch.IMPLEMENTATIONS[
    'pallas_gpu'
  ]._replace(
    operations=lambda tunings: vjp.operations(plain_passes.PASSES),
    refusal=lambda request: None,
  )
  with kernel_interpreters.interpreted():
    yield


if __name__ == '__main__':
  main()
