"""Collectives and memory traffic of a compiled step, from its HLO text.

`Compiled.cost_analysis()` lists no collectives and counts the body of a loop
once. Here a loop of known length counts as often as it runs, any other once.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-broadcast',
  'collective-permute',
)
# Transfers of a TPU over the network to other slices.
BETWEEN_SLICES = {
  'ALL_REDUCE': 'all-reduce between slices',
  'ONE_TO_ONE': 'permute between slices',
}
# Instructions that move nothing, or whose operands are counted elsewhere.
_FREE = {
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'after-all',
  'partition-id',
  'replica-id',
  'while',
  'conditional',
  'call',
}
_HEAD = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\{$')
_LINE = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)')
_ARRAY = re.compile(
  r'\b(pred|bf16|[suf]\d+|c\d+|f8\w+)\[([\d,]*)\](\{[^}]*\})?'
)


class Collective(NamedTuple):
  """One kind of communication among groups of one size.

  Attributes:
    kind: of KINDS or BETWEEN_SLICES.
    group: devices, or slices, that take part together.
    times: how often in a step.
    bytes: per device and step, of the whole array: the sum, the gathered
      array, the array before it is scattered, or the array sent.
  """

  kind: str
  group: int
  times: int
  bytes: int


class _Instruction(NamedTuple):
  name: str
  type: str
  opcode: str
  rest: str  # operands and attributes

  @property
  def operands(self) -> list[str]:
    return re.findall(r'%([\w.-]+)', self.rest.partition(')')[0])

  def called(self, *attributes: str) -> list[str]:
    """Computations in attributes such as `calls=`."""
    names = '|'.join(attributes)
    found = re.findall(rf'\b(?:{names})=(\{{[^}}]*\}}|%[\w.-]+)', self.rest)
    return re.findall(r'%([\w.-]+)', ' '.join(found))


class _Step(NamedTuple):
  """An instruction that runs."""

  instruction: _Instruction
  computation: str
  times: int
  loop: int  # the length of the innermost loop around it, or 1
  fused: bool  # within a fusion


class Program:
  """The instructions of a step, in the order of its text."""

  def __init__(self, text: str):
    self.computations: dict[str, list[_Instruction]] = {}
    self.entry, current = '', []
    for line in text.splitlines():
      if head := _HEAD.match(line):
        current = self.computations.setdefault(head[2], [])
        self.entry = head[2] if head[1] else self.entry
      elif found := _LINE.match(line):
        current.append(_Instruction(*found.groups()))
    self.types = {
      name: {x.name: x.type for x in body}
      for name, body in self.computations.items()
    }

  def steps(self, name='', times=1, loop=1, fused=False) -> Iterator[_Step]:
    name = name or self.entry
    for x in self.computations[name]:
      yield _Step(x, name, times, loop, fused)
      if x.opcode == 'while':
        length = self._length(x)
        for body in x.called('body'):
          yield from self.steps(body, times * length, length, fused)
      elif x.opcode == 'conditional':
        branches = x.called(
          'branch_computations', 'true_computation', 'false_computation'
        )
        longest = max(branches, key=lambda x: len(self.computations[x]))
        yield from self.steps(longest, times, loop, fused)
      elif x.opcode in ('fusion', 'call', 'async-start'):
        inner = fused or x.opcode == 'fusion'
        for called in x.called('calls', 'to_apply'):
          yield from self.steps(called, times, loop, inner)

  def _length(self, loop: _Instruction) -> int:
    """Iterations of a while loop; 1 where they are unknown."""
    if found := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
      return int(found[1])
    # A TPU's compiler drops the number: a scan counts up to a constant.
    *body, root = self.computations[loop.called('condition')[0]]
    limits = [
      re.match(r'\d+', x.rest)
      for x in body
      if x.opcode == 'constant' and x.name in root.operands
    ]
    counts = root.opcode == 'compare' and 'direction=LT' in root.rest
    return int(limits[0][0]) if counts and limits and limits[0] else 1


def _bytes(type_: str, *, hbm: bool = False, loop: int = 1) -> int:
  """Bytes of a type, such as '(f32[8,128]{1,0}, s32[])'.

  Args:
    type_: as in the text.
    hbm: leaves out what the compiler keeps on the chip, marked S(1).
    loop: iterations, each of which reads or writes its slice of what a scan
      goes over: an array whose first dimension this is.
  """
  total = 0
  for kind, shape, layout in _ARRAY.findall(type_):
    if hbm and re.search(r'S\([1-9]', layout):
      continue
    sizes = [int(x) for x in shape.split(',') if x]
    bits = [int(x) for x in re.findall(r'\d+', kind)] or [8]  # of a pred
    part = loop if loop > 1 and sizes and sizes[0] == loop else 1
    total += math.prod(sizes) * bits[0] // 8 // part
  return total


def collectives(text: str) -> list[Collective]:
  """All communication of a step, the largest first."""
  program = Program(text)
  seen = {}  # a TPU writes one collective into several fusions
  for step in program.steps():
    if found := _collective(step, program.types[step.computation]):
      channel = re.search(r'channel_id=(\d+)', step.instruction.rest)
      key = channel[1] if channel else step.computation + step.instruction.name
      seen[key] = found
  totals: dict[tuple[str, int], list[int]] = {}
  for kind, group, count, size in seen.values():
    total = totals.setdefault((kind, group), [0, 0])
    total[0] += count
    total[1] += count * size
  found = [Collective(*key, *total) for key, total in totals.items()]
  return sorted(found, key=lambda x: -x.bytes)


def _collective(step: _Step, types: dict[str, str]) -> Collective | None:
  x = step.instruction
  kind = x.opcode.removesuffix('-start')
  given = sum(_bytes(types.get(name, '')) for name in x.operands)
  if kind == 'send' and 'megascale_transfer_type' in x.rest:
    (transfer,) = re.findall(r'transfer_type="(\w+)"', x.rest)
    slices = re.search(r'megascale_target="\{([\d,]+)\}', x.rest)
    group = len(slices[1].split(',')) if slices else 2
    sent = _bytes(types[x.operands[0]])
    kind = BETWEEN_SLICES.get(transfer, f'{transfer.lower()} between slices')
    return Collective(kind, group, step.times, sent)
  if kind not in KINDS:
    return None
  group = 2 if kind == 'collective-permute' else _group(x.rest)
  if kind == 'all-gather':
    given *= group
  # A TPU's reduce-scatter is an all-reduce in a fusion of this name.
  if kind == 'all-reduce' and step.computation.startswith('all-reduce-scatter'):
    kind = 'reduce-scatter'
  return Collective(kind, group, step.times, given)


def _group(rest: str) -> int:
  """Devices of one of the `replica_groups`, in any of its notations."""
  if found := re.search(r'replica_groups=\{\{([\d,]*)\}', rest):
    return len(found[1].split(','))
  if found := re.search(r'replica_groups=\[[\d,]*?(\d+)\]<=', rest):
    return int(found[1])
  found = re.search(r"replica_groups=mesh\[(.*?)\].*? \{('.*?)\}", rest)
  axes = dict(re.findall(r"'(\w+)'=(\d+)", found[1])) if found else {}
  # 'a' is a whole axis, 'a':(2)4 a part of 4.
  over = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2]) if found else []
  return math.prod(int(part or axes[name]) for name, part in over)


def traffic(text: str) -> int:
  """Bytes that a step reads from a device's memory and writes to it.

  A fusion reads its operands and writes its results. Of arrays that a scan goes
  over each iteration touches its slice; what stays on the chip costs nothing.
  """
  program = Program(text)
  return sum(
    step.times * _moved(step, program.types[step.computation])
    for step in program.steps()
    if not step.fused
  )


def _moved(step: _Step, types: dict[str, str]) -> int:
  x, size = step.instruction, functools.partial(_bytes, hbm=True)
  if x.opcode in _FREE or x.opcode.endswith(('-start', '-update')):
    return 0
  if 'custom_call_target="AllocateBuffer"' in x.rest:
    return 0
  if x.opcode in ('slice', 'dynamic-slice', 'gather'):
    return 2 * size(x.type)
  if x.opcode == 'dynamic-update-slice':
    return 2 * size(types.get(x.operands[1], ''))
  if x.opcode.endswith('-done'):
    return _bytes(x.type) + size(x.type)
  arrays = [x.type, *(types.get(name, '') for name in x.operands)]
  return sum(size(array, loop=step.loop) for array in arrays)
