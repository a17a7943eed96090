"""How many clips a second the input pipeline reads, per core.

  python bench/data.py [--clips 200] [--dataset FOLDER]

Draws a dataset of synthetic faces at the size of the model, unless a prepared
one is named, and reads shuffled training batches from it. The files stay in the
page cache: decoding is measured, not a disk. The target is 150 clips of 16
frames of 224 x 224 pixels a second on one core.

Other work on the machine only slows a pass, so the best one counts. Time of the
CPU is that of all threads of this process, and hardly depends on other work:
clips per second of it are what a core does that has nothing else to do.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable

import cv2
import grain
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from mira_jax.data import dataset, decode, pipeline, synthetic

TARGET = 150  # clips per second of a core
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
  batches = pipeline.train_batches(
    source,
    frames=args.frames,
    rate=args.rate,
    size=args.size,
    batch_size=BATCH,
    seed=0,
    threads=threads,
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
        decode.decode_jpeg(frame)
    return len(clips)

  return run


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--clips', type=int, default=200)
  parser.add_argument('--dataset', type=pathlib.Path)
  parser.add_argument('--frames', type=int, default=16)
  parser.add_argument('--rate', type=int, default=2)
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument('--out', default='bench/results', type=pathlib.Path)
  return parser.parse_args()


def measure(source: dataset.ClipSource, args) -> dict:
  """Rates, and how large the frames are that gave them."""
  rows = {'decode only, 1 thread': rates(decode_only(source, args))}
  for threads in (1, 2):
    name = f'pipeline, {threads} thread{"s"[: threads - 1]}'
    rows[name] = rates(read(source, threads, args))
  frames = source[0].frames
  return {
    'clips': len(source),
    'stored': decode.decode_jpeg(frames[0]).shape,
    'bytes_per_frame': round(float(np.mean([len(x) for x in frames]))),
    'rows': rows,
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
    **measured,
  }
  args.out.mkdir(parents=True, exist_ok=True)
  name = f'data_{args.frames}x{args.size}.json'
  (args.out / name).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
