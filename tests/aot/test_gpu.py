"""The GPU kernels as machine code for Hopper, from its real compiler."""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import pass_cases
from aot import gpu
from bench import hopper
from bench.card_parts import times
from mira_jax.kernels import dispatch, timing, vjp
from mira_jax.kernels.attention import mira_attention
from mira_jax.mira import MiraConfig

pytest.importorskip('jax.experimental.pallas.mosaic_gpu')

from mira_jax.kernels.gpu import passes
from mira_jax.kernels.gpu.sweep import Tuning

pytestmark = [
  pytest.mark.aot,
  pytest.mark.skipif(
    gpu.FOLDER not in os.environ,
    reason=f'{gpu.FOLDER} names no folder of CUDA wheels; see tests/aot/gpu.py',
  ),
]
# A kernel that another case has compiled is not compiled, nor reported, again.
CASES = pass_cases.CASES | pass_cases.JOINT
MOST = [x for x in CASES if not x.endswith('no bias')]


def compiled(run, shape):
  return jax.jit(run).lower(pass_cases.shapes(shape, gpu.device())).compile()


@pytest.fixture(autouse=True)
def _report(monkeypatch):
  monkeypatch.setenv('MOSAIC_GPU_DUMP_PTXAS', '1')


def check_spills(log):
  """No kernel keeps more in memory than its tuning allows."""
  for name, count in gpu.spills(log).items():
    assert count <= passes.SPILLS.get(name, 0), log
  assert 'serialized' not in log


@pytest.mark.parametrize('shape', gpu.SHAPES.values(), ids=gpu.SHAPES)
@pytest.mark.parametrize('case', MOST)
def test_kernels_fit_into_registers(capfd, shape, case):
  run = functools.partial(CASES[case].run, passes.PASSES)
  compiled(run, shape)
  log = ''.join(capfd.readouterr())
  assert 1 <= len(gpu.spills(log)) <= CASES[case].kernels, log
  check_spills(log)


# 160 tokens take three warpgroups of fewer registers, up to a width of 80; 393
# are padded to a multiple of 8.
@pytest.mark.parametrize(
  ('length', 'width'),
  [(160, 16), (160, 80), (392, 32), (392, 96), (392, 128), (393, 64), (1, 64)],
)
def test_other_shapes_fit(capfd, length, width):
  def run(x):
    return [CASES[name].run(passes.PASSES, x) for name in MOST]

  compiled(run, (2, length, 3, width))
  log = ''.join(capfd.readouterr())
  assert gpu.spills(log)
  check_spills(log)


def test_every_kernel_has_a_name_of_its_own():
  def run(x):
    return [CASES[name].run(passes.PASSES, x) for name in MOST]

  text = compiled(run, (1, 192, 1, 64)).as_text()
  names = set(re.findall(r'mira_(\w+?)\b', text))
  assert names >= passes.TUNING.keys()


def test_warpgroups_that_take_turns_fit(capfd):
  turns = passes.tuned({'attend': Tuning(64, 128, turns=True)})
  compiled(lambda x: turns.attend(*x[:3], None), gpu.SHAPES['decoder'])
  log = ''.join(capfd.readouterr())
  assert gpu.spills(log) == {'attend': 0}, log


def test_timed_calls_stay_in_a_loop_that_copies_nothing():
  x = pass_cases.shapes(gpu.SHAPES['encoder'], gpu.device())[:3]
  count = jax.ShapeDtypeStruct((), jnp.int32, sharding=gpu.device())
  repeat = timing.repeated(lambda *x: passes.PASSES.attend(*x, None), x, 8)
  text = repeat.lower(count, x).compile().as_text()
  # Computations end with a brace of their own; the last one is the program.
  *loops, program = re.findall(r'^(?:ENTRY )?%.*?^}', text, re.M | re.S)
  (held,) = (x for x in loops if 'custom_call_target="mosaic_gpu' in x)
  assert 'mosaic_gpu' not in program
  assert not re.search(r'= \w+\[\d.*? copy\(', held)
  assert '"known_trip_count":{"n":"8"}' in text


