"""Loads configurations: by name or file, with fields changed by flags."""

from __future__ import annotations

import dataclasses
import re
import runpy
import types
from collections.abc import Sequence
from typing import Any

from mira_jax.config import shipped
from mira_jax.config.schema import (
  Config,
  bad_config,
  defaults,
  group,
  hints,
  kinds_of,
  takes,
)
from mira_jax.errors import nearest

_FLAG = re.compile(r'--?(no)?config\.([\w.-]+)(?:=(.*))?', re.S)


def load(text: str, overrides: Sequence[str] = ()) -> Config:
  """A configuration with some of its fields changed.

  Args:
    text: NAME, NAME:ARGUMENT, FILE or FILE:ARGUMENT, see `shipped.find`; a
      file has a function `get_config`, which takes the argument.
    overrides: such as '--config.optim.lr=3e-4' and '--noconfig.data.flip'; a
      dash in a name means an underscore.

  Raises:
    MiraInputError: there is no such file ('not_found'), it fails or returns no
      `Config`, or there is no such field, or it has another type
      ('bad_config').
  """
  cfg = _from_file(text)
  rest = list(overrides)
  while rest:
    flag = rest.pop(0)
    found = _FLAG.fullmatch(flag)
    if not found:
      raise bad_config(flag, 'it changes no field; use --config.FIELD=VALUE')
    no, name, value = found[1], found[2].replace('-', '_'), found[3]
    if value is None:
      follows = rest and not rest[0].startswith('-')
      value = rest.pop(0) if follows else str(not no)
    cfg = _override(cfg, name.split('.'), value, f'--config.{name}')
  return cfg


def _from_file(text: str) -> Config:
  file, argument = shipped.find(text)
  try:
    get_config = runpy.run_path(file)['get_config']
    cfg = get_config() if argument is None else get_config(argument)
  except Exception as error:  # of a user's file
    line = str(error).strip().partition('\n')[0]
    if not isinstance(error, ValueError):
      line = f'it raises {type(error).__name__}: {line}'
    raise bad_config(f'--config={text}', line) from error
  if not isinstance(cfg, Config):
    raise bad_config(f'--config={text}', 'its get_config returns no Config')
  return cfg


def _override(cfg: Any, path: Sequence[str], text: str, flag: str) -> Any:
  """A copy of a part of the configuration, with one field changed."""
  name, *rest = path
  hint = hints(type(cfg)).get(name)
  inner = group(hint)
  if hint is None or (rest and inner is None):
    names = list(defaults())
    wanted = flag.removeprefix('--config.')
    near = nearest(wanted, names, 0.3) or f'; use one of {names}'
    raise bad_config(flag, f'no such field{near}')
  if rest and inner:
    before = getattr(cfg, name)
    value = _override(inner() if before is None else before, rest, text, flag)
  else:
    value = _parse(hint, text, f'{flag}={text}')
  try:
    return dataclasses.replace(cfg, **{name: value})
  except ValueError as error:
    raise bad_config(f'{flag}={text}', str(error)) from error


def _parse(hint: Any, text: str, flag: str) -> Any:
  """The value of a flag, of the type of its field."""
  kinds, inner = kinds_of(hint), group(hint)
  if types.NoneType in kinds and text.lower() == 'none':
    return None
  if inner and text.lower() == 'default':
    return inner()
  words = {'true': True, 'false': False, '1': True, '0': False}
  makers = {bool: lambda x: words[x.lower()], int: int, float: float, str: str}
  make = next((makers[kind] for kind in makers if kind in kinds), None)
  try:
    if make:
      return make(text)
  except (ValueError, KeyError):
    pass
  raise bad_config(flag, f'it takes {takes(hint)}')
