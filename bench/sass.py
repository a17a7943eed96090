"""A model of a Hopper multiprocessor that replays machine code (SASS).

A multiprocessor has four alike parts, each with one warp of every consumer
warpgroup, so one part is modelled. Its warps run the main loop of a kernel in
order: an instruction issues when its warp's previous one has stalled as long as
the compiler wrote, when the scoreboards that it waits for are clear, and when
its unit is free. Of several warps that could go on, the one that has waited
longest does. Copies from global memory always arrive in time, and branches
fall through.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

_LABEL = re.compile(r'(\.L_x_\d+):')
# nvdisasm's control columns: scoreboards to wait for, the one that is cleared
# when operands are read, the one when the result is there, yield, stall cycles.
_LINE = re.compile(
  r'\s*([^\s:]+):(.):(.):.:(\d\d)\s+/\*\w+\*/\s+(?:@!?U?P\w+\s+)?'
  r'([A-Z][\w.]*)\s*(.*)'
)
_BRANCH_TARGET = re.compile(r'\.L_x_\d+')

SCOREBOARDS = 6
# Cycles between operands read and scoreboard cleared, at most.
READ = 14
# Cycles before a product starts, and between its end and its results.
PRODUCT = 24
# Repetitions of the loop, and how many of them are left out at first.
ROUNDS, WARM = 24, 8


class Unit(NamedTuple):
  """Where instructions of a kind run.

  A part issues 32 lanes per cycle. It has 32 lanes for float32, 16 for
  comparisons, integers and conversions, and 4 for exponentials.
  """

  name: str = ''
  cycles: int = 0  # that a warp occupies it
  latency: int = 6  # cycles to the result, where a scoreboard says when


_ALU = Unit('alu', 2)
UNITS = collections.defaultdict(Unit) | {
  'MUFU': Unit('mufu', 8, 22),
  'LDS': Unit(latency=30),
  'SHFL': Unit(latency=26),
  'SYNCS': Unit(latency=24),  # barriers in shared memory
  'BAR': Unit(latency=22),
  'MEMBAR': Unit(latency=20),
  'FENCE': Unit(latency=16),
  'LDL': Unit(latency=60),  # spilled registers
  'STL': Unit(latency=60),
  'LDG': Unit(latency=60),
}
for _name in (
  *('F2FP', 'FMNMX', 'FMNMX3', 'FSEL', 'FSETP', 'ISETP', 'LOP3', 'SEL'),
  *('IADD3', 'SHF', 'LEA', 'PLOP3', 'PRMT', 'VIMNMX'),
):
  UNITS[_name] = _ALU


class Instruction(NamedTuple):
  """One line of nvdisasm's output."""

  name: str  # with its options, such as 'MUFU.EX2'
  operands: str
  stall: int
  waits: tuple[int, ...] = ()  # scoreboards
  read: int | None = None
  written: int | None = None

  @property
  def kind(self) -> str:
    """The name without options."""
    return self.name.partition('.')[0]

  @property
  def columns(self) -> int:
    """N of a warpgroup's 64 x N x 16 product, or 0."""
    found = re.match(r'HGMMA\.64x(\d+)x16\.', self.name)
    return int(found[1]) if found else 0


def parse(text: str) -> tuple[list[Instruction], dict[str, int]]:
  """Instructions, and the index of the one that each label marks."""
  instructions, labels = [], {}
  for line in text.splitlines():
    if label := _LABEL.match(line):
      labels[label[1]] = len(instructions)
    elif found := _LINE.match(line):
      waits, read, written, stall, name, operands = found.groups()
      instructions.append(
        Instruction(
          name,
          operands.strip(),
          int(stall),
          _scoreboards(waits),
          None if read == '-' else int(read),
          None if written == '-' else int(written),
        )
      )
  return instructions, labels


def _scoreboards(column: str) -> tuple[int, ...]:
  """'-', '1&3', or a mask such as '0x3f'."""
  if column.startswith('0x'):
    mask = int(column, 16)
    return tuple(i for i in range(SCOREBOARDS) if mask >> i & 1)
  return tuple(map(int, re.findall(r'\d', column)))


