"""Pickles as trees of dicts, lists, tuples and numbers, without running them.

A pickle is a program: it names functions and classes and calls them. This
interpreter of its opcodes passes every call to one function of its caller,
which answers the few names that it knows. Any other name is an `Inert`, so that
a file can be read for its tensors, whatever else is in it.

Time and memory are bounded by the bytes of the pickle and `MAX_OPCODES`, and
the tree by `MAX_NODES` and `MAX_DEPTH`: it is safe to walk, print and compare.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from mira_jax.errors import MiraInputError, short

# The largest known checkpoints take some 100,000 opcodes.
MAX_OPCODES = 2**22
MAX_NODES = 2**22  # of the tree; one that hangs in many places counts each time
MAX_DEPTH = 100
_MAX_NAME = 1024  # characters of a key
_MAX_BITS = 256  # of a number; larger ones cannot be printed in time
_NAMESPACES = ('argparse.Namespace', 'types.SimpleNamespace')


class RefusedError(ValueError):
  """A pickle that no program writes which saves tensors."""


class Inert(dict):
  """Stands for an unknown name, or for what it would have made.

  It has the items that the pickle puts into it, as an object of a subclass of
  dict has, and the fields of a namespace, but no other state.
  """

  __slots__ = ('name',)  # the global, such as 'numpy.dtype'
  # Two of them are never alike, whatever is in them.
  __hash__ = object.__hash__  # pyright: ignore
  __eq__ = object.__eq__
  __ne__ = object.__ne__

  def __init__(self, name: str):
    super().__init__()
    self.name = name

  def __repr__(self) -> str:
    return f'<{self.name[:99]}>'


Call = Callable[[Inert, tuple[Any, ...]], Any]


def load(data: bytes, call: Call, persistent: Callable[[Any], Any]) -> Any:
  """The tree of a pickle.

  Sets are lists, and objects of subclasses of dict are `Inert` dicts. Keys that
  are no text or number, and numbers of absurdly many digits, are `Inert`.

  Args:
    data: the pickle, of protocol 1 or newer.
    call: answers calls of a name; arguments can be anything.
    persistent: answers a persistent id.

  Raises:
    RefusedError: it is larger, deeper or odder than a checkpoint can be.
    ValueError: it is damaged.
  """
  machine = _Machine(call, persistent)
  try:
    for opcode, arg, _ in pickletools.genops(data):
      machine.spend(1)
      if opcode.name in _PUSHED:
        value = _PUSHED[opcode.name](machine, arg)
        machine.stack.append(value)  # of the stack after it
      else:
        _OTHERS[opcode.name](machine, arg)
    tree = machine.stack.pop()
  except (MiraInputError, RefusedError):
    raise
  # Whatever damaged bytes make of the stack and of arguments.
  except Exception as error:
    raise ValueError(f'{type(error).__name__}: {short(str(error))}') from error
  _check_tree(tree)
  return tree


def _check_tree(tree: Any) -> None:
  """Checks that walking a tree ends, without deep recursion."""
  seen, levels = 0, [iter((tree,))]
  while levels:
    for node in levels[-1]:
      seen += 1
      if isinstance(node, (list, tuple, dict)) and node:
        levels.append(iter(node.values() if isinstance(node, dict) else node))
        break
    else:
      levels.pop()
    if seen > MAX_NODES or len(levels) > MAX_DEPTH:
      raise RefusedError('its lists are within each other without an end')


def _literal(value: Any) -> Any:
  if type(value) is int and value.bit_length() > _MAX_BITS:
    return Inert('a number of many digits')
  return bytes(value) if isinstance(value, bytearray) else value


def _key(key: Any) -> Any:
  """A key with a hash that is quick and cannot be chosen to collide."""
  if type(key) is int and key.bit_length() <= 60:
    return key
  if isinstance(key, str | bytes) and len(key) <= _MAX_NAME:
    return key
  if key is None or type(key) in (float, bool) or isinstance(key, Inert):
    return key
  return Inert(f'a key of {type(key).__name__}')


def _pairs(items: list[Any]) -> dict[Any, Any]:
  """The dict of a flat list of keys and values."""
  pairs = zip(items[::2], items[1::2], strict=True)
  return {_key(key): value for key, value in pairs}


class _Machine:
  """The stack, the marks and the memo of a pickle."""

  def __init__(self, call: Call, persistent: Callable[[Any], Any]):
    self.answer, self.persistent = call, persistent
    self.stack: list[Any] = []
    self.marked: list[list[Any]] = []  # the stack before each mark
    self.memo: dict[int, Any] = {}
    self.steps = 0

  def spend(self, steps: int) -> None:
    self.steps += steps
    if self.steps > MAX_OPCODES:
      raise RefusedError(f'its pickle takes over {MAX_OPCODES} steps')

  def pop(self, count: int) -> list[Any]:
    """The topmost values, in their order."""
    if len(self.stack) < count:
      raise IndexError('the stack is empty')
    start = len(self.stack) - count
    values = self.stack[start:]
    del self.stack[start:]
    return values

  def mark(self) -> None:
    self.marked.append(self.stack)
    self.stack = []

  def pop_mark(self) -> list[Any]:
    values, self.stack = self.stack, self.marked.pop()
    return values

  def name(self) -> Inert:
    module, name = self.pop(2)
    # Printing numbers and tuples may take forever.
    if not isinstance(module, str) or not isinstance(name, str):
      raise TypeError('a name is no text')
    return Inert(f'{module[:_MAX_NAME]}.{name[:_MAX_NAME]}')

  def call(self, function: Any, args: Any) -> Any:
    """What a name makes of arguments; see `load`."""
    if not isinstance(function, Inert) or not isinstance(args, tuple):
      raise TypeError(f'a {type(function).__name__} is called')
    self.spend(len(args))  # a few bytes call with the same ones again
    if function.name in ('copyreg._reconstructor', 'copy_reg._reconstructor'):
      return self.call(args[0], ())
    return self.answer(function, args)

  def set_state(self) -> None:
    """Keeps the fields of a namespace, and no other state."""
    (state,) = self.pop(1)
    target = self.stack[-1]
    if isinstance(target, Inert) and target.name in _NAMESPACES:
      if isinstance(state, tuple):  # fields, and those that are slots
        state = state[0] or {}
      self.spend(len(state))
      target.update({k: v for k, v in state.items() if isinstance(k, str)})
    elif not isinstance(target, (dict, list)):
      raise RefusedError('it gives a state to a tensor or a tuple')

  def extend(self, values: list[Any]) -> None:
    target = self.stack[-1]
    if isinstance(target, list):
      target.extend(values)
    elif not isinstance(target, Inert):
      raise TypeError(f'a {type(target).__name__} is no list')

  def update(self, items: list[Any]) -> None:
    self.stack[-1].update(_pairs(items))


_LITERALS = (
  *('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4'),
  *('FLOAT', 'BINFLOAT', 'STRING', 'BINSTRING', 'SHORT_BINSTRING'),
  *('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8', 'UNICODE'),
  *('BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'),
)
# What an opcode pushes, from the machine and its argument.
_PUSHED: dict[str, Callable[[_Machine, Any], Any]] = {
  **dict.fromkeys(_LITERALS, lambda m, value: _literal(value)),
  **dict.fromkeys(
    ('GET', 'BINGET', 'LONG_BINGET'), lambda m, place: m.memo[place]
  ),
  'NONE': lambda m, _: None,
  'NEWTRUE': lambda m, _: True,
  'NEWFALSE': lambda m, _: False,
  'EMPTY_DICT': lambda m, _: {},
  'EMPTY_LIST': lambda m, _: [],
  'EMPTY_SET': lambda m, _: [],
  'EMPTY_TUPLE': lambda m, _: (),
  'TUPLE1': lambda m, _: tuple(m.pop(1)),
  'TUPLE2': lambda m, _: tuple(m.pop(2)),
  'TUPLE3': lambda m, _: tuple(m.pop(3)),
  'TUPLE': lambda m, _: tuple(m.pop_mark()),
  'LIST': lambda m, _: m.pop_mark(),
  'FROZENSET': lambda m, _: m.pop_mark(),
  'DICT': lambda m, _: _pairs(m.pop_mark()),
  'DUP': lambda m, _: m.stack[-1],
  'GLOBAL': lambda m, name: Inert(name.replace(' ', '.', 1)),
  'STACK_GLOBAL': lambda m, _: m.name(),
  'REDUCE': lambda m, _: m.call(*m.pop(2)),
  'NEWOBJ': lambda m, _: m.call(*m.pop(2)),
  'NEWOBJ_EX': lambda m, _: m.call(*m.pop(3)[:2]),
  'BINPERSID': lambda m, _: m.persistent(m.pop(1)[0]),
}
_OTHERS: dict[str, Callable[[_Machine, Any], Any]] = {
  **dict.fromkeys(('PROTO', 'FRAME', 'STOP'), lambda m, _: None),
  **dict.fromkeys(
    ('PUT', 'BINPUT', 'LONG_BINPUT'),
    lambda m, place: m.memo.update({place: m.stack[-1]}),
  ),
  'MARK': lambda m, _: m.mark(),
  'POP': lambda m, _: m.stack.pop() if m.stack else m.pop_mark(),
  'POP_MARK': lambda m, _: m.pop_mark(),
  'APPEND': lambda m, _: m.extend(m.pop(1)),
  'APPENDS': lambda m, _: m.extend(m.pop_mark()),
  'ADDITEMS': lambda m, _: m.extend(m.pop_mark()),
  'SETITEM': lambda m, _: m.update(m.pop(2)),
  'SETITEMS': lambda m, _: m.update(m.pop_mark()),
  'BUILD': lambda m, _: m.set_state(),
  'MEMOIZE': lambda m, _: m.memo.update({len(m.memo): m.stack[-1]}),
}
