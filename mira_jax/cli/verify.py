"""Check a prepared dataset or an export.

  mira verify DATASET     reads every record and every frame
  mira verify EXPORT      checks every file, and runs the golden pair

Exits with 0 if no problem is found, with 1 for a damaged dataset, and with 4
for an export that is incomplete, changed, or gives other numbers here.
"""

from __future__ import annotations

import argparse
import time

from mira_jax import terminal
from mira_jax.cli.arguments import at_least
from mira_jax.data import dataset
from mira_jax.devices import memory
from mira_jax.errors import ExitCode
from mira_jax.inference import engine, exported, untrusted
from mira_jax.prepare import verify

GIVES_RESULT = True  # to programs, by --json
_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the dataset or export."""
  parser.add_argument('path', metavar='DATASET')
  parser.add_argument(
    '--workers', type=at_least(0), help='processes (default: one per core)'
  )


def run(args: argparse.Namespace) -> int:
  """Prints the size of the dataset and its problems."""
  if exported.is_export(args.path):
    return _verify_export(args.path)
  prepared = dataset.open(args.path)
  start = time.perf_counter()
  verdict = verify.verify(prepared, args.workers)
  seconds = time.perf_counter() - start
  clips = ', '.join(f'{name} {n}' for name, n in verdict.clips.items())
  terminal.say(f'{prepared.name} {dataset.fingerprint(prepared)}: {clips}')
  terminal.say(f'{verdict.frames} frames decoded in {seconds:.1f} s')
  terminal.result(
    {
      'dataset': prepared.name,
      'fingerprint': dataset.fingerprint(prepared),
      'clips': verdict.clips,
      'frames': verdict.frames,
      'problems': verdict.problems,
    }
  )
  for problem in verdict.problems[:_SHOWN]:
    terminal.say(f'problem: {problem}')
  if len(verdict.problems) > _SHOWN:
    terminal.say(f'and {len(verdict.problems) - _SHOWN} more')
  if verdict.problems:
    terminal.say(
      'prepare it again, or copy it again from where it was prepared'
    )
    return ExitCode.FAILED
  terminal.say('no problem found')
  return ExitCode.OK


@memory.explained()
def _verify_export(path: str) -> int:
  engine.use_compile_cache()
  difference = exported.verify(path, untrusted.SECONDS)
  terminal.say(
    f'{path}: every file is unchanged, and the golden pair agrees within '
    f'{difference:.1e}'
  )
  terminal.result({'export': path, 'difference': difference, 'problems': []})
  return ExitCode.OK
