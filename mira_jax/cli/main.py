"""The `mira` command: one sub-command per thing a person wants done."""

from __future__ import annotations

import argparse
import importlib
import sys

from mira_jax import terminal
from mira_jax.errors import plain

# Name -> module with `add_arguments(parser)` and `run(args) -> int`. A module
# is imported only when its command runs, so that `mira --help` is immediate.
COMMANDS = {
  'predict': 'mira_jax.cli.predict',
  'unpack': 'mira_jax.cli.unpack',
  'prepare': 'mira_jax.cli.prepare',
  'datasets': 'mira_jax.cli.datasets',
  'verify': 'mira_jax.cli.verify',
  'show': 'mira_jax.cli.show',
  'features': 'mira_jax.cli.features',
  'probe': 'mira_jax.cli.probe',
  'convert': 'mira_jax.cli.convert',
  'export': 'mira_jax.cli.export',
  'draw': 'mira_jax.cli.draw',
  'compare': 'mira_jax.cli.compare',
  'aot': 'mira_jax.cli.aot',
}
SUMMARIES = {
  'predict': 'classify clips and picture what MiRA did with their frames',
  'unpack': 'unpack archives of clips, whole or in pieces',
  'prepare': "turn clips, or an owner's download, into a dataset",
  'datasets': 'list the datasets of the field, and which are prepared here',
  'verify': 'read every frame of a dataset, or try out an export',
  'show': 'picture the clips of a dataset',
  'features': 'write what a model makes of the clips of a dataset',
  'probe': 'classify such features by neighbours or a linear map',
  'convert': 'turn weights of PyTorch into ours, or back',
  'export': 'write a model as a program that needs only jax',
  'draw': 'draw a synthetic face as a video',
  'compare': "compare numbers with the reference's",
  'aot': 'compile a training for a machine that is not there',
}


def main(argv: list[str] | None = None) -> int:
  """Runs a command; returns its exit code (`mira_jax.errors.ExitCode`).

  Wrong flags exit with USAGE right away, as argparse does.
  """
  if argv is None:
    terminal.leave_on_interrupt('mira')
    argv = sys.argv[1:]
  argv = terminal.expand_home(argv)
  return terminal.run('mira', lambda: _run(argv))


def _run(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog='mira', description='MiRA video transformers for faces.'
  )
  commands = parser.add_subparsers(dest='command', required=True)
  for name in COMMANDS:
    # Only the command that is asked for has its module imported.
    command = commands.add_parser(name, help=SUMMARIES[name])
    if name in argv[:1]:
      module = importlib.import_module(COMMANDS[name])
      command.description = module.__doc__
      command.formatter_class = argparse.RawDescriptionHelpFormatter
      module.add_arguments(command)
      command.set_defaults(run=module.run)
      command.set_defaults(
        config_flags=getattr(module, 'TAKES_CONFIG_FLAGS', False)
      )
  args, rest = parser.parse_known_args(argv)
  if rest and not args.config_flags:
    parser.error(plain(f'unrecognized arguments: {" ".join(rest)}'))
  args.flags = rest  # such as --config.data.batch_size=256
  return int(args.run(args))


if __name__ == '__main__':
  sys.exit(main())
