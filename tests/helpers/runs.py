"""Runs in small, as a user starts them: a dataset, flags, command lines."""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mira_jax import config
from mira_jax.data import dataset
from mira_jax.mira import MiraConfig
from mira_jax.train import guard
from mira_jax.video import images

ROOT = pathlib.Path(__file__).parents[2]
CLASSES = ('dark', 'bright')
# Of jax.jit: fusions as users compile them. Without (conftest.py), the
# same numbers are rounded otherwise in another program.
USUAL_FUSIONS = (
  {'xla_cpu_use_fusion_emitters': True}
  if 'fusion_emitters' in os.environ.get('XLA_FLAGS', '')
  else {}
)


def levels(folder: pathlib.Path, train: int = 27) -> pathlib.Path:
  """A prepared dataset: clips of 16 pixels that are dark or bright."""

  def split(count: int, seed: int) -> Iterator[dataset.Clip]:
    rng = np.random.default_rng(seed)
    for i in range(count):
      noise = rng.normal((70, 180)[i % 2], 20, (8, 16, 16, 3))
      frames = np.clip(noise, 0, 255).astype(np.uint8)
      jpegs = [images.encode_jpeg(frame) for frame in frames]
      yield dataset.Clip(clip_id=f'{seed}-{i}', frames=jpegs, label=i % 2)

  splits = {'train': split(train, 0), 'test': split(9, 1)}
  return write(folder, 'levels', CLASSES, **splits)


def write(
  folder: pathlib.Path,
  name: str,
  class_names: Sequence[str],
  **splits: Iterable[dataset.Clip],
) -> pathlib.Path:
  """A prepared dataset of these clips."""
  dataset.write(
    folder,
    name=name,
    class_names=class_names,
    splits={split: lambda x=x: x for split, x in splits.items()},
    description='Clips that differ in brightness.',
  )
  return folder


def batch(count: int, seed: int = 0) -> dict[str, np.ndarray]:
  """A batch whose classes differ in their brightness over time."""
  rng = np.random.default_rng(seed)
  label = np.arange(count, dtype=np.int32) % 3
  level = np.array([np.full(4, 60), np.full(4, 190)])
  level = np.concatenate([level, np.linspace(190, 60, 4)[None]])[label]
  noise = rng.normal(0, 20, (count, 4, 16, 16, 3))
  video = np.clip(level[:, :, None, None, None] + noise, 0, 255)
  return {
    'video': video.astype(np.uint8),
    'label': label,
    'clip': np.arange(count, dtype=np.int32),
    'mask': np.ones(count, bool),
  }


def clips(split: str, count: int) -> Iterator[dataset.Clip]:
  """Clips that are dark, bright or fading, of people named after numbers."""
  rng = np.random.default_rng(len(split))
  levels = (np.full(8, 60), np.full(8, 190), np.linspace(190, 60, 8))
  for i in range(count):
    level = levels[i % 3][:, None, None, None]
    video = np.clip(level + rng.normal(0, 20, (8, 16, 16, 3)), 0, 255)
    yield dataset.Clip(
      clip_id=f'{split}-{i}',
      frames=[images.encode_jpeg(f) for f in video.astype(np.uint8)],
      label=i % 3,
      subject=f'{split}{i // 3}',
      fold=i // 3 % 3,
    )


def tiny(path: pathlib.Path | str, /, **groups: Any) -> config.Config:
  """A run of `levels` in twelve steps, with all that a state can hold.

  `groups` change single fields: `optim={'lr': 1e-3}`.
  """
  cfg = config.Config(
    model=config.ModelConfig(
      dim=16, depth=1, heads=2, frames=4, image_size=16, patch=8,
      mira=MiraConfig(statistics='batch_ema'), drop_path=0.2,
    ),
    data=config.DataConfig(dataset=str(path), batch_size=8, threads=2),
    optim=config.OptimConfig(ema_decay=0.9),
    train=config.TrainConfig(epochs=4, log_every=1, save_every=4, eval_every=2),
    eval=config.EvalConfig(min_val_clips=0),
  )  # fmt: skip
  return change(cfg, groups)


def change(
  cfg: config.Config, groups: dict[str, dict[str, Any]]
) -> config.Config:
  """Sets fields of groups; those of 'top' are the configuration's own."""
  for group, fields in groups.items():
    for name, value in fields.items():
      setattr(getattr(cfg, group) if group != 'top' else cfg, name, value)
  return cfg


def log_row(
  step: int,
  loss: float,
  verdict: int = guard.KEPT,
  in_a_row: int = 0,
  skipped: int = 0,
) -> dict[str, jax.Array]:
  """Metrics that a step logs."""
  numbers = {'skipped': skipped, 'spikes': 0, 'in_a_row': in_a_row}
  numbers |= {'last_good': step - in_a_row, 'verdict': verdict}
  return {
    'loss': jnp.float32(loss),
    'grad_norm': jnp.float32(loss),
    'learning_rate': jnp.float32(0.5),
    **{name: jnp.int32(x) for name, x in numbers.items()},
  }


@contextlib.contextmanager
def file_limit(size: int) -> Iterator[None]:
  """No file may get longer, in bytes: a disk that is full, but for this."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


FLAGS = (
  '--config=configs/quickstart.py',
  '--config.model.dim=16',
  '--config.model.depth=1',
  '--config.model.heads=2',
  '--config.model.frames=4',
  '--config.model.image_size=16',
  '--config.model.drop_path=0.2',
  '--config.model.mira.statistics=batch_ema',
  '--config.optim.ema_decay=0.9',
  '--config.data.batch_size=8',
  '--config.data.threads=2',
  '--config.train.log_every=1',
  '--config.train.eval_every=0',
)


def command(
  cache: pathlib.Path, script: str, *arguments: str, devices: int = 1
) -> dict[str, Any]:
  """A command line for `subprocess`, with a shared cache of programs."""
  count = f'--xla_force_host_platform_device_count={devices}'
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {count}',
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PYTHONPATH': f'{ROOT}:{ROOT / "tests" / "helpers"}',
  }
  return {
    'args': [sys.executable, script, *arguments],
    'env': environment,
    'cwd': ROOT,
    'text': True,
  }
