"""What the configurations of the paper's datasets share.

The rows of their tables are those of the authors' scripts, for a model size,
a mode and, where folds differ, a fold. A row that the authors have no script
for (another mode, a smaller size) is the nearest one of theirs: flashlite in B.
Each file says which rows are the authors'.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from mira_jax.config import (
  Config,
  DataConfig,
  EvalConfig,
  ModelConfig,
  OptimConfig,
  PretrainConfig,
  TrainConfig,
)
from mira_jax.errors import nearest
from mira_jax.mira import MiraConfig
from mira_jax.models.vivit import SIZES

MODES = ('plain', 'exact', 'flashlite')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """What follows the colon of `--config=FILE:SIZE,MODE,FOLD`."""

  size: str = 'B'
  mode: str = 'flashlite'
  fold: int = 1  # counted from 1, as the datasets do


def parse(text: str | None) -> Spec:
  """Reads 'L', 'L,exact' or 'L,exact,3'; what is left out is the default.

  Raises:
    ValueError: no such size or mode, or no fold number.
  """
  words = [word.strip() for word in (text or '').split(',') if word.strip()]
  size, mode, fold = (*words, *('B', 'flashlite', '1')[len(words) :])[:3]
  known = {size: SIZES, mode: MODES}
  wrong = next((word for word in known if word not in known[word]), '')
  if wrong or len(words) > 3 or not fold.isdecimal() or int(fold) < 1:
    raise ValueError(
      f'{text!r} is no SIZE,MODE,FOLD: use one of {", ".join(SIZES)}, one of '
      f'{", ".join(MODES)}, and a number from 1'
      + nearest(wrong, (*SIZES, *MODES))
    )
  return Spec(size=size, mode=mode, fold=int(fold))


def mira(mode: str, statistics: str = 'instance') -> MiraConfig | None:
  """MiRA in a mode; None of 'plain'."""
  options: Any = {'mode': mode, 'statistics': statistics}
  return None if mode == 'plain' else MiraConfig(**options)


def model(spec: Spec, statistics: str, drop_path: float) -> ModelConfig:
  """16 frames of 224 x 224 pixels in tubelets of 2 x 16 x 16."""
  return ModelConfig(
    **cast(dict[str, Any], SIZES[spec.size]),
    frames=16,
    image_size=224,
    patch=16,
    tubelet=2,
    mira=mira(spec.mode, statistics),
    drop_path=drop_path,
    dtype='bfloat16',
  )


def fine_tuning(
  spec: Spec,
  dataset: str,
  *,
  lr: float = 1e-3,
  final_lr: float = 1e-6,
  batch: int = 16,
  warmup: float = 10,
  rate: int = 4,
  views: int = 5,
  protocol: str = 'folds',
  num_folds: int = 0,
) -> Config:
  """The authors' fine-tuning from their pre-training.

  `lr` and `final_lr` are for 256 clips per step, `warmup` is in epochs. The
  authors' scripts count K copies of each of the `views`, K crops of theirs
  being the same whole frame.
  """
  return Config(
    model=model(spec, 'instance', drop_path=0.1),
    data=DataConfig(
      dataset=f'data/{dataset}',
      protocol=protocol,
      fold=0 if protocol == 'split' else spec.fold - 1,
      num_folds=num_folds,
      rate=rate,
      fit='squash',
      batch_size=batch,
      rand_augment=True,
      resized_crop=True,
      flip=True,
      shift=0,
      brightness=0.0,
      contrast=0.0,
      erase=0.25,
      mixup_alpha=0.8,
      cutmix_alpha=1.0,
    ),
    optim=OptimConfig(
      lr=lr,
      final_lr=final_lr,
      lr_batch=256,
      warmup_epochs=warmup,
      weight_decay=0.05,
      layer_decay=0.75,
      label_smoothing=0.1,
    ),
    train=TrainConfig(
      init_from=f'runs/voxceleb2-{spec.size}-{spec.mode}',
      epochs=100,
      log_every=50,
      save_every=1000,
    ),
    eval=EvalConfig(views=views),
  )


def action_units(spec: Spec, dataset: str) -> Config:
  """`fine_tuning` for the action units of single frames.

  Clips of 64 frames have two windows of 16 frames at every second one, of
  which the middle frames are samples. Nothing is mixed, and crops keep more of
  the face: an action unit is where it is.
  """
  cfg = fine_tuning(spec, dataset, rate=2, num_folds=3, views=2)
  cfg.data.labels = 'action_units'
  cfg.data.mixup_alpha = cfg.data.cutmix_alpha = cfg.data.erase = 0.0
  cfg.data.resized_crop, cfg.data.shift = False, 8
  cfg.optim.class_weights = 'inverse'
  cfg.optim.warmup_epochs, cfg.train.epochs = 2, 20
  return cfg


# Width, heads and depth of the decoder, half as wide as the encoder.
DECODERS = {
  'Ti': (96, 3, 4),
  'S': (192, 3, 4),
  'B': (384, 6, 4),
  'L': (512, 8, 12),
  'H': (640, 8, 12),
}


def pre_training(
  spec: Spec,
  dataset: str,
  *,
  lr: float,
  batch: int,
  warmup: float,
  epochs: int,
  drop_path: float = 0.0,
) -> Config:
  """The authors' VideoMAE pre-training with MiRA in all encoder blocks."""
  width, heads, depth = DECODERS[spec.size]
  return Config(
    model=model(spec, 'batch_ema', drop_path=drop_path),
    pretrain=PretrainConfig(
      decoder_dim=width, decoder_depth=depth, decoder_heads=heads
    ),
    data=DataConfig(
      dataset=f'data/{dataset}',
      val_fraction=0.001,
      rate=4,
      batch_size=batch,
      multi_scale='large' if spec.size in ('L', 'H') else 'base',
      flip=False,
      shift=0,
      brightness=0.0,
      contrast=0.0,
    ),
    optim=OptimConfig(
      lr=lr,
      final_lr=1e-5,
      lr_batch=256,
      warmup_epochs=warmup,
      weight_decay=0.05,
      b2=0.95,
    ),
    train=TrainConfig(epochs=epochs, log_every=50, eval_every=20),
  )
