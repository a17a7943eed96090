"""The passes and operations of kernels on random inputs, case by case."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import plain_passes


class Inputs(NamedTuple):
  """What passes and operations take, as arrays or as shapes of them."""

  q: jax.Array
  k: jax.Array
  v: jax.Array
  g: jax.Array
  bias: jax.Array
  gain: jax.Array
  gamma: jax.Array
  lse: jax.Array
  delta: jax.Array
  rho: jax.Array
  pull: jax.Array
  v_mean: jax.Array


def shapes(shape: tuple[int, ...], sharding=None, dtype=jnp.bfloat16) -> Inputs:
  """Inputs for q of a shape [B, L, H, D] and a dtype."""
  batch, length, heads, width = shape

  def of(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  return Inputs(
    *[of(shape, dtype)] * 4,
    *[of((batch, length))] * 3,
    *[of((batch, heads, length))] * 4,
    of((batch, heads, width)),
  )


def draw(shape: tuple[int, ...], dtype=jnp.bfloat16) -> Inputs:
  """Random inputs, with the log-sum-exp of q and k."""
  rng = np.random.default_rng(0)
  x = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype),
    shapes(shape, dtype=dtype),
  )
  gain = jnp.exp(x.gain / 4)
  _, lse = plain_passes.attend(x.q, x.k, x.v, None)
  return x._replace(gain=gain, lse=lse, bias=x.bias / 2)


class Case(NamedTuple):
  """A pass with its options."""

  run: object  # of passes and inputs
  kernels: int  # that it is made of on a GPU


def _attend_backward(passes, x, bias_gradient, bias=True):
  return passes.attend_backward(
    *x[:3],
    x.bias if bias else None,
    x.lse,
    x.delta,
    x.g,
    bias_gradient=bias_gradient,
  )


def _redistribute(passes, x, residual_mix, **options):
  options |= {'residual_mix': residual_mix, 'floor': 0.1}
  return passes.redistribute(*x[:3], x.gain, x.v_mean, x.lse, **options)


def _redistribute_backward(passes, x, gain_gradient, **options):
  rows = x.lse, x.rho, x.pull, x.delta
  options |= {'residual_mix': 0.7, 'gain_gradient': gain_gradient}
  return passes.redistribute_backward(*x[:3], x.gain, *rows, x.g, **options)


CASES = {
  'attend': Case(lambda p, x: p.attend(*x[:3], x.bias), 1),
  'attend, output only': Case(
    lambda p, x: p.attend(*x[:3], x.bias, keep_rows=False)[0], 1
  ),
  'attend, no bias': Case(lambda p, x: p.attend(*x[:3], None), 1),
  'attend_backward': Case(lambda p, x: _attend_backward(p, x, False), 2),
  'attend_backward, no bias': Case(
    lambda p, x: _attend_backward(p, x, False, bias=False), 2
  ),
  'attend_backward, bias too': Case(
    lambda p, x: _attend_backward(p, x, True), 2
  ),
  'marginal': Case(lambda p, x: p.marginal(x.q, x.k), 2),
  'marginal_backward': Case(
    lambda p, x: p.marginal_backward(x.q, x.k, x.lse, x.gamma), 2
  ),
  'redistribute': Case(lambda p, x: _redistribute(p, x, 0.7), 1),
  'redistribute, output only': Case(
    lambda p, x: _redistribute(p, x, 0.7, keep_rows=False)[0], 1
  ),
  'redistribute, all': Case(lambda p, x: _redistribute(p, x, 1.0), 1),
  'redistribute_backward': Case(
    lambda p, x: _redistribute_backward(p, x, False), 2
  ),
  'redistribute_backward, gain too': Case(
    lambda p, x: _redistribute_backward(p, x, True), 2
  ),
}
# Of platforms that have them.
JOINT = {
  'redistribute_backward, marginal too': Case(
    lambda p, x: _redistribute_backward(p, x, False, gamma=x.gamma), 3
  ),
  'gain_gradient': Case(
    lambda p, x: p.gain_gradient(*x[:3], x.lse, x.rho, x.pull, x.g), 1
  ),
}
# One of each pass, with all that it can compute.
WHOLE = (
  *('attend', 'attend_backward, bias too', 'marginal', 'marginal_backward'),
  *('redistribute', 'redistribute_backward, gain too'),
)


# Name -> of operations and inputs: a function, its arguments, and a gradient.
OPERATIONS = {
  'biased': lambda o, x: (
    lambda *y: o.biased(*y, True), (*x[:3], x.bias), x.g
  ),
  'marginal': lambda o, x: (
    lambda *y: o.marginal(*y)[0], (x.q, x.k), x.gamma
  ),
  'redistributed': lambda o, x: (
    lambda *y: o.redistributed(*y, 0.7, 0.1, True), (*x[:3], x.gain), x.g
  ),
}  # fmt: skip


def both(operations, name: str, x: Inputs):
  """The result of an operation and all its gradients."""
  run, arguments, gradient = OPERATIONS[name](operations, x)
  y, pull = jax.vjp(run, *arguments)
  return y, pull(gradient.astype(y.dtype))
