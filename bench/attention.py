"""Times attention with MiRA: every implementation beside its peers.

  python bench/attention.py [--shape 1,1568,12,64] [--dtype float32]

All candidates run in the same process, one round after the other, so that a
busy machine slows them alike: read the ratios. Candidates are the
implementations that serve on this device. Peers, where they are installed and
run: `jax.nn`'s attention (XLA, and cuDNN with and without a bias), tokamax, and
PyTorch's fused attention as the authors' code uses it (one channel appended to
queries and keys for flashlite, the whole map for exact).

TFLOP/s count what plain attention needs, 4 B H L^2 D forward and 3.5 times that
in both directions, whatever a candidate spends.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.util
import json
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bench import peers
from mira_jax.kernels import dispatch
from mira_jax.kernels.attention import mira_attention
from mira_jax.tuning.checks import CONFIGS

Calls = peers.Calls


# ----- candidates in JAX ------------------------------------------------------


def ours(shape: tuple[int, ...], dtype) -> Calls:
  """'mode, implementation' -> attention(q, k, v), of those that serve."""
  calls = {}
  for mode, config in CONFIGS.items():
    request = dispatch.Request(shape, dtype, mode, dispatch.target())  # pyright: ignore
    for name in dispatch.IMPLEMENTATIONS:
      if dispatch.refusal(name, request) is None:
        calls[f'{mode}, {name}'] = functools.partial(
          _attend, config=config, implementation=name
        )
  return calls


def _attend(q, k, v, **options):
  return mira_attention(q, k, v, num_frames=peers.FRAMES, **options).output


def jax_run(attend: Callable, qkv: tuple, backward: bool) -> Callable:
  """A call that runs to its end."""

  def loss(*x):
    return attend(*x).astype(jnp.float32).sum()

  run = jax.jit(jax.grad(loss, (0, 1, 2)) if backward else attend)
  return lambda: jax.block_until_ready(run(*qkv))


# ----- candidates in PyTorch --------------------------------------------------


def torch_runs(shape: tuple[int, ...], dtype, backward: bool) -> Calls:
  """The authors' forms in PyTorch; {} where it is not installed."""
  if not importlib.util.find_spec('torch'):
    return {}
  import torch

  def candidate(call):
    def run():
      call()
      if torch.cuda.is_available():
        torch.cuda.synchronize()

    return run

  forms, arrays = peers.torch_forms(shape, dtype)
  return {
    f'{mode}, torch': candidate(peers.torch_call(form, arrays, backward))
    for mode, form in forms.items()
  }


# ----- measuring --------------------------------------------------------------


def compile_all(calls: Calls) -> Calls:
  """Runs each call once and leaves out those that fail, saying why."""
  good = {}
  for name, call in calls.items():
    try:
      call()
    except Exception as error:  # a peer that is missing, or out of memory
      print(f'{name}: {type(error).__name__}: {str(error).splitlines()[0]}')
    else:
      good[name] = call
  return good


def measure(calls: Calls, rounds: int) -> dict[str, float]:
  """Median seconds of each call, in interleaved rounds."""
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(rounds):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(times) for name, times in seconds.items()}


def rows(medians: dict[str, float], shape: tuple[int, ...], backward: bool):
  """A line of the table for each candidate."""
  batch, length, heads, width = shape
  flops = 4 * batch * heads * length**2 * width * (3.5 if backward else 1)
  for name, seconds in medians.items():
    mode = name.partition(',')[0]
    # The authors' form, else the reference, else nothing.
    peers = [f'{mode}, torch', f'{mode}, reference', name]
    peer = next(x for x in peers if x in medians)
    yield {
      'pass': 'forward and backward' if backward else 'forward',
      'candidate': name,
      'milliseconds': round(1e3 * seconds, 3),
      'tflops': round(flops / seconds / 1e12, 3),
      'peer': peer,
      'times_faster': round(medians[peer] / seconds, 3),
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )

  def shape(text: str) -> tuple[int, ...]:
    numbers = tuple(map(int, text.split(',')))
    if len(numbers) != 4:
      raise argparse.ArgumentTypeError(f'{text!r} is not B,L,H,D')
    return numbers

  parser.add_argument(
    '--shape', type=shape, default=(1, 1568, 12, 64), help='B,L,H,D'
  )
  parser.add_argument(
    '--dtype', default='float32', choices=['float32', 'bfloat16']
  )
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--out', default='bench/results', type=pathlib.Path)
  return parser.parse_args(argv)


def main():
  args = parse()
  dtype = jnp.dtype(args.dtype)
  keys = jax.random.split(jax.random.key(0), 3)
  qkv = tuple(jax.random.normal(key, args.shape, dtype) for key in keys)
  table = []
  for backward in (False, True):
    calls = {
      name: jax_run(attend, qkv, backward)
      for name, attend in (
        ours(args.shape, dtype) | peers.jax_peers(args.shape, dtype)
      ).items()
    }
    calls |= torch_runs(args.shape, dtype, backward)
    medians = measure(compile_all(calls), args.rounds)
    table += rows(medians, args.shape, backward)

  for row in table:
    print('{pass:22}{candidate:30}{milliseconds:10.2f} ms{tflops:9.2f} TFLOP/s'
          '{times_faster:8.2f} x {peer}'.format(**row))  # fmt: skip
  result = {
    'command': ' '.join(sys.argv),
    'date': datetime.date.today().isoformat(),
    'shape': args.shape,
    'dtype': args.dtype,
    'device': jax.devices()[0].device_kind,
    'machine': platform.machine(),
    'versions': {
      name: module.__version__
      for name, module in sorted(sys.modules.items())
      if name in ('jax', 'jaxlib', 'torch', 'tokamax', 'numpy')
    },
    'rows': table,
  }
  args.out.mkdir(parents=True, exist_ok=True)
  shape = 'x'.join(map(str, args.shape))
  name = f'attention_{jax.default_backend()}_{args.dtype}_{shape}.json'
  (args.out / name).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
