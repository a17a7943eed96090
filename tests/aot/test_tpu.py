"""What the TPU's own compiler makes of the kernels, chip by chip."""

from __future__ import annotations

import json
import os

import pytest

import tpu

pytestmark = pytest.mark.aot
RECORDED = json.loads(tpu.RECORD.read_text())


@pytest.fixture(scope='module', params=tpu.CHIPS)
def compiled(request):
  """A chip's name, and what `tpu.measure` says of it: all compiles in VMEM."""
  if tpu.FOLDER not in os.environ:
    pytest.skip(
      f'{tpu.FOLDER} names no folder with libtpu; see tests/aot/tpu.py'
    )
  return request.param, tpu.measure(request.param)


# Two loops, one in the other, in that of the grid, and a branch that is none.
PROGRAM = """
LB: loop body
     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sphi %s1 } /* Start region 9 */
   0x2   : > { %11 = sbr.rel (!%p6_p1) target = $region4 }
   0x3 LB: >> { %s3 = sphi %s1 } /* Start region 7 :: Start region 5 */
   0x4 LB: >>> { %s4 = sadd.s32 1, %s5 } /* Start region 6 */
   0x5   : >>> { %p1_p4 = scmp.ge.s32.totalorder %s4, 15 /* loop exit test */ }
   0x6   : >> { %p2_p5 = scmp.ge.s32.totalorder (%p1_p4), %s3, 8 /* loop exit test */ }
   0x7   : >>> { %12 = sbr.rel (!%p1_p4) target = $region6  ;;  %v1 = vld [%s1] }
   0x8   : >> { %13 = sbr.rel (!%p2_p5) target = $region7 }
   0x9   : > { %p3_p2 = scmp.ge.s32.totalorder %s2, 50 /* loop exit test */ }
   0xa   : > { %14 = sbr.rel (!%p3_p2) target = $region9 }
   0xb   :  { %15 = vsyncpa 1 }
"""  # noqa: E501


def test_loops_count_as_often_as_they_run():
  in_grid, outer, inner = 6, 2, 4
  assert tpu.step_cycles(PROGRAM) == in_grid + 8 * (outer + 15 * inner)
  endless = PROGRAM.replace('$region6', '$region4')
  with pytest.raises(ValueError, match='no end'):
    tpu.step_cycles(endless)


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
