"""Kernels in eight bits: half the memory of bfloat16, a quarter of float32.

Weight-only, symmetric and per output channel, as in Dettmers et al.
(arXiv 2208.07339) without their outliers: a kernel is held as whole numbers
from -127 to 127 with a factor for each output, and restored where it is used.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mira_jax import param_names

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
    name = param_names.path_name(path)
    axes = param_names.kernel_axes(name, leaf.ndim)
    if axes is None or param_names.is_head(name):
      return leaf
    kernel = jnp.asarray(leaf, jnp.float32)
    largest = jnp.abs(kernel).max(axes[0], keepdims=True)
    factors = jnp.where(largest > 0, largest / 127, 1)
    return Int8(jnp.round(kernel / factors).astype(jnp.int8), factors)

  return jax.tree_util.tree_map_with_path(change, variables)


def restore(variables: PyTree) -> PyTree:
  """The variables in float32 again; those that are not `Int8` as they are."""
  return jax.tree.map(
    lambda x: x.values * x.factors if isinstance(x, Int8) else x,
    variables,
    is_leaf=lambda x: isinstance(x, Int8),
  )
