"""Read every record and frame of a prepared dataset, or try out an export.

  mira verify DATASET
  mira verify EXPORT

Exits with 0 if all is well. A dataset that is damaged exits with 1; an export
with 4, and one line that names what is missing, changed, or computed otherwise
on this machine.
"""

from __future__ import annotations

import argparse
import time

from mira_jax import terminal
from mira_jax.cli.arguments import at_least
from mira_jax.data import dataset
from mira_jax.devices import memory
from mira_jax.errors import ExitCode
from mira_jax.inference import engine, export, untrusted
from mira_jax.prepare import verify

_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser):
  """Adds what is verified."""
  parser.add_argument('path', metavar='DATASET')
  parser.add_argument(
    '--workers', type=at_least(0), help='processes (default: one per core)'
  )


def run(args: argparse.Namespace) -> int:
  """Prints what was read and what is wrong with it."""
  if export.is_export(args.path):
    return _try_out(args.path)
  prepared = dataset.open(args.path)
  start = time.perf_counter()
  verdict = verify.verify(prepared, args.workers)
  seconds = time.perf_counter() - start
  clips = ', '.join(f'{name} {n}' for name, n in verdict.clips.items())
  terminal.say(f'{prepared.name} {dataset.fingerprint(prepared)}: {clips}')
  terminal.say(f'{verdict.frames} frames decoded in {seconds:.1f} s')
  for problem in verdict.problems[:_SHOWN]:
    terminal.say(f'problem: {problem}')
  if len(verdict.problems) > _SHOWN:
    terminal.say(f'and {len(verdict.problems) - _SHOWN} more')
  if verdict.problems:
    terminal.say(
      'prepare it again, or copy it again from where it was prepared'
    )
    return ExitCode.FAILED
  terminal.say('all is well')
  return ExitCode.OK


@memory.explained()
def _try_out(path: str) -> int:
  engine.use_compile_cache()
  difference = export.verify(path, untrusted.SECONDS)
  terminal.say(
    f'{path}: every file is as it was written, and the golden pair agrees '
    f'within {difference:.1e}'
  )
  return ExitCode.OK
