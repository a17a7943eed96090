"""Small datasets, and configurations that train on them."""

from __future__ import annotations

import runs
from mira_jax import config
from mira_jax.mira import MiraConfig


def write(folder, name, class_names, counts):
  """A prepared dataset of `runs.clips`, so many of each split."""
  clips = {split: list(runs.clips(split, n)) for split, n in counts.items()}
  return str(runs.write(folder / name, name, class_names, **clips))


def tiny(path, /, **groups):
  """`runs.tiny` as it learns the levels in seconds: nothing is augmented."""
  cfg = runs.tiny(
    path,
    model={'head_scale': 1.0, 'mira': MiraConfig(), 'drop_path': 0.0},
    data={
      'rate': 1, 'flip': False, 'shift': 0, 'brightness': 0.0, 'contrast': 0.0,
    },
    optim={'lr': 3e-2, 'ema_decay': 0.0},
    train={'epochs': 8, 'log_every': 4, 'save_every': 200, 'eval_every': 4},
  )  # fmt: skip
  return runs.change(cfg, groups)


def pretraining(path, /, **groups):
  cfg = tiny(path, **groups)
  cfg.pretrain = config.PretrainConfig(
    decoder_dim=8, decoder_depth=1, decoder_heads=2, mask_ratio=0.5
  )
  cfg.optim.lr = 1e-2
  cfg.model.mira = MiraConfig(statistics='batch_ema')
  return cfg
