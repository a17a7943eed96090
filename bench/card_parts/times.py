"""Times of our kernels, with the tunings that are used and with others."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pass_cases
from bench.card_parts import checks
from bench.card_parts.setting import Log, Setting, Task, inputs
from mira_jax.kernels.gpu import passes as gpu_passes
from mira_jax.kernels.gpu.sweep import Tuning
from mira_jax.tuning.checks import CONFIGS
from pass_cases import Inputs

SLICES = {'dq': slice(0, 1), 'dkv': slice(1, 3)}


class Sweep(NamedTuple):
  """A kernel, or two where the second needs what the first finds."""

  uses: str  # a pass
  products: int  # of L x L x D per head
  run: Callable  # of passes and inputs; what it drops is not computed


def _biased(part: str) -> Callable:
  return lambda p, x: p.attend_backward(
    *x[:3], x.bias, x.lse, x.delta, x.g, bias_gradient=False
  )[SLICES[part]]


def _redistributed(part: str) -> Callable:
  case = pass_cases.CASES['redistribute_backward, gain too']
  return lambda p, x: case.run(p, x)[SLICES[part]]


def _joint(part: str) -> Callable:
  case = pass_cases.JOINT['redistribute_backward, marginal too']
  return lambda p, x: case.run(p, x)[SLICES[part]]


def _redistribute(p, x):
  options = {'residual_mix': 0.7, 'floor': 0.1}
  return p.redistribute(*x[:3], x.gain, x.v_mean, x.lse, **options)


def _marginal_gradient(part: int) -> Callable:
  return lambda p, x: p.marginal_backward(x.q, x.k, x.lse, x.gamma)[part]


SWEEPS = {
  'attend': Sweep('attend', 2, lambda p, x: p.attend(*x[:3], x.bias)),
  'logsumexp': Sweep('marginal', 1, lambda p, x: p.marginal(x.q, x.k)[1]),
  'logsumexp + mass': Sweep(
    'marginal', 2, lambda p, x: p.marginal(x.q, x.k)[0]
  ),
  'redistribute': Sweep('redistribute', 3, _redistribute),
  'dq': Sweep('attend_backward', 3, _biased('dq')),
  'dkv': Sweep('attend_backward', 4, _biased('dkv')),
  'marginal_dq': Sweep('marginal_backward', 3, _marginal_gradient(0)),
  'marginal_dq + marginal_dk': Sweep(
    'marginal_backward', 5, _marginal_gradient(1)
  ),
  'redistribute_dq': Sweep('redistribute_backward', 3, _redistributed('dq')),
  'redistribute_dkv': Sweep('redistribute_backward', 4, _redistributed('dkv')),
  'gain': Sweep('gain_gradient', 2, pass_cases.JOINT['gain_gradient'].run),
  'mean + joint_dq': Sweep('redistribute_backward', 4, _joint('dq')),
  'mean + joint_dkv': Sweep('redistribute_backward', 5, _joint('dkv')),
}
# Products of our kernels for a mode, forward and in both directions.
PRODUCTS = {'plain': (2, 9), 'flashlite': (2, 9), 'exact': (5, 15)}
PLAIN = (2, 7)  # of plain attention, whatever a candidate spends


def tflops(shape: tuple[int, ...], products: float, seconds: float) -> float:
  """TFLOP/s of so many products of L x L x D per head."""
  batch, length, heads, width = shape
  return 2e-12 * products * batch * heads * length**2 * width / seconds


def expected(shape: tuple[int, ...], products: float) -> float:
  """Seconds at 400 TFLOP/s."""
  return tflops(shape, products, 1) / 400


# ----- our kernels ------------------------------------------------------------


def ours(setting: Setting) -> Iterator[Task]:
  """Every kernel alone, and every mode of attention."""
  for pool, name in enumerate(setting.shapes):
    for mode in setting.some(reversed(CONFIGS), 1):
      run = functools.partial(_mode, setting, mode, name)
      yield Task(f'{mode}, {name}', checks.USES[mode], run, pool)
    for sweep in SWEEPS:
      run = functools.partial(_sweep, setting, sweep, name)
      yield Task(f'{sweep}, {name}', (SWEEPS[sweep].uses,), run, pool)


def _sweep(setting, name, shape_name, tunings=None):
  sweep, p = SWEEPS[name], setting.passes(tunings)
  x = inputs(setting, shape_name)
  shape, products = x.q.shape, sweep.products
  seconds = setting.seconds(
    lambda *x: sweep.run(p, Inputs(*x)), x, expected(shape, products)
  )
  rate = tflops(shape, products, seconds)
  yield {'ms': 1e3 * seconds, 'tflops': rate}


def _mode(setting, mode, name):
  x = inputs(setting, name)
  forward = checks.mira(checks.OURS, mode)
  for row in directions(setting, forward, x):
    own = PRODUCTS[mode][row['pass'] != 'forward']
    rate = tflops(x.q.shape, own, row['ms'] / 1e3)
    yield row | {'tflops_own': rate}


def directions(
  setting: Setting, forward: Callable, x: Inputs
) -> Iterator[dict[str, Any]]:
  """Rows of attention(q, k, v) forward and in both directions."""
  times, shape, qkvg = [], x.q.shape, x[:4]
  runs = (forward, qkvg[:3]), (checks.both(forward), qkvg)
  for (run, arrays), products in zip(runs, PLAIN, strict=True):
    times.append(setting.seconds(run, arrays, expected(shape, products)))
    yield direction(shape, times)


def direction(shape: tuple[int, ...], times: list[float]) -> dict[str, Any]:
  """The row of the last of one or two times; backward is their difference."""
  row = {
    'pass': 'forward' if len(times) == 1 else 'both',
    'ms': 1e3 * times[-1],
    'tflops': tflops(shape, PLAIN[len(times) - 1], times[-1]),
  }
  rest = times[-1] - times[0]
  if rest > 0:
    row |= {
      'backward ms': 1e3 * rest,
      'backward tflops': tflops(shape, 5, rest),
    }
  return row


# ----- other tunings ----------------------------------------------------------

# Rows, columns and warpgroups, each as TUNING has the rest.
TILES = {
  'attend': [(64, 224, 2), (64, 128, 2), (128, 128, 2),
             (64, 128, 3), (64, 160, 3), (64, 96, 3)],
  'dq': [(64, 64, 2), (64, 128, 2), (64, 64, 3)],
  'dkv': [(64, 64, 2), (64, 96, 2)],
  'redistribute': [(64, 64, 2), (64, 128, 2), (64, 64, 3), (64, 96, 3)],
  'logsumexp': [(64, 224, 2), (64, 160, 3)],
  'mass': [(64, 224, 2), (64, 160, 3)],
}  # fmt: skip
BOTH_WAYS = {
  'held': ('dq', 'dkv'),
  'persistent': ('attend', 'dq', 'dkv', 'redistribute', 'marginal_dq'),
}
TIMED_AS = {'mass': 'logsumexp + mass'}


def variants(width: int = 64) -> list[tuple[str, Tuning]]:
  """Sweeps with the tunings to compare."""
  found = []
  for name in (*TILES, 'marginal_dq'):
    chosen = gpu_passes.tuning(name, width)
    own = [chosen]
    for rows, columns, warpgroups in TILES.get(name, []):
      sizes = {'rows': rows, 'columns': columns, 'warpgroups': warpgroups}
      tile = dataclasses.replace(chosen, **sizes)
      tile = gpu_passes.staged(tile, width)
      own.append(tile)
      if name in BOTH_WAYS['held']:
        own.append(dataclasses.replace(tile, held=not tile.held))
      if name == 'attend' and warpgroups == 2 and rows == 64:
        own.append(dataclasses.replace(tile, turns=True))
    if name in BOTH_WAYS['persistent']:
      own.append(dataclasses.replace(chosen, persistent=not chosen.persistent))
    found += [(name, x) for x in dict.fromkeys(own)]
  return found


def tunings(setting: Setting) -> Iterator[Task]:
  """Other tiles and schedules, at the shape of the decoder."""
  found = variants()
  if setting.interpret:
    found = dict(found).items()  # one of each
  for name, tuning in found:
    run = functools.partial(_variant, setting, name, tuning)
    sweep = SWEEPS[TIMED_AS.get(name, name)]
    yield Task(f'{name} {describe(tuning)}', (sweep.uses,), run)


def describe(tuning: Tuning) -> str:
  """Rows x columns x warpgroups, and the schedule."""
  words = [f'{tuning.rows}x{tuning.columns}x{tuning.warpgroups}']
  words += [x for x in ('persistent', 'held', 'turns') if getattr(tuning, x)]
  return ' '.join(words)


def _variant(setting, name, tuning):
  timed, log = TIMED_AS.get(name, name), Log()
  for row in _sweep(setting, timed, 'decoder', {name: tuning}):
    used = tuning == gpu_passes.tuning(name, 64)
    spilled = log.spills().get(name)
    yield {**row, 'timed': timed, 'used': used, 'spilled bytes': spilled}
