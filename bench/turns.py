"""Candidates of a bench: a process each, which take turns on one machine.

A bench calls `serve` in the process of a candidate, and `take_turns` in its
own. Whether torch is imported is up to the candidates.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'numpy', 'av', 'torch', 'transformers'),
  *('openvino', 'onnxruntime'),
)
Parts = dict[str, float] | None  # seconds of parts of a call, if it has any


# ----- a candidate's process --------------------------------------------------


def serve(make: Callable[[], Callable[[], Parts]], with_jax: bool) -> None:
  """Prints how long the first call took; then, per line read, another one."""
  begin = time.perf_counter()
  call = make()
  call()
  print(json.dumps({'first': time.perf_counter() - begin}), flush=True)
  for _ in sys.stdin:
    begin = time.perf_counter()
    parts = call() or {}
    seconds = {'seconds': time.perf_counter() - begin, **parts}
    print(json.dumps({'seconds': seconds, **_memory(with_jax)}), flush=True)


def _memory(with_jax: bool) -> dict[str, float]:
  """Peak memory in MB: of the process, and of a GPU where there is one."""
  found = {'mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
  if with_jax:
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
      found['device_mb'] = stats['peak_bytes_in_use'] / 1e6
  else:
    import torch

    if torch.cuda.is_available():
      found['device_mb'] = torch.cuda.max_memory_allocated() / 1e6
  return found


# ----- the bench --------------------------------------------------------------


class Candidate:
  """A process of a bench's script that makes a call when it is asked."""

  def __init__(self, script: str, name: str, served: Any):
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    self.process = subprocess.Popen(
      [sys.executable, script, '--serve', json.dumps(served)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      env=environment,
    )
    self.name, self.times, self.peak = name, [], {}

  def start(self) -> bool:
    """Waits for its first call; False when it cannot run here."""
    line = self.process.stdout.readline()
    self.first = json.loads(line)['first'] if line else None
    return bool(line)

  def call(self) -> None:
    self.process.stdin.write('\n')
    self.process.stdin.flush()
    answer = json.loads(self.process.stdout.readline())
    self.times.append(answer.pop('seconds'))
    self.peak = answer

  def end(self) -> None:
    self.process.stdin.close()
    self.process.wait()

  def row(self) -> dict[str, Any]:
    """The best times of all calls, of a call and of each of its parts."""
    best = {n: min(x[n] for x in self.times) for n in self.times[0]}
    return {
      'candidate': self.name,
      **best,
      'all_seconds': [x['seconds'] for x in self.times],
      'first_call_seconds': self.first,
      'peak_mb': self.peak['mb'],
      'peak_device_mb': self.peak.get('device_mb'),
    }


def take_turns(
  script: str, served: Iterable[tuple[str, Any]], rounds: int
) -> list[dict[str, Any]]:
  """Rows of the candidates (name, what they serve) that run here."""
  running = []
  for name, what in served:
    candidate = Candidate(script, name, what)
    if candidate.start():  # one after the other: a compiler needs the machine
      running.append(candidate)
    else:
      print(f'{name}, {what}: it does not run here', file=sys.stderr)
  for _ in range(rounds):
    for candidate in running:
      candidate.call()
  for candidate in running:
    candidate.end()
  return [candidate.row() for candidate in running]


# ----- the floor --------------------------------------------------------------


def products(library: str) -> float:
  """FLOP/s of the fastest float32 product: those of an MLP, and a square."""
  best = 0.0
  for m, k, n in ((1568, 768, 3072), (1568, 3072, 768), (2048, 2048, 2048)):
    x, y = (np.ones(shape, np.float32) for shape in ((m, k), (k, n)))
    if library == 'torch':
      import torch

      multiply = torch.matmul
      x, y = torch.from_numpy(x), torch.from_numpy(y)
    else:
      import jax

      multiply = jax.jit(jax.numpy.matmul)
      x, y = jax.device_put((x, y))
    for _ in range(8):
      begin = time.perf_counter()
      product = multiply(x, y)
      if library != 'torch':
        product.block_until_ready()
      best = max(best, 2 * m * k * n / (time.perf_counter() - begin))
  return best


def peak(libraries: Sequence[str] = ('jax', 'torch')) -> float:
  """FLOP/s that float32 products reach on this CPU, in processes of their own.

  In this file's process: `python bench/turns.py LIBRARY` prints those of one.
  """
  rates = []
  for library in libraries:
    command = [sys.executable, __file__, library]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rates.append(float(done.stdout))
  return max(rates)


# ----- the report -------------------------------------------------------------


def table(names: Sequence[str], numbers: Sequence[str]) -> Any:
  """A table for a terminal, of columns to the left and to the right."""
  from rich import box
  from rich.table import Table

  made = Table(box=box.SIMPLE_HEAD, header_style='dim', pad_edge=False)
  for name in names:
    made.add_column(name, no_wrap=True)
  for name in numbers:
    made.add_column(name, justify='right', no_wrap=True)
  return made


def show(made: Any) -> None:
  """Prints a table; where there is no terminal, as wide as it needs."""
  from mira_jax import terminal

  width = None if sys.stdout.isatty() else 200
  terminal.console(width=width).print(made)


def save(path: pathlib.Path, rows: list[Any], rate: float | None) -> None:
  """Writes rows with the machine, its versions and the day."""
  from mira_jax.devices import hardware

  report = {
    'command': ' '.join(['python', *_command()]),
    'date': datetime.date.today().isoformat(),
    'machine': {
      'processor': hardware.processor(),
      'python': platform.python_version(),
      'load': os.getloadavg()[0],
      'gflops_of_a_product': rate and rate / 1e9,
    },
    'versions': {
      name: found.version
      for name in PACKAGES
      for found in importlib.metadata.distributions(name=name)
    },
    'rows': rows,
  }
  path.write_text(json.dumps(report, indent=2) + '\n')


def _command() -> list[str]:
  script = pathlib.Path(sys.argv[0])
  return [f'bench/{script.name}', *sys.argv[1:]]


if __name__ == '__main__':
  print(products(sys.argv[1]))
