"""Times inference: our models beside PyTorch's, on this machine, in this run.

  python bench/inference.py [--sizes B,L] [--batches 1,8] [--out FILE.json]

Every candidate has a process of its own, so that its peak memory is its own,
and its threads are its own; the candidates of a row take turns, `--rounds`
times, and the best time of each is what the machine can do. Read the ratios.
On a CPU, times are also given in units of the floor: the time of our model's
products alone, at the rate of the fastest float32 product that XLA or PyTorch
makes on this machine.
Ours are JAX and, on a CPU with the extra `cpu`, its other backends. Peers:
Hugging Face's VideoMAE (plain), and `parity/torch_mira.py`, which computes
flashlite in scaled_dot_product_attention with one channel more and exact on the
whole map, as the authors do; 'compiled' is under torch.compile. Clips are 16
frames of 224 pixels, and weights are random.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys
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
    'patch': 16,
    'tubelet': 2,
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


def ours(kind: str, size: str, mode: str, batch: int, args: dict[str, Any]):
  """A call of our model by a backend, to the end of its work."""
  import jax
  import jax.numpy as jnp

  from mira_jax.inference import backends
  from mira_jax.inference.engine import Engine
  from mira_jax.models.build import build_model

  backend, _, dtype = kind.partition(' ')
  own = fields(size, mode, args['dtype']) | {'attention': args['attention']}
  model = build_model(own)
  shape = (batch, FRAMES, SIDE, SIDE, 3)
  video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  fresh = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape[1:])))
  card = {
    'model': own,
    'class_names': [f'class {i}' for i in range(model.num_classes)],
    'preprocessing': {'rate': 4, 'fit': 'crop'},
  }
  made = Engine(model, fresh, batch)
  scorer = backends.serve(made, card, backend, dtype or None)

  def call() -> None:
    scorer.logits(video)

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
  half = kind.endswith(' bfloat16')
  dtype = torch.bfloat16 if half else getattr(torch, own['dtype'])
  del own['dtype']
  video = torch.from_numpy(clips(batch)).to(device)
  if kind.startswith('hugging face'):
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
  model, video = model.eval().to(device, dtype), video.to(dtype)
  if ' compiled' in kind:
    model = torch.compile(model)

  def call():
    with torch.inference_mode():
      model(video)
    if device == 'cuda':
      torch.cuda.synchronize()

  return call


def candidates(mode: str, only: str | None) -> list[str]:
  """Names; ratios are of the first one."""
  import importlib.util

  found = ['jax']
  if importlib.util.find_spec('jax2onnx'):
    found += ['openvino bfloat16', 'openvino float32', 'onnx']
  peers = ['hugging face'] if mode == 'plain' else []
  for peer in [*peers, 'torch_mira']:
    found += [peer, f'{peer} compiled', f'{peer} compiled bfloat16']
  kept = only.split(',') if only else found
  return [name for name in found if name in kept]


def is_ours(kind: str) -> bool:
  return kind.partition(' ')[0] in ('jax', 'openvino', 'onnx')


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
  call = ours if is_ours(kind) else theirs
  make = functools.partial(call, kind, size, mode, batch, args)
  turns.serve(make, with_jax=is_ours(kind))


def measure(
  size: str, mode: str, batch: int, rate: float | None, args
) -> list[dict[str, Any]]:
  """Rows of one model and batch, ours first; `rate` is `peak`'s."""
  options = {'dtype': args.dtype, 'attention': args.attention}
  case = (size, mode, batch)
  served = [
    (kind, [*case, kind, options]) for kind in candidates(mode, args.only)
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
  for row in rows:
    row['times_jax'] = row['seconds'] / rows[0]['seconds']
  return rows


def show(rows: list[dict[str, Any]]) -> None:
  """A table for a terminal."""
  numbers = ('s/clip', 'floors', 'GB', 'times jax')
  table = turns.table(('model', 'clips', 'candidate'), numbers)
  for row in rows:
    name = f'{row["size"]} {row["mode"]}'
    first = row['candidate'] == 'jax'
    ratio, floor = row['times_jax'], row.get('floor_seconds')
    table.add_row(
      name if first else '',
      f'{row["batch"]}' if first else '',
      row['candidate'],
      f'{row["seconds"] / row["batch"]:.2f}',
      f'{row["seconds"] / floor:.2f}' if floor else '',
      f'{(row["peak_device_mb"] or row["peak_mb"]) / 1000:.1f}',
      f'{ratio:.2f}',
    )
  turns.show(table)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--sizes', default='B,L')
  parser.add_argument('--modes', default=','.join(MODES))
  parser.add_argument('--batches', default='1,8')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--attention', help='our implementation of it')
  parser.add_argument('--only', metavar='NAME,NAME', help='candidates')
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
