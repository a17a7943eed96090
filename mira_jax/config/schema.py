"""The configuration of a run: one tree of plain dataclasses.

A file in `configs/` returns a `Config`; flags change single fields of it:
`--config.optim.lr=3e-4`, see `load`. Lower layers never see it: their functions
take plain fields.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from typing import Any

from mira_jax.augment.transforms import CROP_SCALES, Augment
from mira_jax.errors import MiraInputError, nearest, short
from mira_jax.models import options
from mira_jax.models.options import DecoderOptions, ModelOptions

OLDER_FOLDS = 'even'  # rule of versions without `data.fold_rule`


def _number(
  default: float | None, low: float, high: float | None = None
) -> Any:
  """A field with a range; without `high`, as far as `checks` allows."""
  return dataclasses.field(default=default, metadata={'range': (low, high)})


def _choice(default: str | None, *choices: str | None) -> Any:
  """A field with a few values, the default among them."""
  metadata = {'choices': (default, *choices)}
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(kw_only=True)
class ModelConfig(ModelOptions):
  """The options of a model; of `num_classes` 0, as many as the dataset has."""

  dtype: str = 'float32'


@dataclasses.dataclass(kw_only=True)
class PretrainConfig(DecoderOptions):
  """Masked pre-training: the decoder, the mask and the targets."""

  mask: str = _choice('tube', 'random')  # random: anew for every temporal token
  mask_ratio: float = _number(0.9, 0.01, 0.99)  # of spatial positions
  normalise_targets: bool = True  # per tubelet and channel


@dataclasses.dataclass(kw_only=True)
class DataConfig:
  """Datasets, protocol, batches and augmentation.

  A missing `synthetic_faces/macro` or `/micro` is generated.
  """

  # Folders of prepared datasets, separated by commas.
  dataset: str = 'data/synthetic_faces/macro'
  # Test clips, see mira_jax.data.protocol: those of `eval.split`, a stored
  # fold, one subject ('loso') or one of several datasets ('lodo').
  protocol: str = _choice('split', 'folds', 'loso', 'lodo')
  fold: int = _number(0, 0)  # index of the fold
  num_folds: int = _number(0, 0)  # folds of subjects; 0: the stored ones
  fold_rule: str = _choice('stratified', OLDER_FOLDS)
  # Of folds, validation clips and `train_fraction`; the seed of a run is of
  # none of them, so that runs of several seeds are compared on the same clips.
  fold_seed: int = _number(0, 0, 2**31 - 1)
  classes: str = ''  # CSV with the columns dataset, class, common
  labels: str = _choice('classes', 'action_units')  # what is learned
  units: str = ''  # action units to learn, such as 'AU1,AU2'; '' for all
  # Of a window: those of its middle frame, or of every temporal token.
  unit_labels: str = _choice('middle', 'token')
  val_fraction: float = _number(0.1, 0, 0.9)  # of the training clips
  train_fraction: float = _number(1.0, 0.001, 1)  # of the rest
  # CSV of `mira adapt`: with 'lodo', clips of the tested dataset to train on,
  # with labels that a model predicted.
  pseudo_labels: str = ''
  # Of every training clip, its halves before and after the apex, too: as clips
  # or as dynamic images, see mira_jax.systems.phases.
  phases: str = _choice('none', 'clips', 'images')
  rate: int = _number(2, *options.FRAME_STRIDE)  # frame stride
  fit: str = _choice('crop', 'squash')  # resize mode
  batch_size: int = _number(32, 1)  # clips per step, over all devices
  repeats: int = _number(1, 1)  # repeated augmentation
  threads: int = _number(16, 1, 4096)  # that decode clips
  max_damaged: float = _number(0.01, 0, 1)  # share of a split; 1 clip may
  # Of a synthetic dataset:
  train_clips: int = _number(2800, 1, 10**8)
  test_clips: int = _number(420, 1, 10**8)
  synthetic_seed: int = _number(0, 0, 2**31 - 1)
  # Augmentation, the same for all frames of a clip; 0 switches one off.
  rand_augment: bool = False
  multi_scale: str = _choice('', *CROP_SCALES)  # crops of pre-training
  resized_crop: bool = False
  flip: bool = True
  rotate: float = _number(0.0, 0, 60)  # degrees
  zoom: float = _number(0.0, 0, 1)  # relative change of size
  shift: int = _number(4, 0, 2**12)  # pixels
  brightness: float = _number(0.2, 0, 1)
  contrast: float = _number(0.2, 0, 1)
  erase: float = _number(0.0, 0, 1)  # probability
  mixup_alpha: float = _number(0.0, 0)  # see mira_jax.augment.mixup
  cutmix_alpha: float = _number(0.0, 0)


@dataclasses.dataclass(kw_only=True)
class OptimConfig:
  """The learning rate warms up from 0 and falls along a cosine."""

  name: str = _choice('adamw', 'muon')  # see mira_jax.train.optim
  lr: float = _number(1e-3, 0)
  final_lr: float = _number(1e-6, 0)
  lr_batch: int = _number(0, 0)  # both are for so many clips; 0: for any number
  warmup_epochs: float = _number(1.0, 0)
  weight_decay: float = _number(0.05, 0)
  b1: float = _number(0.9, 0, 0.9999)
  b2: float = _number(0.999, 0, 0.9999)
  clip_norm: float = _number(0.0, 0)  # 0: gradients are not clipped
  layer_decay: float = _number(1.0, 0.01, 1)  # layer-wise, of the learning rate
  # On the learning rate of the directions of `model.orientation`.
  direction_factor: float = _number(6.0, 0)
  label_smoothing: float = _number(0.0, 0, 0.99)
  class_weights: str = _choice('none', 'inverse_sqrt', 'inverse')
  accumulate: int = _number(1, 1)  # parts of a batch, one after the other
  ema_decay: float = _number(0.0, 0, 0.999999)  # of the average; 0: none
  freeze_backbone: bool = False  # only the head, and its pooling, learn
  # Updates that are skipped, see mira_jax.train.guard.
  max_bad_steps: int = _number(10, 0, 10**9)  # not finite in a row
  spike_sigmas: float = _number(6.0, 0)  # 0: no loss is a spike


@dataclasses.dataclass(kw_only=True)
class TrainConfig:
  """Training length, initialisation and logging intervals."""

  init_from: str = ''  # weights of a run or a file; '': random ones
  # Parts of the model, separated by commas, that may be missing there.
  allow_missing: str = ''
  interpolate_positions: bool = False  # learned ones of another size
  epochs: int = _number(10, 1)
  log_every: int = _number(10, 1, 10**9)  # steps
  save_every: int = _number(200, 1, 10**9)  # steps
  eval_every: int = _number(1, 0)  # epochs; 0: only at the end
  # A run ends after so many validations without improvement; 0: it doesn't.
  patience: int = _number(0, 0)
  refit: bool = False  # train anew on validation clips, too, as long as is best


@dataclasses.dataclass(kw_only=True)
class EvalConfig:
  """Validation and test."""

  split: str = 'test'
  views: int = _number(1, 1, 1000)  # windows of a clip, averaged
  look_views: int = _number(1, 1, 1000)  # of them, while training
  # On the validation clips; action units are selected by their mean F1.
  select_by: str = _choice('war', 'uar')
  min_val_clips: int = _number(50, 0)  # fewer select nothing
  # Scores the test clips while training, too. They never choose the weights,
  # but the results show what choosing by them would have gained.
  watch_test: bool = True


@dataclasses.dataclass(kw_only=True)
class MeshConfig:
  """Axes of the device mesh, see `mira_jax.devices.sharding`."""

  data: int = _number(0, 0)  # splits batches; 0: the devices that are left
  fsdp: int = _number(1, 1)  # splits batches and parameters
  model: int = _number(1, 1)  # splits heads and the hidden width of MLPs


@dataclasses.dataclass(kw_only=True)
class Config:
  """A whole run but its folder."""

  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  pretrain: PretrainConfig | None = None  # None: classification
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  seed: int = _number(0, 0, 2**31 - 1)


# ----- derived values ---------------------------------------------------------


def augment(data: DataConfig) -> Augment:
  """The augmentation of a configuration."""
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
  """The folders in `data.dataset`."""
  return [name for name in data.dataset.split(',') if name]


def units(data: DataConfig) -> tuple[str, ...]:
  """The action units in `data.units`; () for all."""
  return tuple(name.strip() for name in data.units.split(',') if name.strip())


# ----- fields by name, and JSON -----------------------------------------------

hints = functools.cache(typing.get_type_hints)  # of a dataclass, by field


def group(hint: Any) -> type | None:
  """X from X or `X | None` when X is a dataclass."""
  options = typing.get_args(hint) if isinstance(hint, types.UnionType) else ()
  found = (x for x in (hint, *options) if isinstance(x, type))
  return next((x for x in found if dataclasses.is_dataclass(x)), None)


def defaults(cls: type = Config, prefix: str = '') -> dict[str, Any]:
  """The default of every field by name, such as 'optim.lr'.

  Groups are JSON-able dicts. The fields of a group that may be None, such as
  'pretrain.mask', have the defaults of that group.
  """
  values = {prefix + n: x for n, x in dataclasses.asdict(cls()).items()}
  for name, hint in hints(cls).items():
    if inner := group(hint):
      values |= defaults(inner, f'{prefix}{name}.')
  return values


def kinds_of(hint: Any) -> tuple[Any, ...]:
  """The types of a field; that of a Literal is str."""
  kinds = typing.get_args(hint) or (hint,)
  return (str,) if typing.get_origin(hint) is typing.Literal else kinds


def takes(hint: Any) -> str:
  """The values of a field of a type, such as 'int | None'."""
  return getattr(hint, '__name__', str(hint))


def to_json(cfg: Config) -> str:
  """The text of `config.json`."""
  return json.dumps(dataclasses.asdict(cfg), indent=2) + '\n'


def from_json(text: str | bytes) -> Config:
  """The inverse of `to_json`.

  A field that is missing, as in a run of an older version, has its default;
  but clips are chosen as that version did, by the seed of the run.

  Raises:
    MiraInputError: not JSON, an unknown field, or a wrong type.
  """
  try:
    values = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise bad_config('config.json', f'it is not JSON ({error})') from error
  if isinstance(values, dict) and isinstance(values.get('data'), dict):
    older = {'fold_rule': OLDER_FOLDS, 'fold_seed': values.get('seed', 0)}
    values['data'] = older | values['data']
  return build_tree(Config, values, 'config')


def build_tree(cls: type, values: Any, name: str) -> Any:
  """A dataclass of the tree from nested dicts, with types checked."""
  fields = hints(cls)
  if not isinstance(values, dict):
    hint = f'{short(values)} is not a group of the fields {", ".join(fields)}'
    raise bad_config(name, hint)
  for key in values:
    if key not in fields:
      near = nearest(key, fields) or f'; use one of {", ".join(fields)}'
      raise bad_config(f'{name}.{key}', f'no such field{near}')
  built = {
    key: _value(fields[key], value, f'{name}.{key}')
    for key, value in values.items()
  }
  try:
    return cls(**built)
  except ValueError as error:
    raise bad_config(name, str(error)[:300]) from error


def _value(hint: Any, value: Any, name: str) -> Any:
  inner, kinds = group(hint), kinds_of(hint)
  if inner and (value is not None or types.NoneType not in kinds):
    return build_tree(inner, value, name)
  if type(value) in kinds:  # not isinstance: True is no int here
    return value
  if type(value) is int and float in kinds and abs(value) < 2**63:
    return float(value)
  hint = f'{short(value)} is not right: it takes {takes(hint)}'
  raise bad_config(name, hint)


def bad_config(name: str, hint: str) -> MiraInputError:
  """The error of a configuration that cannot be used as given."""
  return MiraInputError('bad_config', name, hint)
