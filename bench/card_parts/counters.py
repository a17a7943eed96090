"""What Nsight Compute counts; by itself, what it counts: every kernel once."""

from __future__ import annotations

import csv
import functools
import shutil
import subprocess
import sys
from typing import Any

import jax

from bench.card_parts import times
from bench.card_parts.setting import Setting, Task, inputs

SURE = ('gpu__time_duration.sum', 'dram__bytes_read.sum')
METRICS = (
  *SURE,
  'lts__t_bytes.sum',
  'sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active',
  'sm__inst_executed_pipe_xu.sum',
  'l1tex__data_bank_reads.sum',
  'smsp__inst_executed.sum',
  'gpc__cycles_elapsed.avg.per_second',
)


def ncu(setting: Setting) -> list[Task]:
  """What Nsight Compute counts for every kernel, by a process of its own."""
  return [Task('counters', (), functools.partial(_counters, setting))]


def _counters(setting):
  program = shutil.which('ncu', path=None) or shutil.which(
    'ncu', path='/usr/local/cuda/bin'
  )
  if setting.interpret or not program:
    why = 'nothing to count on a CPU' if setting.interpret else 'no ncu'
    yield {'status': 'missing', 'error': why}
    return
  for metrics in (METRICS, SURE):  # an unknown one is an error
    command = [
      *(program, '--csv', '--print-units=base', '--clock-control=none'),
      *('--kernel-name=regex:mira_', f'--metrics={",".join(metrics)}'),
      *(sys.executable, '-m', 'bench.card_parts.counters'),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    found = counters(done.stdout)
    if found:
      yield from found
      return
  text = ' '.join((done.stdout + done.stderr).split())
  yield {'status': 'missing', 'error': text[-300:]}


def counters(text: str) -> list[dict[str, Any]]:
  """A row per kernel from the CSV of Nsight Compute, a line per metric."""
  lines = [x for x in text.splitlines() if x.startswith('"')]
  kernels: dict[str, dict[str, Any]] = {}
  for line in csv.DictReader(lines):
    row = kernels.setdefault(line['ID'], {'kernel': line['Kernel Name']})
    value = line['Metric Value'].replace(',', '')
    unit = line['Metric Unit']
    row[f'{line["Metric Name"]} {unit}'.strip()] = _number(value)
  return list(kernels.values())


def _number(text: str) -> float | str:
  try:
    return float(text)
  except ValueError:
    return text


def main() -> None:
  """Runs every kernel of attention once."""
  setting = Setting(interpret=False)
  x = inputs(setting, 'decoder')
  for sweep in times.SWEEPS.values():
    run = jax.jit(functools.partial(sweep.run, setting.passes()))
    jax.block_until_ready(run(x))


if __name__ == '__main__':
  main()
