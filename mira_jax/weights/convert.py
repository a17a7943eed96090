"""Weights of other programs as a weights file of ours, and back."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax import files
from mira_jax.errors import ExitCode, MiraInputError, checkpoint_error, plain
from mira_jax.models import mae
from mira_jax.models.build import build_autoencoder, build_model
from mira_jax.weights import infer_model, saved_models, sources, torch_names
from mira_jax.weights.huggingface_config import NAME
from mira_jax.weights.metadata import check_card
from mira_jax.weights.weights_file import (
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
  wishes: infer_model.Wishes = infer_model.Wishes(),
) -> Converted:
  """Reads weights of ours or of another program.

  Args:
    path: see `sources.read`.
    wishes: what the files do not say.

  Raises:
    MiraInputError: naming every missing and misshapen tensor; or see
      `sources.read` and `card_of`.
  """
  source = sources.read(path, wishes.key)
  card, remarks = card_of(source, wishes)
  found = Converted(
    variables={},
    card=card,
    kind=source.kind,
    remarks=[*source.notes, *remarks],
  )
  if source.native:
    found.variables = unflatten(source.state)
  else:
    card['source'] = _origin(source)
    _put_tensors(found, source, wishes.allow_missing)
  return found


def card_of(
  source: sources.Source, wishes: infer_model.Wishes
) -> tuple[dict[str, Any], list[str]]:
  """The card of weights, and what was assumed for it.

  Raises:
    MiraInputError: wishes that contradict the files, classes that do not fit
      the head, limits of a card; or see `recognise.recognise`.
  """
  if source.card:
    card, remarks = dict(source.card), []
    check_wishes(card, wishes, source.path)
    whose = 'its card'
  else:
    card, remarks = _card(source, wishes)
    beside = source.fields and source.path.with_name(NAME).is_file()
    whose = f'its {NAME}' if beside else 'what was recognised'
  check_card(card, source.path, whose)
  return card, remarks


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
  source: sources.Source, wishes: infer_model.Wishes
) -> tuple[dict[str, Any], list[str]]:
  """The card of weights that have none, and what was assumed for it."""
  model = infer_model.recognise(source, wishes)
  count = model.fields['num_classes']
  remarks = list(model.remarks)
  names = list(wishes.class_names or source.class_names)
  if count and not names:
    names = [str(i) for i in range(count)]
    remarks.append('its classes are only numbered; name them with --classes')
  if len(names) != count or len(set(names)) != count:
    hint = f'its head has {count} classes; {len(set(names))} are named: '
    hint += plain(', '.join(name[:60] for name in names[:12]))
    code = ExitCode.USAGE if wishes.class_names else ExitCode.CHECKPOINT
    raise MiraInputError('bad_classes', source.path, hint, exit_code=code)
  fields = model.fields | {'dtype': 'float32'}
  return {
    'model': fields,
    'pretrain': model.decoder,
    'class_names': names,
    'preprocessing': model.preprocessing,
  }, remarks


def check_wishes(
  card: Mapping[str, Any],
  wishes: infer_model.Wishes,
  path: str | os.PathLike[str],
) -> None:
  """Refuses a flag that says other than a card, which says everything.

  Raises:
    MiraInputError: naming the flag ('bad_flag').
  """
  model, rules = card.get('model') or {}, card.get('preprocessing') or {}
  mira = model.get('mira')
  said = {
    'mode': (mira or {}).get('mode', 'plain'),
    'class_names': card.get('class_names'),
    **{n: model.get(n) for n in ('heads', 'frames', 'image_size')},
    **{n: rules.get(n) for n in ('rate', 'fit')},
  }
  for name, value in said.items():
    wish = getattr(wishes, name)
    wish = list(wish) if name == 'class_names' else wish
    if wish and wish != value:
      flag = 'classes' if name == 'class_names' else name.replace('_', '-')
      hint = f'--{flag} {wish}: its card says {value}; leave the flag out'
      raise MiraInputError('bad_flag', path, hint)


def _origin(source: sources.Source) -> dict[str, str]:
  digest = files.sha256(source.path)
  return {'name': source.path.name, 'kind': source.kind, 'sha256': digest}


# ----- the tensors ------------------------------------------------------------


def _table(card: Mapping[str, Any]) -> tuple:
  if card.get('pretrain'):
    return torch_names.AUTOENCODER
  return torch_names.CLASSIFIER


def _put_tensors(
  found: Converted, source: sources.Source, allow_missing: Sequence[str]
) -> None:
  """The variables of the card's model, what is ignored and what is missing."""
  card, table = found.card, _table(found.card)
  init = _init(card)
  template = jax.eval_shape(init, jax.random.key(0))
  names = {n: torch_names.lookup(n, table)[0] for n in flatten(template)}
  state, useless, extra = _useful(source.state, template, names.values())
  _check_parts(source, template, allow_missing)
  backbone = not (card['class_names'] or card.get('pretrain'))
  allowed = {*allow_missing, *(['norm'] if backbone else [])}
  found.ignored = [*useless, *extra]
  found.missing = [
    path
    for path, name in names.items()
    if name not in state
    and (path.split('/')[1] in allowed or path.startswith('mira/'))
  ]
  found.remarks = [*found.remarks, *_remarks(extra, found.missing)]
  if found.missing:
    template = jax.device_get(jax.jit(init)(jax.random.key(0)))
  absent = '|'.join(re.escape(names[path]) for path in found.missing)
  try:
    variables = torch_names.from_torch(state, template, table, absent)
  except MiraInputError as cause:
    hint = (
      f'{cause.hint[:2000]}; --allow-missing PARTS starts missing ones anew'
    )
    raise checkpoint_error(cause.code, source.path, hint) from cause
  found.variables = unflatten(
    restack(flatten(variables), stacked=card['model'].get('scan', False))
  )


