"""What the augmentation of fine-tuning costs beside a training step.

  python bench/augment.py [--no-time]

Counts the FLOPs and bytes of compiled programs per clip: of every operation of
RandAugment, of all that follows (random resized crop, flip, normalisation,
erasing, mixup or cutmix), and of ViT-B forward and backward in bfloat16.
Without --no-time, it also times them here, in float32.

XLA counts the body of a loop once and the dearest branch of a switch, as the
first lines of the output show. So operations are compiled one by one, and
RandAugment's cost is theirs times how often each is done: 4 draws x 1/2 of one
in 15. For the same reason the transformer has no loops here: unrolled blocks,
and attention with whole maps, whose bytes a fused kernel would not move. Of
its blocks only 1 and 2 are compiled, the others cost as much as the second.

FLOP are not seconds: those of the augmentation are in float32 where they are
matrix products, those of the transformer in bfloat16.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from mira_jax.augment import mixup, randaugment, transforms
from mira_jax.models.vivit import SIZES, ViViT

BATCH, CLASSES = 2, 7
PER_CLIP = 4 * 0.5 / len(randaugment.OPERATIONS)  # how often each is done
Cost = dict[str, float]
Program = tuple[Callable, tuple]


# ----- the programs -----------------------------------------------------------


def operations(clip: np.ndarray) -> dict[str, Program]:
  """Each branch of RandAugment's switch, for one clip."""
  row = (jnp.int32(randaugment.WARPS), jnp.array(True))
  amount = (jnp.float32(0.7), jnp.float32(1))

  def branch(i: int) -> Callable:
    def run(clip, *draws):
      row = randaugment.Draws(*draws)
      return randaugment.changes(row, clip.shape[1:3])[i](clip)

    return run

  names = (*randaugment.OPERATIONS[: randaugment.WARPS], 'warp')
  return {
    name: (branch(i), (clip, *row, *amount)) for i, name in enumerate(names)
  }


def rest(clip: np.ndarray) -> Program:
  """All that follows RandAugment, for a batch."""
  change = transforms.Augment(resized_crop=True, erase=0.25)

  def run(key, video, targets):
    keys = jax.random.split(key)
    return mixup.mix(keys[0], change(keys[1], video), targets)

  return run, (jax.random.key(0), np.stack([clip] * BATCH), jnp.eye(BATCH))


def train_step(clip: np.ndarray, depth: int, dtype: str, attention: str):
  """Loss and gradients of ViT-B with fewer blocks, for a batch."""
  fields = SIZES['B'] | {'depth': depth, 'frames': len(clip)}
  model = ViViT(
    **fields,
    num_classes=CLASSES,
    image_size=clip.shape[1],
    attention=attention,
    dtype=jnp.dtype(dtype),
  )
  video = jax.ShapeDtypeStruct((BATCH, *clip.shape), jnp.float32)

  def loss(params, video):
    logits = model.apply(params, video, train=True)
    return -jax.nn.log_softmax(logits)[:, 0].mean()

  params = jax.eval_shape(model.init, jax.random.key(0), video)
  return jax.value_and_grad(loss), (params, video)


# ----- counting and timing ----------------------------------------------------


def count(program: Program) -> Cost:
  run, arguments = program
  analysis = jax.jit(run).lower(*arguments).compile().cost_analysis()
  return {
    'gflop': analysis['flops'] / 1e9,
    'gb': analysis['bytes accessed'] / 1e9,
  }


def seconds(program: Program, rounds: int = 3) -> Cost:
  """The best of some rounds: other work on the machine only adds."""
  run, arguments = program
  arguments = jax.tree.map(_filled, arguments)
  run, times = jax.jit(run), []
  for _ in range(rounds + 1):  # the first one compiles
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    times.append(time.perf_counter() - start)
  return {'ms': 1e3 * min(times[1:])}


def _filled(x: Any) -> Any:
  return (
    jnp.full(x.shape, 0.01, x.dtype)
    if isinstance(x, jax.ShapeDtypeStruct)
    else x
  )


def add(*terms: tuple[float, Cost]) -> Cost:
  """Sum of weight x cost."""
  return {key: sum(w * cost[key] for w, cost in terms) for key in terms[0][1]}


def loops_and_branches() -> dict[str, float]:
  """How often XLA counts what is in a loop of 8 and in a switch of 2."""
  x = jnp.ones((64, 64))

  def gflop(run: Callable) -> float:
    return count((run, (x, jnp.int32(0))))['gflop']

  one = gflop(lambda x, i: x @ x)
  looped = gflop(lambda x, i: jax.lax.fori_loop(0, 8, lambda _, y: y @ x, x))
  branches = [lambda x: x @ x, lambda x: x @ x @ x]
  switched = gflop(lambda x, i: jax.lax.switch(i, branches, x))
  return {
    'loop of 8 products': looped / one,
    'switch of 1 or 2 products': switched / one,
  }


def table(clip: np.ndarray, measure: Callable, **options) -> dict[str, Cost]:
  """Cost per clip of every part, and of their sums."""
  costs = {name: measure(x) for name, x in operations(clip).items()}
  often = {name: 1 for name in costs} | {'warp': 5}
  expected = add(*((PER_CLIP * often[n], cost) for n, cost in costs.items()))
  rows = {f'RandAugment, {name}': cost for name, cost in costs.items()}
  rows['RandAugment, expected'] = expected
  rows['crop, flip, erase, mix'] = add((1 / BATCH, measure(rest(clip))))
  rows['augmentation'] = add((1, expected), (1, rows['crop, flip, erase, mix']))
  one, two = (measure(train_step(clip, d, **options)) for d in (1, 2))
  rows['ViT-B step'] = add((-10 / BATCH, one), (11 / BATCH, two))
  return rows


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--frames', type=int, default=16)
  parser.add_argument('--size', type=int, default=224)
  parser.add_argument(
    '--time', default=True, action=argparse.BooleanOptionalAction
  )
  parser.add_argument('--out', default='bench/results', type=pathlib.Path)
  return parser.parse_args()


def main():
  args = parse()
  shape = (args.frames, args.size, args.size, 3)
  clip = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  counted = loops_and_branches()
  for name, times in counted.items():
    print(f'XLA counts a {name} as {times:.2f} products')
  rows = table(clip, count, dtype='bfloat16', attention='reference')
  if args.time:
    timed = table(clip, seconds, dtype='float32', attention='streaming')
    rows = {name: cost | timed[name] for name, cost in rows.items()}
  step = rows['ViT-B step']
  for name, cost in rows.items():
    shares = (
      f'{cost[key]:12.3f} {key:5} {100 * cost[key] / step[key]:7.3f} %'
      for key in cost
    )
    print(f'{name:28}', *shares)
  result = {
    'command': ' '.join(sys.argv),
    'date': datetime.date.today().isoformat(),
    'shape': shape,
    'device': jax.devices()[0].device_kind,
    'machine': platform.machine(),
    'versions': {'jax': jax.__version__, 'numpy': np.__version__},
    'counted': counted,
    'per_clip': rows,
    'share': {key: rows['augmentation'][key] / step[key] for key in step},
  }
  args.out.mkdir(parents=True, exist_ok=True)
  name = f'augment_{jax.default_backend()}_{args.frames}x{args.size}.json'
  (args.out / name).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
