"""A few hundred to a few thousand clips, from scratch: docs/small_data.md.

mira train --config=small:250 --config.data.dataset=DIR --workdir=runs/mine

`small:CLIPS` or `small:CLIPS,MODE`: the number of training clips, and 'exact',
'flashlite' or 'plain'. `small:CLIPS,MODE,SIZE` is of a model of 224 pixels in
that size (Ti to H), for `--config.train.init_from` of public weights. `mira
fit` fits frames, image size and protocol to the clips.
"""

from __future__ import annotations

import math

from mira_jax.config import (
  Config,
  DataConfig,
  EvalConfig,
  ModelConfig,
  OptimConfig,
  TrainConfig,
  recipes,
)
from mira_jax.models.vivit import SIZES

MEMBERS = 2  # of the ensemble, which share a batch
STEPS, EPOCHS = 600, 20  # whichever is more


def get_config(text: str = '250') -> Config:
  """The recipe for a number of training clips."""
  clips, mode, size = _parse(text)
  members = 1 if size else min(MEMBERS, clips)
  batch = members * min(16, clips // members)
  epochs = max(math.ceil(STEPS / (clips // batch)), EPOCHS)
  return Config(
    model=_start(size, mode) if size else _scratch(members, mode),
    data=DataConfig(
      batch_size=batch,
      rate=1000,  # the frames are spread over the whole clip
      val_fraction=0.0,  # every clip counts, and the last weights are as good
      # Small: faces are aligned, and a head with weights for each place
      # learns less from clips that are turned and moved further.
      rotate=5.0,
      zoom=0.05,
      shift=2,
      brightness=0.3,
      contrast=0.3,
    ),
    optim=_fine_tuning() if size else _from_scratch(epochs),
    train=TrainConfig(epochs=epochs // 4 if size else epochs, eval_every=0),
    eval=EvalConfig(watch_test=False),
  )


def _parse(text: str) -> tuple[int, str, str]:
  """Clips, mode and size; '' is from scratch."""
  words = [word.strip() for word in text.split(',')]
  clips, mode, size = (*words, *('250', 'exact', '')[len(words) :])[:3]
  good = clips.isdecimal() and int(clips) > 0 and mode in recipes.MODES
  if not good or len(words) > 3 or (size and size not in SIZES):
    raise ValueError(
      f'{text!r} is no CLIPS,MODE,SIZE: use a number from 1, one of '
      f'{", ".join(recipes.MODES)}, and nothing or one of {", ".join(SIZES)}'
    )
  return int(clips), mode, size


def _scratch(members: int, mode: str) -> ModelConfig:
  """8 frames of 64 pixels, with what few clips cannot teach built in."""
  return ModelConfig(
    dim=128,
    depth=2,
    heads=4,
    frames=8,
    image_size=64,
    patch=16,
    stem='hog',
    pool='grid',
    members=members,
    mirror=True,
    head_scale=0.1,
    drop_path=0.1,
    mira=recipes.mira(mode),
  )


def _start(size: str, mode: str) -> ModelConfig:
  spec = recipes.Spec(size=size, mode=mode)
  model = recipes.model(spec, 'instance', drop_path=0.1)
  model.mirror = True
  return model


def _from_scratch(epochs: int) -> OptimConfig:
  return OptimConfig(
    name='muon',
    lr=3e-3,
    b2=0.99,
    warmup_epochs=epochs / 10,
    clip_norm=1.0,
    label_smoothing=0.1,
  )


def _fine_tuning() -> OptimConfig:
  return OptimConfig(
    lr=5e-4, warmup_epochs=2, layer_decay=0.75, label_smoothing=0.1
  )
