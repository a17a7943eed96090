"""A training step of ViT-B, as train.py makes it, without its data."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from bench.card_parts.setting import Setting, Task, alone
from mira_jax import config
from mira_jax.devices import sharding
from mira_jax.models.vivit import SIZES
from mira_jax.train import build
from mira_jax.tuning.checks import CONFIGS


def step(setting: Setting) -> Iterator[Task]:
  """Fine-tuning of ViT-B as train.py does it, without its data."""
  for pool, mode in enumerate(setting.some(('flashlite', 'exact'), 1)):
    yield Task(mode, (), functools.partial(_step, setting, mode), pool)


def _step(setting, mode):
  size: Any = SIZES['B'] | {'frames': 16, 'image_size': 224}
  if setting.interpret:
    size = {'dim': 16, 'depth': 1, 'heads': 1, 'frames': 4, 'image_size': 32}
  clips = 2 if setting.interpret else 32
  cfg = config.Config(
    model=config.ModelConfig(
      **size,
      num_classes=7,
      mira=CONFIGS[mode],
      attention='pallas_gpu',
      dtype='bfloat16',
      scan=True,  # jax 0.11 compiles the kernels of every block anew
    ),
    data=config.DataConfig(batch_size=clips),
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  made = build.training(cfg, build.make(cfg, mesh), mesh, steps_per_epoch=100)
  where = jax.tree.map(lambda x: x.sharding, made.target)
  key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
  state = jax.jit(made.init, out_shardings=where)(key)
  rng = np.random.default_rng(0)
  batch = jax.tree.map(
    lambda x: jax.device_put(
      rng.integers(1, 7, x.shape).astype(x.dtype),
      x.sharding,
    ),
    build.abstract_batch(cfg, mesh),
  )
  compiled = made.step.lower(state, batch, key).compile()
  times = []
  with alone():
    for count in setting.some((3, 10, 10, 10), 2):
      start = time.perf_counter()
      for _ in range(count):
        state, metrics = compiled(state, batch, key)
      jax.block_until_ready((state, metrics))
      times.append((time.perf_counter() - start) / count)
  seconds = statistics.median(times[1:])
  memory = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
  loss = float(metrics['loss'])
  yield {
    'status': 'ok' if math.isfinite(loss) else 'wrong',
    'ms': 1e3 * seconds,
    'clips_per_s': clips / seconds,
    'peak_gb': memory and memory / 1e9,
    'loss': loss,
  }
