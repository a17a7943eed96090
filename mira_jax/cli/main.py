"""The `mira` command: one sub-command per task."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from typing import Any

from mira_jax import terminal
from mira_jax.cli.arguments import Help
from mira_jax.errors import plain

# A field of the configuration as a flag.
_FIELD = re.compile(r'--(no)?config\.')

# A module has `add_arguments(parser)` and `run(args) -> int`. It is imported
# only when its command runs, so that `mira --help` is immediate.
GROUPS = {
  'your clips': {
    'prepare': "turn clips, or a provider's download, into a dataset",
    'unpack': 'unpack archives of clips',
    'datasets': 'list the datasets of the field, and which are prepared here',
    'show': 'picture the clips of a dataset',
    'verify': 'read every frame of a dataset, or try out an export',
    'draw': 'draw a synthetic face as a video',
  },
  'train and compare': {
    'fit': 'prepare clips, choose a recipe, train, and compare with a baseline',
    'train': 'train a model',
    'eval': 'score the weights of a run, or of the folds of a protocol',
    'baseline': 'score HOG and a linear SVM, which a model has to beat',
    'report': 'compare runs and the baseline of their dataset',
    'configs': 'list the configurations that come with the package',
  },
  'use a model': {
    'predict': 'classify clips and picture what MiRA did with their frames',
    'explain': 'show what a model attends to, in pages and pictures',
    'demo': 'open a local web page that classifies clips',
    'features': 'extract features for every clip of a dataset',
    'probe': 'classify such features by neighbours or a linear map',
    'adapt': 'label the clips of a new dataset, to train on them',
  },
  'share a model': {
    'convert': 'convert weights of PyTorch to ours, or back',
    'export': 'write a model as a program that needs only jax',
    'push': 'publish the weights of a run on the Hugging Face Hub',
    'compare': "compare numbers with the reference's",
  },
  'this machine': {
    'doctor': 'report versions, devices, codecs and folders',
    'tune': 'find the fastest attention on this machine',
    'aot': "compile a training step for a device you don't have",
    'completion': 'print a completion script for a shell',
  },
}
COMMANDS = {n: x for group in GROUPS.values() for n, x in group.items()}


def main(argv: list[str] | None = None, command: str = '') -> int:
  """Runs a command; returns its exit code (`mira_jax.errors.ExitCode`).

  Wrong flags exit with USAGE right away, as argparse does.

  Args:
    argv: the arguments; None takes those of this process.
    command: put before the arguments of this process, as `train.py` does.
  """
  program = f'{command}.py' if command else 'mira'
  if argv is None:
    terminal.leave_on_interrupt(program)
    argv = [command, *sys.argv[1:]] if command else sys.argv[1:]
  argv = terminal.expand_home(argv)
  return terminal.run(program, lambda: _run(argv))


def _run(argv: list[str]) -> int:
  parser, takes_fields = _parser(argv[:1])
  args, rest = parser.parse_known_args(list(map(_with_dashes, argv)))
  fields = [arg for arg in rest if takes_fields and _FIELD.match(arg)]
  if len(fields) < len(rest):
    unknown = ' '.join(arg for arg in rest if arg not in fields)
    parser.error(plain(f'unrecognized arguments: {unknown}'))
  args.flags = fields  # such as --config.data.batch_size=256
  terminal.use_json(getattr(args, 'as_document', False))
  return int(args.run(args))


def whole_parser() -> argparse.ArgumentParser:
  """The parser of all commands, with the flags of each."""
  return _parser([*COMMANDS])[0]


def _parser(wanted: list[str]) -> tuple[argparse.ArgumentParser, bool]:
  """The parser, with the flags of wanted commands.

  Also whether the last of these takes fields of the configuration.
  """
  groups = [
    '\n'.join([f'{title}:', *(f'  {n:10}  {x}' for n, x in group.items())])
    for title, group in GROUPS.items()
  ]
  parser = argparse.ArgumentParser(
    prog='mira',
    description='MiRA video transformers for faces.',
    epilog='\n\n'.join([*groups, 'mira COMMAND --help explains one.']),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  version = _version() if wanted[:1] == ['--version'] else ''
  parser.add_argument('--version', action='version', version=version)
  commands = parser.add_subparsers(
    dest='command', required=True, metavar='COMMAND', help='of those below'
  )
  takes_fields = False
  for name, summary in COMMANDS.items():
    # One without a help text is not listed: the groups below do that.
    shown: Any = {'help': summary} if len(wanted) > 1 else {}
    command = commands.add_parser(name, **shown)
    if name in wanted:
      with terminal.importing():
        module = importlib.import_module(f'mira_jax.cli.{name}')
      command.description = module.__doc__
      command.formatter_class = Help
      module.add_arguments(command)
      if getattr(module, 'GIVES_RESULT', False):
        _add_json(command)
      command.set_defaults(run=module.run)
      takes_fields = getattr(module, 'TAKES_CONFIG_FLAGS', False)
  return parser, takes_fields


def _add_json(command: argparse.ArgumentParser) -> None:
  """Adds --json to a command and its kinds, for `terminal.result`."""
  text = 'print the result as JSON, and all else on standard error'
  command.set_defaults(as_document=False)
  flag: Any = {'action': 'store_true', 'dest': 'as_document', 'help': text}
  command.add_argument('--json', **flag)
  for action in command._actions:
    if isinstance(action, argparse._SubParsersAction):
      for kind in action.choices.values():
        kind.add_argument('--json', default=argparse.SUPPRESS, **flag)


def _version() -> str:
  from importlib import metadata  # slow, and rarely needed

  names = ('mira-jax', 'jax', 'flax')
  return ', '.join(f'{name} {metadata.version(name)}' for name in names)


def _with_dashes(arg: str) -> str:
  """A flag with dashes where underscores were: --batch_size=8."""
  name, equals, value = arg.partition('=')
  if not name.startswith('--') or _FIELD.match(name):
    return arg
  return name.replace('_', '-') + equals + value


if __name__ == '__main__':
  sys.exit(main())
