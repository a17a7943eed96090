"""The configuration of a run: one tree of plain dataclasses.

A file in `configs/` returns a `Config`; flags change single fields of it, with
their types checked: `--config.optim.lr=3e-4`. The floors below never see it:
their functions take plain fields.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from typing import Any

from mira_jax.augment import CROP_SCALES, Augment
from mira_jax.errors import MiraInputError
from mira_jax.kernels.dispatch import IMPLEMENTATIONS
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
  mira: MiraConfig | None = dataclasses.field(default_factory=MiraConfig)
  mira_last_blocks: int | None = None  # None: MiRA in all blocks
  pool: str = 'mean'
  positions: str = 'sinusoidal'
  layer_scale: float | None = None
  attention: str | None = None  # an implementation, or None: chosen
  drop_path: float = 0.0
  head_scale: float = 0.001
  remat: bool = False  # less memory, more time
  scan: bool = False  # faster compilation of deep models
  dtype: str = 'float32'


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class DataConfig:
  """What is read. A missing `synthetic_faces/macro` or `/micro` is made."""

  dataset: str = 'data/synthetic_faces/macro'  # a prepared dataset's folder
  rate: int = 2  # one of so many frames is read
  fit: str = 'crop'  # frames become square: 'crop' the middle, or 'squash'
  batch_size: int = 32  # clips per step, over all devices
  threads: int = 16  # that decode clips
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
  warmup_epochs: float = 1.0
  weight_decay: float = 0.05
  b1: float = 0.9
  b2: float = 0.999
  clip_norm: float = 0.0  # 0: gradients are not clipped
  layer_decay: float = 1.0  # rate of a layer over that of the next one
  label_smoothing: float = 0.0


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class TrainConfig:
  """How long to train, and how often to look up."""

  epochs: int = 10
  log_every: int = 10  # steps
  save_every: int = 200  # steps
  eval_every: int = 1  # epochs; 0: only at the end


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class EvalConfig:
  """How clips are scored."""

  split: str = 'test'
  views: int = 1  # windows of `frames` frames per clip, averaged


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Config:
  """Everything about a run but where it is stored."""

  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
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


def field_names(cls: type = Config, prefix: str = '') -> list[str]:
  """Every name that `--config.NAME` may set, such as 'optim.lr'."""
  names = []
  for field in dataclasses.fields(cls):
    names.append(prefix + field.name)
    if inner := _dataclass_in(field.type):
      names += field_names(inner, f'{prefix}{field.name}.')
  return names


def augment(data: DataConfig) -> Augment:
  """The augmentation that a configuration asks for."""
  names = (field.name for field in dataclasses.fields(Augment))
  return Augment(**{name: getattr(data, name) for name in names})


def to_json(cfg: Config) -> str:
  """The text of `config.json`."""
  return json.dumps(dataclasses.asdict(cfg), indent=2) + '\n'


def from_json(text: str) -> Config:
  """The inverse of `to_json`.

  Raises:
    MiraInputError: not JSON, an unknown or missing field, or a wrong type.
  """
  try:
    return _build(Config, json.loads(text), 'config')
  except json.JSONDecodeError as error:
    raise bad_config('config.json', f'it is not JSON ({error})') from error


def _build(cls: type, values: Any, name: str) -> Any:
  fields = {field.name: field for field in dataclasses.fields(cls)}
  if not isinstance(values, dict) or values.keys() != fields.keys():
    got = sorted(values) if isinstance(values, dict) else values
    raise bad_config(name, f'it has {got}; it must have {sorted(fields)}')
  built = {
    key: _value(fields[key].type, value, f'{name}.{key}')
    for key, value in values.items()
  }
  try:
    return cls(**built)
  except ValueError as error:
    raise bad_config(name, str(error)) from error


def _value(hint: Any, value: Any, name: str) -> Any:
  inner = _dataclass_in(hint)
  options = typing.get_args(hint) or (hint,)
  if inner and value is not None:
    return _build(inner, value, name)
  if type(value) in options:  # not isinstance: True is no int here
    return value
  if type(value) is int and float in options:
    return float(value)
  raise bad_config(name, f'{value!r} is not of type {hint}')


def bad_config(name: str, hint: str) -> MiraInputError:
  """The error of a configuration that cannot be used as given."""
  return MiraInputError('bad_config', name, hint)


def validate(cfg: Config, devices: int = 1) -> None:
  """Checks what types cannot say.

  Args:
    cfg: a whole configuration.
    devices: that share a batch.

  Raises:
    MiraInputError: names the first field that is wrong, its value and a fix.
  """
  _check_ranges(cfg)
  _check_model(cfg.model)
  if cfg.data.batch_size % devices:
    hint = f'{cfg.data.batch_size} must be a multiple of {devices} devices'
    raise bad_config('config.data.batch_size', hint)
  if cfg.optim.final_lr > cfg.optim.lr:
    hint = f'{cfg.optim.final_lr} must not be above optim.lr {cfg.optim.lr}'
    raise bad_config('config.optim.final_lr', hint)


# The range of every number: lowest, and highest or None.
_RANGES = {
  'model.dim': (1, None),
  'model.depth': (1, None),
  'model.heads': (1, None),
  'model.num_classes': (0, None),
  'model.frames': (1, None),
  'model.image_size': (1, None),
  'model.patch': (1, None),
  'model.tubelet': (1, None),
  'model.mlp_ratio': (0.01, None),
  'model.mira_last_blocks': (0, None),
  'model.layer_scale': (0, None),
  'model.drop_path': (0, 0.99),
  'model.head_scale': (0, None),
  'data.rate': (1, None),
  'data.batch_size': (1, None),
  'data.threads': (1, None),
  'data.train_clips': (1, None),
  'data.test_clips': (1, None),
  'data.synthetic_seed': (0, 2**31 - 1),
  'data.shift': (0, None),
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
  'train.epochs': (1, None),
  'train.log_every': (1, None),
  'train.save_every': (1, None),
  'train.eval_every': (0, None),
  'eval.views': (1, None),
  'seed': (0, 2**31 - 1),
}
_CHOICES = {
  'data.fit': ('crop', 'squash'),
  'data.multi_scale': ('', *CROP_SCALES),
  'optim.name': ('adamw', 'muon'),
  'model.attention': (None, *IMPLEMENTATIONS),
  'model.pool': ('mean', 'cls'),
  'model.positions': ('sinusoidal', 'learned'),
  'model.dtype': ('float32', 'bfloat16'),
}


def _check_ranges(cfg: Config) -> None:
  for name, (low, high) in _RANGES.items():
    value = _get(cfg, name)
    if value is None:
      continue
    if not low <= value <= (sys.float_info.max if high is None else high):
      span = f'{low} or more' if high is None else f'{low} to {high}'
      raise bad_config(f'config.{name}', f'{value} must be {span}')
  for name, choices in _CHOICES.items():
    if _get(cfg, name) not in choices:
      hint = f'{_get(cfg, name)!r} must be one of {choices}'
      raise bad_config(f'config.{name}', hint)


def _get(cfg: Config, name: str) -> Any:
  value: Any = cfg
  for part in name.split('.'):
    value = getattr(value, part)
  return value


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
  if model.mira is not None:
    try:  # flags set fields past the checks of the constructor
      dataclasses.replace(model.mira)
    except ValueError as error:
      raise bad_config('config.model.mira', str(error)) from error
