"""Compiles the TPU kernels with the TPU's compiler, without a TPU.

  MIRA_AOT_TPU=FOLDER python tests/aot/tpu.py v5e          # one chip, as JSON
  MIRA_AOT_TPU=FOLDER python tests/aot/tpu.py --record     # tpu_cycles.json

FOLDER holds libtpu (`pip install --no-deps --target FOLDER libtpu==VERSION`,
the version that `jax[tpu]` asks for). A TPU starts one bundle of instructions a
cycle, in order: the bundles of a kernel times the steps of its grid are its
cycles, but for waits on memory. libtpu reads its options when it is loaded and
serves one kind of chip a process: hence a process for each.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

from mira_jax.aot import compilers

FOLDER = compilers.VARIABLES['tpu']
RECORD = pathlib.Path(__file__).with_name('tpu_cycles.json')


class Chip(NamedTuple):
  """What is compiled for, and what turns cycles into seconds."""

  topology: str
  hertz: float  # assumed


CHIPS = {
  'v5e': Chip('v5e:2x2', 1.5e9),
  'v5p': Chip('v5p:2x2x1', 1.75e9),  # figures are of one of its two cores
  'v6e': Chip('v6e:2x2', 1.75e9),
}
# B, L, H, D of ViT-B, ViT-H, the encoder of MAE (90 % masked), and a long clip.
SHAPES = {
  'decoder': (8, 1568, 12, 64),
  'huge': (8, 1568, 16, 80),
  'encoder': (64, 160, 12, 64),
  'long': (1, 32768, 12, 64),
}
# L x L x D products that a pass is about, however its kernel gets there.
PRODUCTS = {
  'attend': 2,
  'attend_backward': 5,
  'marginal': 1,
  'marginal_backward': 3,
  'redistribute': 3,
  'redistribute_backward': 5,
}
# Of a kernel's bundles, those that every further chunk of keys runs again: the
# first chunk has code of its own in the forward passes.
LOOPED = {'attend': 1 / 2, 'redistribute': 1 / 2, 'marginal': 2 / 3}
OPERATIONS = (
  'biased_attention',
  'attention_marginal',
  'redistributed_attention',
)
OPERATION_SHAPES = ('decoder', 'long')


def measure(chip: str) -> dict[str, dict]:
  """Compiles everything for a chip, in a process of its own.

  Returns:
    'PASS SHAPE' -> cycles, tflops, seconds (to compile); 'OPERATION SHAPE' ->
    temporaries (bytes), of forward and backward; and 'temporaries of exact
    mode' -> the same of `mira_attention`, by implementation.

  Raises:
    RuntimeError: something does not compile.
  """
  with tempfile.TemporaryDirectory() as dump:
    done = subprocess.run(
      [sys.executable, __file__, chip],
      env=os.environ
      | {
        'LIBTPU_INIT_ARGS': (
          f'--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true'
        ),
        'MIRA_AOT_DUMP': dump,
        'PYTHONPATH': str(pathlib.Path(__file__).parents[2]),
      },
      capture_output=True,
      text=True,
    )
  if done.returncode:
    raise RuntimeError(f'{chip}: {done.stderr[-4000:]}')
  return json.loads(done.stdout.splitlines()[-1])


def record() -> None:
  """Writes the cycles of all chips to tpu_cycles.json."""
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
  topology = topologies.get_topology_desc(
    platform='tpu', topology_name=chip.topology
  )
  device = SingleDeviceSharding(topology.devices[0])
  results = {
    'temporaries of exact mode': {
      name: _exact_temporaries(topology.devices[0], name)
      for name in ('pallas_tpu', 'reference')
    }
  }
  for shape in SHAPES:
    for name in PRODUCTS:
      results[f'{name} {shape}'] = _measure_pass(name, shape, chip, device)
  for shape in OPERATION_SHAPES:
    for name in OPERATIONS:
      results[f'{name} {shape}'] = _measure_operation(name, shape, device)
  return results


def _measure_pass(name: str, shape: str, chip: Chip, device) -> dict:
  import time

  from mira_jax.kernels.tpu.blocks import cut
  from mira_jax.kernels.tpu.passes import PASSES

  batch, length, heads, width = SHAPES[shape]
  inputs, options = _arguments(SHAPES[shape], device)
  start = time.monotonic()
  _compile(
    lambda *x: getattr(PASSES, name)(*x, **options.get(name, {})),
    SHAPES[shape],
    inputs[name],
  )
  blocks = cut(SHAPES[shape], inputs[name][0].dtype)
  cycles = _bundles(name) * math.prod(blocks.grid)
  if blocks.chunks > 1:
    cycles = round(cycles * blocks.chunks * LOOPED.get(name, 1))
  flops = 2 * PRODUCTS[name] * batch * heads * length**2 * width
  return {
    'cycles': cycles,
    'tflops': round(flops * chip.hertz / cycles / 1e12, 1),
    'seconds': round(time.monotonic() - start, 1),
  }


def _measure_operation(name: str, shape: str, device) -> dict:
  import jax

  from mira_jax.kernels import vjp
  from mira_jax.kernels.tpu.passes import PASSES

  inputs, _ = _arguments(SHAPES[shape], device)
  token, _, _, key = inputs['attend']
  arguments, options = {
    'biased_attention': ((token, token, token, key), (False,)),
    'attention_marginal': ((token, token), ()),
    'redistributed_attention': (
      (token, token, token, key),
      (0.5, 1e-3, True),
    ),
  }[name]

  def gradients(cotangent, *x):
    operation = getattr(vjp, name)
    _, pull = jax.vjp(lambda *x: operation(PASSES, *x, *options), *x)
    return pull(cotangent)

  plain = name == 'attention_marginal'
  cotangent = key if plain else token
  compiled = _compile(gradients, SHAPES[shape], (cotangent, *arguments))
  return {'temporaries': compiled.memory_analysis().temp_size_in_bytes}


def _exact_temporaries(device, implementation: str) -> int:
  """Bytes that exact attention, forward and backward, needs on a TPU."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

  from mira_jax.kernels import dispatch
  from mira_jax.kernels.attention import mira_attention
  from mira_jax.mira import MiraConfig

  mesh = Mesh(np.array([device]), ('data',), (AxisType.Auto,))
  where = NamedSharding(mesh, PartitionSpec())
  x = jax.ShapeDtypeStruct(SHAPES['decoder'], jnp.bfloat16, sharding=where)

  def loss(*x):
    attended = mira_attention(
      *x, num_frames=8, config=MiraConfig(), implementation=implementation
    )
    return attended.output.astype(jnp.float32).sum()

  with jax.set_mesh(mesh):
    asked = dispatch.Request(x.shape, x.dtype, 'exact', dispatch.target())
    assert dispatch.choose(asked)[0] == 'pallas_tpu', asked
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def _arguments(shape: tuple[int, ...], device) -> tuple[dict, dict]:
  """Arguments and options of each pass."""
  import jax
  import jax.numpy as jnp

  batch, length, heads, width = shape

  def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

  # As a projection leaves it, heads side by side; `_compile` splits it.
  token = array(batch, length, heads * width, dtype=jnp.bfloat16)
  row = array(batch, heads, length)
  key = array(batch, length)
  inputs = {
    'attend': (token, token, token, key),
    'attend_backward': (token, token, token, key, row, row, token),
    'marginal': (token, token),
    'marginal_backward': (token, token, row, key),
    'redistribute': (token, token, token, key, array(batch, heads, width)),
    'redistribute_backward': (token, token, token, key, *(row,) * 4, token),
  }
  options = {
    'attend_backward': {'bias_gradient': False},
    'redistribute': {'residual_mix': 0.5, 'floor': 1e-3},
    'redistribute_backward': {'residual_mix': 0.5, 'gain_gradient': True},
  }
  return inputs, options


def _compile(f, shape: tuple[int, ...], arguments):
  """Compiles f of heads, given them side by side; empties the dump first."""
  import jax

  tokens = (*shape[:2], shape[2] * shape[3])

  def split(*x):
    return f(*(y.reshape(shape) if y.shape == tokens else y for y in x))

  for path in pathlib.Path(os.environ['MIRA_AOT_DUMP']).iterdir():
    path.unlink()
  traced = jax.jit(split).trace(*arguments)
  return traced.lower(lowering_platforms=('tpu',)).compile()


def _bundles(kernel: str) -> int:
  """Bundles of a kernel in the program that was compiled last."""
  dump = pathlib.Path(os.environ['MIRA_AOT_DUMP'])
  (path,) = dump.glob(
    f'*-{kernel}.*-final_hlo-static-per-bundle-utilization.txt'
  )
  _, _, bundles = path.read_text().partition('UTILIZATION:\n')
  return len(bundles.splitlines())


if __name__ == '__main__':
  if sys.argv[1:] == ['--record']:
    record()
  elif 'MIRA_AOT_DUMP' in os.environ:
    print(json.dumps(_measure_here(CHIPS[sys.argv[1]])))
  else:
    print(json.dumps(measure(sys.argv[1]), indent=2))
