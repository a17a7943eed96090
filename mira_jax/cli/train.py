"""Train a video transformer; its weights end up in one file.

  mira train --config=quickstart --workdir=runs/quickstart

Any field of the configuration is a flag, such as --config.optim.lr=3e-4. The
same command resumes a run that was stopped. The folder of a run holds
config.json, metrics.jsonl, tensorboard/, checkpoints/ and at the end
weights.safetensors, curves.png and, of a classifier, outcome.json.
"""

from __future__ import annotations

import argparse

from mira_jax import config
from mira_jax.cli import hosts, start
from mira_jax.devices import platform
from mira_jax.errors import ExitCode
from mira_jax.train import loop, run_folder

TAKES_CONFIG_FLAGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the configuration, the folder and how to resume."""
  parser.add_argument(
    '--config', required=True, metavar='NAME', help='or FILE; see mira configs'
  )
  parser.add_argument(
    '--workdir', required=True, metavar='DIR', help='folder of the run'
  )
  platform.add_argument(parser)
  hosts.add_arguments(parser)
  parser.add_argument(
    '--resume',
    choices=('auto', 'strict'),
    default='auto',
    help="auto goes back over damaged checkpoints; with strict that's an error",
  )
  parser.add_argument(
    '--force',
    action='store_true',
    help='resume although the configuration or the data changed',
  )
  parser.add_argument(
    '--debug-nans',
    action='store_true',
    help='stop at the first operation that is not finite',
  )


def run(args: argparse.Namespace) -> int:
  """Trains, or goes on with a run."""
  cfg = config.load(args.config, args.flags)
  with start.devices(args):
    loop.train(
      cfg,
      run_folder.open_workdir(args.workdir),
      strict=args.resume == 'strict',
      force=args.force,
      debug_nans=args.debug_nans,
    )
  return ExitCode.OK
