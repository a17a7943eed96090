"""Floating-point operations of a traced program, counted before compilation.

XLA's own count takes the body of a loop once, whatever its length, and knows of
a kernel only what it says of itself. Here are products of matrices alone, which
are all but a per cent of a transformer.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend.core import Literal

from mira_jax.kernels.operations import FLOPS

Counts = collections.Counter  # name -> FLOPs
Flags = list[bool]


def flops(jaxpr: Any) -> Counts:
  """FLOPs of a jaxpr, all devices together: two for every multiply and add.

  A scan counts as often as it runs, a `cond` as its dearest branch, a while
  loop, whose length is data, once. What `jax.checkpoint` computes again is in a
  differentiated jaxpr, and so it is here. What nothing needs does not count:
  XLA leaves it out.

  Args:
    jaxpr: such as `jax.jit(f).trace(...).jaxpr`.

  Returns:
    By name: that of the primitive, or of a kernel.
  """
  total, _ = _walk(jaxpr, None)
  return total


def _walk(jaxpr: Any, used: Flags | None) -> tuple[Counts, Flags]:
  """FLOPs that the used outputs take, and which inputs they need.

  Args:
    jaxpr: open or closed.
    used: of each output; None is all.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  used = [True] * len(jaxpr.outvars) if used is None else used
  live = set(_variables(jaxpr.outvars, used))
  total = Counts()
  for eqn in reversed(jaxpr.eqns):
    outputs = [x in live for x in eqn.outvars]
    if any(outputs) or eqn.effects:
      count, needed = _of_equation(eqn, outputs)
      total += count
      live.update(_variables(eqn.invars, needed))
  return total, [x in live for x in jaxpr.invars]


def _variables(atoms: Sequence[Any], wanted: Flags) -> Iterator[Any]:
  pairs = zip(atoms, wanted, strict=True)
  return (x for x, want in pairs if want and not isinstance(x, Literal))


def _of_equation(eqn: Any, used: Flags) -> tuple[Counts, Flags]:
  everything = [True] * len(eqn.invars)
  count = _of_leaf(eqn)
  inner = list(_inner(eqn))
  if count is not None or not inner:
    return count or Counts(), everything
  name = eqn.primitive.name
  if name == 'cond':
    branches = [_walk(x, used) for x in inner]
    counts, needs = zip(*branches, strict=True)
    needed = [any(x) for x in zip(*needs, strict=True)]
    return max(counts, key=lambda x: x.total()), [True, *needed]
  if name == 'scan':
    return _of_scan(eqn, used)
  if len(inner) > 1 or not _is_call(eqn, inner[0]):  # a while loop, a scatter
    parts = [_walk(x, None)[0] for x in inner]
    return sum(parts, Counts()), everything
  count, needed = _walk(inner[0], used)
  if name == 'shard_map':
    # jax 0.10.2 calls them newly_manual_axes.
    (axes,) = (x for n, x in eqn.params.items() if n.endswith('manual_axes'))
    shape = eqn.params['mesh'].shape
    count = _times(math.prod(shape[axis] for axis in axes), count)
  return count, needed


def _is_call(eqn: Any, jaxpr: Any) -> bool:
  """Whether the jaxpr takes and gives what the equation does."""
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  sizes = len(jaxpr.invars), len(jaxpr.outvars)
  return sizes == (len(eqn.invars), len(eqn.outvars))


def _of_scan(eqn: Any, used: Flags) -> tuple[Counts, Flags]:
  constants, carried = eqn.params['num_consts'], eqn.params['num_carry']
  while True:
    count, needed = _walk(eqn.params['jaxpr'], used)
    # What the next step needs of the carry, this one must leave.
    carry = needed[constants : constants + carried]
    again = [x or y for x, y in zip(used, carry, strict=False)]
    again += used[carried:]
    if again == used:
      return _times(eqn.params['length'], count), needed
    used = again


def _times(factor: int, count: Counts) -> Counts:
  return Counts({name: factor * x for name, x in count.items()})


def _of_leaf(eqn: Any) -> Counts | None:
  """FLOPs of what has no jaxpr to look into, or a kernel; else None."""
  name = eqn.primitive.name
  if name == 'dot_general':
    return Counts({name: _of_product(eqn)})
  if name == 'conv_general_dilated':
    return Counts({name: _of_convolution(eqn)})
  if name == 'pallas_call':
    cost = eqn.params['cost_estimate']
    kernel = str(eqn.params.get('name') or name).split(' ')[0]
    return Counts({kernel: cost.flops if cost else 0})
  said = (eqn.ctx.xla_metadata or {}).get(FLOPS)
  return None if said is None else Counts({'kernel': int(said)})


def _of_product(eqn: Any) -> int:
  (over, _), _ = eqn.params['dimension_numbers']
  shape = eqn.invars[0].aval.shape
  summed = math.prod(shape[axis] for axis in over)
  return 2 * math.prod(eqn.outvars[0].aval.shape) * summed


def _of_convolution(eqn: Any) -> int:
  kernel = eqn.invars[1].aval.shape
  features = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
  # Per output number: the kernel of its feature, of its group of inputs.
  return (
    2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // features
  )


def _inner(eqn: Any) -> Iterator[Any]:
  """The jaxprs in an equation."""
  for value in eqn.params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      if hasattr(getattr(part, 'jaxpr', part), 'eqns'):
        yield part
