"""Parts of `bench/card.py` that check: card, smoke, correct, repeat."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pass_cases
import plain_passes
from bench import peers
from bench.card_parts.setting import Log, Setting, Task, inputs
from mira_jax.kernels import dispatch, vjp
from mira_jax.tuning import checks as tuning_checks

CASES = pass_cases.CASES | pass_cases.JOINT
OURS = dispatch.Choice('pallas_gpu', 'to be checked', ())
# Of norms, for arrays of bfloat16 and of float32: a pass, and whole operations,
# whose backward passes start from an output in bfloat16.
BOUNDS = (4e-3, 1e-4)
WIDER = (1e-2, 1e-3)
SMI = (
  *('name', 'driver_version', 'clocks.max.sm', 'clocks.sm', 'clocks.max.mem'),
  *('power.limit', 'power.draw', 'temperature.gpu'),
)
PACKAGES = ('jax', 'jaxlib', 'jax-cuda13-plugin', 'flax', 'optax', 'torch')
# What mira_attention needs of the passes, forward and backward.
BIASED = ('attend', 'attend_backward')
USES = {
  'plain': BIASED,
  'flashlite': BIASED,
  'exact': tuple(set(vjp.Passes._fields) - set(BIASED)),
}


# ----- the card ---------------------------------------------------------------


def card(setting: Setting) -> list[Task]:
  """What it is, and what it can do."""
  small = setting.interpret

  def copy():
    x = jnp.ones(2**14 if small else 2**29, jnp.bfloat16)
    seconds = setting.seconds(jnp.negative, [x], 5e-4)
    yield {'ms': 1e3 * seconds, 'gb_per_s': 2 * x.nbytes / seconds / 1e9}

  def product():
    n = 64 if small else 8192
    x, y = jax.random.normal(jax.random.key(0), (2, n, n), jnp.bfloat16)
    seconds = setting.seconds(jnp.matmul, [x, y], 1.4e-3)
    scale = jnp.asarray(n**-0.5, x.dtype)
    many = jax.jit(
      lambda x: jax.lax.fori_loop(0, 500, lambda _, z: z @ y * scale, x)
    )
    busy = many(x)
    clock = smi().get('clocks.sm', '')  # while it runs
    busy.block_until_ready()
    tflops = 2 * n**3 / seconds / 1e12
    yield {'ms': 1e3 * seconds, 'tflops': tflops, 'clock under load': clock}

  return [
    Task('nvidia-smi', (), lambda: [smi()]),
    Task('versions', (), lambda: [versions()]),
    Task('copy', (), copy),
    Task('product', (), product),
  ]


def smi() -> dict[str, str]:
  """What nvidia-smi says of the first GPU."""
  if not shutil.which('nvidia-smi'):
    return {'status': 'missing', 'error': 'no nvidia-smi'}
  command = [f'--query-gpu={",".join(SMI)}', '--format=csv,noheader', '--id=0']
  done = subprocess.run(
    ['nvidia-smi', *command], capture_output=True, text=True, timeout=15
  )
  values = [x.strip() for x in done.stdout.strip().split(',')]
  if done.returncode or len(values) != len(SMI):
    return {'status': 'missing', 'error': done.stdout + done.stderr}
  return dict(zip(SMI, values, strict=True))


def versions() -> dict[str, Any]:
  """Of the device and the packages."""
  found = {'device': jax.devices()[0].device_kind}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found | {'python': platform.python_version()}


# ----- every kernel once ------------------------------------------------------


def smoke(setting: Setting) -> Iterator[Task]:
  """A share for each pass: one that hangs takes no other with it."""
  several = [(1, 104, 1, 16), (2, 393, 2, 64), (2, 1568, 2, 64)]
  for pool, name in enumerate(vjp.Passes._fields):
    shapes = setting.some(several, 1) if name == 'attend' else []
    runs = [(name, shape) for shape in shapes]
    once = (1, 40, 1, 16) if setting.interpret else (1, 392, 2, 64)
    runs += [(case, once) for case in CASES if family(case) == name]
    for case, shape in runs:
      run = functools.partial(_smoke, setting, case, shape)
      yield Task(_title(case, shape), (name,), run, pool)


def family(case: str) -> str:
  """The pass of a case."""
  return case.partition(',')[0]


def _smoke(setting, case, shape):
  run = _case(setting.passes(), case)
  x, log, start = pass_cases.draw(shape), Log(), time.monotonic()
  found = jax.block_until_ready(run(x))
  seconds = time.monotonic() - start
  finite = all(bool(jnp.isfinite(y).all()) for y in jax.tree.leaves(found))
  status = 'ok' if finite else 'wrong'
  spills = ', '.join(f'{x} {n}' for x, n in log.spills().items())
  yield {'status': status, 'seconds': seconds, 'spilled bytes': spills}


def _title(case: str, shape: tuple[int, ...]) -> str:
  return f'{case} {"x".join(map(str, shape))}'


def _case(passes: vjp.Passes, case: str) -> Callable:
  return jax.jit(functools.partial(CASES[case].run, passes))


# ----- numbers ----------------------------------------------------------------


def correct(setting: Setting) -> Iterator[Task]:
  """Against the whole map in float32."""
  # Else float32 products of the oracle would keep 10 bits.
  jax.config.update('jax_default_matmul_precision', 'highest')
  shapes = [(2, 1568, 2, width) for width in (64, 80)]
  shapes += [(3, 160, 3, 64), (2, 393, 3, 64), (1, 1, 1, 64), (1, 8192, 1, 64)]
  shapes += [(1, 392, 2, width) for width in (16, 32, 48, 96, 112, 128)]
  shapes = [(1, 40, 2, 16)] if setting.interpret else shapes
  for case in setting.some((*pass_cases.WHOLE, *pass_cases.JOINT), 2):
    run = functools.partial(_clips, setting, case)
    yield Task(f'{case} decoder', (family(case),), run)
  middle = shapes[0]
  for name in setting.some(reversed(pass_cases.OPERATIONS), 1):
    run = functools.partial(_operation, setting, name, middle)
    uses = USES['plain' if name == 'biased' else 'exact']
    yield Task(_title(f'operation {name}', middle), uses, run)
  for mode in setting.some(reversed(tuning_checks.CONFIGS), 1):
    run = functools.partial(_mira, mode, middle)
    yield Task(_title(f'mira_attention {mode}', middle), USES[mode], run)
  for shape in shapes:
    for case in setting.some(CASES, 2):
      run = functools.partial(_pass, setting, case, shape)
      yield Task(_title(case, shape), (family(case),), run)


@functools.lru_cache(maxsize=1)
def _draw(shape: tuple[int, ...]) -> pass_cases.Inputs:
  return pass_cases.draw(shape)


def _wide(x: Any) -> Any:
  return jax.tree.map(lambda x: x.astype(jnp.float32), x)


def _pass(setting, case, shape):
  x = _draw(shape)
  plain = _case(plain_passes.PASSES, case)(_wide(x))
  yield {'case': case, **compare(_case(setting.passes(), case)(x), plain)}


def _clips(setting, case):
  """Two clips of a large batch."""
  x = inputs(setting, 'decoder')
  if family(case) == 'redistribute':  # the oracle finds its own
    lse = jax.jit(lambda x: setting.passes().marginal(x.q, x.k)[1])(x)
    x = x._replace(lse=lse)
  ours = _case(setting.passes(), case)(x)
  oracle = _case(plain_passes.PASSES, case)
  for i in (0, len(x.q) - 1):
    one, found = (
      jax.tree.map(lambda x, i=i: x[i : i + 1], tree) for tree in (x, ours)
    )
    row = compare(found, oracle(_wide(one)))
    yield {'case': f'{case}, decoder', 'clip': i, **row}


def _operation(setting, name, shape):
  x = _draw(shape)

  def run(passes, x):
    operations = vjp.operations(passes)
    return jax.jit(lambda x: pass_cases.both(operations, name, x))(x)

  plain = run(plain_passes.PASSES, _wide(x))
  yield compare(run(setting.passes(), x), plain, WIDER)


def _mira(mode, shape):
  x = _draw(shape)
  found = jax.jit(both(mira(OURS, mode)))(*x[:4])
  truth = jax.jit(both(mira('reference', mode)))(*_wide(x[:4]))
  yield compare(found, truth, WIDER)


def mira(choice: dispatch.Choice | str, mode: str) -> Callable:
  """(q, k, v) -> the output of attention as models call it."""
  options = {'frames': peers.FRAMES, 'mode': mode}
  return functools.partial(tuning_checks.forward, choice, **options)


def both(forward: Callable) -> Callable:
  """(q, k, v, dL/dy) -> the output of attention and three gradients."""

  def run(q, k, v, g):
    y, pull = jax.vjp(forward, q, k, v)
    return y, pull(g.astype(y.dtype))

  return run


def compare(
  ours: Any, plain: Any, bounds: tuple[float, float] = BOUNDS
) -> Mapping[str, Any]:
  """The worst error of arrays in bfloat16, and of those in float32."""
  errors = {'error_16': 0.0, 'error_32': 0.0}
  pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True)
  for one, other in pairs:
    key = 'error_16' if one.dtype == jnp.bfloat16 else 'error_32'
    one, other = (np.asarray(x, np.float64) for x in (one, other))
    # The gradients of a single token are 0.
    size = max(np.linalg.norm(other), 1e-5 * one.size**0.5)
    error = float(np.linalg.norm(one - other) / size)
    errors[key] = max(errors[key], error if error == error else np.inf)
  good = all(x <= y for x, y in zip(errors.values(), bounds, strict=True))
  return {'status': 'ok' if good else 'wrong', **errors}


# ----- bits -------------------------------------------------------------------


def repeat(setting: Setting) -> Iterator[Task]:
  """The same bits from every call, whatever lay in memory before."""
  for name in ('decoder', 'long'):
    for case in setting.some((*pass_cases.WHOLE, *pass_cases.JOINT), 2):
      if name in setting.shapes:
        run = functools.partial(_repeat, setting, case, name)
        yield Task(f'{case}, {name}', (family(case),), run)


def _repeat(setting, case, name):
  count = 3 if setting.interpret else 30
  x = inputs(setting, name)
  run = _case(setting.passes(), case)
  # A nan equals nothing: it differs, too.
  same = jax.jit(lambda a, b: jnp.array([jnp.all(x == y) for x, y in zip(
      jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]).all())  # fmt: skip
  first, differ = run(x), 0
  kinds = [(y.shape, y.dtype) for y in jax.tree.leaves(first)]
  for _ in range(count - 1):
    poison = [jnp.full(shape, jnp.nan, dtype) for shape, dtype in kinds]
    jax.block_until_ready(poison)
    del poison  # the results come to lie there
    differ += not same(first, run(x))
  status = 'wrong' if differ else 'ok'
  yield {'status': status, 'repeats': count, 'differ': differ}


PARTS = {'card': card, 'smoke': smoke, 'correct': correct, 'repeat': repeat}
