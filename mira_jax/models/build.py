"""Models from their options as JSON, in metadata and configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mira_jax.errors import checkpoint_error
from mira_jax.mira import MiraConfig
from mira_jax.models.mae import MaskedAutoencoder
from mira_jax.models.vivit import ViViT


def build_model(fields: Mapping[str, Any]) -> ViViT:
  """The classifier of `options.ModelOptions` as JSON.

  `mira` is None or the fields of MiraConfig, `dtype` a name.

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
    if fields.get('mira') is not None:
      fields['mira'] = MiraConfig(**fields['mira'])
    fields['dtype'] = jnp.dtype(fields['dtype'])
    return kind(**fields)
  except (KeyError, TypeError, ValueError) as error:
    hint = f'it does not describe a model of this version ({error})'
    raise checkpoint_error('bad_metadata', 'model', hint) from error
