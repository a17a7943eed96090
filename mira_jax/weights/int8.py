"""Weights in eight bits: half the memory of bfloat16, a quarter of float32.

Every kernel becomes whole numbers from -127 to 127 and a factor for each of its
outputs, so that the largest weight of an output is kept. What is computed with
them is what it was: they are restored where they are used (weight-only,
symmetric, per output channel; as in Dettmers et al., arXiv 2208.07339, without
their outliers).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
  """A kernel: `values * factors`.

  Attributes:
    values: int8, of the kernel's shape.
    factors: float32, of the kernel's shape with 1 for its inputs.
  """

  values: Array
  factors: Array


def quantise(variables: PyTree) -> PyTree:
  """Variables whose kernels are `Int8`, but for that of the head.

  The head is small, and its errors are those of the logits.
  """

  def change(path: tuple[Any, ...], leaf: Array) -> Array | Int8:
    names = [str(getattr(key, 'key', key)) for key in path]
    if names[-1] != 'kernel' or 'head' in names:
      return leaf
    return _quantise(jnp.asarray(leaf, jnp.float32), _inputs(names, leaf.ndim))

  return jax.tree_util.tree_map_with_path(change, variables)


def restore(variables: PyTree) -> PyTree:
  """The variables in float32 again; those that are not `Int8` as they are."""
  return jax.tree.map(
    lambda x: x.values * x.factors if isinstance(x, Int8) else x,
    variables,
    is_leaf=lambda x: isinstance(x, Int8),
  )


def _inputs(names: list[str], ndim: int) -> tuple[int, ...]:
  """Axes of a kernel that are summed over; the others are outputs."""
  if 'qkv' in names:  # [C, 3, H, D], after any axis of stacked blocks
    return (ndim - 4,)
  first = 1 if 'blocks' in names else 0
  return tuple(range(first, ndim - 1))


def _quantise(kernel: Array, axes: tuple[int, ...]) -> Int8:
  largest = jnp.abs(kernel).max(axes, keepdims=True)
  factors = jnp.where(largest > 0, largest / 127, 1)
  return Int8(jnp.round(kernel / factors).astype(jnp.int8), factors)
