"""The card of weights: what they are of, how clips are read, as JSON.

A card comes with a file, from anywhere. `check_card` is the one place that says
what may be in it; whoever computes with a card has it checked first.
"""

from __future__ import annotations

import json
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from mira_jax.errors import MiraInputError, checkpoint_error
from mira_jax.kernels.dispatch import current_names
from mira_jax.mira import MiraConfig
from mira_jax.models import options

Card = dict[str, Any]

_MAX_TEXT = 4 * 2**20  # characters of a card
_MAX_TOKENS = 2**20  # of a clip
_MAX_PIXELS = 2**28  # of one, such as 64 frames of 2,048 x 2,048
_MAX_PARAMETERS = 2**35  # of the blocks; ViT-22B has less
_NAME_LENGTH = 500  # characters of the name of a class
_WORDS = {int: 'whole number', float: 'number', bool: 'bool', str: 'text'}
# The range of numbers; of others it is _RANGE.
_RANGE = (-1e6, 1e6)
_RANGES = {
  **options.RANGES,
  **options.DECODER_RANGES,
  'rate': options.FRAME_STRIDE,
}
_MODEL = typing.get_type_hints(options.ModelOptions) | {
  name: Literal[choices] for name, choices in options.CHOICES.items()
}
_NEEDED = (
  *('dim', 'depth', 'heads', 'num_classes'),
  *('frames', 'image_size', 'patch', 'tubelet'),
)
_PRETRAIN = {
  'decoder_dim': int,
  'decoder_depth': int,
  'decoder_heads': int,
  'mask_ratio': float,
  'mask': Literal['tube', 'random'],
  'normalise_targets': bool,
  'decoder_mlp_ratio': float | None,
}
_PREPROCESSING = {'rate': int, 'fit': Literal['crop', 'squash']}


def parse_card(text: str, path: str | os.PathLike[str]) -> Any:
  """The JSON of a card, which `check_card` has not seen.

  Raises:
    MiraInputError: it is no JSON, too long or too deep.
  """
  try:
    if len(text) > _MAX_TEXT:
      raise ValueError(f'it has {len(text)} characters')
    return current_names(json.loads(text))
  except (ValueError, RecursionError) as cause:
    raise _bad(path, f'is no card in JSON ({str(cause)[:99]})') from cause


def check_card(
  card: Any, path: str | os.PathLike[str], whose: str = 'its card'
) -> Card:
  """A card of which every field can be used, or an error that names one.

  Fields that are missing have their defaults when the model is built; what is
  there beside the groups that are read may be anything.

  Args:
    card: of JSON.
    path: what it is of, for the error.
    whose: where its fields are from, for the error.

  Raises:
    MiraInputError: 'bad_card'.
  """
  try:
    if not isinstance(card, dict):
      raise ValueError(f'is {_show(card)}, not a card')
    model = _fields(card, 'model', _MODEL, _NEEDED)
    _check_model(model)
    if card.get('pretrain') is not None:
      decoder = _fields(card, 'pretrain', _PRETRAIN, tuple(_PRETRAIN)[:4])
      _check_divides(decoder, 'decoder_dim', 'decoder_heads')
    _fields(card, 'preprocessing', _PREPROCESSING, _PREPROCESSING, more=True)
    _check_names(card, model['num_classes'])
  except ValueError as cause:
    raise _bad(path, str(cause), whose) from cause
  return card


def _bad(
  path: str | os.PathLike[str], hint: str, whose: str = 'its card'
) -> MiraInputError:
  return checkpoint_error('bad_card', path, f'{whose} {hint}')


def _show(value: Any) -> str:
  """A value in a few characters; nothing in it is printed in full."""
  if isinstance(value, (dict, list)):
    return f'a {type(value).__name__} of {len(value)}'
  if isinstance(value, int) and value.bit_length() > 99:
    return 'a number of many digits'
  return ascii(value[:50] if isinstance(value, str) else value)


