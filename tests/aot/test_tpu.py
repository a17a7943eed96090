"""What the TPU's own compiler makes of the kernels, chip by chip."""

from __future__ import annotations

import json
import os

import pytest

import tpu

pytestmark = [
  pytest.mark.aot,
  pytest.mark.skipif(
    tpu.FOLDER not in os.environ,
    reason=f'{tpu.FOLDER} names no folder with libtpu; see tests/aot/tpu.py',
  ),
]
RECORDED = json.loads(tpu.RECORD.read_text())


@pytest.fixture(scope='module', params=tpu.CHIPS)
def compiled(request):
  """A chip's name, and what `tpu.measure` says of it: all compiles in VMEM."""
  return request.param, tpu.measure(request.param)


def test_cycles_are_as_recorded(compiled):
  chip, figures = compiled
  found = {x: y['cycles'] for x, y in figures.items() if 'cycles' in y}
  assert found.keys() == RECORDED[chip].keys()
  slower = {
    name: f'{cycles / RECORDED[chip][name] - 1:+.1%}'
    for name, cycles in found.items()
    if cycles > 1.05 * RECORDED[chip][name]
  }
  assert not slower, (
    f'{chip} needs more cycles than recorded: {slower}. If that is meant, '
    f'record again: python tests/aot/tpu.py --record'
  )


def test_every_pass_is_compiled(compiled):
  _, figures = compiled
  for shape in tpu.SHAPES:
    for name in tpu.PASSES:
      assert figures[f'{name} {shape}']['tflops'] > 0


def test_operations_hold_no_map(compiled):
  _, figures = compiled
  for shape in tpu.OPERATION_SHAPES:
    batch, length, heads, _ = tpu.SHAPES[shape]
    one_map = 2 * batch * heads * length**2
    for name in ('biased', 'marginal', 'redistributed'):
      assert figures[f'operation {name} {shape}']['temporaries'] < one_map / 2