def main_loop(text: str) -> list[Instruction]:
  """The innermost loop with products.

  Raises:
    ValueError: there is none, or more than one.
  """
  instructions, labels = parse(text)
  # After the last EXIT is what waits where a barrier is late, and jumps back.
  exits = [i for i, x in enumerate(instructions) if x.kind == 'EXIT']
  loops = []
  for i, x in enumerate(instructions[: max(exits, default=0)]):
    target = _BRANCH_TARGET.search(x.operands) if x.kind == 'BRA' else None
    start = labels.get(target[0], i + 1) if target else i + 1
    if any(x.columns for x in instructions[start : i + 1]):
      loops.append(range(start, i + 1))
  inner = {
    x for x in loops if not any(y.start in x and len(y) < len(x) for y in loops)
  }
  if len(inner) != 1:
    raise ValueError(f'{len(inner)} loops with products, not one')
  (loop,) = inner
  return instructions[loop.start : loop.stop]


def flops(loop: Sequence[Instruction]) -> int:
  """Floating-point operations of a warpgroup per repetition, in products."""
  return sum(2 * 64 * x.columns * 16 for x in loop)


def product_cycles(x: Instruction, bandwidth: float) -> float:
  """How long a product occupies the tensor cores.

  They multiply 64 x 16 by 16 x N in N / 2 cycles, if shared memory delivers
  both sides in that time, or the right one where the left lies in registers.
  """
  left = 0 if re.match(r'R\d+, R\d+, gdesc', x.operands) else 64
  return max(x.columns / 2, (left + x.columns) * 16 * 2 / bandwidth)


@dataclasses.dataclass
class _Warp:
  """Where a warp is, and when what it waits for is there."""

  next: int = 0  # instruction
  time: float = 0.0
  issued: float = 0.0  # its last instruction
  products: float = 0.0  # are all there
  rounds: list[float] = dataclasses.field(default_factory=list)
  clear: list[float] = dataclasses.field(
    default_factory=lambda: [0.0] * SCOREBOARDS
  )


def cycles(
  loop: Sequence[Instruction], warps: int, bandwidth: float = 128
) -> float:
  """Cycles of one repetition of a loop by all warps, side by side.

  The mean of warps that start together and of warps that start evenly spread:
  they may fall into step either way.

  Args:
    loop: instructions of each warp.
    warps: consumer warpgroups of a thread block.
    bandwidth: bytes that products read from shared memory per cycle.
  """
  apart = sum(x.stall for x in loop) / warps
  starts = (0.0, apart) if warps > 1 else (0.0,)
  times = [_replay(loop, warps, bandwidth, start) for start in starts]
  return sum(times) / len(times)


def _replay(
  loop: Sequence[Instruction], warps: int, bandwidth: float, apart: float
) -> float:
  """Cycles of one repetition, of warps that start some cycles apart."""
  free = collections.defaultdict[str, float](float)  # unit -> when it is free
  states = [_Warp(time=i * apart) for i in range(warps)]
  units = [UNITS[x.kind] for x in loop]
  drains = [x.name.startswith('WARPGROUP.DEPBAR') for x in loop]

  def ready(warp: _Warp) -> float:
    i = warp.next
    time = max(warp.time, free['issue'], free[units[i].name])
    for scoreboard in loop[i].waits:
      time = max(time, warp.clear[scoreboard])
    return max(time, warp.products) if drains[i] else time

  while any(len(warp.rounds) < ROUNDS for warp in states):
    time, warp = min(
      ((ready(x), x) for x in states), key=lambda x: (x[0], x[1].issued)
    )
    _issue(loop[warp.next], warp, time, free, bandwidth)
    warp.next += 1
    if warp.next == len(loop):
      warp.next = 0
      warp.rounds.append(warp.time)
  end, start = (max(x.rounds[i - 1] for x in states) for i in (ROUNDS, WARM))
  return (end - start) / (ROUNDS - WARM)


def _issue(
  x: Instruction,
  warp: _Warp,
  time: float,
  free: dict[str, float],
  bandwidth: float,
) -> None:
  """Issues an instruction of a warp at a time."""
  unit = UNITS[x.kind]
  free['issue'] = time + 1
  if unit.name:
    free[unit.name] = time + unit.cycles
  if x.columns:
    start = max(free['tensor'], time + PRODUCT)
    free['tensor'] = start + product_cycles(x, bandwidth)
    warp.products = max(warp.products, free['tensor'] + PRODUCT)
  if x.written is not None:
    clear = max(warp.clear[x.written], time + unit.latency)
    warp.clear[x.written] = clear
  if x.read is not None:
    ordered = x.kind in ('BAR', 'MEMBAR')
    wait = unit.latency if ordered else min(unit.latency, READ)
    warp.clear[x.read] = max(warp.clear[x.read], time + wait)
  warp.issued = time
  warp.time = time + max(1, x.stall)
  if x.name.startswith('BAR.SYNC'):
    warp.time = max(warp.time, time + unit.latency)
