"""Times inference: our models beside PyTorch's, on this machine, in this run.

  python bench/inference.py [--sizes B,L] [--batches 1,8] [--out FILE.json]

Every candidate has a process of its own, so that its peak memory is its own,
and its threads are its own; the candidates of a row take turns, `--rounds`
times, and the best time of each is what the machine can do. Read the ratios.
On a CPU, times are also given in units of the floor: the time of our model's
products alone, at the rate of the fastest product that XLA or PyTorch makes on
this machine.
Peers: Hugging Face's VideoMAE (plain), and `parity/torch_mira.py`, which
computes flashlite in scaled_dot_product_attention with one channel more and
exact on the whole map, as the authors do; with --compiled also under
torch.compile. Clips are 16 frames of 224 pixels, float32 unless --dtype, and
weights are random.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bench import turns

MODES = ('plain', 'flashlite', 'exact')
FRAMES, SIDE = 16, 224


def fields(size: str, mode: str, dtype: str) -> dict[str, Any]:
  """Of ViViT as JSON."""
  from mira_jax.models.vivit import SIZES

  return {
    **SIZES[size],
    'num_classes': 7,
    'frames': FRAMES,
    'image_size': SIDE,
    'dtype': dtype,
    'mira': None if mode == 'plain' else {'mode': mode},
  }


def clips(batch: int) -> np.ndarray:
  """Normalised pixels, float32 [B, F, S, S, 3]."""
  shape = (batch, FRAMES, SIDE, SIDE, 3)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# ----- candidates -------------------------------------------------------------


def ours(size: str, mode: str, batch: int, args: dict[str, Any]) -> Callable:
  """A call of our model, to the end of its work."""
  import jax
  import jax.numpy as jnp

  from mira_jax.models.build import build_model

  model = build_model(
    fields(size, mode, args['dtype']) | {'attention': args['attention']}
  )
  video = jnp.asarray(clips(batch))
  variables = jax.jit(model.init)(jax.random.key(0), video[:1])
  run = jax.jit(model.apply)

  def call() -> None:
    jax.block_until_ready(run(variables, video))

  return call


def theirs(kind: str, size: str, mode: str, batch: int, args: dict[str, Any]):
  """A call of a PyTorch model."""
  import torch
  import transformers

  from mira_jax.mira import MiraConfig
  from mira_jax.parity import torch_mira

  torch.manual_seed(0)
  own = fields(size, mode, args['dtype'])
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  dtype = getattr(torch, own.pop('dtype'))
  video = torch.from_numpy(clips(batch)).to(device)
  if kind == 'hugging face':
    config = transformers.VideoMAEConfig(
      hidden_size=own['dim'],
      num_hidden_layers=own['depth'],
      num_attention_heads=own['heads'],
      intermediate_size=4 * own['dim'],
      num_labels=7,
    )
    model = transformers.VideoMAEForVideoClassification(config)
    video = video.permute(0, 1, 4, 2, 3).contiguous()
  else:
    own['mira'] = own['mira'] and MiraConfig(**own['mira'])
    model = torch_mira.VideoTransformer(**own)
    video = video.permute(0, 4, 1, 2, 3).contiguous()
  model = model.eval().to(device)
  if kind == 'torch_mira compiled':
    model = torch.compile(model)

  def call():
    half = torch.autocast(device, dtype, enabled=dtype != torch.float32)
    with torch.inference_mode(), half:
      model(video)
    if device == 'cuda':
      torch.cuda.synchronize()

  return call


def candidates(mode: str, compiled: bool) -> list[str]:
  """Names; the first PyTorch one is what ratios are of."""
  peers = ['hugging face'] if mode == 'plain' else []
  peers += ['torch_mira']
  peers += ['torch_mira compiled'] if compiled else []
  return ['ours', *peers]


# ----- the floor --------------------------------------------------------------


def flop(size: str, mode: str, batch: int, args: argparse.Namespace) -> int:
  """That our model's products need; a multiply and an add are two."""
  import jax

  from mira_jax.aot import counts
  from mira_jax.models.build import build_model

  model = build_model(
    fields(size, mode, args.dtype) | {'attention': args.attention}
  )
  video = jax.ShapeDtypeStruct((batch, FRAMES, SIDE, SIDE, 3), np.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), video)
  traced = jax.jit(model.apply).trace(variables, video)
  return counts.flops(traced.jaxpr).total()


