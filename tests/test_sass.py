"""The model of a Hopper multiprocessor, on machine code."""

from __future__ import annotations

import math
import pathlib

import pytest

from bench import sass

# Most of the consumers' part of the kernel `attend` for heads of 16 with a
# Tuning(64, 32, 2): the loop over tiles of rows around that over tiles of keys,
# and, after the EXIT, two waits for barriers that jump back into it.
CODE = pathlib.Path(__file__).parent / 'stored' / 'mira_attend.sass'


@pytest.fixture(scope='module')
def loop():
  return sass.main_loop(CODE.read_text())


def lines(*texts):
  return sass.parse('\n'.join(texts))[0]


def test_the_main_loop_is_the_innermost_with_products(loop):
  assert [x.columns for x in loop if x.columns] == [32, 16, 16]
  assert sum(x.kind == 'MUFU' for x in loop) == 64 * 32 // 128 + 64 // 32
  assert loop[-1].kind == 'BRA'
  assert len(loop) == 183
  # Queries by keys and P by values, both 64 x 32 x 16.
  assert sass.flops(loop) == 2 * (2 * 64 * 32 * 16)


def test_control_columns():
  (x,) = lines('  0x9:-:2:Y:03   /*0ac0*/   @!P1 LDS.64 R4, [R3+0x10]  ')
  assert x == sass.Instruction('LDS.64', 'R4, [R3+0x10]', 3, (0, 3), None, 2)
  (y,) = lines(' 2&1:4:-:-:15 /*0ad0*/  FADD R1, R2, R3')
  assert (y.waits, y.read, y.written, y.stall) == ((2, 1), 4, None, 15)


def test_code_without_one_loop_is_refused():
  with pytest.raises(ValueError, match='0 loops'):
    sass.main_loop('   -:-:-:Y:05   /*0000*/   EXIT')


def test_a_saturated_unit_sets_the_pace(loop):
  exponentials = [x for x in loop if x.kind == 'MUFU']
  for warps in (1, 2, 3):
    assert sass.cycles(exponentials, warps) == warps * 18 * 8
  products = [x for x in loop if x.columns]
  products += [x for x in loop if x.name.startswith('WARPGROUP.DEPBAR')][-1:]
  assert sass.cycles(products, 3, math.inf) == 3 * (32 + 16 + 16) / 2
  # 64 x 16 and 16 x 32 elements of 2 bytes take longer to read than to use.
  assert sass.cycles(products, 3, 128) == 3 * (24 + 8 + 8)


def test_results_are_waited_for():
  exponential = lines(
    '-:-:0:Y:01  /*0000*/  MUFU.EX2 R1, R1',
    '0:-:-:Y:04  /*0010*/  FADD R1, R1, R1',
  )
  assert sass.cycles(exponential, 1) == 22 + 4
  # The other warp's exponential fits in between.
  assert sass.cycles(exponential, 2) == 22 + 4
  product = lines(
    '-:-:-:Y:01  /*0000*/  HGMMA.64x64x16.F32.BF16 R8, gdesc[UR4], R8, gsb0',
    '-:-:-:Y:01  /*0010*/  WARPGROUP.DEPBAR.LE gsb0, 0x0',
  )
  assert sass.cycles(product, 1) == 24 + 32 + 24 + 1


def test_warps_hide_each_others_latencies(loop):
  one, two, three = (sass.cycles(loop, n) for n in (1, 2, 3))
  assert sum(x.stall for x in loop) < one
  assert 3 * max(len(loop), 18 * 8) <= three
  assert one < two < 1.5 * one
  assert one < three < 1.5 * one
