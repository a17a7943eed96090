"""Pre-training of the quickstart's small transformer on synthetic faces.

mira train --workdir=runs/pretrained \
  --config=quickstart_pretrain
mira train --config=quickstart --workdir=runs/tuned \
  --config.train.init_from=runs/pretrained

`--config=quickstart_pretrain:plain` and `:flashlite` as in
quickstart.py. Learns from the clips of both difficulties; labels are not used.
Pictures of reconstructions are in runs/pretrained/pictures. About a quarter of
an hour on two CPU cores.
"""

from __future__ import annotations

import dataclasses

from mira_jax.config import (
  Config,
  DataConfig,
  OptimConfig,
  PretrainConfig,
  TrainConfig,
  load,
)


def get_config(mode: str = 'exact') -> Config:
  """The configuration for mode 'plain', 'exact' or 'flashlite'."""
  model = load(f'quickstart:{mode}').model
  if model.mira:
    model.mira = dataclasses.replace(model.mira, statistics='batch_ema')
  return Config(
    model=model,
    # Of 16 spatial positions 12 are masked: 9 in 10 would leave a single one.
    pretrain=PretrainConfig(
      decoder_dim=64, decoder_depth=2, decoder_heads=2, mask_ratio=0.75
    ),
    data=DataConfig(
      dataset='data/synthetic_faces/macro,data/synthetic_faces/micro',
      val_fraction=0.05,
      batch_size=64,
      flip=True,
      shift=0,
      brightness=0.0,
      contrast=0.0,
    ),
    optim=OptimConfig(name='muon', lr=3e-3, b2=0.95, warmup_epochs=2),
    train=TrainConfig(epochs=16, eval_every=4),
  )
