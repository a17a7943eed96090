"""Clips that show action units, and configurations that learn them."""

from __future__ import annotations

import numpy as np

import runs
from mira_jax.data import dataset
from mira_jax.video import images

UNITS = ('AU1', 'AU4', 'AU12')


def clips(split, count):
  """Clips that are redder, greener or bluer where a unit shows."""
  rng = np.random.default_rng(len(split))
  for i in range(count):
    shown = np.array([i % 2, i // 2 % 2, i % 3 == 0])
    video = np.full((8, 16, 16, 3), 60.0)
    video += 80 * shown
    video += rng.normal(0, 10, video.shape)
    intensity = np.where(shown, 3, 1).astype(np.int8)
    intensity[2] = -1 if i % 5 == 4 else intensity[2]
    frames = np.clip(video, 0, 255).astype(np.uint8)
    yield dataset.Clip(
      clip_id=f'{split}-{i}',
      frames=[images.encode_jpeg(frame) for frame in frames],
      label=0,
      subject=f'{split}{i // 4}',
      intensities=np.tile(intensity, (8, 1)),
    )


def write(folder, names=UNITS):
  """A prepared dataset of 48 training and 12 test clips, of 15 subjects."""
  dataset.write(
    folder,
    name='units',
    class_names=('face',),
    splits={
      'train': lambda: clips('train', 48),
      'test': lambda: clips('t', 12),
    },
    description='Clips of several colours.',
    metadata={'action_units': list(names), 'positive_from': 2},
  )
  return folder


def tiny(path, /, **groups):
  cfg = runs.tiny(
    path,
    model={'head_scale': 1.0, 'mira': None, 'drop_path': 0.0},
    data={
      'labels': 'action_units', 'rate': 1, 'flip': False, 'shift': 0,
      'brightness': 0.0, 'contrast': 0.0, 'val_fraction': 0.2,
    },
    optim={'lr': 3e-2, 'ema_decay': 0.0, 'class_weights': 'inverse'},
    train={'epochs': 8, 'log_every': 10, 'save_every': 200, 'eval_every': 4},
  )  # fmt: skip
  return runs.change(cfg, groups)
