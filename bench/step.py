"""Times a training step on the CPU: ours beside PyTorch's, in this run.

  python bench/step.py [--depth 12] [--rounds 20] [--out FILE.json]

The model is that of configs/quickstart.py, in every mode, with AdamW and 32
clips. Every candidate has a process of its own; they take turns, and the best
time of each is what the machine can do. Ours is the step of `mira train`: it
augments, guards its updates, and computes on uint8 clips; `ours, muon` is the
quickstart's own. PyTorch's has normalised clips, and neither. Peers: Hugging
Face's VideoMAE (plain) and `parity/torch_mira.py`, eager and compiled.
`floors` are times of the products alone, at the rate of the fastest product
that XLA or PyTorch makes on this machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bench import turns

MODES = ('plain', 'flashlite', 'exact')
CLASSES = 7


def configuration(mode: str, optimizer: str, batch: int, depth: int) -> Any:
  """The quickstart's, with another optimiser, batch and number of blocks."""
  from mira_jax import config

  flags = [f'optim.name={optimizer}', f'data.batch_size={batch}']
  flags += [f'model.depth={depth}']
  path = str(turns.ROOT / f'configs/quickstart.py:{mode}')
  cfg = config.load(path, [f'--config.{flag}' for flag in flags])
  cfg.model.num_classes = CLASSES
  return cfg


def clips(cfg: Any) -> tuple[np.ndarray, np.ndarray]:
  """Videos, uint8 [B, F, S, S, 3], and labels, int32 [B]."""
  draw = np.random.default_rng(0).integers
  model, batch = cfg.model, cfg.data.batch_size
  size = batch, model.frames, model.image_size, model.image_size, 3
  video = draw(0, 256, size, np.uint8)
  return video, draw(0, CLASSES, batch, np.int32)


# ----- candidates -------------------------------------------------------------


def ours(cfg: Any) -> Callable:
  """A step of ours, and then its forward and backward pass alone."""
  from mira_jax.devices import platform

  platform.keep_memory('cpu')  # as `mira train`
  import jax

  from mira_jax.train.step import compiler_options

  program, made, mesh = training(cfg)
  where = jax.tree.map(lambda x: x.sharding, made.target)
  state = jax.jit(made.init, out_shardings=where)(jax.random.key(0))
  video, label = clips(cfg)
  batch = len(label)
  given = {
    'video': video,
    'label': label,
    'clip': np.arange(batch, dtype=np.int32),
    'mask': np.ones(batch, bool),
  }
  given, key = jax.device_put((given, jax.random.key(1)))
  forward = jax.jit(program.objective)
  gradients = jax.jit(
    jax.value_and_grad(program.objective, has_aux=True),
    compiler_options=compiler_options(mesh),
  )

  def call() -> turns.Parts:
    nonlocal state
    begin = time.perf_counter()
    state = jax.block_until_ready(made.step(state, given, key)[0])
    stepped = time.perf_counter()
    arguments = state.params, state.mira, given, key
    jax.block_until_ready(forward(*arguments))
    passed = time.perf_counter()
    jax.block_until_ready(gradients(*arguments))
    both = time.perf_counter() - passed
    passed -= stepped
    parts = {'forward': passed, 'backward': both - passed}
    return {'seconds': stepped - begin, **parts}

  return call


def training(cfg: Any) -> tuple[Any, Any, Any]:
  """The program of a configuration, its `build.Training`, and the mesh."""
  from mira_jax.devices import sharding
  from mira_jax.train import build

  mesh = sharding.make_mesh()
  program = build.make(cfg, mesh)
  made = build.training(cfg, program, mesh, steps_per_epoch=87)
  return program, made, mesh


def theirs(kind: str, cfg: Any) -> Callable:
  """A step of a PyTorch model, and the parts of it."""
  import torch

  torch.manual_seed(0)
  name, _, compiled = kind.partition(', ')
  model: Any = hugging_face(cfg) if name == 'hugging face' else peer(cfg)
  pixels, label = clips(cfg)
  channels = 2 if name == 'hugging face' else 1
  video = torch.from_numpy(pixels).float().div(255).sub(0.45).div(0.225)
  video = video.movedim(-1, channels).contiguous()
  targets = torch.from_numpy(label).long()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
  run = torch.compile(model) if compiled else model

  def call() -> turns.Parts:
    begin = time.perf_counter()
    optimizer.zero_grad()
    logits = run(video)
    logits = getattr(logits, 'logits', logits)
    loss = torch.nn.functional.cross_entropy(logits, targets)
    passed = time.perf_counter()
    loss.backward()
    back = time.perf_counter()
    optimizer.step()
    end = time.perf_counter()
    parts = {'forward': passed - begin, 'backward': back - passed}
    return {'seconds': end - begin, **parts}

  return call


