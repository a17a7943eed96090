"""GPU kernels on a CPU, in the interpreter of Mosaic GPU kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax.numpy as jnp
import pytest

from mira_jax.kernels.gpu import warpgroup


@contextlib.contextmanager
def interpreted(detect_races: bool = False) -> Iterator[None]:
  """Runs GPU kernels here; fails if two threads race for memory."""
  # A private part of jax, which may move.
  name = 'jax._src.pallas.mosaic_gpu.interpret'
  gpu = pytest.importorskip(f'{name}.interpret_pallas_call')
  params = pytest.importorskip(f'{name}.params')
  # The copy engine reads zeros beyond the end of an array.
  options = params.InterpretGPUParams(
    detect_races=detect_races,
    out_of_bounds_reads='uninitialized',
    uninitialized_memory='zero',
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(warpgroup, 'INTERPRETED', True)
    for name, function in FUNCTIONS.items():
      patch.setattr(warpgroup, name, function)
    try:
      with params.force_gpu_interpret_mode(options):
        yield
      if detect_races:
        assert not gpu.get_races().races_found, 'threads race'
    finally:
      gpu.reset_gpu_interpret_mode_state()


def _registers(warpgroups, action):
  del warpgroups, action


def _full(shape, value):
  return jnp.full(shape, value, jnp.float32)


def _vector(ref, axis):
  del axis
  return ref[...]


def _operand(ref):
  return ref[...]


def _product(x, y, meanwhile=warpgroup.nothing):
  meanwhile()
  return _dot(x[...], y[...].T)


def _pair(first, second, use):
  one, two = (_dot(x[...], y[...].T) for x, y in (first, second))
  return use(one), two


def _accumulate(sums, terms, meanwhile=warpgroup.nothing):
  meanwhile()
  pairs = zip(sums, terms, strict=True)
  return [total + _dot(x, y[...]) for total, (x, y) in pairs]


def _dot(x, y):
  return jnp.dot(x, y, preferred_element_type=jnp.float32)


# Of `warpgroup`: without layouts, or products of registers or transposed tiles.
FUNCTIONS = {
  'set_registers': _registers,
  'full': _full,
  'vector': _vector,
  'operand': _operand,
  'product': _product,
  'product_pair': _pair,
  'accumulate': _accumulate,
}
