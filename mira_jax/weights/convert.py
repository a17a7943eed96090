"""Weights of other programs as a weights file of ours, and back."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mira_jax.errors import MiraInputError, checkpoint_error
from mira_jax.models.build import build_autoencoder, build_model
from mira_jax.models.options import beyond_others
from mira_jax.weights import sources, torch_names
from mira_jax.weights.infer_model import Overrides, metadata_of
from mira_jax.weights.metadata import Metadata
from mira_jax.weights.saved_models import shown
from mira_jax.weights.weights_file import (
  TORCH_METADATA,
  compact,
  flatten,
  restack,
  save_weights,
  unflatten,
  write_arrays,
)

PyTree = Any
# Parts whose tensors change the features, whether or not we know them.
_FEATURES = re.compile(r'(blocks|encoder|decoder|\w*(embed|token|norm|pos_))')


@dataclasses.dataclass(kw_only=True)
class Converted:
  """Weights as our files hold them."""

  variables: PyTree  # {'params': ..., 'mira': ...}
  metadata: Metadata
  kind: str  # the format that they were read from
  ignored: Sequence[str] = ()  # names of tensors that are left out
  missing: Sequence[str] = ()  # names of ours that are initialised at random
  notes: Sequence[str] = ()  # assumptions and changes, one line each


def read(
  path: str | os.PathLike[str], overrides: Overrides = Overrides()
) -> Converted:
  """Reads weights of ours or of another program, with facts that files lack.

  Raises:
    MiraInputError: naming every missing and misshapen tensor; or see
      `sources.read` and `metadata_of`.
  """
  source = sources.read(path, overrides.key)
  metadata, notes = metadata_of(source, overrides)
  found = Converted(
    variables=unflatten(source.state) if source.native else {},
    metadata=metadata,
    kind=source.kind,
    notes=[*source.notes, *notes],
  )
  if source.hub or not source.native:
    metadata['source'] = source.origin()
  if source.native:
    return found
  _put_tensors(found, source, overrides.allow_missing)
  return found


def write(path: str | os.PathLike[str], converted: Converted) -> pathlib.Path:
  """Writes a weights file of ours."""
  params, mira = (converted.variables.get(n, {}) for n in ('params', 'mira'))
  return save_weights(path, params, mira, converted.metadata)


def write_torch(
  path: str | os.PathLike[str], converted: Converted
) -> pathlib.Path:
  """Writes safetensors with the names of the authors' code, and the metadata.

  Raises:
    MiraInputError: the model has parts that the authors' models do not have.
  """
  if odd := beyond_others(converted.metadata['model']):
    hint = f"the authors' code has no such model: {', '.join(odd)}"
    raise checkpoint_error('unsupported', path, hint)
  single = restack(flatten(converted.variables), stacked=False)
  try:
    state = torch_names.to_torch(unflatten(single), _table(converted.metadata))
  except ValueError as cause:
    hint = f"the authors' code has no such model ({cause})"
    raise checkpoint_error('unsupported', path, hint) from cause
  header = {'format': 'pt', TORCH_METADATA: json.dumps(converted.metadata)}
  return write_arrays(path, state, header)


def _table(metadata: Mapping[str, Any]) -> torch_names.Table:
  if metadata.get('pretrain'):
    return torch_names.AUTOENCODER
  return torch_names.CLASSIFIER


def _put_tensors(
  found: Converted, source: sources.Source, allow_missing: Sequence[str]
) -> None:
  """Adds the variables, and the names of tensors left out or missing."""
  metadata, table, notes = found.metadata, _table(found.metadata), []
  init = _init(metadata)
  template = jax.eval_shape(init, jax.random.key(0))
  parts = sorted(template['params'])
  if wrong := [part for part in allow_missing if part not in parts]:
    hint = f'--allow-missing {wrong[0]}: the parts of this model are '
    raise MiraInputError('bad_flag', source.path, hint + ', '.join(parts))
  shapes = {path: leaf.shape for path, leaf in flatten(template).items()}
  matched = torch_names.match(source.state, shapes, table)
  found.ignored = _useless(matched.extra, template)
  if found.ignored:
    extra = shown(found.ignored)
    notes.append(f'left out, as the model has no place for them: {extra}')
  backbone = not (metadata['class_names'] or metadata.get('pretrain'))
  allowed = {*allow_missing, *(['norm'] if backbone else [])}
  found.missing = [
    path
    for path in matched.missing
    if path.split('/')[1] in allowed or path.startswith('mira/')
  ]
  if fresh := [n for n in found.missing if n.startswith('params/')]:
    notes.append(f'missing, so initialised at random: {compact(fresh)}')
  found.notes = [*found.notes, *notes]
  if found.missing:
    template = jax.device_get(jax.jit(init)(jax.random.key(0)))
  state = {n: x for n, x in source.state.items() if n not in found.ignored}
  try:
    variables = torch_names.from_torch(state, template, table, found.missing)
  except MiraInputError as cause:
    hint = f'{cause.hint[:2000]}; --allow-missing PARTS initialises them'
    raise checkpoint_error(cause.code, source.path, hint) from cause
  scan = metadata['model'].get('scan', False)
  found.variables = unflatten(restack(flatten(variables), stacked=scan))


def _useless(extra: Sequence[str], template: PyTree) -> list[str]:
  """Of names that a model has no place for, those that it can do without.

  Losses and other heads; MiRA's averages, if it shall be plain; the last norm
  of a pre-training, which is of tokens. Others could change the features.
  """
  classifier = 'mask_token' not in template['params']
  return [
    n
    for n in extra
    if not _FEATURES.match(n)
    or (classifier and n in ('norm.weight', 'norm.bias'))
    or (n.endswith('.c_buf') and 'mira' not in template)
  ]


def _init(metadata: Mapping[str, Any]) -> Callable[[jax.Array], PyTree]:
  """`init(key)` of the model, with blocks of their own."""
  pretrain = metadata.get('pretrain')
  fields = metadata['model'] | {'scan': False}
  side, frames = fields['image_size'], fields['frames']
  shape = (1, frames, side, side, 3)
  if not pretrain:
    model = build_model(fields)
    return lambda key: model.init(key, jnp.zeros(shape))
  own = {n: x for n, x in pretrain.items() if n.startswith('decoder_')}
  model = build_autoencoder(fields, own)
  slots, each = frames // model.tubelet, (side // model.patch) ** 2
  mask = jnp.arange(slots * each)[None] % each > 0  # one of each frame is shown
  hidden = slots * (each - 1)
  return lambda key: model.init(key, jnp.zeros(shape), mask, num_masked=hidden)
