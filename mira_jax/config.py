"""The configuration of a run: one tree of plain dataclasses.

A file in `configs/` returns a `Config`; flags change single fields of it, with
their types checked: `--config.optim.lr=3e-4`. The floors below never see it:
their functions take plain fields.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
import types
import typing
from typing import Any

from mira_jax import ranges
from mira_jax.augment import CROP_SCALES, Augment
from mira_jax.errors import MiraInputError, nearest
from mira_jax.kernels.dispatch import IMPLEMENTATIONS
from mira_jax.kernels.operations import REMAT
from mira_jax.mira import MiraConfig


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class ModelConfig:
  """Fields of `mira_jax.models.vivit.ViViT`, by the same names."""

  dim: int = 128
  depth: int = 4
  heads: int = 4
  num_classes: int = 0  # 0: as many as the dataset names
  frames: int = 16
  image_size: int = 64
  patch: int = 8
  tubelet: int = 2
  mlp_ratio: float = 4.0
  gelu: str = 'exact'  # or 'tanh', its approximation
  norm_eps: float = 1e-6  # what norms add to a variance
  last_norm_eps: float | None = None  # the last one's; None: norm_eps
  variant: str = 'joint'  # or a baseline of mira_jax.models.variants
  mira: MiraConfig | None = dataclasses.field(default_factory=MiraConfig)
  mira_last_blocks: int | None = None  # None: MiRA in all blocks
  pool: str = 'mean'
  positions: str = 'sinusoidal'
  layer_scale: float | None = None
  attention: str | None = None  # an implementation, or None: chosen
  drop_path: float = 0.0
  head_scale: float = 0.001
  remat: str | None = None  # what is kept, see mira_jax.kernels.operations
  scan: bool = False  # faster compilation of deep models
  dtype: str = 'float32'


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class PretrainConfig:
  """Masked pre-training, fields of `mira_jax.models.mae`; ViT-B's decoder."""

  decoder_dim: int = 384
  decoder_depth: int = 4
  decoder_heads: int = 6
  decoder_mlp_ratio: float | None = None  # None: model.mlp_ratio
  mask: str = 'tube'  # or 'random': every slot hides places of its own
  mask_ratio: float = 0.9  # of the places of a slot, rounded down
  normalise_targets: bool = True  # per tubelet and channel


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class DataConfig:
  """What is read. A missing `synthetic_faces/macro` or `/micro` is made."""

  # Folders of prepared datasets, with commas between them.
  dataset: str = 'data/synthetic_faces/macro'
  # Who is tested, see mira_jax.data.protocol: the clips of `eval.split`, a
  # stored fold, one subject ('loso') or one dataset of several ('lodo').
  protocol: str = 'split'
  fold: int = 0  # which of the folds, counted from 0
  num_folds: int = 0  # makes so many folds of subjects; 0: the stored ones
  classes: str = ''  # CSV with the columns dataset, class, common
  val_fraction: float = 0.1  # of the training clips, whole subjects
  train_fraction: float = 1.0  # of the rest, to learn from few labels
  rate: int = 2  # one of so many frames is read
  fit: str = 'crop'  # frames become square: 'crop' the middle, or 'squash'
  batch_size: int = 32  # clips per step, over all devices
  repeats: int = 1  # times that every clip of a batch is augmented
  threads: int = 16  # that decode clips
  max_damaged: float = 0.01  # share of a split's clips; 1 is always let pass
  # Of a synthetic dataset, when it is made:
  train_clips: int = 2800
  test_clips: int = 420
  synthetic_seed: int = 0  # not the run's: runs with other seeds share the data
  # Augmentation, alike for all frames of a clip; 0 leaves a change out.
  rand_augment: bool = False
  multi_scale: str = ''  # crops for pre-training: 'base' or 'large' models
  resized_crop: bool = False
  flip: bool = True
  shift: int = 4  # pixels
  brightness: float = 0.2
  contrast: float = 0.2
  erase: float = 0.0  # probability
  # Mixing of clips and targets; 0 leaves it out, see mira_jax.mixing.
  mixup_alpha: float = 0.0
  cutmix_alpha: float = 0.0


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class OptimConfig:
  """The learning rate warms up from 0 and falls along a cosine."""

  name: str = 'adamw'  # or 'muon', see mira_jax.optim
  lr: float = 1e-3
  final_lr: float = 1e-6
  lr_batch: int = 0  # both are for so many clips per step; 0: for any number
  warmup_epochs: float = 1.0
  weight_decay: float = 0.05
  b1: float = 0.9
  b2: float = 0.999
  clip_norm: float = 0.0  # 0: gradients are not clipped
  layer_decay: float = 1.0  # rate of a layer over that of the next one
  label_smoothing: float = 0.0
  class_weights: str = 'none'  # or 'inverse_sqrt', of the clips of a class
  accumulate: int = 1  # parts of a batch that go through the model in turn
  ema_decay: float = 0.0  # of averaged parameters, which are scored; 0: none
  freeze_backbone: bool = False  # only the head learns
  # Updates that are not made, see mira_jax.guard.
  max_bad_steps: int = 10  # not finite in a row; more of them end the run
  spike_sigmas: float = (
    6.0  # a loss so far above the last ones, as logarithms; 0: any
  )


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class TrainConfig:
  """How long to train, from what, and how often to look up."""

  init_from: str = ''  # weights of a run or a file; '' starts from random ones
  # Parts of the model, with commas, that may start anew if those lack them.
  allow_missing: str = ''
  interpolate_positions: bool = False  # learned ones of another size
  epochs: int = 10
  log_every: int = 10  # steps
  save_every: int = 200  # steps
  eval_every: int = 1  # epochs; 0: only at the end


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class EvalConfig:
  """How clips are scored."""

  split: str = 'test'
  views: int = 1  # windows of `frames` frames per clip, averaged
  look_views: int = 1  # of them, at every look while training
  select_by: str = 'war'  # on the validation clips; or 'uar'
  # Scores the test clips at every look too, to tell what choosing by them
  # would have gained. The weights of a run are never chosen by them.
  watch_test: bool = True


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class MeshConfig:
  """How devices share the work, see `mira_jax.sharding`."""

  data: int = 0  # parts of a batch; 0: the devices that are left
  fsdp: int = 1  # parts of a batch and of the parameters
  model: int = 1  # parts of attention's heads and the MLPs' hidden width


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Config:
  """Everything about a run but where it is stored."""

  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  pretrain: PretrainConfig | None = None  # None: classifies
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  seed: int = 0


