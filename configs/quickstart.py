"""A small MiRA transformer on synthetic faces, made on the spot.

mira train --config=quickstart --workdir=runs/quickstart

`--config=quickstart:plain` trains the same transformer without
MiRA, and `:flashlite` with MiRA's cheaper estimate.
"""

from __future__ import annotations

from mira_jax.config import (
  Config,
  DataConfig,
  ModelConfig,
  OptimConfig,
  TrainConfig,
)
from mira_jax.errors import nearest
from mira_jax.mira import MiraConfig


def get_config(mode: str = 'exact') -> Config:
  """The configuration for mode 'plain', 'exact' or 'flashlite'."""
  if mode == 'plain':
    mira = None
  elif mode in ('exact', 'flashlite'):
    mira = MiraConfig(mode=mode)
  else:
    raise ValueError(
      f'{mode!r} is no mode; use plain, exact or flashlite'
      + nearest(mode, ('plain', 'exact', 'flashlite'))
    )
  return Config(
    # 8 x 16 tokens: attention stays small enough for two CPU cores.
    model=ModelConfig(
      dim=128,
      depth=4,
      heads=4,
      image_size=64,
      patch=16,
      head_scale=1.0,
      mira=mira,
    ),
    data=DataConfig(shift=0),
    # AdamW needs more than twice as many clips to get as far.
    optim=OptimConfig(name='muon', lr=3e-3, b2=0.99, warmup_epochs=0.7),
    train=TrainConfig(epochs=6),
  )
