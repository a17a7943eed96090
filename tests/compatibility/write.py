"""Writes the small files of this folder, by which later versions are tested.

python tests/compatibility/write.py /tmp/VERSION

The folder then holds a prepared dataset, a run that was stopped, a weights file
and an export, and is moved here. What is here is never written again: it stands
for the files that users have.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator

import numpy as np

from mira_jax import config
from mira_jax.data import dataset
from mira_jax.inference import export, load
from mira_jax.mira import MiraConfig
from mira_jax.train import log, loop
from mira_jax.video import images

DATA, RUN, WEIGHTS, EXPORT = 'prepared', 'run', 'weights.safetensors', 'export'
LOSSLESS = 'prepared_png'  # six clips of `clips`, as PNG
EXPECTED = 'expected.npz'  # a video, and its probabilities by the weights
STOP = 3  # the step after which the run is stopped


def clips(
  count: int, seed: int, encode: Callable[..., bytes] = images.encode_jpeg
) -> Iterator[dataset.Clip]:
  """Synthetic clips of 16 x 16 pixels that are dark or bright."""
  rng = np.random.default_rng(seed)
  for i in range(count):
    noise = rng.normal((70, 180)[i % 2], 20, (6, 16, 16, 3))
    frames = np.clip(noise, 0, 255).astype(np.uint8)
    yield dataset.Clip(
      clip_id=f'{seed}-{i}',
      frames=[encode(frame) for frame in frames],
      label=i % 2,
      subject=f'{seed}-{i // 2}',
      fold=i % 3,
    )


def configuration(statistics: str) -> config.Config:
  """A tiny run of eight steps with all that a state can hold."""
  return config.Config(
    model=config.ModelConfig(
      dim=8,
      depth=1,
      heads=2,
      frames=4,
      image_size=16,
      patch=8,
      mira=MiraConfig(statistics=statistics),
    ),
    data=config.DataConfig(
      dataset=DATA, rate=1, batch_size=8, threads=2, val_fraction=0.25
    ),
    optim=config.OptimConfig(ema_decay=0.9),
    train=config.TrainConfig(epochs=4, log_every=1, eval_every=1),
  )


class StopLog(log.Log):
  """Sends SIGTERM after a step, as a cluster does."""

  def add(self, step, metrics):
    super().add(step, metrics)
    if step == STOP:
      os.kill(os.getpid(), signal.SIGTERM)


def write_datasets() -> None:
  for out, splits in (
    (DATA, {'train': lambda: clips(24, 0), 'test': lambda: clips(6, 1)}),
    (LOSSLESS, {'train': lambda: clips(6, 0, images.encode_png)}),
  ):
    dataset.write(
      out,
      name='levels',
      class_names=('dark', 'bright'),
      splits=splits,
      description='Clips that differ in brightness.',
    )
    (pathlib.Path(out) / '.lock').unlink()


def main(folder: pathlib.Path) -> None:
  folder.mkdir(parents=True)
  os.chdir(folder)  # no path of this machine is stored
  write_datasets()
  whole = pathlib.Path('whole')
  whole.mkdir()
  loop.train(configuration('instance'), whole)
  (whole / 'weights.safetensors').rename(WEIGHTS)
  shutil.rmtree(whole)
  scorer, _ = load.load_engine(WEIGHTS)
  video = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
  expected = {'video': video, 'probabilities': scorer.probabilities(video)}
  np.savez_compressed(EXPECTED, **expected)
  export.write(WEIGHTS, EXPORT, platforms=('cpu',))
  run = pathlib.Path(RUN)
  run.mkdir()
  log.Log = StopLog
  with contextlib.suppress(SystemExit):
    loop.train(configuration('batch_ema'), run)
  # Their names and contents are those of the machine.
  shutil.rmtree(run / 'tensorboard')
  (run / '.lock').unlink()
  older, _ = sorted((run / 'checkpoints').iterdir())
  shutil.rmtree(older)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
