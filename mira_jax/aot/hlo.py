"""What a compiled program moves, from its text.

The text is that of `jax.stages.Compiled.as_text()`: what one device runs, after
all optimisation. A loop of known length counts as often as it runs, any other
loop once, and a conditional as its largest branch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-broadcast',
  'collective-permute',
)
# What a TPU sends over the network to other slices, instead.
SLICES = {
  'ALL_REDUCE': 'all-reduce between slices',
  'ONE_TO_ONE': 'permute between slices',
}


class Collective(NamedTuple):
  """One kind of communication among groups of one size.

  Attributes:
    kind: one of KINDS, or what is 'between slices'.
    group: ids of the devices of the first group, or of slices.
    count: how often in a step.
    bytes: of the whole array, per device and step: what is summed, what is
      gathered, what was there before it was scattered, what is sent.
  """

  kind: str
  group: tuple[int, ...]
  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  type: str
  opcode: str
  rest: str  # operands and attributes

  @functools.cached_property
  def operands(self) -> list[str]:
    return re.findall(r'%([\w.-]+)', self.rest.split(')', 1)[0])

  def attribute(self, name: str) -> list[str]:
    """Names of computations, such as of `calls=`."""
    found = re.search(rf'\b{name}=(\{{[^}}]*\}}|%[\w.-]+)', self.rest)
    return re.findall(r'%([\w.-]+)', found[1]) if found else []


Module = dict[str, list[_Instruction]]

_HEAD = re.compile(r'(ENTRY )?%?([\w.-]+) (\(.*\) -> .*)?\{$')
_LINE = re.compile(
  r'\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9]*(?:-[a-z0-9]+)*)\((.*)'
)
_ARRAY = re.compile(
  r'\b(pred|bf16|token|[suf]\d+|c\d+|f8\w+)\[([\d,]*)\](?:\{([^}]*)\})?'
)


def parse(text: str) -> tuple[Module, str]:
  """Instructions of every computation, and the name of the first to run."""
  module: Module = {}
  entry, current = '', []
  for line in text.splitlines():
    if not line.startswith(' '):
      head = _HEAD.match(line)
      if head:
        current = module.setdefault(head[2], [])
        entry = head[2] if head[1] else entry
    elif found := _LINE.match(line):
      current.append(_Instruction(*found.groups()))
  return module, entry


def _size(kind: str, shape: str) -> int:
  bits = {'pred': 8, 'token': 0}.get(kind)
  if bits is None:
    bits = int(re.search(r'\d+', kind)[0])
  count = math.prod(int(x) for x in shape.split(',') if x)
  return count * bits // 8


def size(type_: str, *, memory: bool = False) -> int:
  """Bytes of a type.

  Args:
    type_: such as '(f32[8,128]{1,0}, s32[])'.
    memory: leaves out what the compiler keeps on the chip, such as S(1).
  """
  return sum(
    _size(kind, shape)
    for kind, shape, layout in _ARRAY.findall(type_)
    if not (memory and re.search(r'S\([1-9]', layout))
  )


def _loops(module: Module, instruction: _Instruction) -> int:
  """How often a while loop runs; 1 if it does not say so."""
  if found := re.search(
    r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', instruction.rest
  ):
    return int(found[1])
  # A TPU's compiler drops the number. Loops of a scan count from 0 up to it.
  (condition,) = instruction.attribute('condition')
  *body, root = module[condition]
  known = {x.name: x.rest for x in body if x.opcode == 'constant'}
  limits = [known[x] for x in root.operands if x in known]
  if root.opcode != 'compare' or 'direction=LT' not in root.rest or not limits:
    return 1
  return int(limits[0].partition(')')[0])


# ----- collectives ------------------------------------------------------------


class _Seen(NamedTuple):
  """A collective, and what it is known by: the compiler may write it thrice."""

  key: str
  times: int
  kind: str
  group: tuple[int, ...]
  bytes: int


def collectives(text: str) -> list[Collective]:
  """All communication of a step, the largest first.

  An operation that starts here and ends there is one. So are those that share a
  channel: TPUs overlap a collective with other work by writing it into several
  fusions.
  """
  module, entry = parse(text)
  seen = {x.key: x for x in _collectives(module, entry)}
  totals: dict[tuple, list[int]] = {}
  for x in seen.values():
    total = totals.setdefault((x.kind, x.group), [0, 0])
    total[0] += x.times
    total[1] += x.times * x.bytes
  found = [Collective(*key, *total) for key, total in totals.items()]
  return sorted(found, key=lambda x: -x.bytes)


def _collectives(module: Module, name: str) -> list[_Seen]:
  found = []
  for instruction in module[name]:
    kind = instruction.opcode.removesuffix('-start')
    if kind in KINDS:
      found += _collective(module, name, instruction, kind)
    elif 'megascale_transfer_type' in instruction.rest and kind == 'send':
      types = {x.name: x.type for x in module[name]}
      sent = size(types[instruction.operands[0]])
      found.append(_between_slices(instruction, sent))
    elif kind == 'while':
      times = _loops(module, instruction)
      for body in instruction.attribute('body'):
        inner = _collectives(module, body)
        found += [x._replace(times=x.times * times) for x in inner]
    elif kind == 'conditional':
      inner = [_collectives(module, x) for x in _branches(instruction)]
      found += max(inner, key=_moved, default=[])
    elif kind in ('fusion', 'call', 'async'):
      for called in _called(instruction):
        found += _collectives(module, called)
  return found


def _moved(seen: Iterable[_Seen]) -> int:
  return sum(x.times * x.bytes for x in seen)


def _branches(instruction: _Instruction) -> list[str]:
  names = (
    'branch_computations',
    'true_computation',
    'false_computation',
  )
  return [x for name in names for x in instruction.attribute(name)]


def _called(instruction: _Instruction) -> list[str]:
  return instruction.attribute('calls') + instruction.attribute('to_apply')


def _collective(
  module: Module, where: str, instruction: _Instruction, kind: str
) -> Iterator[_Seen]:
  if kind == 'collective-permute':
    pairs = re.search(
      r'source_target_pairs=\{\{(\d+),(\d+)\}', instruction.rest
    )
    group = (int(pairs[1]), int(pairs[2])) if pairs else ()
  else:
    group = _first_group(instruction.rest)
  types = {x.name: x.type for x in module[where]}
  given = sum(size(types.get(x, '')) for x in instruction.operands)
  if kind == 'all-gather':
    total = given * len(group)
  else:
    total = given
  # A TPU's reduce-scatter is an all-reduce in a fusion of this name.
  if kind == 'all-reduce' and where.startswith('all-reduce-scatter'):
    kind = 'reduce-scatter'
  channel = re.search(r'channel_id=(\d+)', instruction.rest)
  key = f'channel {channel[1]}' if channel else f'{where} {instruction.name}'
  yield _Seen(key, 1, kind, group, total)


def _between_slices(instruction: _Instruction, sent: int) -> _Seen:
  """What a TPU sends over the network, to the same chip of other slices."""
  slices = re.search(r'megascale_target="\{([\d,]+)\}', instruction.rest)
  group = tuple(int(x) for x in slices[1].split(',')) if slices else (1, 2)
  kind = re.search(r'transfer_type="(\w+)"', instruction.rest)[1]
  kind = SLICES.get(kind, f'{kind.lower()} between slices')
  channel = re.search(r'channel_id=(\d+)', instruction.rest)[1]
  return _Seen(f'channel {channel}', 1, kind, group, sent)


def _first_group(rest: str) -> tuple[int, ...]:
  """The first of `replica_groups`, in any of its three notations."""
  if found := re.search(r'replica_groups=\{\{([\d,]*)\}', rest):
    return tuple(int(x) for x in found[1].split(',') if x)
  if found := re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest
  ):
    shape, dims, order = found.groups()
    ids = _order(dims, order).reshape(_ints(shape))
    return tuple(ids.reshape(-1, ids.shape[-1])[0].tolist())
  if found := re.search(
    r'replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\]'
    r'(?:T\(([\d,]+)\))?\))? \{(.*?)\}',
    rest,
  ):
    return _mesh_group(*found.groups())
  return ()


def _mesh_group(axes: str, dims: str, order: str, over: str):
  """mesh['a'=2,'b'=4] {'b'}: devices that differ in 'b' alone."""
  sizes = {n: int(x) for n, x in re.findall(r"'(\w+)'=(\d+)", axes)}
  ids = np.arange(math.prod(sizes.values()))
  if dims:
    ids = _order(dims, order)
  names, shape = [], []
  for name, whole in sizes.items():
    # 'b':(2)4 is a part of 'b': of its three factors the middle one.
    part = re.search(rf"'{name}':\((\d+)\)(\d+)", over)
    if part:
      before, middle = int(part[1]), int(part[2])
      names += ['', name, '']
      shape += [before, middle, whole // before // middle]
    else:
      names.append(name if f"'{name}'" in over else '')
      shape.append(whole)
  index = tuple(slice(None) if name else 0 for name in names)
  return tuple(ids.reshape(shape)[index].reshape(-1).tolist())


def _order(dims: str, order: str | None) -> np.ndarray:
  shape = _ints(dims)
  ids = np.arange(math.prod(shape)).reshape(shape)
  return ids.transpose(_ints(order)) if order else ids


def _ints(text: str) -> list[int]:
  return [int(x) for x in text.split(',')]


# ----- memory -----------------------------------------------------------------

# These move nothing, or are counted where they are used or started.
_FREE = (
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'after-all',
  'partition-id',
  'replica-id',
  'opt-barrier',
  'domain',
)
_SLICES = ('dynamic-slice', 'slice', 'gather')


def traffic(text: str) -> int:
  """Bytes that a step reads from and writes to a device's memory.

  Every fusion reads its operands and writes its results, whole; but of what it
  only slices it reads the slices, and into what it updates in place it writes
  the update. What stays on the chip costs nothing.
  """
  module, entry = parse(text)
  return _traffic(module, entry, _reader(module))


def _traffic(module: Module, name: str, read: Callable) -> int:
  types = {x.name: x.type for x in module[name]}
  total = 0
  for instruction in module[name]:
    kind = instruction.opcode
    if kind == 'while':
      bodies = instruction.attribute('body')
      inner = sum(_traffic(module, x, read) for x in bodies)
      total += _loops(module, instruction) * inner
    elif kind == 'conditional':
      branches = _branches(instruction)
      total += max((_traffic(module, x, read) for x in branches), default=0)
    elif kind == 'call':
      called = instruction.attribute('to_apply')
      total += sum(_traffic(module, x, read) for x in called)
    elif kind not in _FREE and not kind.endswith(('-done', '-update')):
      total += _moved_by(module, instruction, types, read)
  return total


def _moved_by(module: Module, instruction, types: dict, read: Callable) -> int:
  kind = instruction.opcode
  if kind in _SLICES:
    return 2 * size(instruction.type, memory=True)
  if kind.removesuffix('-start') in _SLICES:  # its type: operands, the slice
    shape = _ARRAY.findall(instruction.type)[len(instruction.operands)]
    on_chip = re.search(r'S\([1-9]', shape[2])
    return (1 if on_chip else 2) * _size(*shape[:2])
  if 'custom_call_target="AllocateBuffer"' in instruction.rest:
    return 0
  if kind == 'dynamic-update-slice':
    return 2 * size(types.get(instruction.operands[1], ''), memory=True)
  if kind.endswith('-start'):  # its type repeats the operand
    return size(instruction.type, memory=True)
  operands = [types.get(x, '') for x in instruction.operands]
  if kind == 'fusion' and (called := instruction.attribute('calls')):
    reads = sum(
      min(size(x, memory=True), read(called[0], i))
      for i, x in enumerate(operands)
    )
    return reads + min(
      size(instruction.type, memory=True), _written(module, called[0])
    )
  return sum(size(x, memory=True) for x in [instruction.type, *operands])


def _reader(module: Module) -> Callable[[str, int], int]:
  """(computation, parameter) -> bytes that are read of it."""

  @functools.cache
  def read(name: str, index: int) -> int:
    body = module[name]
    (own,) = [
      x
      for x in body
      if x.opcode == 'parameter' and x.rest.startswith(f'{index})')
    ]
    return used(body, own)

  def used(body: list[_Instruction], own: _Instruction) -> int:
    whole, total = size(own.type), 0
    for user in body:
      for i, operand in enumerate(user.operands):
        if operand != own.name:
          continue
        if user.opcode in _SLICES and i == 0:
          total += size(user.type)
        elif user.opcode == 'dynamic-update-slice' and i == 0:
          total += 0  # in place
        elif user.opcode in ('bitcast', 'reshape'):
          total += used(body, user)
        elif user.opcode == 'fusion' and user.attribute('calls'):
          total += read(user.attribute('calls')[0], i)
        else:
          return whole
    return min(whole, total)

  return read


def _written(module: Module, name: str) -> int:
  """Bytes that a fusion writes: the updates of what it updates in place."""
  body = {x.name: x for x in module[name]}
  root = module[name][-1]

  def written(x: _Instruction) -> int:
    if x.opcode == 'tuple':
      return sum(written(body[y]) for y in x.operands if y in body)
    if x.opcode == 'bitcast' and x.operands[0] in body:
      return written(body[x.operands[0]])
    if x.opcode == 'dynamic-update-slice' and x.operands[1] in body:
      return size(body[x.operands[1]].type)
    if x.opcode == 'fusion' and x.attribute('calls'):
      return _written(module, x.attribute('calls')[0])
    return size(x.type)

  return written(root)
