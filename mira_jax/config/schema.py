"""The configuration of a run: one tree of plain dataclasses.

A file in `configs/` returns a `Config`; flags change single fields of it, with
their types checked: `--config.optim.lr=3e-4`. The floors below never see it:
their functions take plain fields.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

from mira_jax.augment.transforms import Augment
from mira_jax.errors import MiraInputError, nearest
from mira_jax.kernels.dispatch import current_names
from mira_jax.models.options import DecoderOptions, ModelOptions


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class ModelConfig(ModelOptions):
  """The options of a model; of `num_classes` 0, as many as the dataset has."""

  dtype: str = 'float32'


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class PretrainConfig(DecoderOptions):
  """Masked pre-training: the decoder, the mask and the targets."""

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
  """How devices share the work, see `mira_jax.devices.sharding`."""

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
    values = current_names(json.loads(text))
  except (ValueError, RecursionError) as error:
    raise bad_config('config.json', f'it is not JSON ({error})') from error
  return build_tree(Config, values, 'config')


def build_tree(cls: type, values: Any, name: str) -> Any:
  fields = {field.name: field for field in dataclasses.fields(cls)}
  if not isinstance(values, dict):
    hint = f'{short(values)} is no group of the fields {", ".join(fields)}'
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
    raise bad_config(name, short(str(error), 300)) from error


def _value(hint: Any, value: Any, name: str) -> Any:
  inner = _dataclass_in(hint)
  options = typing.get_args(hint) or (hint,)
  if inner and (value is not None or types.NoneType not in options):
    return build_tree(inner, value, name)
  if type(value) in options:  # not isinstance: True is no int here
    return value
  if type(value) is int and float in options and abs(value) < 2**63:
    return float(value)
  hint = f'{short(repr(value))} is not right: it takes {takes(hint)}'
  raise bad_config(name, hint)


def short(value: Any, most: int = 80) -> str:
  text = value if isinstance(value, str) else repr(value)
  return text if len(text) <= most else f'{text[:most]}...'


def bad_config(name: str, hint: str) -> MiraInputError:
  """The error of a configuration that cannot be used as given."""
  return MiraInputError('bad_config', name, hint)
