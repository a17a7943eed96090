"""Write a classifier as a program that needs neither flax nor this package.

  mira export RUN OUT

RUN is the folder of a finished run, or any weights that `mira convert` reads,
with flags for what they do not say. OUT is a new folder: the program
(StableHLO, by jax.export), its weights, a card with the preprocessing, and
clips with their expected probabilities. The files are read again and verified
before OUT appears. docs/export.md shows how to run them; `mira verify OUT`
verifies them on another machine.
"""

from __future__ import annotations

import argparse

from mira_jax import terminal
from mira_jax.cli import weight_flags
from mira_jax.devices import memory, platform
from mira_jax.errors import ExitCode
from mira_jax.inference import engine, export, exported


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the model, the folder and the target platforms."""
  add = parser.add_argument
  add('source', metavar='RUN')
  add('out', metavar='OUT')
  every = ','.join(export.PLATFORMS)
  add('--platforms', default=every, metavar='LIST', help='where it shall run')
  add('--dtype', choices=exported.TOLERANCES, help='else that of the model')
  add('--force', action='store_true', help='replace an export at OUT')
  weight_flags.add(parser)
  platform.add_argument(parser)


@memory.explained()
def run(args: argparse.Namespace) -> int:
  """Exports, and prints the largest difference from the engine."""
  platform.start(args.device)
  engine.use_compile_cache()
  platforms = [part.strip() for part in args.platforms.split(',')]
  difference = export.write(
    args.source,
    args.out,
    platforms=platforms,
    dtype=args.dtype,
    force=args.force,
    overrides=weight_flags.overrides(args),
  )
  terminal.say(f'golden pair: within {difference:.1e} of the engine')
  terminal.say(f'export for {", ".join(platforms)}: {args.out}')
  return ExitCode.OK
