"""Small datasets, and configurations that train on them."""

from __future__ import annotations

import runs
from mira_jax import config
from mira_jax.data import dataset
from mira_jax.mira import MiraConfig


def write(folder, name, class_names, counts):
  """A prepared dataset of `runs.clips`, so many of each split."""
  dataset.write(
    folder / name,
    name=name,
    class_names=class_names,
    splits={s: lambda s=s, n=n: runs.clips(s, n) for s, n in counts.items()},
    description='Clips that differ in brightness.',
  )
  return str(folder / name)


def tiny(path, **groups):
  """A configuration that learns the levels in seconds."""
  cfg = config.Config(
    model=config.ModelConfig(
      dim=16, depth=1, heads=2, frames=4, image_size=16, patch=8,
      head_scale=1.0, mira=MiraConfig(),
    ),
    data=config.DataConfig(
      dataset=path, rate=1, batch_size=8, threads=2, flip=False, shift=0,
      brightness=0.0, contrast=0.0,
    ),
    optim=config.OptimConfig(name='muon', lr=1e-2),
    train=config.TrainConfig(epochs=8, log_every=4, eval_every=4),
  )  # fmt: skip
  for group, fields in groups.items():
    for name, value in fields.items():
      setattr(getattr(cfg, group) if group != 'top' else cfg, name, value)
  return cfg


def pretraining(path, **groups):
  cfg = tiny(path, **groups)
  cfg.pretrain = config.PretrainConfig(
    decoder_dim=8, decoder_depth=1, decoder_heads=2, mask_ratio=0.5
  )
  cfg.model.mira = MiraConfig(statistics='batch_ema')
  return cfg
