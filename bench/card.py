"""Checks and times the kernels on the GPU of this machine, in 8 minutes.

  python3 bench/card.py --out DIR [--budget 450] [--parts card,smoke]

Parts, in order: the card itself; every kernel once; numbers against the whole
map in float32; bits of repeated calls; times of our kernels; times of peers;
times of other tunings; counters of Nsight Compute; training steps of ViT-B.

This process never touches the GPU. The children of a part run side by side and
are killed, with all that they started, when the part's limit is over: a kernel
that hangs costs its part, and later parts leave its pass out. No part starts
that would not end within the budget; all is over 30 s after it. Children append
to DIR/card.jsonl; at the end DIR/card.json has all rows and what ptxas said,
and DIR/card.md the table, which is also printed last. The exit code is 1 if a
number is wrong or a part did not come to its end.

--interpret is a dry run with tiny shapes on a CPU, to try the script itself.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bench.card_parts import table as tables

ROOT = pathlib.Path(__file__).resolve().parents[1]
# To compile quickly, in a dry run.
QUICK = (
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)
PATIENCE = 10  # how much longer the parts of a dry run may take
GRACE = 30  # seconds after the budget, when everything is over


class Part(NamedTuple):
  """Some rows of the table, and what they may cost."""

  name: str
  limit: float  # seconds, then its children are killed
  expected: float  # seconds; it starts only if the budget has as many
  children: int = 1  # side by side


PARTS = (
  Part('card', 20, 12),
  Part('smoke', 40, 20, 6),  # a child for each pass
  Part('correct', 120, 80, 6),
  Part('repeat', 25, 15, 4),
  Part('ours', 50, 35, 4),  # a child for each shape
  Part('peers', 60, 45, 2),  # JAX, PyTorch
  Part('tunings', 110, 80, 4),
  Part('ncu', 45, 30),
  Part('step', 60, 45, 2),  # a child for each mode
)


class Child:
  """A process that computes a share of a part."""

  def __init__(self, run: Run, part: Part, share: int, count: int):
    self._run, self._part = run, part
    self.share = f'{share}/{count}'
    logs = run.out / 'logs'
    self._log = logs / f'{part.name}-{share}.log'
    self._now = logs / f'{part.name}-{share}.now'  # the task at hand
    self._start(0)

  def _start(self, first: int) -> None:
    run = self._run
    command = [
      *(sys.executable, '-m', 'bench.card_parts.child'),
      *(self._part.name, f'--share={self.share}', f'--first={first}'),
      *(f'--skip={",".join(sorted(run.skip))}', f'--out={run.out}'),
      f'--now={self._now}',
      *([] if first else [f'--fault={x}' for x in run.faults]),
      *(['--interpret'] if run.interpret else []),
    ]
    environment = run.environment | {'CARD_LOG': str(self._log)}
    with self._log.open('a') as log:
      self.process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
      )

  def ended(self) -> bool:
    """Whether all is done; goes on behind a task that ended the process."""
    code = self.process.poll()
    if not code:
      return code == 0
    task = self._lost('crashed', f'exit code {code}: {self._last_line()}')
    if task is None:  # before its first task
      return True
    self._start(task['index'] + 1)
    return False

  def kill(self) -> None:
    """Ends the process and all that it started."""
    running = self.process.poll() is None
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, signal.SIGKILL)
    self.process.wait()
    if running:
      why = f'killed after {self._part.limit:.0f} s'
      with contextlib.suppress(OSError):
        own = time.time() - self._now.stat().st_mtime
        why += f', {own:.0f} s of them its own'
      self._lost('hung', why)

  def _lost(self, status: str, why: str) -> dict[str, Any] | None:
    """A row for the task at hand, which is lost."""
    task = None
    with contextlib.suppress(OSError, ValueError):
      task = json.loads(self._now.read_text())
      self._now.unlink()
    name = task['name'] if task else f'share {self.share}'
    self._run.add(self._part.name, name=name, status=status, error=why)
    if task and self._part.name == 'smoke':
      self._run.skip.update(task['uses'])
    return task

  def _last_line(self) -> str:
    lines = self._log.read_text(errors='replace').split('\n')
    return next((x.strip() for x in reversed(lines) if x.strip()), '')


class Run:
  """The parent: starts children, watches them, and keeps what they found."""

  def __init__(
    self,
    out: pathlib.Path,
    budget: float,
    *,
    interpret: bool = False,
    faults: Sequence[str] = (),
  ):
    self.out, self.interpret, self.faults = out.absolute(), interpret, faults
    self._rows = self.out / 'card.jsonl'
    self._budget, self._began = budget, time.monotonic()
    self.skip: set[str] = set()  # passes whose kernels hang
    self.parts: list[dict[str, Any]] = []
    (self.out / 'logs').mkdir(parents=True, exist_ok=True)
    for path in (*self.out.glob('logs/*'), self._rows):
      path.unlink(missing_ok=True)

  @contextlib.contextmanager
  def cache(self) -> Iterator[None]:
    """The environment of children, with a cache of compiled programs."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
      self.environment = os.environ | {
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
        'JAX_COMPILATION_CACHE_DIR': folder,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'CARD_LOCK': str(pathlib.Path(folder) / 'lock'),
        # The registers that kernels spill, in the logs.
        'MOSAIC_GPU_DUMP_PTXAS': '1',
        'PYTHONUNBUFFERED': '1',
        # Cases and their oracle are those of the tests.
        'PYTHONPATH': os.pathsep.join(
          [
            *(str(ROOT / x) for x in ('', 'tests/helpers', 'tests')),
            os.environ.get('PYTHONPATH', ''),
          ]
        ),
      }
      if self.interpret:
        self.environment['JAX_PLATFORMS'] = 'cpu'
        self.environment.setdefault('XLA_FLAGS', QUICK)
      yield

  def add(self, part: str, **row: Any) -> None:
    """Appends a row of the parent's own."""
    with self._rows.open('a') as file:
      file.write(json.dumps({'part': part, **row}) + '\n')

  def do(self, part: Part) -> None:
    """Runs a part, unless the budget is spent."""
    spent = time.monotonic() - self._began
    if spent + part.expected > self._budget:
      self.parts.append({'part': part.name, 'status': 'not started'})
      return
    limit = part.limit * (PATIENCE if self.interpret else 1)
    limit = min(limit, self._budget + GRACE - spent)
    part = part._replace(limit=limit)
    print(f'{part.name}, {limit:.0f} s at most', flush=True)
    began = time.monotonic()
    count = 1 if self.interpret else part.children
    children: list[Child] = []
    try:
      children = [Child(self, part, i, count) for i in range(count)]
      left = children
      while left and time.monotonic() < began + limit:
        left = [x for x in left if not x.ended()]
        time.sleep(0.05)
    finally:
      for child in children:
        child.kill()
    seconds = time.monotonic() - began
    status = 'killed' if left else 'done'
    self.parts.append(
      {'part': part.name, 'status': status, 'seconds': round(seconds, 1)}
    )

  def rows(self) -> list[dict[str, Any]]:
    """What was found so far; half a line of a killed child is left out."""
    rows = []
    if self._rows.exists():
      for line in self._rows.read_text(errors='replace').split('\n'):
        with contextlib.suppress(ValueError):
          rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and 'part' in row]

  def report(self) -> bool:
    """Writes card.json and card.md, prints the table; whether all is well."""
    rows = self.rows()
    logs = sorted(self.out.glob('logs/*.log'))
    result = {
      'command': ' '.join(sys.argv),
      'date': datetime.datetime.now().isoformat(timespec='seconds'),
      'interpret': self.interpret,
      'seconds': round(time.monotonic() - self._began, 1),
      'parts': self.parts,
      'rows': rows,
      'ptxas': {
        path.stem: [x for x in text.split('\n') if 'ptxas' in x]
        for path in logs
        if 'ptxas' in (text := path.read_text(errors='replace'))
      },
    }
    (self.out / 'card.json').write_text(json.dumps(result, indent=1) + '\n')
    table = tables.table(result)
    (self.out / 'card.md').write_text(table)
    print(f'\n{table}', end='', flush=True)
    good = all(x['status'] == 'done' for x in self.parts)
    return good and not tables.bad(rows)


def run(
  out: pathlib.Path, budget: float, parts: Sequence[Part], **options: Any
) -> int:
  """Runs parts, reports, and returns the exit code."""
  whole = Run(out, budget, **options)
  try:
    with whole.cache():
      for part in parts:
        whole.do(part)
  finally:  # also when interrupted
    good = whole.report()
  return 0 if good else 1


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  names = [part.name for part in PARTS]

  def chosen(text: str) -> list[Part]:
    if wrong := set(text.split(',')) - set(names):
      raise argparse.ArgumentTypeError(f'{wrong}: parts are {names}')
    return [part for part in PARTS if part.name in text.split(',')]

  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--budget', type=float, default=450, help='seconds')
  parser.add_argument('--parts', type=chosen, default=PARTS, help='some only')
  parser.add_argument('--interpret', action='store_true', help='a dry run')
  args = parser.parse_args()
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  try:
    args.out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    parser.error(f'--out: {error}')
  return run(args.out, args.budget, args.parts, interpret=args.interpret)


if __name__ == '__main__':
  sys.exit(main())
