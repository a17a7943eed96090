"""Weights of other programs as a weights file of ours, and back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax import engine
from mira_jax.errors import ExitCode, MiraInputError, checkpoint_error
from mira_jax.interop import recognise, sources, torch_names
from mira_jax.models import mae
from mira_jax.weights import (
  compact,
  flatten,
  load_weights,
  restack,
  save_weights,
  unflatten,
  write_arrays,
)

PyTree = Any


@dataclasses.dataclass(kw_only=True)
class Converted:
  """Weights as a file of ours has them, and what is to be told of them.

  Attributes:
    variables: {'params': ..., 'mira': ...}.
    card: see `weights`.
    kind: what they were read from.
    ignored: names of tensors that are left out.
    missing: names of ours that the source lacks, which are random.
    remarks: what was assumed or changed, one line each.
  """

  variables: PyTree
  card: dict[str, Any]
  kind: str
  ignored: Sequence[str] = ()
  missing: Sequence[str] = ()
  remarks: Sequence[str] = ()


def read(
  path: str | os.PathLike[str],
  wishes: recognise.Wishes,
  *,
  class_names: Sequence[str] = (),
  rate: int = 4,
  fit: str = 'crop',
  allow_missing: Sequence[str] = (),
) -> Converted:
  """Reads weights of ours or of another program.

  Args:
    path: see `sources.read`.
    wishes: what weights of another program do not tell.
    class_names: in the order of the head; () takes those that are told, or
      numbers.
    rate: of the card's preprocessing: one of so many frames is read.
    fit: of it, how frames become square.
    allow_missing: parts of the model ('head') that may be missing or other.

  Raises:
    MiraInputError: naming every missing, extra and mis-shaped tensor; or see
      `sources.read` and `recognise.recognise`.
  """
  source = sources.read(path)
  if source is None:
    variables, card = load_weights(sources.weights_path(path))
    return Converted(variables=variables, card=card, kind='weights of ours')
  if source.card:
    card, remarks = source.card, []
  else:
    card, remarks = _card(source, wishes, class_names, rate, fit)
  card = card | {'source': _origin(source)}
  variables, ignored, missing = _variables(source, card, allow_missing)
  return Converted(
    variables=variables,
    card=card,
    kind=source.kind,
    ignored=ignored,
    missing=missing,
    remarks=[*source.notes, *remarks],
  )


def write(path: str | os.PathLike[str], converted: Converted) -> pathlib.Path:
  """Writes a weights file of ours."""
  variables = converted.variables
  mira = variables.get('mira', {})
  return save_weights(path, variables['params'], mira, converted.card)


def write_torch(
  path: str | os.PathLike[str], converted: Converted
) -> pathlib.Path:
  """Writes safetensors with the names of the authors' code.

  Its header keeps the card, so that `read` gives back what was written.

  Raises:
    MiraInputError: the model has parts that the authors' models do not have.
  """
  single = restack(flatten(converted.variables), stacked=False)
  try:
    state = torch_names.to_torch(unflatten(single), _table(converted.card))
  except ValueError as cause:
    hint = f"the authors' code has no such model ({cause})"
    raise checkpoint_error('unsupported', path, hint) from cause
  header = {'format': 'pt', sources.CARD: json.dumps(converted.card)}
  return write_arrays(path, state, header)


# ----- the card ---------------------------------------------------------------


def _card(
  source: sources.Source,
  wishes: recognise.Wishes,
  class_names: Sequence[str],
  rate: int,
  fit: str,
) -> tuple[dict[str, Any], list[str]]:
  """The card of weights that have none, and what was assumed for it."""
  model = recognise.recognise(source, wishes)
  count = model.fields['num_classes']
  remarks = list(model.remarks)
  names = list(class_names or source.class_names)
  if count and not names:
    names = [str(i) for i in range(count)]
    remarks.append('its classes are only numbered; name them with --classes')
  if len(names) != count or len(set(names)) != count:
    hint = f'its head has {count} classes; {len(set(names))} are named: '
    hint += ','.join(names[:20])
    code = ExitCode.USAGE if class_names else ExitCode.CHECKPOINT
    raise MiraInputError('bad_classes', source.path, hint, exit_code=code)
  pretrain = None
  if model.decoder:
    # How the authors pre-train; only further pre-training reads it.
    recipe = {'mask': 'tube', 'mask_ratio': 0.9, 'normalise_targets': True}
    pretrain = model.decoder | recipe
  fields = model.fields | {'dtype': 'float32'}
  return {
    'model': fields,
    'pretrain': pretrain,
    'class_names': names,
    'preprocessing': {'rate': rate, 'fit': fit},
  }, remarks


def _origin(source: sources.Source) -> dict[str, str]:
  with source.path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return {'name': source.path.name, 'kind': source.kind, 'sha256': digest}


# ----- the tensors ------------------------------------------------------------


def _table(card: Mapping[str, Any]) -> tuple:
  if card.get('pretrain'):
    return torch_names.AUTOENCODER
  return torch_names.CLASSIFIER


def _variables(
  source: sources.Source, card: dict[str, Any], allow_missing: Sequence[str]
) -> tuple[PyTree, list[str], list[str]]:
  """The variables of the card's model, what is ignored and what is missing."""
  table, scan = _table(card), card['model'].get('scan', False)
  init = _init(card)
  template = jax.eval_shape(init, jax.random.key(0))
  state, ignored = _without_the_useless(source.state, template)
  _check_parts(source, template, allow_missing)
  missing = [
    path
    for path in flatten(template)
    if torch_names.lookup(path, table)[0] not in state
    and (path.split('/')[1] in allow_missing or path.startswith('mira/'))
  ]
  if missing:
    template = jax.device_get(jax.jit(init)(jax.random.key(0)))
  names = [torch_names.lookup(path, table)[0] for path in missing]
  try:
    variables = torch_names.from_torch(
      state, template, table, '|'.join(map(_literally, names))
    )
  except MiraInputError as cause:
    hint = f'{cause.hint}; --allow-missing PARTS starts missing ones anew'
    raise checkpoint_error(cause.code, source.path, hint) from cause
  whole = unflatten(restack(flatten(variables), stacked=scan))
  return whole, ignored, missing


