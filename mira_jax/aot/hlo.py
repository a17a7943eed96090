"""Collectives of a compiled step, from its HLO text.

`Compiled.cost_analysis()` lists none. A loop of known length counts as often as
it runs, any other once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
# Transfers of a TPU over the network to other slices.
BETWEEN_SLICES = {
  'ALL_REDUCE': 'all-reduce between slices',
  'ONE_TO_ONE': 'permute between slices',
}
_HEAD = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\{$')
_LINE = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)')
_ARRAY = re.compile(r'\b(pred|bf16|[suf]\d+|c\d+|f8\w+)\[([\d,]*)\]')


class Collective(NamedTuple):
  """One kind of communication among groups of one size."""

  kind: str  # of KINDS or BETWEEN_SLICES
  group: int  # devices, or slices, that take part together
  times: int  # how often in a step
  # Per device and step, of the whole array: the sum, the gathered array, the
  # array before it is scattered, or the array sent.
  bytes: int


class _Instruction(NamedTuple):
  name: str
  type: str
  opcode: str
  rest: str  # operands and attributes

  @property
  def operands(self) -> list[str]:
    return _names(self.rest.partition(')')[0])

  def called(self, attributes: str) -> list[str]:
    """Computations in attributes such as `calls|to_apply`."""
    found = re.findall(
      rf'\b(?:{attributes})=(\{{[^}}]*\}}|%[\w.-]+)', self.rest
    )
    return _names(' '.join(found))


Computations = dict[str, list[_Instruction]]


def collectives(text: str) -> list[Collective]:
  """All communication of a step, the largest first."""
  computations, entry, body = {}, '', []
  for line in text.splitlines():
    if head := _HEAD.match(line):
      body = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif found := _LINE.match(line):
      body.append(_Instruction(*found.groups()))
  types = {x.name: x.type for body in computations.values() for x in body}
  seen = {}  # a TPU writes one collective into several fusions
  for x, computation, times in _steps(computations, entry):
    if found := _collective(x, computation, types):
      channel = re.search(r'channel_id=(\d+)', x.rest)
      seen[channel[1] if channel else x.name] = *found, times
  totals: dict[tuple[str, int], list[int]] = {}
  for kind, group, size, times in seen.values():
    total = totals.setdefault((kind, group), [0, 0])
    total[0] += times
    total[1] += times * size
  summed = [Collective(*key, *total) for key, total in totals.items()]
  return sorted(summed, key=lambda x: -x.bytes)


def _steps(
  computations: Computations, name: str, times: int = 1
) -> Iterator[tuple[_Instruction, str, int]]:
  """Instructions that run, their computation, and how often."""
  for x in computations[name]:
    yield x, name, times
    count, called = times, []
    if x.opcode == 'while':
      count, called = times * _length(x, computations), x.called('body')
    elif x.opcode == 'conditional':
      branches = x.called(r'\w+_computations?')
      called = [max(branches, key=lambda x: len(computations[x]))]
    elif x.opcode in ('fusion', 'call', 'async-start'):
      called = x.called('calls|to_apply')
    for inner in called:
      yield from _steps(computations, inner, count)


def _length(loop: _Instruction, computations: Computations) -> int:
  """Iterations of a while loop; 1 where they are unknown."""
  if found := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
    return int(found[1])
  # A TPU's compiler drops the number: a scan counts up to a constant.
  *body, root = computations[loop.called('condition')[0]]
  limits = [
    re.match(r'\d+', x.rest)
    for x in body
    if x.opcode == 'constant' and x.name in root.operands
  ]
  counts = root.opcode == 'compare' and 'direction=LT' in root.rest
  return int(limits[0][0]) if counts and limits and limits[0] else 1


def _collective(
  x: _Instruction, computation: str, types: dict[str, str]
) -> tuple[str, int, int] | None:
  """Kind, group and bytes of an instruction; None if it sends nothing."""
  kind = x.opcode.removesuffix('-start')
  sizes = [_bytes(types.get(name, '')) for name in x.operands]
  if kind == 'send' and 'megascale_transfer_type' in x.rest:
    (transfer,) = re.findall(r'transfer_type="(\w+)"', x.rest)
    slices = re.search(r'megascale_target="\{([\d,]+)\}', x.rest)
    group = len(slices[1].split(',')) if slices else 2
    kind = BETWEEN_SLICES.get(transfer, f'{transfer.lower()} between slices')
    return kind, group, sizes[0]
  if kind not in KINDS:
    return None
  group = 2 if kind == 'collective-permute' else _group(x.rest)
  # A TPU's reduce-scatter is an all-reduce in a fusion of this name.
  if kind == 'all-reduce' and computation.startswith('all-reduce-scatter'):
    kind = 'reduce-scatter'
  return kind, group, sum(sizes) * (group if kind == 'all-gather' else 1)


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


def _names(text: str) -> list[str]:
  return re.findall(r'%([\w.-]+)', text)


def _bytes(type_: str) -> int:
  """Bytes of a type, such as '(f32[8,128]{1,0}, s32[])'."""
  total = 0
  for kind, shape in _ARRAY.findall(type_):
    bits = re.search(r'\d+', kind)  # none in a pred
    count = math.prod(int(x) for x in shape.split(',') if x)
    total += count * int(bits[0] if bits else 8) // 8
  return total
