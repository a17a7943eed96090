"""Write a classifier as a program that needs neither flax nor this package.

  mira export RUN OUT

RUN is the folder of a finished run, or any weights that `mira convert` reads,
with flags for what they do not say. OUT is a new folder: the program
(StableHLO, by jax.export), its weights, a card that says how clips are
prepared, and clips with the probabilities that they must give. What was written
is read again and tried out before OUT is there. docs/export.md shows how to run
it; `mira verify OUT` tries it out on another machine.
"""

from __future__ import annotations

import argparse

from mira_jax import terminal
from mira_jax.cli import weight_flags
from mira_jax.devices import memory, platform
from mira_jax.errors import ExitCode
from mira_jax.inference import engine, export


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the model, the folder and what the program is for."""
  parser.add_argument('source', metavar='RUN')
  parser.add_argument('out', metavar='OUT')
  every = ','.join(export.PLATFORMS)
  parser.add_argument(
    '--platforms',
    default=every,
    metavar='LIST',
    help=f'where it shall run, commas between (default: {every})',
  )
  parser.add_argument(
    '--dtype',
    choices=tuple(export.TOLERANCES),
    help="of the computation (default: the model's own)",
  )
  parser.add_argument(
    '--force', action='store_true', help='replace an export at OUT'
  )
  weight_flags.add(parser)
  platform.add_argument(parser)


@memory.explained()
def run(args: argparse.Namespace) -> int:
  """Exports, and tells how near its numbers are."""
  platform.start(args.device)
  engine.use_compile_cache()
  platforms = [part.strip() for part in args.platforms.split(',')]
  difference = export.write(
    args.source,
    args.out,
    platforms=platforms,
    dtype=args.dtype,
    force=args.force,
    wishes=weight_flags.wishes(args),
  )
  terminal.say(f'golden pair: within {difference:.1e} of the engine')
  terminal.say(f'export for {", ".join(platforms)}: {args.out}')
  return ExitCode.OK