def _remarks(extra: Sequence[str], missing: Sequence[str]) -> list[str]:
  remarks = []
  if extra:
    names = saved_models.shown(extra)
    remarks.append(f'left out, as the model has no place for them: {names}')
  if fresh := [n for n in missing if n.startswith('params/')]:
    remarks.append(f'starts anew, as it is missing: {compact(fresh)}')
  return remarks


def _init(card: Mapping[str, Any]) -> Any:
  """`init(key)` of the card's model, with blocks of their own."""
  fields = card['model'] | {'scan': False}
  side, frames = fields['image_size'], fields['frames']
  shape = (1, frames, side, side, 3)
  if not card.get('pretrain'):
    model = build_model(fields)
    return lambda key: model.init(key, jnp.zeros(shape))
  own = {n: x for n, x in card['pretrain'].items() if n.startswith('decoder_')}
  autoencoder = build_autoencoder(fields, own)
  mask, hidden = mae.draw_mask(
    jax.random.key(0),
    shape,
    autoencoder.tubelet,
    autoencoder.patch,
    kind='tube',
    ratio=card['pretrain']['mask_ratio'],
  )
  return lambda key: autoencoder.init(
    key, jnp.zeros(shape), mask, num_masked=hidden
  )


def _useful(
  state: Mapping[str, np.ndarray], template: PyTree, expected: Iterable[str]
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
  """The tensors that a model must have, and the names of all others.

  The first are what a complete checkpoint has, but this model has no use for:
  MiRA's averages, if it shall be plain, and the last norm of an encoder that
  was cut out of a pre-training: it is of tokens, and a classifier's is of their
  mean. The second are of losses and of heads under other names. What could
  change the features stays, for an error to name it.
  """
  mask_token = 'mask_token' in template['params']
  useless = [
    name
    for name in state
    if (name.endswith('.c_buf') and 'mira' not in template)
    or (name in ('norm.weight', 'norm.bias') and not mask_token)
  ]
  extra = [
    name
    for name in state.keys() - {*useless, *expected}
    if not _FEATURES.match(name)
  ]
  left = {*useless, *extra}
  return {n: x for n, x in state.items() if n not in left}, useless, extra


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
    ('size', infer_model.size_name(model)),
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
