"""Estimates the GPU kernels' times from their machine code, without a GPU.

  python tests/aot/install.py cuda FOLDER
  MIRA_AOT_CUDA=FOLDER python bench/hopper.py [--shape 32,1568,12,64]
    [--tuning dq:columns=128,warpgroups=2] [--out FILE.json]

Compiles attention, forward and backward, in flashlite and in exact mode, with
NVIDIA's compiler, disassembles every kernel, and replays its main loop in the
model of `bench/sass.py`. --tuning changes the tuning of one sweep; it can be
repeated. Estimates are ranges: shared memory delivers 88 to 128 bytes per cycle
to products, and three warpgroups may not reach what two do.

The model is calibrated on kernels of tokamax 0.0.17, disassembled likewise,
whose times on an H100 are published with it (`tokamax/data/autotuning`), of
16384 / L clips. Measured is the slope of the time over L from 2048 to 8192,
modelled at 128 and at 88 bytes per cycle, both in TFLOP/s of 2 U and 5 U:

                                        measured   modelled   ratio
  forward, D 64, 128 x 128                   562   551, 546    1.02, 1.03
  forward, D 128, 64 x 128                   699   717, 702    0.97, 1.00
  backward, D 64, 128 x 64                   370   470, 429    0.79, 0.86
  backward, D 128, 64 x 64                   498   608, 514    0.82, 0.97

All have two consumer warpgroups. No kernel of three with published times was at
hand, but cuDNN's forward (463-505 in the same files) and FlashAttention-3's are
slower than what the model gives ours (666): the lower ends take 0.75 of it. The
model does not know the barriers of warpgroups that take turns, nor waits
for global memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import pathlib
import re
import shutil
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp

from bench import sass
from mira_jax.aot import compilers
from mira_jax.kernels import vjp

MULTIPROCESSORS = 132  # of an H100 (SXM) and an H200

CLOCK_GHZ = 1.755  # of an H100 (SXM) under load
BANDWIDTHS = (128, 88)  # bytes per cycle from shared memory
# Measured over modelled speed, see above, by bandwidth; and, of three
# warpgroups, the least that is to be expected.
FORWARD = {128: 1.0, 88: 1.0}
BACKWARD = {128: 0.80, 88: 0.91}
THREE = 0.75
# Sweeps whose inner products are those of a forward pass, P in registers.
WEIGHTED = ('attend', 'logsumexp', 'redistribute', 'mean', 'marginal_dq')
# Microseconds that a tile of rows takes besides its loop. Those of tokamax, at
# L = 0, take 4 for 256 rows; of persistent blocks, copies of the next tile hide
# most of it (assumed).
FIXED = {'persistent': 0.7, 'other': 3.0}
# What the passes of models are made of, and their useful products.
MODES = {
  'flashlite forward': (('attend',), 2),
  'flashlite backward': (('dq', 'dkv'), 5),
  'exact forward': (('logsumexp', 'mass', 'redistribute'), None),
  'exact backward': (('gain', 'mean', 'joint_dq', 'joint_dkv'), None),
}


# ----- machine code -----------------------------------------------------------


def find_disassembler(folder: pathlib.Path | None) -> pathlib.Path | None:
  """Where bin/nvdisasm is: in the compiler's folder, or in PATH."""
  unpacked = (folder or pathlib.Path()) / 'nvdisasm/nvidia/cu13/bin/nvdisasm'
  found = unpacked if unpacked.is_file() else shutil.which('nvdisasm')
  return pathlib.Path(found).resolve().parents[1] if found else None


def disassemble(run, inputs) -> dict[str, tuple[str, int]]:
  """Sweep -> the SASS of its kernel, and bytes of spills, as ptxas reports.

  A kernel that this process has compiled before is missing.
  """
  with tempfile.TemporaryDirectory() as folder:
    os.environ['MOSAIC_GPU_DUMP_TO'] = folder
    jax.jit(run).lower(*inputs).compile()
    del os.environ['MOSAIC_GPU_DUMP_TO']
    found = {}
    for path in sorted(pathlib.Path(folder).glob('mira_*.sass_ctrl')):
      report = path.with_suffix('.ptxas').read_text()
      frame = r'stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads'
      (spills,) = re.findall(frame, report)
      name = path.stem.removeprefix('mira_').rpartition('_')[0]
      found[name] = path.read_text(), sum(map(int, spills))
  return found


def attention(passes: vjp.Passes):
  """The gradient of attention in both modes: every sweep is in it."""
  operations = vjp.operations(passes)
  assert operations.exact

  def loss(q, k, v):
    bias = jnp.zeros(k.shape[:2], jnp.float32)
    flashlite = operations.biased(q, k, v, bias, False)
    marginal, lse = operations.marginal(q, k)
    apart = operations.redistributed(q, k, v, marginal, 0.5, 0.1, True, lse)
    exact, _ = operations.exact(lambda p, _: ((), p), 0.5, 0.1, q, k, v, None)
    return (flashlite + apart + exact).astype(jnp.float32).sum()

  return jax.value_and_grad(loss, (0, 1, 2))


# ----- estimates --------------------------------------------------------------