def _fields(
  card: Card,
  group: str,
  hints: Mapping[str, Any],
  needed: Iterable[str],
  more: bool = False,
) -> Mapping[str, Any]:
  """A group of fields, each of its type and within its range.

  Args:
    card: the whole card.
    group: its name.
    hints: types by the names of the fields.
    needed: those that must be there.
    more: whether there may be others.
  """
  values = card.get(group, {})
  if not isinstance(values, dict):
    raise ValueError(f'says {_show(values)} for {group}')
  if missing := [f'{group}.{n}' for n in needed if n not in values]:
    raise ValueError(f'lacks {", ".join(missing)}; was it written by train.py?')
  for name, value in values.items():
    if name in hints:
      _check_value(f'{group}.{name}', hints[name], value)
    elif not more:
      hint = 'which this version does not know; update mira_jax'
      raise ValueError(f'says {group}.{_show(name)}, {hint}')
  return values


def _check_value(name: str, hint: Any, value: Any) -> None:
  """That a value is of a type and in the range of its field."""
  if isinstance(hint, types.UnionType):
    if value is None:
      return
    (hint,) = (x for x in typing.get_args(hint) if x is not types.NoneType)
  if hint is MiraConfig:
    fields = _fields({name: value}, name, typing.get_type_hints(MiraConfig), ())
    try:
      MiraConfig(**fields)  # which knows its ranges
    except ValueError as cause:
      raise ValueError(f'says that {cause}') from cause
  elif typing.get_origin(hint) is Literal:
    if not isinstance(value, str | None) or value not in typing.get_args(hint):
      choices = ', '.join(map(str, typing.get_args(hint)))
      raise ValueError(
        f'says {_show(value)} for {name}; it is one of {choices}'
      )
  elif type(value) is not hint and (hint, type(value)) != (float, int):
    raise ValueError(f'says {_show(value)} for {name}, no {_WORDS[hint]}')
  elif hint in (int, float):
    low, high = _RANGES.get(name.rpartition('.')[2], _RANGE)
    if not low <= value <= high:
      raise ValueError(f'says {_show(value)} for {name}: not {low} to {high}')


def _check_divides(values: Mapping[str, Any], whole: str, part: str) -> None:
  if values[whole] % values[part]:
    hint = f'says {whole} {values[whole]}, no multiple of {part} {values[part]}'
    raise ValueError(hint)


def _check_model(model: Mapping[str, Any]) -> None:
  """That the fields of a model go together, and that it is of a size."""
  if fault := options.contradiction(options.ModelOptions(**model)):
    raise ValueError('has {}: {}'.format(*fault))
  side = model['image_size'] // model['patch']
  tokens = side**2 * (model['frames'] // model['tubelet'])
  pixels = model['image_size'] ** 2 * model['frames']
  if tokens > _MAX_TOKENS or pixels > _MAX_PIXELS:
    raise ValueError(f'says clips of {pixels} pixels in {tokens} tokens')
  each = model['dim'] ** 2 * (4 + 2 * model.get('mlp_ratio', 4.0))
  if model['depth'] * each > _MAX_PARAMETERS:
    count = math.ceil(model['depth'] * each)
    raise ValueError(f'says {count} parameters, over {_MAX_PARAMETERS}')


def _check_names(card: Card, count: int) -> None:
  """That the classes have names, as many as the head has."""
  names = card.get('class_names')
  if not isinstance(names, list):
    raise ValueError('lacks class_names; was it written by train.py?')
  if len(names) != count:
    raise ValueError(f'says {count} classes, and names {len(names)}')
  for name in names:
    # A line break would shift every name after it in a list of lines.
    if (
      not isinstance(name, str)
      or not 0 < len(name) <= _NAME_LENGTH
      or any(c < ' ' or '\x7f' <= c <= '\x9f' for c in name)
    ):
      raise ValueError(f'names a class {_show(name)}')
