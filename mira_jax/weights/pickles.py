"""Pickles as trees of dicts, lists, tuples and numbers, without running them.

A pickle is a program: it names functions and classes and calls them. This
interpreter of its opcodes has nothing to call but the functions that its caller
lists. Any other name, whatever a pickle does with it, is an `Inert`, so that a
file can be read for its tensors although it holds other things beside them.

Time and memory are bounded by the bytes of the pickle and `MAX_OPCODES`, and
the tree by `MAX_NODES` and `MAX_DEPTH`: it is safe to walk, print and compare.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mira_jax.errors import MiraInputError

# The largest checkpoints of training that are known take some 100,000 opcodes.
MAX_OPCODES = 2**22
MAX_NODES = 2**22  # of the tree; one that hangs in many places counts each time
MAX_DEPTH = 100
_MAX_NAME = 1024  # characters of a key
_MAX_BITS = 256  # of a number; larger ones cannot be printed in time


class RefusedError(ValueError):
  """A pickle that no program writes which saves tensors."""


class Inert(dict):
  """Stands for a name that is not known, or for what it would have made.

  It has the items that the pickle puts into it, as an object of a subclass of
  dict has; nothing else that the pickle says of it is kept.

  Attributes:
    name: the global, such as 'numpy.dtype'.
  """

  __slots__ = ('name',)
  # Two of them are never alike, whatever is in them.
  __hash__ = object.__hash__
  __eq__ = object.__eq__
  __ne__ = object.__ne__

  def __init__(self, name: str):
    super().__init__()
    self.name = name

  def __repr__(self) -> str:
    return f'<{show(self.name)}>'


class Namespace:
  """Stands for an `argparse.Namespace`, whose fields are in `values`."""

  __slots__ = ('values',)
  NAMES = ('argparse.Namespace', 'types.SimpleNamespace')

  def __init__(self):
    self.values: dict[str, Any] = {}


def show(name: str) -> str:
  """A name out of a file as it can be printed: ASCII, not too long."""
  return name[:99].encode('unicode_escape').decode()


def load(
  data: bytes,
  calls: Mapping[str, Callable[..., Any]],
  unknown: Callable[[Inert, tuple[Any, ...]], Any],
  persistent: Callable[[Any], Any],
) -> Any:
  """What a pickle describes.

  Sets are lists, and objects of subclasses of dict are `Inert` dicts. Keys that
  are no text or number, and numbers of more digits than any has, are `Inert`.

  Args:
    data: the pickle, of any protocol.
    calls: by 'module.name', what answers a call; arguments can be anything.
    unknown: answers calls of all other names, as `calls` would: with an object
      of its own or with an `Inert`.
    persistent: answers a persistent id.

  Raises:
    RefusedError: it is larger, deeper or odder than a checkpoint can be.
    ValueError: it is damaged.
    MiraInputError: as the functions that are given raise it.
  """
  machine = _Machine(calls, unknown, persistent)
  try:
    tree = machine.run(data)
  except (MiraInputError, RefusedError):
    raise
  # Whatever damaged bytes make of the stack and of arguments.
  except Exception as error:
    raise ValueError(f'{type(error).__name__}: {show(str(error))}') from error
  _check_tree(tree)
  return tree


def _check_tree(tree: Any) -> None:
  """That to walk all of a tree takes an end, and no deep recursion."""
  seen, levels = 0, [iter((tree,))]
  while levels:
    for node in levels[-1]:
      seen += 1
      if isinstance(node, (list, tuple, dict, Namespace)) and _children(node):
        levels.append(iter(_children(node)))
        break
    else:
      levels.pop()
    if seen > MAX_NODES or len(levels) > MAX_DEPTH:
      raise RefusedError('its lists are within each other without an end')


def _children(node: Any) -> Iterable[Any]:
  if isinstance(node, Namespace):
    return node.values.values()
  return node.values() if isinstance(node, dict) else node


def _key(key: Any) -> Any:
  """A key of which the hash takes no time, and cannot be chosen to collide."""
  if type(key) is int and key.bit_length() <= 60:
    return key
  if type(key) in (str, bytes) and len(key) <= _MAX_NAME:
    return key
  if key is None or type(key) in (float, bool) or isinstance(key, Inert):
    return key
  return Inert(f'a key of {type(key).__name__}')


def _pairs(items: list[Any]) -> dict[Any, Any]:
  """The dict of a flat list of keys and values."""
  return {
    _key(key): value for key, value in zip(items[::2], items[1::2], strict=True)
  }


class _Machine:
  """The stack, the marks and the memo of a pickle."""

  def __init__(
    self,
    calls: Mapping[str, Callable[..., Any]],
    unknown: Callable[[Inert, tuple[Any, ...]], Any],
    persistent: Callable[[Any], Any],
  ):
    self.calls, self.unknown, self.persistent = calls, unknown, persistent
    self.stack: list[Any] = []
    self.marked: list[list[Any]] = []  # what was the stack before each mark
    self.memo: dict[int, Any] = {}
    self.steps = 0

  def run(self, data: bytes) -> Any:
    """Follows all opcodes; returns what is on top of the stack at their end."""
    for opcode, arg, _ in pickletools.genops(data):
      self.spend(1)
      if opcode.name in _LITERALS:
        self.push(_literal(arg))
      else:
        _STEPS[opcode.name](self, arg)
    return self.stack.pop()

  def spend(self, steps: int) -> None:
    self.steps += steps
    if self.steps > MAX_OPCODES:
      raise RefusedError(f'its pickle takes over {MAX_OPCODES} steps')

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def pop(self, count: int) -> list[Any]:
    """The topmost values, in their order."""
    if len(self.stack) < count:
      raise IndexError('the stack is empty')
    values = self.stack[len(self.stack) - count :]
    del self.stack[len(self.stack) - count :]
    return values

  def pop_mark(self) -> list[Any]:
    values, self.stack = self.stack, self.marked.pop()
    return values

  def mark(self) -> None:
    self.marked.append(self.stack)
    self.stack = []

  def discard(self) -> None:
    if self.stack:
      self.stack.pop()
    else:
      self.pop_mark()

  def name(self) -> None:
    module, name = self.pop(2)
    # Numbers and tuples would be printed, which may take an eternity.
    if not isinstance(module, str) or not isinstance(name, str):
      raise TypeError('a name is no text')
    self.push(Inert(f'{module[:_MAX_NAME]}.{name[:_MAX_NAME]}'))

  def call(self, function: Any, args: Any) -> Any:
    """What a name makes of arguments; see `load`."""
    if not isinstance(function, Inert) or not isinstance(args, tuple):
      raise TypeError(f'a {type(function).__name__} is called')
    self.spend(len(args))  # a few bytes call with the same ones again
    if function.name in Namespace.NAMES:
      return Namespace()
    if function.name in ('copyreg._reconstructor', 'copy_reg._reconstructor'):
      return self.call(args[0], ())
    if function.name in self.calls:
      return self.calls[function.name](*args)
    return self.unknown(function, args)

  def reduce(self) -> None:
    self.push(self.call(*self.pop(2)))

  def reduce_with_keywords(self) -> None:
    function, args, _ = self.pop(3)
    self.push(self.call(function, args))

  def call_marked(self) -> None:
    function, *args = self.pop_mark()
    self.push(self.call(function, tuple(args)))

  def call_named(self, name: str) -> None:
    args = self.pop_mark()
    self.push(self.call(Inert(name), tuple(args)))

  def set_state(self) -> None:
    """Keeps the fields of a `Namespace`, and no other state."""
    (state,) = self.pop(1)
    target = self.stack[-1]
    if isinstance(target, Namespace):
      if isinstance(state, tuple):  # fields, and those that are slots
        state = state[0] or {}
      self.spend(len(state))
      target.values |= {k: v for k, v in state.items() if isinstance(k, str)}
    elif not isinstance(target, (dict, list)):
      kind = type(target).__name__.strip('_').lower()
      raise RefusedError(f'it gives a state to a {kind}, which has none')

  def extend(self, values: list[Any]) -> None:
    target = self.stack[-1]
    if isinstance(target, list):
      target.extend(values)
    elif not isinstance(target, (Inert, Namespace)):
      raise TypeError(f'a {type(target).__name__} is no list')

  def update(self, items: list[Any]) -> None:
    target = self.stack[-1]
    if isinstance(target, dict):
      target.update(_pairs(items))
    elif not isinstance(target, Namespace):
      raise TypeError(f'a {type(target).__name__} is no dict')


def _literal(value: Any) -> Any:
  if type(value) is int and value.bit_length() > _MAX_BITS:
    return Inert('a number of many digits')
  return bytes(value) if isinstance(value, bytearray) else value


_LITERALS = frozenset(
  (
    *('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4'),
    *('FLOAT', 'BINFLOAT', 'STRING', 'BINSTRING', 'SHORT_BINSTRING'),
    *('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8', 'UNICODE'),
    *('BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'),
  )
)


def _push(make: Callable[[_Machine], Any]) -> Callable[[_Machine, Any], None]:
  """The step that pushes what `make` gets out of a machine."""
  return lambda machine, _: machine.push(make(machine))


_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
  'PROTO': lambda m, _: None,
  'FRAME': lambda m, _: None,
  'STOP': lambda m, _: None,
  'NONE': _push(lambda m: None),
  'NEWTRUE': _push(lambda m: True),
  'NEWFALSE': _push(lambda m: False),
  'EMPTY_DICT': _push(lambda m: {}),
  'EMPTY_LIST': _push(lambda m: []),
  'EMPTY_SET': _push(lambda m: []),
  'EMPTY_TUPLE': _push(lambda m: ()),
  'TUPLE1': _push(lambda m: tuple(m.pop(1))),
  'TUPLE2': _push(lambda m: tuple(m.pop(2))),
  'TUPLE3': _push(lambda m: tuple(m.pop(3))),
  'TUPLE': lambda m, _: m.push(tuple(m.pop_mark())),
  'LIST': lambda m, _: m.push(m.pop_mark()),
  'FROZENSET': lambda m, _: m.push(m.pop_mark()),
  'DICT': lambda m, _: m.push(_pairs(m.pop_mark())),
  'MARK': lambda m, _: m.mark(),
  'POP': lambda m, _: m.discard(),
  'POP_MARK': lambda m, _: m.pop_mark(),
  'DUP': _push(lambda m: m.stack[-1]),
  'APPEND': lambda m, _: m.extend(m.pop(1)),
  'APPENDS': lambda m, _: m.extend(m.pop_mark()),
  'ADDITEMS': lambda m, _: m.extend(m.pop_mark()),
  'SETITEM': lambda m, _: m.update(m.pop(2)),
  'SETITEMS': lambda m, _: m.update(m.pop_mark()),
  'MEMOIZE': lambda m, _: m.memo.update({len(m.memo): m.stack[-1]}),
  **dict.fromkeys(
    ('PUT', 'BINPUT', 'LONG_BINPUT'),
    lambda m, place: m.memo.update({place: m.stack[-1]}),
  ),
  **dict.fromkeys(
    ('GET', 'BINGET', 'LONG_BINGET'),
    lambda m, place: m.push(m.memo[place]),
  ),
  'GLOBAL': lambda m, name: m.push(Inert(name.replace(' ', '.', 1))),
  'STACK_GLOBAL': lambda m, _: m.name(),
  'INST': lambda m, name: m.call_named(name.replace(' ', '.', 1)),
  'OBJ': lambda m, _: m.call_marked(),
  'NEWOBJ': lambda m, _: m.reduce(),
  'NEWOBJ_EX': lambda m, _: m.reduce_with_keywords(),
  'REDUCE': lambda m, _: m.reduce(),
  'BUILD': lambda m, _: m.set_state(),
  'PERSID': _push(lambda m: m.persistent(None)),
  'BINPERSID': _push(lambda m: m.persistent(m.pop(1)[0])),
}