def resolve_types(cls: type) -> None:
  """Turns the annotations of a dataclass tree from strings to types.

  `ml_collections` reads `field.type` to parse `--config.x.y=value`, and knows
  no `Literal`: those become `str`, and the class checks the value.
  """
  hints = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    hint = hints[field.name]
    field.type = str if typing.get_origin(hint) is typing.Literal else hint
    if inner := _dataclass_in(hint):
      resolve_types(inner)


def _dataclass_in(hint: Any) -> type | None:
  """X from X or `X | None` when X is a dataclass."""
  options = typing.get_args(hint) if isinstance(hint, types.UnionType) else ()
  return next(
    (x for x in (hint, *options) if dataclasses.is_dataclass(x)), None
  )


resolve_types(Config)


def field_types(cls: type = Config, prefix: str = '') -> dict[str, Any]:
  """Every name that `--config.NAME` may set, such as 'optim.lr': its type."""
  types_ = {}
  for field in dataclasses.fields(cls):
    types_[prefix + field.name] = field.type
    if inner := _dataclass_in(field.type):
      types_ |= field_types(inner, f'{prefix}{field.name}.')
  return types_


def defaults(cls: type = Config, prefix: str = '') -> dict[str, Any]:
  """The default of every name of `field_types`; groups are JSON-able dicts.

  The fields of a group that may be None, such as 'pretrain.mask', have theirs
  too: what they are once the group is there.
  """
  values = {prefix + n: x for n, x in dataclasses.asdict(cls()).items()}
  for field in dataclasses.fields(cls):
    if inner := _dataclass_in(field.type):
      values |= defaults(inner, f'{prefix}{field.name}.')
  return values


def takes(hint: Any) -> str:
  """What a field of a type takes, in words."""
  options = typing.get_args(hint) or (hint,)
  if _dataclass_in(hint):
    return 'fields of its own' + ', or none' * (types.NoneType in options)
  words = {
    int: 'a whole number',
    float: 'a number',
    bool: 'true or false',
    str: 'a text',
    types.NoneType: 'nothing',
  }
  return ' or '.join(words[x] for x in options)


def augment(data: DataConfig) -> Augment:
  """The augmentation that a configuration asks for."""
  names = (field.name for field in dataclasses.fields(Augment))
  return Augment(**{name: getattr(data, name) for name in names})


def peak_lr(cfg: Config) -> float:
  """The highest learning rate: `optim.lr`, scaled by the batch if asked."""
  return cfg.optim.lr * _lr_scale(cfg)


def final_lr(cfg: Config) -> float:
  """Where the cosine arrives: `optim.final_lr`, scaled likewise."""
  return cfg.optim.final_lr * _lr_scale(cfg)


def _lr_scale(cfg: Config) -> float:
  return cfg.data.batch_size / (cfg.optim.lr_batch or cfg.data.batch_size)


def datasets(data: DataConfig) -> list[str]:
  """The folders that `data.dataset` names."""
  return [name for name in data.dataset.split(',') if name]


