"""The flags of `train` and `eval`: parsed by absl, errors in one line."""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from mira_jax import config, terminal
from mira_jax.devices import memory
from mira_jax.errors import MiraInputError, nearest


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a command; a MiraInputError becomes one line and its exit code."""

  def quiet(argv: Sequence[str]) -> None:
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # orbax and TFDS log every step
    with memory.explained():
      main(argv)

  def command() -> None:
    app.define_help_flags()
    app.run(quiet, flags_parser=parse_flags)

  name = pathlib.Path(sys.argv[0]).name
  sys.argv[1:] = terminal.expand_home(sys.argv[1:])
  sys.exit(terminal.run(name, command))


def parse_flags(
  argv: list[str], values: flags.FlagValues = flags.FLAGS
) -> list[str]:
  """Parses a command line into `values`.

  A dash in the name of a flag means an underscore. `argv` is changed in place,
  because the flags of configurations look at `sys.argv` themselves.

  Raises:
    MiraInputError: an unknown flag, a value of another type, a configuration
      file that is missing or returns something else than a `Config`.
  """
  argv[1:] = map(_underscored, argv[1:])
  for arg in argv:
    name = re.match(r'--?(?:no)?config\.([\w.]+)', arg)
    if name:
      _check_field(name[1])
  try:
    rest = values(argv)
  except (flags.Error, ValueError) as error:
    raise _bad_flag(str(error)) from error
  if len(rest) > 1:
    raise MiraInputError('bad_flag', rest[1], 'flags start with --')
  given = 'config' in values and values['config'].present
  if given and not isinstance(values.config, config.Config):
    name = values['config'].config_filename
    hint = 'no such file, or its get_config returns no Config'
    raise MiraInputError('not_found', name, hint)
  return rest


def _underscored(arg: str) -> str:
  name, equals, value = arg.partition('=')
  if not name.startswith('--'):
    return arg
  return '--' + name[2:].replace('-', '_') + equals + value


def _check_field(name: str) -> None:
  names = list(config.field_types())
  if name not in names:
    near = nearest(name, names, 0.3) or f'; use one of {names}'
    raise config.bad_config(f'--config.{name}', f'no such field{near}')


def _bad_flag(text: str) -> MiraInputError:
  """The error for what absl says of a command line."""
  # An error in a configuration file arrives as a whole traceback.
  line = text.strip().splitlines()[-1]
  found = re.match(r'flag (--config(?:\.([\w.]+))?=.*?): ', text)
  needed = re.search(r'Flag (--\w+) must have a value other than None', line)
  if needed:
    example = {'--config': 'configs/quickstart.py', '--workdir': 'runs/mine'}
    value = example.get(needed[1], 'VALUE')
    hint = f'it is missing; give it, such as {needed[1]}={value}'
    return MiraInputError('bad_flag', needed[1], hint)
  if found is None:
    return MiraInputError('bad_flag', 'command line', line)
  if found[2] is None:
    return config.bad_config(found[1], line.removeprefix('ValueError: '))
  takes = config.takes(config.field_types()[found[2]])
  return config.bad_config(found[1], f'it takes {takes}')
