"""Trains the same run twice, once undisturbed and once under faults.

make soak SEED=0

The second run is started again after every fault, by the same command, until it
ends. Both must end bitwise the same, with every step once in their logs, and
the first one must not take more and more memory. Faults are drawn by the seed:
signals at random moments (in saves and while starting, too), damaged
checkpoints, a full disk; the data has clips that cannot be read from the start.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mira_jax.data import dataset
from mira_jax.errors import ExitCode
from mira_jax.synthetic import faces
from mira_jax.train import checkpoint_reader, manifest
from mira_jax.train import log as runlog
from mira_jax.video import images
from mira_jax.weights import weights_file

ROOT = pathlib.Path(__file__).parents[1]
TRAIN_CLIPS, TEST_CLIPS, DAMAGED = 360, 21, 3
SETTLED = 200  # steps until memory is measured first
GROWTH = 0.05  # of memory from then on, at most
FLAGS = (
  '--config=configs/quickstart.py',
  '--config.model.dim=64',
  '--config.model.depth=2',
  '--config.model.heads=2',
  '--config.model.frames=4',
  '--config.model.image_size=16',
  '--config.model.patch=8',
  '--config.model.drop_path=0.1',
  '--config.model.mira.statistics=batch_ema',
  '--config.optim.ema_decay=0.99',
  '--config.data.batch_size=8',
  '--config.data.threads=2',
  '--config.train.log_every=1',
  '--config.train.save_every=50',
  '--config.train.eval_every=4',
  '--config.eval.min_val_clips=0',
)


def build(out: pathlib.Path) -> None:
  """A dataset of synthetic faces; some clips to train on cannot be decoded."""

  def split(name: str, count: int) -> Iterator[dataset.Clip]:
    for i in range(count):
      clip = faces.draw_clip(
        i, split=name, seed=0, size=16, num_frames=8, difficulty='macro'
      )
      frames = [images.encode_jpeg(frame) for frame in clip.frames]
      if name == 'train' and i % (TRAIN_CLIPS // DAMAGED) == 50:
        frames = [frame[::-1] for frame in frames]
      yield dataset.Clip(clip_id=f'{name}-{i}', frames=frames, label=clip.label)

  dataset.write(
    out,
    name='soak',
    class_names=faces.CLASS_NAMES,
    splits={
      'train': lambda: split('train', TRAIN_CLIPS),
      'test': lambda: split('test', TEST_CLIPS),
    },
    description='Small synthetic faces; three clips are damaged.',
  )


# ----- one start of the command ----------------------------------------------


class Attempt:
  """The command, started once; what it prints goes to a file.

  No file may get longer than `longest` bytes; None is no limit.
  """

  def __init__(
    self, place: pathlib.Path, run: str, epochs: int, longest: int | None = None
  ):
    command = [
      sys.executable, 'train.py', *FLAGS,
      f'--config.data.dataset={place / "data"}',
      f'--config.train.epochs={epochs}',
      f'--workdir={place / run}',
    ]  # fmt: skip
    if longest is not None:
      limit = f'ulimit -f {longest // 1024}; exec "$@"'
      command = ['bash', '-c', limit, 'bash', *command]
    number = len(list(place.glob(f'{run}-*.log')))
    self.log = place / f'{run}-{number:02d}.log'
    self.checkpoints = place / run / 'checkpoints'
    environment = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(place / 'cache'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    with self.log.open('w') as log:
      self.process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=log
      )

  def steps(self) -> list[int]:
    """The steps that it has printed."""
    lines = self.log.read_text().splitlines()[:-1]
    found = (re.match(r'step (\d+)/', line) for line in lines)
    return [int(match[1]) for match in found if match]

  def reached(self, step: int) -> bool:
    """Waits for a step; False when the command ended before."""
    return self.until(lambda: self.steps()[-1:] >= [step])

  def until(self, happens: Callable[[], bool], seconds: float = 600) -> bool:
    """Waits for something; False when the command ended before, or time."""
    end = time.monotonic() + seconds
    while not happens():
      if self.process.poll() is not None or time.monotonic() > end:
        return False
      time.sleep(0.003)
    return True

  def memory(self) -> float:
    """Resident megabytes."""
    text = pathlib.Path(f'/proc/{self.process.pid}/status').read_text()
    (line,) = (x for x in text.splitlines() if x.startswith('VmRSS'))
    return int(line.split()[1]) / 1024

  def end(self, *numbers: int) -> int:
    """Sends signals, waits, and returns the exit code."""
    for number in numbers:
      self.process.send_signal(number)
      time.sleep(0.02)
    return self.process.wait(timeout=600)


# ----- faults -----------------------------------------------------------------

PREEMPTED = int(ExitCode.PREEMPTED)


@dataclasses.dataclass(frozen=True)
class Fault:
  """What happens to an attempt that has come to a step."""

  name: str  # for the table
  strike: Callable[[Attempt, random.Random], int]  # -> exit code
  codes: Sequence[int]  # the right ones
  after: Callable[[pathlib.Path], None] | None = None  # damages a checkpoint


def _send(*numbers: int) -> Callable[[Attempt, random.Random], int]:
  def strike(attempt: Attempt, draw: random.Random) -> int:
    time.sleep(0.3 * draw.random())
    return attempt.end(*numbers)

  return strike


def _kill_in_a_save(attempt: Attempt, draw: random.Random) -> int:
  attempt.until(lambda: any(attempt.checkpoints.glob('*tmp*')))
  time.sleep(0.02 * draw.random())
  return attempt.end(signal.SIGKILL)


def _kill_before_the_seal(attempt: Attempt, draw: random.Random) -> int:
  def unsealed() -> bool:
    newest = checkpoint_reader.steps(attempt.checkpoints)[-1:]
    paths = [attempt.checkpoints / f'{step}' for step in newest]
    return any(not (path / manifest.MANIFEST).exists() for path in paths)

  attempt.until(unsealed)
  return attempt.end(signal.SIGKILL)


def _flip_a_bit(folder: pathlib.Path) -> None:
  path = _biggest(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 3] ^= 4
  path.write_bytes(data)


def _truncate(folder: pathlib.Path) -> None:
  path = _biggest(folder)
  path.write_bytes(path.read_bytes()[:-100])


def _biggest(folder: pathlib.Path) -> pathlib.Path:
  return max(folder.rglob('d/*'), key=lambda path: path.stat().st_size)


_KILL = signal.SIGKILL
# While it starts, before it has come to any step.
EARLY = (
  Fault('SIGKILL while starting', _send(_KILL), [-_KILL]),
  Fault(
    'SIGTERM while starting', _send(signal.SIGTERM), [-signal.SIGTERM, 143]
  ),
)
FAULTS = (
  Fault('SIGTERM', _send(signal.SIGTERM), [PREEMPTED]),
  Fault('SIGINT', _send(signal.SIGINT), [PREEMPTED]),
  Fault('SIGTERM twice', _send(*[signal.SIGTERM] * 2), [PREEMPTED]),
  Fault('SIGKILL', _send(_KILL), [-_KILL]),
  Fault('SIGKILL in a save', _kill_in_a_save, [-_KILL]),
  Fault('SIGKILL before the seal', _kill_before_the_seal, [-_KILL]),
  Fault('a flipped bit', _send(_KILL), [-_KILL], _flip_a_bit),
  Fault('a truncated file', _send(_KILL), [-_KILL], _truncate),
)


class Soak:
  """The disturbed run: starts it, strikes, starts it again."""

  def __init__(self, place: pathlib.Path, seed: int, epochs: int):
    self._draw = random.Random(seed)
    self._place, self._epochs = place, epochs
    self.faults = 0

  def run(self, total: int) -> None:
    """Strikes once in every part of the run, then lets it end."""
    faults = list(FAULTS)
    self._draw.shuffle(faults)
    # A file may be as long as the log has become, so this one comes early.
    faults.insert(self._draw.randrange(1, 3), None)
    # Two checkpoints are there before the first strike, and new ones before
    # the next: what damages both was never promised to be survived.
    part = (total - 200) // len(faults)
    early = self._draw.sample(range(len(faults)), len(EARLY))
    for i, fault in enumerate(faults):
      if i in early:
        self._while_starting(EARLY[early.index(i)])
      step = 130 + i * part + self._draw.randrange(part // 3)
      if fault is None:
        self._full_disk(step)
      else:
        self._strike(fault, step)
    attempt = self._start()
    self._check('the end', attempt.end(), [0], attempt)

  def _start(self, longest: int | None = None) -> Attempt:
    return Attempt(self._place, 'disturbed', self._epochs, longest)

  def _while_starting(self, fault: Fault) -> None:
    attempt = self._start()
    time.sleep(4 * self._draw.random())
    code = fault.strike(attempt, self._draw)
    self._check(fault.name, code, fault.codes, attempt)

  def _strike(self, fault: Fault, step: int) -> None:
    attempt = self._start()
    if not attempt.reached(step):
      raise SystemExit(f'it ended before step {step}: {attempt.log}')
    code = fault.strike(attempt, self._draw)
    self._check(fault.name, code, fault.codes, attempt)
    if fault.after:
      folder = attempt.checkpoints
      sound = [
        step
        for step in checkpoint_reader.steps(folder)
        if not manifest.verify(folder / str(step))
      ]
      assert len(sound) >= 2, f'only {sound} in {folder}'
      fault.after(folder / str(sound[-1]))

  def _full_disk(self, step: int) -> None:
    self._strike(Fault('SIGKILL', _send(_KILL), [-_KILL]), step)
    log = self._place / 'disturbed' / 'metrics.jsonl'
    attempt = self._start(longest=log.stat().st_size + 60_000)
    self._check(
      'a full disk', attempt.end(), [int(ExitCode.NOT_WRITTEN)], attempt
    )

  def _check(
    self, name: str, code: int, right: Sequence[int], attempt: Attempt
  ) -> None:
    steps = attempt.steps() or [0]
    print(
      f'{name}: steps {steps[0]} to {steps[-1]}, exit code {code}', flush=True
    )
    self.faults += bool(code)
    if code not in right:
      raise SystemExit(f'exit code {code}, not {right}: see {attempt.log}')


# ----- what must be true in the end -------------------------------------------


def undisturbed(place: pathlib.Path, epochs: int, total: int) -> list[float]:
  """Runs it; returns its memory after SETTLED steps and at the last one."""
  attempt = Attempt(place, 'undisturbed', epochs)
  memory = []
  for step in (SETTLED, total):
    if not attempt.reached(step):
      raise SystemExit(f'it ended before step {step}: see {attempt.log}')
    memory.append(attempt.memory())
  if code := attempt.end():
    raise SystemExit(f'exit code {code}: see {attempt.log}')
  return memory


def compare(place: pathlib.Path, total: int) -> list[str]:
  """What differs between the two runs; [] when nothing does."""
  one, two = place / 'undisturbed', place / 'disturbed'
  wrong = []
  for name in (weights_file.WEIGHTS, weights_file.LAST):
    a, b = (weights_file.load_weights(run / name) for run in (one, two))
    flat = [weights_file.flatten(variables) for variables, _ in (a, b)]
    wrong += [
      f'{name}: {key}'
      for key in flat[0].keys() | flat[1].keys()
      if not np.array_equal(flat[0].get(key), flat[1].get(key))
    ]
    if a[1] != b[1]:
      wrong.append(f'{name}: its metadata')
  rows = [[_timeless(row) for row in runlog.read(run)] for run in (one, two)]
  steps = [row['step'] for row in rows[1] if 'loss' in row]
  if steps != list(range(1, total + 1)):
    wrong.append(f'metrics.jsonl: {len(steps)} rows of {total} steps')
  if rows[0] != rows[1]:
    wrong.append('metrics.jsonl: other numbers')
  if (one / 'outcome.json').read_text() != (two / 'outcome.json').read_text():
    wrong.append('outcome.json')
  return wrong


def _timeless(row: Mapping[str, Any]) -> dict[str, Any]:
  return {n: x for n, x in row.items() if n not in runlog.CLOCK}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--seed', type=int, default=0, help='of the faults')
  parser.add_argument('--epochs', type=int, default=50, help='of 40 steps each')
  parser.add_argument('--workdir', default='runs/soak')
  args = parser.parse_args()
  # A shell that runs this in the background ignores it, as children then do.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  began = time.monotonic()
  place = pathlib.Path(args.workdir).absolute() / f'seed-{args.seed}'
  shutil.rmtree(place, ignore_errors=True)
  build(place / 'data')
  total = 40 * args.epochs
  memory = undisturbed(place, args.epochs, total)
  found = (
    f'{memory[0]:.0f} MB after step {SETTLED}, {memory[1]:.0f} MB at {total}'
  )
  growth = memory[1] / memory[0] - 1
  print(f'undisturbed: {found} ({growth:+.1%})', flush=True)
  soak = Soak(place, args.seed, args.epochs)
  soak.run(total)
  wrong = compare(place, total)
  print(f'memory: {found} ({growth:+.1%})')
  if growth > GROWTH:
    wrong.append(f'memory grows by {growth:.1%}')
  print(f'{soak.faults} faults, {time.monotonic() - began:.0f} s')
  if wrong:
    raise SystemExit('differs:\n  ' + '\n  '.join(sorted(wrong)))
  print('both runs are bitwise the same')


if __name__ == '__main__':
  main()
