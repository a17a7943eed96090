"""Read every record and every frame of a prepared dataset.

  mira verify DATASET

Exits with 0 if all is well, with 1 if not.
"""

from __future__ import annotations

import argparse
import time

from mira_jax.cli import at_least
from mira_jax.data import dataset, verify
from mira_jax.errors import ExitCode

_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the dataset."""
  parser.add_argument('dataset', metavar='DATASET')
  parser.add_argument(
    '--workers', type=at_least(0), help='processes (default: one per core)'
  )


def run(args: argparse.Namespace) -> int:
  """Prints what was read and what is wrong with it."""
  prepared = dataset.open(args.dataset)
  start = time.perf_counter()
  verdict = verify.verify(prepared, args.workers)
  seconds = time.perf_counter() - start
  clips = ', '.join(f'{name} {n}' for name, n in verdict.clips.items())
  print(f'{prepared.name} {dataset.fingerprint(prepared)}: {clips}')
  print(f'{verdict.frames} frames decoded in {seconds:.1f} s')
  for problem in verdict.problems[:_SHOWN]:
    print(f'problem: {problem}')
  if len(verdict.problems) > _SHOWN:
    print(f'and {len(verdict.problems) - _SHOWN} more')
  if verdict.problems:
    print('prepare it again, or copy it again from where it was prepared')
    return ExitCode.FAILED
  print('all is well')
  return ExitCode.OK