def hugging_face(cfg: Any) -> Any:
  """VideoMAE of the same size."""
  import transformers

  model = cfg.model
  config = transformers.VideoMAEConfig(
    hidden_size=model.dim,
    num_hidden_layers=model.depth,
    num_attention_heads=model.heads,
    intermediate_size=4 * model.dim,
    num_labels=CLASSES,
    image_size=model.image_size,
    num_frames=model.frames,
  )
  return transformers.VideoMAEForVideoClassification(config).train()


def peer(cfg: Any) -> Any:
  """The model of `torch_mira`."""
  from mira_jax.parity import torch_mira

  names = ('dim', 'depth', 'heads', 'num_classes', 'image_size', 'mira')
  fields = {name: getattr(cfg.model, name) for name in names}
  return torch_mira.VideoTransformer(**fields).train()


def candidates(mode: str) -> list[str]:
  """Names; ratios are of the first."""
  torch = ['torch_mira', 'torch_mira, compiled']
  if mode == 'plain':
    torch = ['hugging face', 'hugging face, compiled', *torch]
  return ['ours', 'ours, muon', *torch]


def serve(mode: str, kind: str, batch: int, depth: int) -> None:
  """A candidate's process."""
  own = kind.startswith('ours')
  optimizer = 'muon' if kind.endswith('muon') else 'adamw'
  cfg = configuration(mode, optimizer, batch, depth)
  make = (
    functools.partial(ours, cfg)
    if own
    else functools.partial(theirs, kind, cfg)
  )
  turns.serve(make, with_jax=own)


# ----- the bench --------------------------------------------------------------


def flop(mode: str, batch: int, depth: int) -> int:
  """That the products of our step need; a multiply and an add are two."""
  import jax

  from mira_jax.aot import counts
  from mira_jax.train import build

  cfg = configuration(mode, 'adamw', batch, depth)
  _, made, mesh = training(cfg)
  given = build.abstract_batch(cfg, mesh), build.abstract_key(mesh)
  with jax.set_mesh(mesh):
    traced = made.step.trace(made.target, *given)
  return counts.flops(traced.jaxpr).total()


def measure(mode: str, rate: float | None, args: Any) -> list[dict[str, Any]]:
  """Rows of a mode, ours first; `rate` is that of products."""
  kinds = [x for x in candidates(mode) if args.torch or x.startswith('ours')]
  served = [(kind, [mode, kind, args.batch, args.depth]) for kind in kinds]
  floor = rate and flop(mode, args.batch, args.depth) / rate
  size = {'batch': args.batch, 'depth': args.depth}
  about = {'mode': mode, **size, 'floor_seconds': floor}
  rows = turns.take_turns(__file__, served, args.rounds)
  own = next((x['seconds'] for x in rows if x['candidate'] == 'ours'), None)
  for row in rows:
    row['ours_is_faster_by'] = own and row['seconds'] / own
  return [about | row for row in rows]


def show(rows: list[dict[str, Any]]) -> None:
  """A table for a terminal."""
  times = ('step', 'forward', 'backward', 'floors', 'times ours')
  table = turns.table(('mode', 'candidate'), times)
  for row in rows:
    times = [f'{row[x]:.3f}' for x in ('seconds', 'forward', 'backward')]
    floor, ratio = row['floor_seconds'], row['ours_is_faster_by']
    floors = f'{row["seconds"] / floor:.2f}' if floor else ''
    shown = f'{ratio:.2f}' if ratio else ''
    table.add_row(row['mode'], row['candidate'], *times, floors, shown)
  turns.show(table)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--modes', default=','.join(MODES))
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--depth', type=int, default=4, help='blocks')
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument('--no-torch', dest='torch', action='store_false')
  parser.add_argument('--out', type=pathlib.Path)
  parser.add_argument('--serve', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    return serve(*json.loads(args.serve))
  rows: list[dict[str, Any]] = []
  rate = turns.peak(('jax', 'torch') if args.torch else ('jax',))
  for mode in args.modes.split(','):
    rows += measure(mode, rate, args)
    if args.out:
      turns.save(args.out, rows, rate)
  show(rows)
  return None


if __name__ == '__main__':
  main()