def estimate(name: str, code: str, tuning, shape) -> dict[str, list[float]]:
  """Cycles per tile of all warpgroups, TFLOP/s in the loop, and ms in all.

  Each is a range over BANDWIDTHS and what is unknown of three warpgroups.
  """
  batch, length, heads, _ = shape
  loop = sass.main_loop(code)
  blocks = math.ceil(length / (tuning.rows * tuning.warpgroups))
  jobs = math.ceil(blocks * heads * batch / MULTIPROCESSORS)
  fixed = FIXED['persistent' if tuning.persistent else 'other']
  flops = MULTIPROCESSORS * tuning.warpgroups * sass.flops(loop)
  found: dict[str, list[float]] = {'cycles': [], 'tflops': [], 'ms': []}
  for bandwidth in BANDWIDTHS:
    cycles = sass.cycles(loop, tuning.warpgroups, bandwidth)
    found['cycles'].append(round(cycles, 1))
    ratios = [(FORWARD if name in WEIGHTED else BACKWARD)[bandwidth]]
    for ratio in ratios + [THREE] * (tuning.warpgroups == 3):
      ns = cycles / ratio / CLOCK_GHZ
      job = math.ceil(length / tuning.columns) * ns / 1e3 + fixed
      found['tflops'].append(round(flops / ns / 1e3, 1))
      found['ms'].append(round(jobs * job / 1e3, 4))
  return {name: [min(x), max(x)] for name, x in found.items()}


def measure(shape, tunings: dict[str, dict[str, int]], device):
  """A row for each sweep."""
  # Only now: Pallas looks for the compiler when it is imported.
  from mira_jax.kernels.gpu import passes

  sharding = jax.sharding.SingleDeviceSharding(device)
  x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
  used = {name: passes.tuning(name, shape[-1]) for name in passes.TUNING}
  for name, options in tunings.items():
    used[name] = dataclasses.replace(used[name], **options)
  codes = disassemble(attention(passes.tuned(used)), (x, x, x))
  rows = []
  for name, tuning in used.items():
    code, spills = codes[name]
    row = {'sweep': name, 'tuning': dataclasses.asdict(tuning)}
    row['spill_bytes'] = spills
    rows.append(row | estimate(name, code, tuning, shape))
  return rows


def total(rows, shape) -> dict[str, dict[str, list[float]]]:
  """Milliseconds of each pass of attention, and TFLOP/s of what it needs."""
  batch, length, heads, width = shape
  unit = 2 * batch * heads * length**2 * width
  ms = {row['sweep']: row['ms'] for row in rows}
  found = {}
  for mode, (sweeps, products) in MODES.items():
    low, high = (sum(ms[x][i] for x in sweeps) for i in (0, 1))
    found[mode] = {'ms': [round(low, 4), round(high, 4)]}
    if products:
      tflops = [round(products * unit / x / 1e9, 1) for x in (high, low)]
      found[mode]['tflops'] = tflops
  return found


# ----- the command ------------------------------------------------------------


def parse(argv: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )

  def shape(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(',')))

  def tuning(text: str) -> tuple[str, dict[str, int]]:
    name, _, options = text.partition(':')
    pairs = (x.split('=') for x in options.split(','))
    return name, {key: int(value) for key, value in pairs}

  parser.add_argument(
    '--shape', type=shape, default=(32, 1568, 12, 64), help='B,L,H,D'
  )
  parser.add_argument(
    '--tuning',
    type=tuning,
    action='append',
    default=[],
    help='SWEEP:FIELD=NUMBER,... of gpu.sweep.Tuning',
  )
  parser.add_argument('--out', type=pathlib.Path, help='JSON')
  return parser.parse_args(argv)


def main() -> None:
  """Prints the table and writes the JSON."""
  args = parse()
  folder = compilers.find('cuda')
  compilers.load('cuda', folder)
  root = find_disassembler(folder)
  if not root:
    sys.exit('no nvdisasm; see tests/aot/install.py')
  import jax.experimental.mosaic.gpu  # sets the variable that follows, too

  os.environ['MOSAIC_GPU_CUDA_ROOT'] = str(root)
  (device,) = compilers.devices(compilers.Target('cuda', 'h200'))
  rows = measure(args.shape, dict(args.tuning), device)
  for row in rows:
    tuning = row['tuning']
    size = '{rows}x{columns}x{warpgroups}'.format(**tuning)
    flags = [x for x in ('held', 'persistent') if tuning[x]]
    print(
      f'{row["sweep"]:17}{size:10}{" ".join(flags):16}'
      f'{row["spill_bytes"]:5} B{_range(row["cycles"], 0):>13} cycles'
      f'{_range(row["tflops"], 0):>12} TFLOP/s{_range(row["ms"], 2):>13} ms'
    )
  modes = total(rows, args.shape)
  for mode, found in modes.items():
    tflops = found.get('tflops')
    speed = f'{_range(tflops, 0):>13} TFLOP/s' if tflops else ''
    print(f'{mode:20}{_range(found["ms"], 2):>13} ms{speed}')
  if args.out:
    result = {
      'command': ' '.join(sys.argv),
      'date': datetime.date.today().isoformat(),
      'jax': jax.__version__,
      'device': 'NVIDIA H200, estimated',
      'shape': args.shape,
      'clock_ghz': CLOCK_GHZ,
      'sweeps': rows,
      'modes': modes,
    }
    args.out.write_text(json.dumps(result, indent=1) + '\n')


def _range(ends: list[float], digits: int) -> str:
  low, high = (f'{x:.{digits}f}' for x in ends)
  return low if low == high else f'{low} to {high}'


if __name__ == '__main__':
  main()