def peak(args: argparse.Namespace) -> float | None:
  """FLOP/s that products reach on this CPU; None on a GPU or in bfloat16."""
  import jax

  if jax.default_backend() != 'cpu' or args.dtype != 'float32':
    return None
  return turns.peak()


# ----- measuring --------------------------------------------------------------


def serve(size: str, mode: str, batch: int, kind: str, args: dict) -> None:
  """A candidate's process."""
  if kind == 'ours':
    make = functools.partial(ours, size, mode, batch, args)
  else:
    make = functools.partial(theirs, kind, size, mode, batch, args)
  turns.serve(make, with_jax=kind == 'ours')


def measure(
  size: str, mode: str, batch: int, rate: float | None, args
) -> list[dict[str, Any]]:
  """Rows of one model and batch, ours first; `rate` is `peak`'s."""
  options = {'dtype': args.dtype, 'attention': args.attention}
  case = (size, mode, batch)
  served = [
    (kind, [*case, kind, options]) for kind in candidates(mode, args.compiled)
  ]
  floor = rate and flop(size, mode, batch, args) / rate
  about = dict(zip(('size', 'mode', 'batch'), case, strict=True))
  rows = [
    {
      **about,
      **row,
      'clips_per_second': batch / row['seconds'],
      'floor_seconds': floor,
    }
    for row in turns.take_turns(__file__, served, args.rounds)
  ]
  own = [row for row in rows if row['candidate'] == 'ours']
  for row in rows:
    row['ours_is_faster_by'] = own and row['seconds'] / own[0]['seconds']
  return rows


def show(rows: list[dict[str, Any]]) -> None:
  """A table for a terminal."""
  import rich
  from rich import box
  from rich.table import Table

  table = Table(box=box.SIMPLE_HEAD, header_style='dim', pad_edge=False)
  for name in ('model', 'clips', 'candidate'):
    table.add_column(name, no_wrap=True)
  for name in ('s/clip', 'floors', 'GB', 'times ours'):
    table.add_column(name, justify='right', no_wrap=True)
  for row in rows:
    name = f'{row["size"]} {row["mode"]}'
    first = row['candidate'] == 'ours'
    ratio, floor = row['ours_is_faster_by'], row.get('floor_seconds')
    table.add_row(
      name if first else '',
      f'{row["batch"]}' if first else '',
      row['candidate'],
      f'{row["seconds"] / row["batch"]:.2f}',
      f'{row["seconds"] / floor:.2f}' if floor else '',
      f'{(row["peak_device_mb"] or row["peak_mb"]) / 1000:.1f}',
      '' if first or not ratio else f'{ratio:.2f}',
    )
  rich.print(table)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--sizes', default='B,L')
  parser.add_argument('--modes', default=','.join(MODES))
  parser.add_argument('--batches', default='1,8')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--attention', help='our implementation of it')
  parser.add_argument('--compiled', action='store_true')
  parser.add_argument('--out', type=pathlib.Path)
  parser.add_argument('--serve', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    return serve(*json.loads(args.serve))
  rows, rate = [], peak(args)
  for size in args.sizes.split(','):
    for batch in map(int, args.batches.split(',')):
      for mode in args.modes.split(','):
        rows += measure(size, mode, batch, rate, args)
        if args.out:
          turns.save(args.out, rows, rate)
  show(rows)
  return None


if __name__ == '__main__':
  main()
