"""Checks of a configuration: types, ranges, and fields that contradict."""

from __future__ import annotations

import dataclasses
import operator
import sys
from typing import Any

from mira_jax.config.schema import (
  Config,
  bad_config,
  build_tree,
  datasets,
  group,
  hints,
)
from mira_jax.errors import short
from mira_jax.models import options

_MOST = 10**6  # of whole numbers without a highest value
_ABOVE_0 = {'layer_scale': (0, None), 'head_scale': (0, None)}
# Of the options of models, which have them in a table.
_RANGES = options.RANGES | options.DECODER_RANGES | _ABOVE_0


_NOT_PRETRAINED = [name for name in options.SYSTEMS if name != 'gate']


def validate(cfg: Config, devices: int | None = 1) -> None:
  """Checks a whole configuration for so many `devices` of all hosts.

  None leaves out the mesh, as of a run that was trained elsewhere.

  Raises:
    MiraInputError: names the first field that is wrong, its value and a fix.
  """
  build_tree(Config, dataclasses.asdict(cfg), 'config')
  check_values(cfg)
  parts = 1 if devices is None else _check_mesh(cfg, devices)
  if cfg.data.batch_size % parts:
    hint = f'{cfg.data.batch_size} must be a multiple of {parts} devices'
    raise bad_config('config.data.batch_size', hint)
  if cfg.data.batch_size * cfg.data.repeats % (cfg.optim.accumulate * parts):
    hint = f'{cfg.optim.accumulate} parts of a batch and its repeats do not '
    hint += f'divide over {parts} devices'
    raise bad_config('config.optim.accumulate', hint)
  rows = cfg.data.batch_size * cfg.data.repeats // cfg.optim.accumulate
  if rows % cfg.model.members:
    hint = f'{cfg.model.members} members do not divide {rows} clips'
    raise bad_config('config.model.members', hint)
  if not datasets(cfg.data):
    hint = f'{cfg.data.dataset!r} names no folder of a prepared dataset'
    raise bad_config('config.data.dataset', hint)
  mixes = cfg.data.mixup_alpha or cfg.data.cutmix_alpha
  if cfg.optim.class_weights != 'none' and mixes:
    hint = 'weights are of one class: set mixup_alpha and cutmix_alpha to 0'
    raise bad_config('config.optim.class_weights', hint)
  if cfg.model.identity is not None and mixes:
    hint = 'it learns who one person is: set mixup_alpha and cutmix_alpha to 0'
    raise bad_config('config.model.identity', hint)
  if cfg.data.pseudo_labels and cfg.data.protocol != 'lodo':
    hint = f'{cfg.data.pseudo_labels!r} labels clips of a dataset that is left '
    hint += 'out: set config.data.protocol=lodo'
    raise bad_config('config.data.pseudo_labels', hint)
  if cfg.optim.final_lr > cfg.optim.lr:
    hint = f'{cfg.optim.final_lr} must not be above optim.lr {cfg.optim.lr}'
    raise bad_config('config.optim.final_lr', hint)
  for name in ('patience', 'refit'):
    if getattr(cfg.train, name) and not cfg.train.eval_every:
      hint = 'there is one validation, at the end; set config.train.eval_every'
      raise bad_config(f'config.train.{name}', f'{hint}=1')
  if cfg.pretrain:
    _check_pretrain(cfg)
  else:
    _check_labels(cfg)


def check_values(cfg: Config) -> None:
  """Checks ranges, choices, and the options of a model against each other.

  Raises:
    MiraInputError: see `validate`.
  """
  _check_fields(cfg)
  if fault := options.contradiction(cfg.model):
    raise bad_config(f'config.model.{fault[0]}', fault[1])
  pretrain = cfg.pretrain
  if pretrain and pretrain.decoder_dim % pretrain.decoder_heads:
    hint = f'{pretrain.decoder_dim} must be a multiple of decoder_heads '
    hint += f'{pretrain.decoder_heads}'
    raise bad_config('config.pretrain.decoder_dim', hint)


def _check_fields(part: Any, name: str = 'config') -> None:
  """Checks ranges and choices of a group, and of those in it."""
  model = name in ('config.model', 'config.pretrain')
  for field in dataclasses.fields(part):
    value, path = getattr(part, field.name), f'{name}.{field.name}'
    if value is not None and group(hints(type(part))[field.name]):
      _check_fields(value, path)
    choices: Any = field.metadata.get('choices')
    span: Any = field.metadata.get('range')
    if model:
      choices = choices or options.CHOICES.get(field.name)
      span = span or _RANGES.get(field.name)
    if choices and value not in choices:
      raise bad_config(path, f'{value!r} must be one of {choices}')
    if span and value is not None:
      _check_range(value, span, path)


