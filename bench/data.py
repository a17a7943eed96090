"""Clips per second of preparing and of the input pipeline.

  python bench/data.py [--clips 200] [--dataset FOLDER]

Reads shuffled training batches of synthetic faces at the size of the model, or
of a prepared dataset. Then prepares folders of JPEG files with 16 frames of
each clip. The files stay in the page cache: decoding is measured, not a disk.
The targets, for clips of 16 frames of 224 x 224 pixels: 300 prepared and 300
read a second on two cores, and 150 read on one.

Other work on the machine only slows a pass, so the best one counts. CPU time is
that of all threads of this process, and hardly depends on other work.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable

import cv2
import grain
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from mira_jax.data import dataset, pipeline
from mira_jax.prepare import prepare
from mira_jax.synthetic import dataset as synthetic
from mira_jax.video import images

TARGET = 150  # clips per second of a core
TARGET_TWO_CORES = 300  # read, and prepared
BATCH = 8
PASSES = 5


def rates(run: Callable[[], int]) -> dict[str, float]:
  """Clips per second of the best pass; `run` returns how many it read."""
  passes = []
  for _ in range(PASSES):
    wall, cpu = time.perf_counter(), time.process_time()
    clips = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    passes.append((clips / wall, clips / cpu))
  by_wall, by_cpu = (round(max(x), 1) for x in zip(*passes, strict=True))
  return {'clips_per_s': by_wall, 'clips_per_cpu_s': by_cpu}


def read(source: dataset.ClipSource, threads: int, args) -> Callable[[], int]:
  """A pass over about as many clips as the split has."""
  cut = {'frames': args.frames, 'rate': args.rate, 'size': args.size}
  batches = pipeline.train_batches(
    source, **cut, batch_size=BATCH, seed=0, threads=threads
  )
  next(batches)  # threads have started
  steps = max(1, len(source) // BATCH)
  return lambda: sum(
    len(batch['clip']) for batch in itertools.islice(batches, steps)
  )


def decode_only(source: dataset.ClipSource, args) -> Callable[[], int]:
  """The least that any pipeline must do: one thread, no batches."""
  clips = [source[i].frames[: args.frames] for i in range(len(source))]

  def run() -> int:
    for clip in clips:
      for frame in clip:
        images.decode_jpeg(frame)
    return len(clips)

  return run


def write_folders(
  source: dataset.ClipSource, root: pathlib.Path, frames: int, quality: int
) -> int:
  """Folders of JPEG files CLASS/CLIP/0001.jpg; returns how many clips."""
  for i in range(len(source)):
    clip = source[i]
    folder = root / f'class{clip.label}' / f'{i:05d}'
    folder.mkdir(parents=True)
    for k, data in enumerate(clip.frames[:frames], start=1):
      frame = images.decode_jpeg(data)
      path = folder / f'{k:04d}.jpg'
      path.write_bytes(images.encode_jpeg(frame, quality))
  return len(source)


def prepare_rate(
  root: pathlib.Path, clips: int, workers: int, size: int
) -> dict[str, float]:
  """Clips per second of the best of three runs.

  Of whole runs; and without their start and end: the clips that a whole run has
  more than one of a quarter, in the time that it takes longer.
  """
  with tempfile.TemporaryDirectory() as quarter:
    folders = sorted(root.glob('*/*'))[::4]
    for folder in folders:
      link = pathlib.Path(quarter) / folder.relative_to(root)
      shutil.copytree(folder, link)
    whole = _seconds(root, workers, size)
    part = _seconds(quarter, workers, size)
  more = clips - len(folders)
  return {
    'clips_per_s': round(clips / whole, 1),
    'clips_per_s_running': round(more / (whole - part), 1),
  }


def _seconds(root: str | pathlib.Path, workers: int, size: int) -> float:
  seconds = []
  for _ in range(3):
    with tempfile.TemporaryDirectory() as out:
      start = time.perf_counter()
      prepare.prepare_folder(root, out, workers=workers, size=size)
      seconds.append(time.perf_counter() - start)
  return min(seconds)


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--clips', type=int, default=200)
  parser.add_argument('--dataset', type=pathlib.Path)
  parser.add_argument('--frames', type=int, default=16)
  parser.add_argument('--rate', type=int, default=2)
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument(
    '--quality',
    type=int,
    default=90,
    help='of the JPEG files to prepare; synthetic noise takes 14 kB a frame at '
    '90, where faces take 8, and 6 at 72',
  )
  parser.add_argument('--out', default='bench/results', type=pathlib.Path)
  return parser.parse_args()


def measure(source: dataset.ClipSource, args) -> dict:
  """Rates, and how large the frames are that gave them."""
  rows = {'decode only, 1 thread': rates(decode_only(source, args))}
  for threads in (1, 2):
    name = f'pipeline, {threads} thread{"s"[: threads - 1]}'
    rows[name] = rates(read(source, threads, args))
  prepared = {}
  with tempfile.TemporaryDirectory() as root:
    clips = write_folders(source, pathlib.Path(root), args.frames, args.quality)
    for workers in (0, 1, 2):
      name = f'prepare, {workers} worker{"s"[: abs(workers - 1)]}'
      rate = prepare_rate(pathlib.Path(root), clips, workers, args.size)
      prepared[name] = rate
    files = list(pathlib.Path(root).glob('*/*/*'))[:1000]
    size = round(float(np.mean([file.stat().st_size for file in files])))
  frames = source[0].frames
  return {
    'clips': len(source),
    'stored': images.decode_jpeg(frames[0]).shape,
    'bytes_per_frame': round(float(np.mean([len(x) for x in frames]))),
    'rows': rows,
    'prepared_bytes_per_frame': size,
    'prepared': prepared,
  }


def main():
  args = parse()
  with tempfile.TemporaryDirectory() as folder:
    if not args.dataset:
      sizes = {'size': args.size, 'num_frames': args.frames * args.rate}
      synthetic.build(folder, train_clips=args.clips, test_clips=1, **sizes)
    source = dataset.open(args.dataset or folder).source('train')
    measured = measure(source, args)
  for name, row in measured['rows'].items():
    print('{:24}{clips_per_s:8.1f} clips/s{clips_per_cpu_s:8.1f} clips per '
          'second of a core'.format(name, **row))  # fmt: skip
  for name, row in measured['prepared'].items():
    print('{:24}{clips_per_s:8.1f} clips/s{clips_per_s_running:8.1f} once '
          'it runs'.format(name, **row))  # fmt: skip
  result = {
    'command': ' '.join(sys.argv),
    'date': datetime.date.today().isoformat(),
    'frames': args.frames,
    'size': args.size,
    'batch': BATCH,
    'machine': platform.machine(),
    'cores': os.cpu_count(),
    'versions': {m.__name__: m.__version__ for m in (cv2, grain, np)},
    'target_clips_per_s_per_core': TARGET,
    'target_clips_per_s_on_two_cores': TARGET_TWO_CORES,
    **measured,
  }
  args.out.mkdir(parents=True, exist_ok=True)
  name = f'data_{args.frames}x{args.size}.json'
  (args.out / name).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