@pytest.mark.parametrize('name', times.SWEEPS)
def test_a_card_times_kernels_alone(name):
  run = functools.partial(times.SWEEPS[name].run, passes.PASSES)
  text = compiled(run, gpu.SHAPES['encoder']).as_text()
  found = re.findall(r'op_name="[^"]*?mira_(\w+)', text)
  assert set(found) == set(name.split(' + '))


@pytest.mark.parametrize(
  ('name', 'tuning'),
  times.variants(),
  ids=lambda x: x if isinstance(x, str) else times.describe(x),
)
def test_tunings_that_a_card_compares_compile(capfd, name, tuning):
  run = times.SWEEPS[times.TIMED_AS.get(name, name)].run
  tuned = passes.tuned({name: tuning})
  compiled(functools.partial(run, tuned), gpu.SHAPES['decoder'])
  # The compiler reports nothing of what it has compiled before.
  assert 'serialized' not in ''.join(capfd.readouterr())


def test_the_machine_code_is_fast(tmp_path):
  """In the model that docs/kernels.md has the figures of."""
  if not hopper.find_disassembler(pathlib.Path(os.environ[gpu.FOLDER])):
    pytest.skip('no nvdisasm; see tests/aot/install.py')
  out = tmp_path / 'estimates.json'
  # In a process of its own: kernels that this one has compiled are not dumped.
  subprocess.run([sys.executable, hopper.__file__, '--out', out], check=True)
  found = json.loads(out.read_text())
  assert {x['sweep'] for x in found['sweeps']} == passes.TUNING.keys()
  modes = found['modes']
  assert modes['flashlite forward']['ms'][1] < 0.6
  assert modes['flashlite backward']['ms'][1] < 1.65
  assert modes['exact forward']['ms'][1] < 1.8
  assert modes['exact backward']['ms'][1] < 3.6


@pytest.mark.parametrize('shape', [gpu.SHAPES['huge'], gpu.SHAPES['long']])
@pytest.mark.parametrize('name', pass_cases.OPERATIONS)
def test_both_passes_need_a_few_numbers_per_row(shape, name):
  batch, length, heads, _ = shape
  operations = vjp.operations(passes.PASSES)
  program = compiled(lambda x: pass_cases.both(operations, name, x), shape)
  temporary = program.memory_analysis().temp_size_in_bytes
  assert 0 < temporary < 12 * batch * heads * length * 4


# ----- what models call -------------------------------------------------------


def temporaries(shape, mode: str, implementation: str | None = None) -> int:
  """Bytes that attention, forward and backward, needs besides its arrays."""
  mesh = gpu.mesh()
  x = jax.ShapeDtypeStruct(
    shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec())
  )
  config = None if mode == 'plain' else MiraConfig(mode=mode)

  def loss(*x):
    attended = mira_attention(
      *x, num_frames=8, config=config, implementation=implementation
    )
    return attended.output.astype(jnp.float32).sum()

  with jax.set_mesh(mesh):
    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
  return program.memory_analysis().temp_size_in_bytes


def test_an_h200_gets_its_kernels():
  with jax.set_mesh(gpu.mesh()):
    target = dispatch.target()
    asked = dispatch.Request(gpu.SHAPES['long'], jnp.bfloat16, 'exact', target)
    assert dispatch.choose(asked).name == 'pallas_gpu'
  assert target == dispatch.Target('gpu', 'NVIDIA H200')


def test_exact_mode_needs_a_fiftieth_of_the_memory():
  shape = (8, 1568, 12, 64)
  materialised = temporaries(shape, 'exact', 'reference')
  assert temporaries(shape, 'exact') < materialised / 50
  assert temporaries(shape, 'exact', 'streaming') < materialised / 10
  assert temporaries(gpu.SHAPES['long'], 'exact') < 2**28


@pytest.mark.parametrize('mode', ['plain', 'flashlite'])
def test_cudnn_compiles(monkeypatch, mode):
  cudnn = pytest.importorskip('jax._src.cudnn.fused_attention_stablehlo')
  # They look for an installed library, and for a GPU.
  monkeypatch.setattr(cudnn, 'check_cudnn_version', lambda: 92800)
  monkeypatch.setattr(cudnn, 'check_compute_capability', lambda _: True)
  shape = (8, 1568, 12, 64)
  q_bytes = 2 * math.prod(shape)
  assert temporaries(shape, mode, 'cudnn') < 12 * q_bytes