def _check_range(value: Any, span: tuple[Any, Any], name: str) -> None:
  low, high = span
  whole = type(value) is int
  most = high or (_MOST if whole else sys.float_info.max)
  if not low <= value <= most:
    text = f'{low} to {most}' if whole or high else f'{low} or more'
    raise bad_config(name, f'{short(value)} must be {text}')


def _check_mesh(cfg: Config, devices: int) -> int:
  """Checks the mesh; returns the parts of a batch."""
  data, fsdp, model = cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.model
  whole = (data or 1) * fsdp * model
  if devices % whole or (data and devices != whole):
    hint = f'{data} x {fsdp} x {model} must be the {devices} devices; '
    hint += '0 for data takes those that are left'
    raise bad_config('config.mesh: data x fsdp x model', hint)
  hidden = int(cfg.model.dim * cfg.model.mlp_ratio + 1e-6)  # as mlp_width
  for name, size in (('heads', cfg.model.heads), ('dim * mlp_ratio', hidden)):
    if size % model:
      hint = f'{model} must divide model.{name} {size}'
      raise bad_config('config.mesh.model', hint)
  return devices // model


# Of each kind of labels: a field, the value that it must have, and why.
_UNITS = (
  ('train.refit', False, 'thresholds need validation clips'),
  ('data.mixup_alpha', 0.0, 'action units of mixed clips are undefined'),
  ('data.cutmix_alpha', 0.0, 'action units of mixed clips are undefined'),
  ('data.phases', 'none', 'stills have no labels of frames'),
  ('data.pseudo_labels', '', 'it is a table of classes'),
  ('model.reliability', None, 'it is for classes, not for action units'),
  ('model.oracle_units', '', 'it is for classes, not for action units'),
)
_CLASSES = (
  ('data.units', '', 'action units need data.labels=action_units'),
  ('data.unit_labels', 'middle', 'action units need data.labels=action_units'),
)


def _check_labels(cfg: Config) -> None:
  """Checks that the head fits what is learned."""
  units = cfg.data.labels == 'action_units'
  tokens = units and cfg.data.unit_labels == 'token'
  if tokens != (cfg.model.pool == 'frame'):
    hint = f'{cfg.model.pool!r} does not fit: logits of every temporal token '
    hint += "('frame') go with data.labels='action_units' and "
    hint += "data.unit_labels='token', and with nothing else"
    raise bad_config('config.model.pool', hint)
  for name, allowed, why in _UNITS if units else _CLASSES:
    if (value := operator.attrgetter(name)(cfg)) != allowed:
      hint = f'{value!r} must be {allowed!r}: {why}'
      raise bad_config(f'config.{name}', hint)
  windows = cfg.model.cross_windows
  if windows is not None and windows.guide == 'landmarks':
    hint = "no dataset has landmarks: use 'difference', or give them to the "
    hint += 'model in Python (models.head.Inputs)'
    raise bad_config('config.model.cross_windows.guide', hint)


def _check_pretrain(cfg: Config) -> None:
  model, pretrain = cfg.model, cfg.pretrain
  assert pretrain is not None
  if not int(pretrain.mask_ratio * (model.image_size // model.patch) ** 2):
    hint = f'{pretrain.mask_ratio} masks no spatial position; use more'
    raise bad_config('config.pretrain.mask_ratio', hint)
  if model.variant == 'factorised_encoder':
    hint = f'{model.variant!r} has no pre-training; use another variant'
    raise bad_config('config.model.variant', hint)
  if model.variant.startswith('factorised') and pretrain.mask != 'tube':
    hint = f'{pretrain.mask!r} does not go with {model.variant!r}, which '
    hint += "attends over time at fixed positions: use 'tube'"
    raise bad_config('config.pretrain.mask', hint)
  for name, value, allowed in (
    ('model.pool', model.pool, 'mean'),
    ('model.members', model.members, 1),
    ('model.positions', model.positions, 'sinusoidal'),
    ('model.layer_scale', model.layer_scale, None),
    *((f'model.{x}', getattr(model, x), None) for x in _NOT_PRETRAINED),
    ('data.mixup_alpha', cfg.data.mixup_alpha, 0),
    ('data.cutmix_alpha', cfg.data.cutmix_alpha, 0),
    ('data.erase', cfg.data.erase, 0),
    ('data.phases', cfg.data.phases, 'none'),
    ('data.pseudo_labels', cfg.data.pseudo_labels, ''),
    ('optim.layer_decay', cfg.optim.layer_decay, 1),
    ('optim.class_weights', cfg.optim.class_weights, 'none'),
    ('optim.freeze_backbone', cfg.optim.freeze_backbone, False),
    ('train.patience', cfg.train.patience, 0),
    ('train.refit', cfg.train.refit, False),
  ):
    if value != allowed:
      hint = f'{value!r} must be {allowed!r} in pre-training'
      raise bad_config(f'config.{name}', hint)
