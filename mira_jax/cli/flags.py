"""Configurations as flags: `--config=NAME --config.optim.lr=3e-4`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from absl import flags, logging
from ml_collections import config_flags

from mira_jax import config
from mira_jax.config import shipped
from mira_jax.errors import MiraInputError, nearest

_FIELD = re.compile(r'--(?:no)?config\.([\w.]+)')


def load_config(text: str, overrides: Sequence[str] = ()) -> config.Config:
  """A configuration with some of its fields changed.

  Args:
    text: the name or the file of the configuration, see `shipped.find`.
    overrides: such as '--config.optim.lr=3e-4' and '--noconfig.data.flip'; a
      dash in a name means an underscore.

  Raises:
    MiraInputError: an unknown field, a value of another type, a file that is
      missing, fails, or returns something else than a `Config`.
  """
  path = shipped.find(text)
  argv = ['mira', f'--config={path}', *map(_checked, overrides)]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  try:
    values(argv)
  except (flags.Error, ValueError) as error:
    raise _bad_config(str(error).replace(path, text)) from error
  if not isinstance(values.config, config.Config):
    hint = 'its get_config returns no Config'
    raise config.bad_config(f'--config={text}', hint)
  return values.config


def _checked(override: str) -> str:
  """An override with underscores in its name; refuses unknown fields."""
  name, equals, value = override.partition('=')
  name = '--' + name.lstrip('-').replace('-', '_')
  field, known = _FIELD.match(name)[1], list(config.field_types())
  if field not in known:
    near = nearest(field, known, 0.3) or f'; use one of {known}'
    raise config.bad_config(f'--config.{field}', f'no such field{near}')
  return name + equals + value


def _bad_config(text: str) -> MiraInputError:
  """The error for a configuration that absl refuses with `text`."""
  # An error in a configuration file arrives as a whole traceback.
  line = text.strip().splitlines()[-1]
  found = re.match(r'flag (--config(?:\.([\w.]+))?=.*?): ', text)
  if found is None:
    return config.bad_config('--config', line)
  if found[2] is None:
    return config.bad_config(found[1], line.removeprefix('ValueError: '))
  takes = config.takes(config.field_types()[found[2]])
  return config.bad_config(found[1], f'it takes {takes}')


def set_up_logging() -> None:
  """Lets orbax, TFDS and grain log warnings only."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
  logging.set_verbosity(logging.WARNING)
