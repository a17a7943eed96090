"""Models from their options as JSON, in metadata and configurations."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mira_jax.errors import checkpoint_error
from mira_jax.models.mae import MaskedAutoencoder
from mira_jax.models.options import ModelOptions
from mira_jax.models.vivit import ViViT

# The dataclass of every option that is one or None.
_CONFIGS: dict[str, Any] = {
  name: next(x for x in typing.get_args(hint) if dataclasses.is_dataclass(x))
  for name, hint in typing.get_type_hints(ModelOptions).items()
  if any(map(dataclasses.is_dataclass, typing.get_args(hint)))
}


def build_model(fields: Mapping[str, Any]) -> ViViT:
  """The classifier of `options.ModelOptions` as JSON.

  `mira` is None or the fields of MiraConfig, and so are other systems; `dtype`
  is a name.

  Raises:
    MiraInputError: unknown fields or values.
  """
  return _build(ViViT, fields)


def build_autoencoder(
  fields: Mapping[str, Any], decoder: Mapping[str, Any]
) -> MaskedAutoencoder:
  """The pre-training model around the encoder of `build_model`.

  Args:
    fields: as for `build_model`; options of a classifier alone are not used.
    decoder: fields of `options.DecoderOptions`.

  Raises:
    MiraInputError: unknown fields or values.
  """
  own = {field.name for field in dataclasses.fields(MaskedAutoencoder)}
  shared = {name: x for name, x in fields.items() if name in own}
  return _build(MaskedAutoencoder, shared | dict(decoder))


def _build(kind: type, fields: Mapping[str, Any]) -> Any:
  fields = dict(fields)
  try:
    for name, config in _CONFIGS.items():
      if fields.get(name) is not None:
        fields[name] = config(**fields[name])
    fields['dtype'] = jnp.dtype(fields['dtype'])
    return kind(**fields)
  except (KeyError, TypeError, ValueError) as error:
    hint = f'it does not describe a model of this version ({error})'
    raise checkpoint_error('bad_metadata', 'model', hint) from error
