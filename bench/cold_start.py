"""Times whole commands: starting, one clip, a folder, and their memory.

  python bench/cold_start.py [--clips 200] [--rounds 3] [--out FILE.json]

Every row is a new process, measured from its start to its end; the best of
`--rounds` is what the machine can do. Models have random weights: the one of
configs/quickstart.py, and a ViT-B of 16 frames of 224 pixels; clips are
synthetic faces. The first row of a model begins with an empty cache of
programs, the next ones find it filled. The peer is Hugging Face's VideoMAE of
the same size in PyTorch, from a local checkpoint, on the same five windows; it
is left out where torch, transformers or av is missing. The rate of a folder is
held against that of the engine on windows in memory, and of decoding alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bench import turns

MIRA = [sys.executable, '-m', 'mira_jax.cli.main']
VIEWS = 5
Row = dict[str, Any]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--clips', type=int, default=200)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--out', type=pathlib.Path)
  parser.add_argument('--call', nargs='+', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.call:
    name, *rest = args.call
    print(json.dumps(CALLS[name](*rest)))
    return
  with tempfile.TemporaryDirectory() as folder:
    os.environ['XDG_CACHE_HOME'] = f'{folder}/cache'
    os.environ['PYTHONPATH'] = str(turns.ROOT)
    rows = measure(pathlib.Path(folder), args)
  show(rows)
  if args.out:
    turns.save(args.out, rows, None)


def measure(folder: pathlib.Path, args: argparse.Namespace) -> list[Row]:
  rows = [timed('mira --help', [*MIRA, '--help'], args.rounds)]
  for size in ('quickstart', 'B'):
    call(['make', size, folder, args.clips])
    clip = folder / size / 'clips' / '000.mp4'
    one = [*MIRA, 'predict', clip, '--weights', folder / size / 'w.safetensors']
    one += ['--out', folder / 'pictures']
    name = f'{size}: one clip'
    rows.append(timed(f'{name}, empty cache', one, 1))
    rows.append(timed(f'{name}, picture', one, args.rounds))
    bare = [*one, '--no-picture']
    rows.append(timed(f'{name}, no picture', bare, args.rounds))
    peer = [sys.executable, __file__, '--call', 'peer', size, folder, clip]
    try:
      rows.append(timed(f'{name}, VideoMAE in PyTorch', peer, args.rounds))
    except subprocess.CalledProcessError:
      print('no peer: torch, transformers or av is missing', file=sys.stderr)
  clips = folder / 'quickstart' / 'clips'
  weights = folder / 'quickstart' / 'w.safetensors'
  many = [*MIRA, 'predict', clips, '--weights', weights, '--format=csv']
  row = timed(f'quickstart: {args.clips} clips', many, args.rounds)
  start = next(
    x for x in rows if x['name'] == 'quickstart: one clip, no picture'
  )
  seconds = row['seconds'] - start['seconds']
  row['clips_per_second'] = (args.clips - 1) / seconds
  row |= call(['rates', weights, clips])
  return [*rows, row]


def timed(name: str, command: list[Any], rounds: int) -> Row:
  """The best time of a command, and its largest memory."""
  seconds, peaks = [], []
  for _ in range(rounds):
    begin = time.perf_counter()
    process = subprocess.Popen(
      list(map(str, command)),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds.append(time.perf_counter() - begin)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
      raise subprocess.CalledProcessError(process.returncode, command)
    peaks.append(usage.ru_maxrss * 1024)
  return {
    'name': name,
    'seconds': min(seconds),
    'all_seconds': seconds,
    'peak_gb': max(peaks) / 1e9,
  }


# ----- in processes of their own ----------------------------------------------


def call(arguments: list[Any]) -> Any:
  """The result of one of CALLS in a new process."""
  command = [sys.executable, __file__, '--call', *map(str, arguments)]
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
  return json.loads(done.stdout.splitlines()[-1])


def make(size: str, folder: str, count: str) -> None:
  """Weights and clips of a model, and the peer's weights where it can be."""
  import jax
  import jax.numpy as jnp

  from mira_jax.config import ModelConfig, load
  from mira_jax.mira import MiraConfig
  from mira_jax.models.build import build_model
  from mira_jax.models.vivit import SIZES
  from mira_jax.synthetic import dataset, faces
  from mira_jax.video import encode
  from mira_jax.weights import weights_file

  here = pathlib.Path(folder) / size
  model = load('quickstart', []).model
  if size != 'quickstart':
    model = ModelConfig(**SIZES[size], mira=MiraConfig())
  model.num_classes = len(faces.CLASS_NAMES)
  fields = dataclasses.asdict(model)
  built = build_model(fields)
  side = model.image_size
  video = jnp.zeros((1, model.frames, side, side, 3))
  variables = jax.jit(built.init)(jax.random.key(0), video)
  card = {
    'model': fields,
    'pretrain': None,
    'class_names': list(faces.CLASS_NAMES),
    'preprocessing': {'rate': 2, 'fit': 'crop'},
  }
  file = here / 'w.safetensors'
  weights_file.save_weights(
    file, variables['params'], variables.get('mira', {}), card
  )
  (here / 'clips').mkdir()
  for i in range(int(count) if size == 'quickstart' else 1):
    options = {'size': side, 'num_frames': 64, 'difficulty': 'macro'}
    clip = faces.draw_clip(i, split='test', seed=0, **options)
    encode.write_video(here / 'clips' / f'{i:03}.mp4', clip.frames, dataset.FPS)
  try:
    import transformers
  except ImportError:
    return
  config = transformers.VideoMAEConfig(
    image_size=side,
    patch_size=model.patch,
    num_frames=model.frames,
    hidden_size=model.dim,
    num_hidden_layers=model.depth,
    num_attention_heads=model.heads,
    intermediate_size=4 * model.dim,
    num_labels=model.num_classes,
  )
  peer = transformers.VideoMAEForVideoClassification(config)
  peer.save_pretrained(here / 'peer')


