"""Floating-point operations of a traced program, counted before compilation.

XLA's own count takes the body of a loop once, whatever its length, and knows of
a kernel only what it says of itself. Here are products of matrices alone, which
are all but a per cent of a transformer.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator
from typing import Any

from mira_jax.kernels.operations import FLOPS

Counts = collections.Counter  # name -> FLOPs


def flops(jaxpr: Any) -> Counts:
  """FLOPs of a jaxpr, all devices together: two for every multiply and add.

  A scan counts as often as it runs, a `cond` as its dearest branch, a while
  loop, whose length is data, once. What `jax.checkpoint` computes again is in a
  differentiated jaxpr, and so it is here.

  Args:
    jaxpr: such as `jax.jit(f).trace(...).jaxpr`.

  Returns:
    By name: that of the primitive, or of a kernel.
  """
  total = Counts()
  for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    total += _of_equation(eqn)
  return total


def _of_equation(eqn: Any) -> Counts:
  name = eqn.primitive.name
  if name == 'dot_general':
    return Counts({name: _of_product(eqn)})
  if name == 'conv_general_dilated':
    return Counts({name: _of_convolution(eqn)})
  if name == 'pallas_call':
    cost = eqn.params['cost_estimate']
    return Counts({_kernel_name(eqn): cost.flops if cost else 0})
  said = (eqn.ctx.xla_metadata or {}).get(FLOPS)
  if said is not None:
    return Counts({'kernel': int(said)})
  inner = [flops(jaxpr) for jaxpr in _inner(eqn)]
  if not inner:
    return Counts()
  if name == 'cond':
    return max(inner, key=lambda x: x.total())
  times = 1
  if name == 'scan':
    times = eqn.params['length']
  elif name == 'shard_map':
    # jax 0.10.2 calls them newly_manual_axes.
    (axes,) = (x for n, x in eqn.params.items() if n.endswith('manual_axes'))
    times = math.prod(eqn.params['mesh'].shape[axis] for axis in axes)
  return Counts({n: times * x for n, x in sum(inner, Counts()).items()})


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


def _kernel_name(eqn: Any) -> str:
  return str(eqn.params.get('name') or eqn.primitive.name).split(' ')[0]


def _inner(eqn: Any) -> Iterator[Any]:
  """The jaxprs in an equation."""
  for value in eqn.params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      if hasattr(getattr(part, 'jaxpr', part), 'eqns'):
        yield part
