"""How long our kernels of attention take, by their machine code.

No figure here was timed on a chip. For TPUs it is the static cycles of the
TPU's own compiler (`kernel_cycles.json`, written by tests/aot/tpu.py), without
waits on memory; for Hopper a model of the machine code (docs/kernels.md).
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from mira_jax.aot import chips
from mira_jax.aot.chips import Chip
from mira_jax.aot.counts import Counts
from mira_jax.aot.hlo import Collective
from mira_jax.kernels.operations import Kernel

CYCLES = pathlib.Path(__file__).with_name('kernel_cycles.json')
# Shapes [B, L, H, D] whose cycles are recorded: ViT-B, ViT-H, the encoder of
# MAE (90 % masked), and a long clip.
SHAPES = {
  'decoder': (8, 1568, 12, 64),
  'huge': (8, 1568, 16, 80),
  'encoder': (64, 160, 12, 64),
  'long': (1, 32768, 12, 64),
}


class Core(NamedTuple):
  """What turns cycles into seconds."""

  hertz: float  # a chip's peak / the FLOPs of its matrix units in a cycle
  cores: int = 1  # of a chip, which share the grid of a kernel


CORES = {
  'v5e': Core(1.5e9),
  'v5p': Core(1.75e9, 2),
  'v6e': Core(1.75e9),
}
# Shape -> milliseconds of a sweep of an H200, as bench/hopper.py prints them;
# of a range the longer.
HOPPER = {
  (32, 1568, 12, 64): {
    'attend': 0.51,
    'dq': 0.68,
    'dkv': 0.88,
    'logsumexp': 0.46,
    'mass': 0.43,
    'redistribute': 0.83,
    'marginal_dq': 0.83,
    'marginal_dk': 0.64,
    'redistribute_dq': 0.90,
    'redistribute_dkv': 1.06,
    'gain': 0.62,
    'mean': 0.42,
    'joint_dq': 0.91,
    'joint_dkv': 1.07,
  },
  (32, 1568, 16, 80): {
    'attend': 0.80,
    'dq': 1.35,
    'dkv': 1.36,
    'logsumexp': 0.60,
    'mass': 0.56,
    'redistribute': 1.14,
    'marginal_dq': 1.22,
    'marginal_dk': 0.89,
    'redistribute_dq': 1.43,
    'redistribute_dkv': 1.74,
    'gain': 0.95,
    'mean': 0.56,
    'joint_dq': 1.51,
    'joint_dkv': 1.61,
  },
}
# Widths between multiples of these take as long as the next one.
LANES = 128  # of a TPU, whose heads of 64 are multiplied beside zeros
STEP = 16  # of a product on a tensor core


class Rate(NamedTuple):
  """How long a kernel takes."""

  seconds: float  # of one call
  shape: str  # whose recorded time this is in proportion to


def estimate(
  chip: Chip, counts: Counts, found: Sequence[Collective]
) -> dict[str, Any] | None:
  """Seconds of a step whose attention takes as long as its kernels say.

  Other products are at the chip's peak; communication runs behind nothing.

  Args:
    chip: whose kernels.
    counts: FLOPs of one device.
    found: its collectives.

  Returns:
    Seconds of 'products', 'attention' and 'collectives', their sum ('seconds'),
    and 'kernels': each one's seconds, TFLOP/s, and the shape of that rate. None
    where attention is not made of kernels of ours: its products are unknown.
  """
  kernels = []
  for kernel, flops in counts.items():
    if isinstance(kernel, Kernel):
      rate = of_kernel(chip, kernel)
      kernels.append(
        {
          'kernel': str(kernel),
          'seconds': flops / kernel.flops * rate.seconds,
          'tflops': round(kernel.flops / rate.seconds / 1e12, 1),
          'rate_of': rate.shape,
        }
      )
  if not kernels:
    return None
  others = sum(n for x, n in counts.items() if not isinstance(x, Kernel))
  parts = {
    'products': others / chip.flops,
    'attention': sum(x['seconds'] for x in kernels),
    'collectives': chips.communication(chip, found),
  }
  return parts | {'seconds': sum(parts.values()), 'kernels': kernels}


def of_kernel(chip: Chip, kernel: Kernel) -> Rate:
  """A kernel's time on a chip, in proportion to that of a recorded shape.

  That is the one of the nearest length and, of those, the nearest width, both
  by their ratios. A time grows with B H L^2 and with the width, in steps.

  Raises:
    KeyError: no times of the chip or of the kernel are recorded.
  """

  def distance(known: Kernel) -> tuple[float, float]:
    return (
      abs(math.log(known.length / kernel.length)),
      abs(math.log(known.width / kernel.width)),
    )

  times = _recorded(chip.name)[kernel.name]
  nearest = min(times, key=distance)
  step = LANES if chip.name in CORES else STEP
  ratio = _work(kernel, step) / _work(nearest, step)
  return Rate(ratio * times[nearest], nearest.shape)


def _work(kernel: Kernel, step: int) -> int:
  cells = kernel.batch * kernel.heads * kernel.length**2
  return cells * math.ceil(kernel.width / step)


@functools.cache
def _recorded(chip: str) -> dict[str, dict[Kernel, float]]:
  """Name of a kernel -> shapes, and seconds."""
  found: dict[str, dict[Kernel, float]] = {}

  def add(name: str, shape: tuple[int, ...], seconds: float) -> None:
    found.setdefault(name, {})[Kernel(name, *shape, products=0)] = seconds

  if chip not in CORES:
    for shape, sweeps in {'H100': HOPPER, 'H200': HOPPER}[chip].items():
      for name, ms in sweeps.items():
        add(name, shape, ms / 1e3)
    return found
  core = CORES[chip]
  for case, cycles in json.loads(CYCLES.read_text())[chip].items():
    name, shape = case.split()
    add(name, SHAPES[shape], cycles / core.hertz / core.cores)
  return found
