"""What a configuration must satisfy beyond the types of its fields."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from mira_jax.augment.transforms import CROP_SCALES
from mira_jax.config.schema import (
  Config,
  bad_config,
  build_tree,
  datasets,
  short,
)
from mira_jax.models import options


def validate(cfg: Config, devices: int | None = 1) -> None:
  """Checks types, which files and flags get past, and what they cannot say.

  Args:
    cfg: a whole configuration.
    devices: of all hosts; None leaves out the mesh, as of a run that was
      trained elsewhere.

  Raises:
    MiraInputError: names the first field that is wrong, its value and a fix.
  """
  build_tree(Config, dataclasses.asdict(cfg), 'config')
  _check_ranges(cfg)
  if fault := options.contradiction(cfg.model):
    field, hint = fault
    raise bad_config(f'config.model.{field}', hint)
  parts = 1 if devices is None else _check_mesh(cfg, devices)
  if cfg.data.batch_size % parts:
    hint = f'{cfg.data.batch_size} must be a multiple of {parts} devices'
    raise bad_config('config.data.batch_size', hint)
  if cfg.data.batch_size * cfg.data.repeats % (cfg.optim.accumulate * parts):
    hint = (
      f'{cfg.optim.accumulate} parts of {cfg.data.batch_size} clips, '
      f'{cfg.data.repeats} times each, do not divide over {parts} devices'
    )
    raise bad_config('config.optim.accumulate', hint)
  if not datasets(cfg.data):
    hint = f'{cfg.data.dataset!r} names no folder of a prepared dataset'
    raise bad_config('config.data.dataset', hint)
  mixes = cfg.data.mixup_alpha or cfg.data.cutmix_alpha
  if cfg.optim.class_weights != 'none' and mixes:
    hint = 'weights are of one class: set mixup_alpha and cutmix_alpha to 0'
    raise bad_config('config.optim.class_weights', hint)
  if cfg.pretrain:
    _check_pretrain(cfg)
  if cfg.optim.final_lr > cfg.optim.lr:
    hint = f'{cfg.optim.final_lr} must not be above optim.lr {cfg.optim.lr}'
    raise bad_config('config.optim.final_lr', hint)


# The range of every number: lowest, and highest; None is _MOST of whole
# numbers, which no run needs, and any number else.
_MOST = 10**6


_RANGES = {
  **{f'model.{name}': span for name, span in options.RANGES.items()},
  **{f'pretrain.{name}': span for name, span in options.DECODER_RANGES.items()},
  'model.layer_scale': (0, None),
  'model.head_scale': (0, None),
  'data.fold': (0, None),
  'data.num_folds': (0, None),
  'data.val_fraction': (0, 0.9),
  'data.train_fraction': (0.001, 1),
  'data.repeats': (1, None),
  'data.rate': options.FRAME_STRIDE,
  'data.batch_size': (1, None),
  'data.threads': (1, 4096),
  'data.max_damaged': (0, 1),
  'data.train_clips': (1, 10**8),
  'data.test_clips': (1, 10**8),
  'data.synthetic_seed': (0, 2**31 - 1),
  'data.shift': (0, 2**12),
  'data.brightness': (0, 1),
  'data.contrast': (0, 1),
  'data.erase': (0, 1),
  'data.mixup_alpha': (0, None),
  'data.cutmix_alpha': (0, None),
  'optim.lr': (0, None),
  'optim.final_lr': (0, None),
  'optim.warmup_epochs': (0, None),
  'optim.weight_decay': (0, None),
  'optim.b1': (0, 0.9999),
  'optim.b2': (0, 0.9999),
  'optim.clip_norm': (0, None),
  'optim.layer_decay': (0.01, 1),
  'optim.label_smoothing': (0, 0.99),
  'optim.lr_batch': (0, None),
  'optim.accumulate': (1, None),
  'optim.ema_decay': (0, 0.999999),
  'optim.max_bad_steps': (0, 10**9),
  'optim.spike_sigmas': (0, None),
  'train.epochs': (1, None),
  'train.log_every': (1, 10**9),
  'train.save_every': (1, 10**9),
  'train.eval_every': (0, None),
  'eval.views': (1, 1000),
  'eval.look_views': (1, 1000),
  'mesh.data': (0, None),
  'mesh.fsdp': (1, None),
  'mesh.model': (1, None),
  'seed': (0, 2**31 - 1),
}


_CHOICES = {
  'data.fit': ('crop', 'squash'),
  'data.protocol': ('split', 'folds', 'loso', 'lodo'),
  'pretrain.mask': (None, 'tube', 'random'),
  'eval.select_by': ('war', 'uar'),
  'optim.class_weights': ('none', 'inverse_sqrt'),
  'data.multi_scale': ('', *CROP_SCALES),
  'optim.name': ('adamw', 'muon'),
  **{f'model.{name}': choices for name, choices in options.CHOICES.items()},
}


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


def _check_ranges(cfg: Config) -> None:
  for name, (low, high) in _RANGES.items():
    value = _get(cfg, name)
    if value is None:
      continue
    whole = type(value) is int
    most = high or (_MOST if whole else sys.float_info.max)
    if not low <= value <= most:
      span = f'{low} to {most}' if whole or high else f'{low} or more'
      hint = f'{short(value)} must be {span}'
      raise bad_config(f'config.{name}', hint)
  for name, choices in _CHOICES.items():
    if _get(cfg, name) not in choices:
      hint = f'{_get(cfg, name)!r} must be one of {choices}'
      raise bad_config(f'config.{name}', hint)


def _get(cfg: Config, name: str) -> Any:
  value: Any = cfg
  for part in name.split('.'):
    value = None if value is None else getattr(value, part)
  return value


def _check_pretrain(cfg: Config) -> None:
  dim, heads = cfg.pretrain.decoder_dim, cfg.pretrain.decoder_heads
  if dim % heads:
    hint = f'{dim} must be a multiple of decoder_heads {heads}'
    raise bad_config('config.pretrain.decoder_dim', hint)
  if not int(
    cfg.pretrain.mask_ratio * (cfg.model.image_size // cfg.model.patch) ** 2
  ):
    hint = (
      f'{cfg.pretrain.mask_ratio} of the places of a slot are less than one'
    )
    raise bad_config('config.pretrain.mask_ratio', hint)
  if cfg.model.variant == 'factorised_encoder':
    hint = 'it has no pre-training; use another variant'
    raise bad_config(f'config.model.variant={cfg.model.variant}', hint)
  if cfg.model.variant.startswith('factorised') and cfg.pretrain.mask != 'tube':
    hint = (
      f'{cfg.model.variant!r} attends over time at places that stay: use tube'
    )
    raise bad_config(f'config.pretrain.mask={cfg.pretrain.mask}', hint)
  for name, allowed in (
    ('model.pool', 'mean'),
    ('model.positions', 'sinusoidal'),
    ('model.layer_scale', None),
    ('data.mixup_alpha', 0),
    ('data.cutmix_alpha', 0),
    ('data.erase', 0),
    ('optim.layer_decay', 1),
    ('optim.class_weights', 'none'),
    ('optim.freeze_backbone', False),
  ):
    if _get(cfg, name) != allowed:
      hint = f'{_get(cfg, name)!r} must be {allowed!r} in pre-training'
      raise bad_config(f'config.{name}', hint)
