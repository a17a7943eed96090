"""Arithmetic of a Hopper warpgroup.

The interpreter of jax 0.10 knows no layouts, no products of registers and no
transposed tiles: tests replace the functions that need them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

Array = jax.Array
Ref = Any  # a reference into the memory of the GPU
Pair = tuple[Ref | Array, Ref]  # the left side may lie in registers

LOG2E = math.log2(math.e)  # exponentials of the hardware are 2^x
# Per thread: of consumers, of the producer. Over all warpgroups they sum to
# what a block starts with (504 and 512 times 128). With a step of 8 more, the
# last warpgroup to ask would wait for ever.
REGISTERS = {2: (232, 40), 3: (160, 32)}
LAYOUT = plgpu.Layout.WGMMA  # of a matrix over the threads of a warpgroup
ACC = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]
INTERPRETED = False  # set by tests


def along(x: Array, axis: int, shape: tuple[int, ...]) -> Array:
  """A vector along an axis, repeated over the other one."""
  return lax.broadcast_in_dim(x, shape, [axis])


def nothing() -> None:
  """Work to do while a product is in flight: none."""


def set_registers(
  warpgroups: int, action: Literal['increase', 'decrease']
) -> None:
  """Registers of a thread: 'increase' for consumers, or 'decrease'."""
  consumer, producer = REGISTERS[warpgroups]
  count = consumer if action == 'increase' else producer
  plgpu.set_max_registers(count, action=action)


def full(shape: tuple[int, ...], value: float) -> Array:
  """A matrix, or a vector of one number per row of one."""
  x = jnp.full(shape, value, jnp.float32)
  layout = LAYOUT if len(shape) == 2 else LAYOUT.reduce(1)
  return plgpu.layout_cast(x, layout)


def vector(ref: Ref, axis: int) -> Array:
  """A vector from memory, to lie along an axis of a matrix."""
  # Loads of a few hundred bytes from global memory are not worth a fast path.
  return _load(ref, LAYOUT.reduce(1 - axis), ref.memory_space == plgpu.SMEM)


def operand(ref: Ref) -> Array:
  """The left side of many products, in registers: half the reads of memory."""
  return _load(ref, LAYOUT)


def _load(ref: Ref, layout: Any, optimized: bool = True) -> Array:
  index: Any = {} if jax.__version_info__ >= (0, 11) else {'idx': ()}
  return plgpu.load(ref, **index, layout=layout, optimized=optimized)


def product(x: Ref | Array, y: Ref, meanwhile: Callable = nothing) -> Array:
  """x y^T of two tiles, in flight while `meanwhile` runs."""

  def run(total):
    plgpu.wgmma(total, x, y.transpose((1, 0)))
    meanwhile()
    return total[...]

  return pl.run_scoped(run, _accumulator(x, y))


def product_pair(
  first: Pair, second: Pair, use: Callable[[Array], Array]
) -> tuple[Array, Array]:
  """x y^T of two pairs; the second is in flight while `use` has the first."""

  def run(one, two):
    for total, (x, y) in ((one, first), (two, second)):
      plgpu.wgmma(total, x, y.transpose((1, 0)))
    used = use(plgpu.wgmma_accumulator_load(one, wait_n=1))
    return used, two[...]

  return pl.run_scoped(run, _accumulator(*first), _accumulator(*second))


def accumulate(
  sums: Sequence[Array],
  terms: Sequence[tuple[Array, Ref]],
  meanwhile: Callable = nothing,
) -> list[Any]:
  """Adds x y of each term, all in flight while `meanwhile` runs."""

  def run(refs):
    for ref, (x, y) in zip(refs, terms, strict=True):
      plgpu.wgmma(ref, x, y)
    meanwhile()

  return pl.run_state(run)([ACC.init(x) for x in sums])


def _accumulator(x: Ref | Array, y: Ref):
  return ACC((x.shape[0], y.shape[0]), jnp.float32)
