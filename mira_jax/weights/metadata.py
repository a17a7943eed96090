"""The metadata of weights, as JSON: the model, its classes, the preprocessing.

Metadata comes with a file, from anywhere. `check_metadata` holds it to the
types, ranges and choices of a configuration before anything is computed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from mira_jax.config.checks import check_values
from mira_jax.config.schema import Config, ModelConfig, bad_config, build_tree
from mira_jax.data.listing import label_problem
from mira_jax.errors import MiraInputError, checkpoint_error, short

Metadata = dict[str, Any]
CLASSES, ACTION_UNITS = 'classes', 'action_units'  # of what a model names

_MAX_TEXT = 4 * 2**20  # characters
_MAX_TOKENS = 2**20  # of a clip
_MAX_PIXELS = 2**28  # of one, such as 64 frames of 2,048 x 2,048
_MAX_PARAMETERS = 2**35  # of the blocks; ViT-22B has fewer
_NEEDED = {
  'model': ('dim', 'depth', 'heads', 'num_classes', 'frames', 'image_size',
            'patch', 'tubelet'),
  'pretrain': ('decoder_dim', 'decoder_depth', 'decoder_heads', 'mask_ratio'),
  'preprocessing': ('rate', 'fit'),
}  # fmt: skip


def parse_metadata(text: str, path: str | os.PathLike[str]) -> Metadata:
  """The JSON object of metadata, unchecked.

  Raises:
    MiraInputError: it is not a JSON object, too long or too deep.
  """
  try:
    if len(text) > _MAX_TEXT:
      raise ValueError(f'it has {len(text)} characters')
    metadata = json.loads(text)
    if not isinstance(metadata, dict):
      raise ValueError(f'it is {short(metadata)}')
  except (ValueError, RecursionError) as cause:
    hint = f'its metadata is not a JSON object ({str(cause)[:99]})'
    raise checkpoint_error('bad_metadata', path, hint) from cause
  return metadata


def check_metadata(
  metadata: Metadata,
  path: str | os.PathLike[str],
  source: str = 'its metadata',
) -> Metadata:
  """Metadata of which every field can be used.

  Fields that are absent have their defaults when the model is built; other
  groups, and other fields of the preprocessing, may hold anything.

  Raises:
    MiraInputError: 'bad_metadata', naming the file, the source and the field.
  """
  try:
    groups = {'model': _group(metadata, 'model')}
    if metadata.get('pretrain') is not None:
      groups['pretrain'] = _group(metadata, 'pretrain')
    rules = _group(metadata, 'preprocessing')
    groups['data'] = {name: rules[name] for name in _NEEDED['preprocessing']}
    cfg = build_tree(Config, groups, 'config')
    check_values(cfg)
    _check_size(cfg.model)
    _check_names(metadata.get('class_names'), cfg.model.num_classes)
    _check_units(metadata, cfg.model.num_classes)
  except MiraInputError as cause:
    hint = f'{source}: {cause.path.removeprefix("config.")}: {cause.hint}'
    raise checkpoint_error('bad_metadata', path, hint) from cause
  return metadata


def _group(metadata: Metadata, name: str) -> dict[str, Any]:
  values = metadata.get(name)
  if not isinstance(values, dict):
    raise bad_config(name, f'{short(values)} is no group of fields')
  if missing := [n for n in _NEEDED[name] if n not in values]:
    raise bad_config(name, f'it lacks {", ".join(missing)}')
  return values


def _check_size(model: ModelConfig) -> None:
  """Bounds the memory that a model and a clip of it take."""
  side = model.image_size // model.patch
  tokens = side**2 * (model.frames // model.tubelet)
  pixels = model.image_size**2 * model.frames
  if tokens > _MAX_TOKENS or pixels > _MAX_PIXELS:
    hint = f'clips of {pixels} pixels in {tokens} tokens are too large'
    raise bad_config('model.image_size', hint)
  each = model.dim**2 * (4 + 2 * model.mlp_ratio)
  if model.depth * each > _MAX_PARAMETERS:
    count = math.ceil(model.depth * each)
    raise bad_config('model.depth', f'{count} parameters are too many')


def unit_thresholds(metadata: Mapping[str, Any]) -> list[float] | None:
  """From which probability on a model says that it sees each action unit.

  None for a model of classes.
  """
  if metadata.get('labels', CLASSES) != ACTION_UNITS:
    return None
  half = [0.5] * len(metadata['class_names'])
  return list(metadata.get('unit_thresholds') or half)


def _check_units(metadata: Metadata, count: int) -> None:
  labels = metadata.get('labels', CLASSES)
  if labels not in (CLASSES, ACTION_UNITS):
    hint = f'{short(labels)} is none of {CLASSES}, {ACTION_UNITS}'
    raise bad_config('labels', hint)
  found = metadata.get('unit_thresholds')
  if found is None:
    return
  if not isinstance(found, list) or len(found) != count:
    hint = f'{count} units need as many thresholds, not {short(found)}'
    raise bad_config('unit_thresholds', hint)
  for x in found:
    if type(x) not in (int, float) or not 0 <= x <= 1:
      raise bad_config('unit_thresholds', f'{short(x)} must be 0 to 1')


def _check_names(names: Any, count: int) -> None:
  if not isinstance(names, list) or len(names) != count:
    hint = f'{count} classes need as many names, not {short(names)}'
    raise bad_config('class_names', hint)
  for name in names:
    problem = (
      label_problem(name) if isinstance(name, str) else f'{short(name)} is none'
    )
    if problem:
      raise bad_config('class_names', problem)
