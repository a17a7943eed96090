"""Compiles the TPU kernels with the TPU's compiler, without a TPU.

  MIRA_AOT_TPU=FOLDER python tests/aot/tpu.py v5e          # one chip, as JSON
  MIRA_AOT_TPU=FOLDER python tests/aot/tpu.py --record     # rates.CYCLES

FOLDER holds libtpu (`pip install --no-deps --target FOLDER libtpu==VERSION`,
the version that `jax[tpu]` asks for). A TPU starts one bundle of instructions a
cycle, in order: the bundles of a kernel, those of a loop times its trips, times
the steps of its grid are its cycles, but for waits on memory. What runs in some
steps alone (sums set to 0, or written) is counted in all. libtpu reads its
options when it is loaded and serves one kind of chip a process: hence a process
for each.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from mira_jax.aot import compilers, rates
from mira_jax.aot.rates import SHAPES

FOLDER = compilers.VARIABLES['tpu']
RECORD = rates.CYCLES


class Chip(NamedTuple):
  """What is compiled for, and what turns cycles of a core into seconds."""

  topology: str
  hertz: float


TOPOLOGIES = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2'}
CHIPS = {
  name: Chip(TOPOLOGIES[name], core.hertz) for name, core in rates.CORES.items()
}
# A pass -> its case in `pass_cases`, and the L x L x D products that it is
# about, however its kernel gets there.
PASSES = {
  'attend': ('attend', 2),
  'attend_backward': ('attend_backward', 5),
  'marginal': ('marginal', 1),
  'marginal_backward': ('marginal_backward', 3),
  'redistribute': ('redistribute', 3),
  'redistribute_backward': ('redistribute_backward, gain too', 5),
}
OPERATION_SHAPES = ('decoder', 'long')


def measure(chip: str) -> dict[str, dict]:
  """Compiles everything for a chip, in a process of its own.

  Returns:
    'PASS SHAPE' -> cycles, tflops, seconds (to compile); 'operation NAME SHAPE'
    -> temporaries (bytes), of forward and backward.

  Raises:
    RuntimeError: something does not compile.
  """
  root = pathlib.Path(__file__).parents[2]
  with tempfile.TemporaryDirectory() as dump:
    done = subprocess.run(
      [sys.executable, __file__, chip],
      env=os.environ
      | {
        'LIBTPU_INIT_ARGS': (
          f'--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true'
        ),
        'MIRA_AOT_DUMP': dump,
        'PYTHONPATH': f'{root}{os.pathsep}{root / "tests" / "helpers"}',
      },
      capture_output=True,
      text=True,
    )
  if done.returncode:
    raise RuntimeError(f'{chip}: {done.stderr[-4000:]}')
  return json.loads(done.stdout.splitlines()[-1])


def record() -> None:
  """Writes the cycles of all chips into the package."""
  cycles = {
    chip: {
      name: figures['cycles']
      for name, figures in measure(chip).items()
      if 'cycles' in figures
    }
    for chip in CHIPS
  }
  RECORD.write_text(json.dumps(cycles, indent=2) + '\n')


# ----- in the process of one chip ---------------------------------------------


def _measure_here(chip: Chip) -> dict[str, dict]:
  from jax.experimental import topologies
  from jax.sharding import SingleDeviceSharding

  compilers.load('tpu', pathlib.Path(os.environ[FOLDER]).resolve())
  import pass_cases

  topology = topologies.get_topology_desc(
    platform='tpu', topology_name=chip.topology
  )
  device = SingleDeviceSharding(topology.devices[0])
  results = {}
  for shape in SHAPES:
    for name in PASSES:
      results[f'{name} {shape}'] = _measure_pass(name, shape, chip, device)
  for shape in OPERATION_SHAPES:
    for name in pass_cases.OPERATIONS:
      results[f'operation {name} {shape}'] = _measure_operation(
        name, shape, device
      )
  return results


def _measure_pass(name: str, shape: str, chip: Chip, device) -> dict:
  import pass_cases
  from mira_jax.kernels.tpu.blocks import cut
  from mira_jax.kernels.tpu.passes import PASSES as KERNELS

  batch, length, heads, width = SHAPES[shape]
  case, products = PASSES[name]
  start = time.monotonic()
  run = functools.partial(pass_cases.CASES[case].run, KERNELS)
  _compile(run, SHAPES[shape], device)
  blocks = cut(SHAPES[shape], 'bfloat16')
  cycles = step_cycles(_program(name)) * math.prod(blocks.grid)
  flops = 2 * products * batch * heads * length**2 * width
  return {
    'cycles': cycles,
    'tflops': round(flops * chip.hertz / cycles / 1e12, 1),
    'seconds': round(time.monotonic() - start, 1),
  }


def _measure_operation(name: str, shape: str, device) -> dict:
  import pass_cases
  from mira_jax.kernels import vjp
  from mira_jax.kernels.tpu.passes import PASSES as KERNELS

  both = functools.partial(pass_cases.both, vjp.operations(KERNELS), name)
  stats = _compile(both, SHAPES[shape], device).memory_analysis()
  return {'temporaries': stats.temp_size_in_bytes}


def _compile(f, shape: tuple[int, ...], device):
  """Compiles f of `pass_cases.Inputs`; empties the dump first.

  Its tokens come as a projection leaves them, heads side by side.
  """
  import jax

  import pass_cases

  inputs = pass_cases.shapes(shape, device)
  flat = jax.ShapeDtypeStruct(
    (*shape[:2], shape[2] * shape[3]), inputs.q.dtype, sharding=device
  )

  def run(x):
    split = {name: getattr(x, name).reshape(shape) for name in 'qkvg'}
    return f(x._replace(**split))

  for path in pathlib.Path(os.environ['MIRA_AOT_DUMP']).iterdir():
    path.unlink()
  traced = jax.jit(run).trace(inputs._replace(**dict.fromkeys('qkvg', flat)))
  return traced.lower(lowering_platforms=('tpu',)).compile()


def _program(kernel: str) -> str:
  """The bundles of a kernel in the program that was compiled last."""
  dump = pathlib.Path(os.environ['MIRA_AOT_DUMP'])
  paths = dump.glob(f'*-{kernel}.*-final_bundles.txt')
  (path,) = (x for x in paths if 'schedule-analysis' not in x.name)
  return path.read_text()


# A line is a bundle: its address, what control does there, as many '>' as it
# has loops around it, and the instructions.
BUNDLE = re.compile(r'\s*(?:0x[0-9a-f]+|0)\s+([A-Z]{2})?\s*:[ >]*\{(.*)')
REGION = re.compile(r'Start region (\d+)')
TEST = re.compile(
  r'(%p\w+) = scmp\.ge\.s32\.totalorder (?:\(%p\w+\), )?%\w+, (\d+) '
  r'/\* loop exit test \*/'
)
BACK = re.compile(r'sbr\.rel \(!(%p\w+)\) target = \$region(\d+)')


def step_cycles(program: str) -> int:
  """Bundles of a step of the grid, each as often as the loops around it run.

  A loop starts where control has 'LB'. It ends with a branch back, taken until
  the counter, from 0, passes the exit test. The outermost goes over the grid.

  Raises:
    ValueError: a loop has no end that is understood.
  """
  bundles = [x.groups() for x in map(BUNDLE.match, program.splitlines()) if x]
  starts, trips, loops = {}, {}, []
  for i, (control, text) in enumerate(bundles):
    if control == 'LB':
      starts |= dict.fromkeys(REGION.findall(text), i)
    trips |= {test: int(count) for test, count in TEST.findall(text)}
  for i, (_, text) in enumerate(bundles):
    for test, region in BACK.findall(text):
      if test in trips and region in starts:
        loops.append((starts[region], i, trips[test]))
  if len(loops) != sum(control == 'LB' for control, _ in bundles):
    raise ValueError('a loop has no end that is understood')
  times = [1] * len(bundles)
  for first, last, count in sorted(loops)[1:]:
    for i in range(first, last + 1):
      times[i] *= count
  return sum(times)


if __name__ == '__main__':
  if sys.argv[1:] == ['--record']:
    record()
  elif 'MIRA_AOT_DUMP' in os.environ:
    print(json.dumps(_measure_here(CHIPS[sys.argv[1]])))
  else:
    print(json.dumps(measure(sys.argv[1]), indent=2))