def peer(size: str, folder: str, clip: str) -> None:
  """Loads VideoMAE, decodes a clip, and classifies five windows of it."""
  import av
  import numpy as np
  import torch
  from transformers import VideoMAEForVideoClassification

  kind = VideoMAEForVideoClassification
  model = kind.from_pretrained(pathlib.Path(folder) / size / 'peer').eval()
  side, frames = model.config.image_size, model.config.num_frames
  with av.open(clip) as file:
    video = np.stack(
      [
        frame.to_ndarray(width=side, height=side, format='rgb24')
        for frame in file.decode(video=0)
      ]
    )
  windows = []
  for view in range(VIEWS):
    last = max(0, len(video) - 2 * frames)
    start = round(view * last / (VIEWS - 1))
    windows.append(video[start : start + 2 * frames : 2])
  pixels = torch.from_numpy(np.stack(windows)).permute(0, 1, 4, 2, 3)
  mean, deviation = (
    torch.tensor(x)[:, None, None]
    for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
  )
  with torch.inference_mode():
    for window in pixels:  # one by one, as a pipeline does
      model(((window / 255 - mean) / deviation)[None]).logits.softmax(-1)


def rates(weights: str, clips: str) -> Row:
  """Clips per second of the engine on windows, and of decoding alone."""
  from mira_jax.inference import find_clips, predictor

  model = predictor.load(weights, views=VIEWS)
  names = sorted(map(str, pathlib.Path(clips).glob('*.mp4')))
  begin = time.perf_counter()
  videos = [video for _, video in find_clips.ahead(model.read, names, 2)]
  decoding = time.perf_counter() - begin
  windows = [model._windows(video)[0] for video in videos]
  model.scorer.probabilities(windows[0])  # compiles
  times = []
  for _ in range(3):
    begin = time.perf_counter()
    for batch in windows:
      model.scorer.probabilities(batch)
    times.append(time.perf_counter() - begin)
  count = len(names)
  return {
    'engine_clips_per_second': count / min(times),
    'decoder_clips_per_second': count / decoding,
  }


CALLS = {'make': make, 'peer': peer, 'rates': rates}


# ----- the report -------------------------------------------------------------


def show(rows: list[Row]) -> None:
  """A table for a terminal."""
  numbers = ('s', 'GB', 'clips/s', 'of the engine', 'of decoding')
  table = turns.table(('command',), numbers)
  for row in rows:
    cells = [row['name'], f'{row["seconds"]:.2f}', f'{row["peak_gb"]:.2f}']
    if rate := row.get('clips_per_second'):
      cells.append(f'{rate:.1f}')
      for name in ('engine', 'decoder'):
        cells.append(f'{rate / row[f"{name}_clips_per_second"]:.2f}')
    table.add_row(*cells)
  turns.show(table)


if __name__ == '__main__':
  main()
