"""FLOPs of a traced program.

`Compiled.cost_analysis()` counts the body of a loop once and does not know the
products of a kernel. Only products of matrices are counted here: all but one
per cent of a transformer.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator
from typing import Any

from jax.interpreters import partial_eval

from mira_jax.kernels.operations import kernel_of

Counts = collections.Counter  # name of a primitive, or a Kernel -> FLOPs


def flops(jaxpr: Any) -> Counts:
  """FLOPs of a jaxpr, all devices together: two per multiply and add.

  A scan counts as often as it runs, a `cond` as its most expensive branch, a
  while loop, whose length is data, once. Unused results do not count.

  Args:
    jaxpr: such as `jax.jit(f).trace(...).jaxpr`.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _total(used)


def _total(jaxpr: Any) -> Counts:
  return sum(map(_of_equation, jaxpr.eqns), Counts())


def _of_equation(eqn: Any) -> Counts:
  name, params = eqn.primitive.name, eqn.params
  if name == 'dot_general':
    (over, _), _ = params['dimension_numbers']
    shape = eqn.invars[0].aval.shape
    return Counts({name: _of_products(eqn, [shape[axis] for axis in over])})
  if name == 'conv_general_dilated':
    kernel = eqn.invars[1].aval.shape
    features = params['dimension_numbers'].rhs_spec[0]
    summed = [x for axis, x in enumerate(kernel) if axis != features]
    return Counts({name: _of_products(eqn, summed)})
  if kernel := kernel_of(eqn):
    return Counts({kernel: kernel.flops})
  parts = [_total(x) for x in _inner(eqn)]
  if name == 'cond':
    return max(parts, key=Counts.total)
  times = params['length'] if name == 'scan' else 1
  if name == 'shard_map':
    # jax 0.10.2 calls them newly_manual_axes.
    (axes,) = (x for n, x in params.items() if n.endswith('manual_axes'))
    times = math.prod(params['mesh'].shape[axis] for axis in axes)
  total = sum(parts, Counts())
  return Counts({name: times * count for name, count in total.items()})


def _of_products(eqn: Any, summed: list[int]) -> int:
  return 2 * math.prod((*eqn.outvars[0].aval.shape, *summed))


def _inner(eqn: Any) -> Iterator[Any]:
  """The jaxprs in an equation."""
  for value in eqn.params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      part = getattr(part, 'jaxpr', part)
      if hasattr(part, 'eqns'):
        yield part
