"""Hyper-parameters of a system: dataclasses that check their values."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any


def number(default: Any, low: float, high: float) -> Any:
  """A field of a `Settings` with a range."""
  return dataclasses.field(default=default, metadata={'range': (low, high)})


class Settings:
  """Base class: a dataclass whose fields are Literals, numbers and truths.

  Raises:
    ValueError: a value is none of its choices, or outside its range.
  """

  def __post_init__(self):
    kinds = typing.get_type_hints(type(self))
    for field in dataclasses.fields(typing.cast(Any, self)):
      value, kind = getattr(self, field.name), kinds[field.name]
      use = ''
      if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        use = '' if value in choices else f'one of {choices}'
      elif 'range' in field.metadata:
        low, high = field.metadata['range']
        use = '' if low <= value <= high else f'{low} to {high}'
      if use:
        name = f'{type(self).__name__}.{field.name}'
        raise ValueError(f'{name} is {value!r}; use {use}')
