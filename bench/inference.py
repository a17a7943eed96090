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
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

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
  return lambda: jax.block_until_ready(run(variables, video))


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


def products(library: str) -> float:
  """FLOP/s of the fastest float32 product: those of an MLP, and a square."""
  best = 0.0
  for m, k, n in ((1568, 768, 3072), (1568, 3072, 768), (2048, 2048, 2048)):
    x, y = (np.ones(shape, np.float32) for shape in ((m, k), (k, n)))
    if library == 'torch':
      import torch

      multiply = torch.matmul
      x, y = torch.from_numpy(x), torch.from_numpy(y)
    else:
      import jax

      multiply = jax.jit(jax.numpy.matmul)
      x, y = jax.device_put((x, y))
    for _ in range(8):
      begin = time.perf_counter()
      product = multiply(x, y)
      if library != 'torch':
        product.block_until_ready()
      best = max(best, 2 * m * k * n / (time.perf_counter() - begin))
  return best


def peak(args: argparse.Namespace) -> float | None:
  """FLOP/s that products reach on this CPU; None on a GPU or in bfloat16."""
  import jax

  if jax.default_backend() != 'cpu' or args.dtype != 'float32':
    return None
  rates = []
  for library in ('jax', 'torch'):
    command = [sys.executable, __file__, '--products', library]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rates.append(float(done.stdout))
  return max(rates)


# ----- a candidate's process --------------------------------------------------


def serve(size: str, mode: str, batch: int, kind: str, args: dict) -> None:
  """Prints how long the first call took; then, per line read, another one."""
  begin = time.perf_counter()
  if kind == 'ours':
    call = ours(size, mode, batch, args)
  else:
    call = theirs(kind, size, mode, batch, args)
  call()
  print(json.dumps({'first': time.perf_counter() - begin}), flush=True)
  for _ in sys.stdin:
    begin = time.perf_counter()
    call()
    seconds = time.perf_counter() - begin
    print(json.dumps({'seconds': seconds, **memory(kind)}), flush=True)


def memory(kind: str) -> dict[str, float]:
  """Peak memory in MB: of the process, and of a GPU where there is one."""
  found = {'mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
  if kind == 'ours':
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    if 'peak_bytes_in_use' in stats:
      found['device_mb'] = stats['peak_bytes_in_use'] / 1e6
  else:
    import torch

    if torch.cuda.is_available():
      found['device_mb'] = torch.cuda.max_memory_allocated() / 1e6
  return found


class Candidate:
  """A process that calls a model when it is asked."""

  def __init__(self, case: tuple[str, str, int], kind: str, options: dict):
    served = json.dumps([*case, kind, options])
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    self.process = subprocess.Popen(
      [sys.executable, __file__, '--serve', served],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      env=environment,
    )
    self.kind, self.times, self.peak = kind, [], {}

  def start(self) -> bool:
    """Waits for its first call; False when it cannot run here."""
    line = self.process.stdout.readline()
    self.first = json.loads(line)['first'] if line else None
    return bool(line)

  def call(self) -> None:
    self.process.stdin.write('\n')
    self.process.stdin.flush()
    answer = json.loads(self.process.stdout.readline())
    self.times.append(answer.pop('seconds'))
    self.peak = answer

  def end(self) -> None:
    self.process.stdin.close()
    self.process.wait()


def measure(
  size: str, mode: str, batch: int, rate: float | None, args
) -> list[dict[str, Any]]:
  """Rows of one model and batch, ours first; `rate` is `peak`'s."""
  options = {'dtype': args.dtype, 'attention': args.attention}
  case = (size, mode, batch)
  running = []
  for kind in candidates(mode, args.compiled):
    candidate = Candidate(case, kind, options)
    if candidate.start():  # one after the other: a compiler needs the machine
      running.append(candidate)
    else:
      print(f'{case} {kind}: it does not run here', file=sys.stderr)
  for _ in range(args.rounds):
    for candidate in running:
      candidate.call()
  rows = []
  floor = rate and flop(size, mode, batch, args) / rate
  for candidate in running:
    candidate.end()
    seconds = min(candidate.times)
    rows.append(
      {
        'size': size,
        'mode': mode,
        'batch': batch,
        'candidate': candidate.kind,
        'seconds': seconds,
        'clips_per_second': batch / seconds,
        'all_seconds': candidate.times,
        'floor_seconds': floor,
        'first_call_seconds': candidate.first,
        'peak_mb': candidate.peak['mb'],
        'peak_device_mb': candidate.peak.get('device_mb'),
      }
    )
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
  parser.add_argument('--products', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    return serve(*json.loads(args.serve))
  if args.products:
    print(products(args.products))
    return None
  rows, rate = [], peak(args)
  for size in args.sizes.split(','):
    for batch in map(int, args.batches.split(',')):
      for mode in args.modes.split(','):
        rows += measure(size, mode, batch, rate, args)
        _save(args, rows, rate)
  show(rows)
  return None


def _save(
  args: argparse.Namespace, rows: list[dict[str, Any]], rate: float | None
) -> None:
  """Writes what is measured so far."""
  if not args.out:
    return
  packages = ('jax', 'jaxlib', 'torch', 'transformers', 'numpy')
  report = {
    'command': ' '.join(['python', 'bench/inference.py', *sys.argv[1:]]),
    'date': datetime.date.today().isoformat(),
    'machine': {
      'processor': _processor(),
      'cores': os.cpu_count(),
      'python': platform.python_version(),
      'load': os.getloadavg()[0],
      'gflops_of_a_product': rate and rate / 1e9,
    },
    'versions': {name: importlib.metadata.version(name) for name in packages},
    'rows': rows,
  }
  args.out.write_text(json.dumps(report, indent=2) + '\n')


def _processor() -> str:
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    return platform.processor()
  names = [x for x in text.splitlines() if x.startswith('model name')]
  return names[0].partition(': ')[2] if names else platform.processor()


if __name__ == '__main__':
  main()
