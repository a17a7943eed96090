"""Train a video transformer; its weights end up in one file.

  mira train --config=quickstart --workdir=runs/quickstart

Any field of the configuration is a flag, such as --config.optim.lr=3e-4. The
same command resumes a run that was stopped. The folder of a run holds
config.json, metrics.jsonl, tensorboard/, checkpoints/ and at the end
weights.safetensors, curves.png and, of a classifier, outcome.json; with
--config.train.refit that of the first of two trainings is in it, selection/.
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
  add = parser.add_argument
  add('--config', required=True, metavar='NAME', help='or FILE; mira configs')
  add('--workdir', required=True, metavar='DIR', help='folder of the run')
  start.add_arguments(parser)
  hosts.add_arguments(parser)
  strict = 'auto goes back over damaged checkpoints; strict ends with an error'
  add('--resume', choices=('auto', 'strict'), default='auto', help=strict)
  force = 'resume although the configuration or the data changed'
  add('--force', action='store_true', help=force)
  nans = 'stop at the first operation that is not finite'
  add('--debug-nans', action='store_true', help=nans)


def run(args: argparse.Namespace) -> int:
  """Trains, or goes on with a run."""
  flags = args.flags
  if args.attention:
    flags = [*flags, f'--config.model.attention={args.attention}']
  cfg = config.load(args.config, flags)
  platform.keep_memory(args.device)
  with start.devices(args):
    loop.train(
      cfg,
      run_folder.open_workdir(args.workdir),
      strict=args.resume == 'strict',
      force=args.force,
      debug_nans=args.debug_nans,
    )
  return ExitCode.OK
