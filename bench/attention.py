"""Times attention with MiRA: every implementation beside its peers.

  python bench/attention.py [--length 1568] [--rounds 10] [--out bench/results]

All candidates run in the same process, one round after the other, so that a
busy machine slows them alike: read the ratios. Peers: `jax.nn`'s attention, and
where PyTorch is installed its fused attention as the authors' code uses it (one
channel appended to queries and keys for flashlite, the whole map for exact).
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from mira_jax.kernels.attention import IMPLEMENTATIONS, mira_attention
from mira_jax.mira import MiraConfig

FRAMES = 8
CONFIGS = {
  'plain': None,
  'flashlite': MiraConfig(mode='flashlite'),
  'exact': MiraConfig(mode='exact'),
}


def jax_candidates(qkv: tuple, backward: bool) -> dict[str, Callable]:
  """Name -> a call that runs to its end."""

  def candidate(f):
    def loss(*x):
      return f(*x).sum()

    run = jax.jit(jax.grad(loss, (0, 1, 2)) if backward else f)
    return lambda: jax.block_until_ready(run(*qkv))

  calls = {
    f'{mode}, {name}': candidate(
      lambda q, k, v, config=config, name=name: (
        mira_attention(
          q,
          k,
          v,
          num_frames=FRAMES,
          config=config,
          implementation=name,
        ).output
      )
    )
    for mode, config in CONFIGS.items()
    for name in IMPLEMENTATIONS
  }
  calls['plain, jax.nn'] = candidate(jax.nn.dot_product_attention)
  return calls


def torch_candidates(qkv: tuple, backward: bool) -> dict[str, Callable]:
  """The authors' forms in PyTorch; {} where it is not installed."""
  try:
    import torch
  except ImportError:
    return {}
  sdpa = torch.nn.functional.scaled_dot_product_attention
  q, k, v = (
    torch.from_numpy(np.array(x)).transpose(1, 2).contiguous() for x in qkv
  )
  gain = torch.rand(q.shape[0], 1, q.shape[2], 1) + 0.5
  scale = q.shape[-1] ** -0.5

  def flashlite(q, k, v):
    ones = torch.full_like(gain, 1 / scale).expand(-1, q.shape[1], -1, -1)
    bias = gain.log().expand(-1, q.shape[1], -1, -1)
    return sdpa(
      torch.cat([q, ones], -1),
      torch.cat([k, bias], -1),
      torch.cat([v, torch.zeros_like(bias)], -1),
      scale=scale,
    )[..., :-1]

  def exact(q, k, v):
    a = (q * scale @ k.transpose(-1, -2)).softmax(-1)
    a.mean(1).sum(1)  # the marginal; the statistics of frames are small
    moved = 0.999 * (a * gain[:, :, None, :, 0]) + 0.001 / a.shape[-1]
    moved = moved / moved.sum(-1, keepdim=True)
    return (a + 0.5 * (moved - a)) @ v

  def candidate(f):
    def run():
      if not backward:
        with torch.no_grad():
          return f(q, k, v)
      x = [t.detach().requires_grad_() for t in (q, k, v)]
      return f(*x).sum().backward()

    return run

  return {
    'plain, torch': candidate(sdpa),
    'flashlite, torch': candidate(flashlite),
    'exact, torch': candidate(exact),
  }


def measure(calls: dict[str, Callable], rounds: int) -> dict[str, float]:
  """Median seconds of each call, in interleaved rounds."""
  for call in calls.values():
    call()  # compiles
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(rounds):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(times) for name, times in seconds.items()}


def peer(name: str, medians: dict[str, float]) -> str:
  """What a candidate is compared with: the authors' form, else the meaning."""
  mode = name.split(',')[0]
  other = f'{mode}, torch'
  return other if other in medians else f'{mode}, meaning'


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--batch', type=int, default=1)
  parser.add_argument('--length', type=int, default=1568)
  parser.add_argument('--heads', type=int, default=12)
  parser.add_argument('--dim', type=int, default=64)
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--out', default='bench/results')
  args = parser.parse_args()

  shape = (args.batch, args.length, args.heads, args.dim)
  keys = jax.random.split(jax.random.key(0), 3)
  qkv = tuple(jax.random.normal(key, shape, jnp.float32) for key in keys)
  rows = []
  for backward in (False, True):
    calls = jax_candidates(qkv, backward) | torch_candidates(qkv, backward)
    medians = measure(calls, args.rounds)
    for name, seconds in medians.items():
      other = peer(name, medians)
      rows.append(
        {
          'pass': 'forward and backward' if backward else 'forward',
          'candidate': name,
          'milliseconds': round(1e3 * seconds, 2),
          'peer': other,
          'times_faster': round(medians[other] / seconds, 3),
        }
      )

  for row in rows:
    print('{pass:22}{candidate:24}{milliseconds:10.1f} ms'
          '{times_faster:8.2f} x {peer}'.format(**row))  # fmt: skip
  result = {
    'command': ' '.join(sys.argv),
    'date': datetime.date.today().isoformat(),
    'shape': shape,
    'device': jax.devices()[0].device_kind,
    'machine': platform.machine(),
    'versions': {
      name: module.__version__
      for name, module in sys.modules.items()
      if name in ('jax', 'jaxlib', 'torch', 'numpy')
    },
    'rows': rows,
  }
  folder = pathlib.Path(args.out)
  folder.mkdir(parents=True, exist_ok=True)
  name = f'attention_{jax.default_backend()}_{args.length}.json'
  (folder / name).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