def find_neighbours(path: str | os.PathLike[str]) -> None:
  """Lets a configuration file import others of its folder, by its name.

  `from configs import recipes` works beside train.py; from here on it does in a
  command that is installed elsewhere, too.
  """
  folder = str(pathlib.Path(path).resolve().parent.parent)
  if folder not in sys.path:
    sys.path.append(folder)


def to_json(cfg: Config) -> str:
  """The text of `config.json`."""
  return json.dumps(dataclasses.asdict(cfg), indent=2) + '\n'


def from_json(text: str | bytes) -> Config:
  """The inverse of `to_json`.

  A field that is missing, as in a run of an older version, has its default.

  Raises:
    MiraInputError: not JSON, an unknown field, or a wrong type.
  """
  try:
    values = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise bad_config('config.json', f'it is not JSON ({error})') from error
  return _build(Config, values, 'config')


def _build(cls: type, values: Any, name: str) -> Any:
  fields = {field.name: field for field in dataclasses.fields(cls)}
  if not isinstance(values, dict):
    hint = f'{_short(values)} is no group of the fields {", ".join(fields)}'
    raise bad_config(name, hint)
  for key in values:
    if key not in fields:
      near = nearest(key, fields) or f'; use one of {", ".join(fields)}'
      raise bad_config(f'{name}.{key}', f'no such field{near}')
  built = {
    key: _value(fields[key].type, value, f'{name}.{key}')
    for key, value in values.items()
  }
  try:
    return cls(**built)
  except ValueError as error:
    raise bad_config(name, _short(str(error), 300)) from error


def _value(hint: Any, value: Any, name: str) -> Any:
  inner = _dataclass_in(hint)
  options = typing.get_args(hint) or (hint,)
  if inner and (value is not None or types.NoneType not in options):
    return _build(inner, value, name)
  if type(value) in options:  # not isinstance: True is no int here
    return value
  if type(value) is int and float in options and abs(value) < 2**63:
    return float(value)
  hint = f'{_short(repr(value))} is not right: it takes {takes(hint)}'
  raise bad_config(name, hint)


def _short(value: Any, most: int = 80) -> str:
  text = value if isinstance(value, str) else repr(value)
  return text if len(text) <= most else f'{text[:most]}...'


def bad_config(name: str, hint: str) -> MiraInputError:
  """The error of a configuration that cannot be used as given."""
  return MiraInputError('bad_config', name, hint)


def validate(cfg: Config, devices: int | None = 1) -> None:
  """Checks types, which files and flags get past, and what they cannot say.

  Args:
    cfg: a whole configuration.
    devices: of all hosts; None leaves out the mesh, as of a run that was
      trained elsewhere.

  Raises:
    MiraInputError: names the first field that is wrong, its value and a fix.
  """
  _build(Config, dataclasses.asdict(cfg), 'config')
  _check_ranges(cfg)
  _check_model(cfg.model)
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
  **{f'model.{name}': span for name, span in ranges.MODEL.items()},
  **{f'pretrain.{name}': span for name, span in ranges.PRETRAIN.items()},
  'model.layer_scale': (0, None),
  'model.head_scale': (0, None),
  'data.fold': (0, None),
  'data.num_folds': (0, None),
  'data.val_fraction': (0, 0.9),
  'data.train_fraction': (0.001, 1),
  'data.repeats': (1, None),
  'data.rate': ranges.RATE,
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
  'model.variant': (
    'joint',
    'intra',
    'intra_as_shipped',
    'st_block',
    'factorised_encoder',
    'factorised_self_attention',
    'factorised_dot_product',
  ),
  'model.attention': (None, *IMPLEMENTATIONS),
  'model.remat': (None, *REMAT),
  'model.gelu': ('exact', 'tanh'),
  'model.pool': ('mean', 'cls'),
  'model.positions': ('sinusoidal', 'learned'),
  'model.dtype': ('float32', 'bfloat16'),
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
      hint = f'{_short(value)} must be {span}'
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


def _check_model(model: ModelConfig) -> None:
  for whole, part in (
    ('dim', 'heads'),
    ('image_size', 'patch'),
    ('frames', 'tubelet'),
  ):
    a, b = getattr(model, whole), getattr(model, part)
    if a % b:
      hint = f'{a} must be a multiple of {part} {b}, such as {a - a % b or b}'
      raise bad_config(f'config.model.{whole}', hint)
  if model.pool == 'cls' and model.variant not in (
    'joint',
    'factorised_encoder',
  ):
    hint = f"'cls' has no place in variant {model.variant!r}; use 'mean'"
    raise bad_config('config.model.pool', hint)
  if model.variant == 'factorised_dot_product' and model.heads % 2:
    hint = f'{model.heads} must be even: variant {model.variant!r} halves them'
    raise bad_config('config.model.heads', hint)