def _literally(name: str) -> str:
  return name.replace('.', r'\.')


def _init(card: Mapping[str, Any]) -> Any:
  """`init(key)` of the card's model, with blocks of their own."""
  fields = card['model'] | {'scan': False}
  side, frames = fields['image_size'], fields['frames']
  video = jnp.zeros((1, frames, side, side, 3))
  if not card.get('pretrain'):
    model = engine.build_model(fields)
    return lambda key: model.init(key, video)
  own = {n: x for n, x in card['pretrain'].items() if n.startswith('decoder_')}
  autoencoder = engine.build_autoencoder(fields, own)
  mask, hidden = mae.draw_mask(
    jax.random.key(0),
    video.shape,
    autoencoder.tubelet,
    autoencoder.patch,
    kind='tube',
    ratio=card['pretrain']['mask_ratio'],
  )
  return lambda key: autoencoder.init(key, video, mask, num_masked=hidden)


def _without_the_useless(
  state: Mapping[str, np.ndarray], template: PyTree
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Without what a complete checkpoint has, but this model has no use for.

  Those are MiRA's averages, if it shall be plain, and the last norm of an
  encoder that was cut out of a pre-training: it is of tokens, and a
  classifier's is of their mean.
  """
  mask_token = 'mask_token' in template['params']
  useless = [
    name
    for name in state
    if (name.endswith('.c_buf') and 'mira' not in template)
    or (name in ('norm.weight', 'norm.bias') and not mask_token)
  ]
  kept = {name: x for name, x in state.items() if name not in useless}
  return kept, useless


def _check_parts(
  source: sources.Source, template: PyTree, allow_missing: Sequence[str]
) -> None:
  parts = sorted(template['params'])
  for part in allow_missing:
    if part not in parts:
      hint = f'--allow-missing {part}: the parts of this model are '
      hint += ', '.join(parts)
      raise MiraInputError('bad_flag', source.path, hint)


def summary(converted: Converted) -> list[tuple[str, str]]:
  """What was recognised, as rows of a name and a text."""
  card = converted.card
  model = card['model']
  mira = model.get('mira')
  where = model.get('mira_last_blocks')
  mode = 'plain' if mira is None else f'{mira["mode"]}, {mira["statistics"]}'
  slots = model['frames'] // model['tubelet']
  side = model['image_size'] // model['patch']
  names = card['class_names']
  count = len(flatten(converted.variables))
  rows = [
    ('source', converted.kind),
    ('size', recognise.size_name(model)),
    ('clips', f'{model["frames"]} frames of {model["image_size"]} pixels'),
    ('tokens', f'{slots} x {side} x {side}, each {model["tubelet"]} frames of '
               f'{model["patch"]} pixels'),
    ('mode', mode + (f', last {where} blocks' if where else '')),
    ('classes', f'{len(names)}: {", ".join(names[:12])}' if names else 'none'),
    ('taken', f'{count - len(converted.missing)} tensors'),
  ]  # fmt: skip
  if card.get('pretrain'):
    decoder = 'width {decoder_dim}, {decoder_depth} blocks, {decoder_heads} '
    rows.insert(2, ('decoder', f'{decoder}heads'.format(**card['pretrain'])))
  for kind in ('ignored', 'missing'):
    if tensors := getattr(converted, kind):
      rows.append((kind, f'{len(tensors)} tensors: {compact(tensors)}'))
  return rows
