"""The passes of `kernels.vjp` for NVIDIA H100 and H200, in Pallas Mosaic GPU.

Tensor cores multiply bfloat16; everything else is float32. q, k, v are read as
projections write them, [B, L, H, D], by a copy engine that knows where arrays
end: if L is a multiple of 8, nothing is padded but a few numbers per row. Any
other L costs a padded copy of each. In units of U, one L x L x D product per
head:

  pass           forward   backward
  attend           2 U       7 U
  marginal         2 U       5 U
  redistribute     3 U       7 U      (2 U forward if the residual mix is 1)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mira_jax.kernels.gpu import backward
from mira_jax.kernels.gpu.forward import forward
from mira_jax.kernels.gpu.sweep import Tiles, Vector
from mira_jax.kernels.gpu.warpgroup import LOG2E, along
from mira_jax.kernels.operations import row_norm
from mira_jax.kernels.vjp import Passes

Array = jax.Array


def refusal(shape: tuple[int, ...], dtype) -> str | None:
  """Why these kernels cannot serve q, k, v [B, L, H, D]; None if they can."""
  if jnp.dtype(dtype) != jnp.bfloat16:
    return f'it computes in bfloat16, not in {jnp.dtype(dtype).name}'
  batch, _, heads, width = shape
  if width % 16 or width > 128:
    return f'heads are {width} wide, not a multiple of 16 up to 128'
  if max(batch, heads) > 65535:
    return f'{batch} clips or {heads} heads are more than 65535 blocks'
  return None


# Columns of a tile. These fit the registers for widths up to 80; the one with
# the least padding is taken, of equals the first.
COLUMNS = {
  'attend': (128, 224),  # 224 is a seventh of 1568
  'logsumexp': (128, 224),
  'redistribute': (128, 64),
  'dq': (128, 64),
  'redistribute dq': (64,),
  'dkv': (64,),
  'mass': (128, 224),
  'marginal dk': (128, 64),
}


def tiles(sweep_name: str, shape: tuple[int, ...]) -> Tiles:
  """Sizes of a sweep, a key of COLUMNS, over k of a shape [B, L, H, D]."""
  _, length, _, width = shape
  # Three warpgroups own up to 192 rows in one block; two would need two blocks,
  # for 256. But each has 160 registers instead of 232.
  three = 128 < length <= 192 and width <= 80
  columns = COLUMNS[sweep_name]
  if three or width > 80:
    columns = (32,) if sweep_name == 'dkv' else (64,)
  best = min(columns, key=lambda x: -length % x)
  # Small tiles pass by faster: a third stage hides more of a copy's latency.
  stages = 3 if best * width <= 64 * 80 else 2
  return Tiles(64, best, 3 if three else 2, stages)


# ----- the six passes ---------------------------------------------------------


def _attend(q, k, v, bias):
  def finish(lse, sums, *_):
    return [*sums, lse]

  keys, size = [_exponent(k, bias)], tiles('attend', k.shape)
  return tuple(forward(q, k, v, keys, finish, [q, _per_row(q)], size))


def _attend_backward(q, k, v, bias, lse, delta, g, *, bias_gradient):
  rows = [_log2(lse), Vector(delta)]
  return _gradients(
    q, k, v, g, rows, [], backward.biased, 'dq', bias_gradient, bias
  )


def _marginal(q, k):
  keys, size = [_exponent(k, None)], tiles('logsumexp', k.shape)
  out = [_per_row(q)]
  (lse,) = forward(q, k, None, keys, lambda lse, *_: [lse], out, size)
  rows, size = [_log2(lse)], tiles('mass', k.shape)
  mass = backward.key_gradient(
    q, k, [], rows, [], backward.mass, ['share'], size
  )
  return _over_heads(mass), lse


def _marginal_backward(q, k, lse, gamma):
  # A constant in gamma changes nothing; without it, less cancels below.
  gamma = gamma - gamma.mean(1, keepdims=True)

  def finish(_, sums, means, __):
    (o, weighted), (mean,) = sums, means
    dq = weighted - along(mean, 0, o.shape) * o
    return [dq * q.shape[-1] ** -0.5, mean]

  # dS k = (A * gamma) k - mean A k: a forward sweep whose values are the keys.
  keys = [_exponent(k, None), Vector(gamma)]
  size = tiles('redistribute', k.shape)
  dq, mean = forward(q, k, k, keys, finish, [q, _per_row(q)], size)
  rows, size = [_log2(lse), Vector(mean)], tiles('marginal dk', k.shape)
  (dk,) = backward.key_gradient(
    q, k, [], rows, [Vector(gamma)], backward.marginal, ['dk'], size
  )
  return dq, dk


def _redistribute(q, k, v, gain, v_mean, *, residual_mix, floor):
  plain = [] if residual_mix == 1 else [q]  # with 1, y is z

  def finish(lse, sums, means, of_head):
    (*o, weighted), (mean,), (v_mean,) = sums, means, of_head
    one = along(1 / row_norm(mean, floor), 0, weighted.shape)
    z = ((1 - floor) * weighted + floor * v_mean) * one
    y = [(1 - residual_mix) * x + residual_mix * z for x in o]
    return [lse, mean, z, *y]

  lse, mean, z, *y = forward(
    q,
    k,
    v,
    [_exponent(k, None), Vector(gain)],
    finish,
    [_per_row(q), _per_row(q), q, *plain],
    tiles('redistribute', k.shape),
    plain=bool(plain),
    per_head=[v_mean],
  )
  return *(y or [z]), z, lse, mean


def _redistribute_backward(
  q, k, v, gain, lse, rho, pull, delta, g, *, residual_mix, gain_gradient
):
  rows = [_log2(lse), Vector(rho), Vector(pull), Vector(delta)]
  keys = [Vector(gain)]
  rule, name = backward.redistributed(residual_mix), 'redistribute dq'
  return _gradients(q, k, v, g, rows, keys, rule, name, gain_gradient)


def _gradients(q, k, v, g, rows, keys, rule, name, shared, bias=None):
  """dq, dk, dv and, if `shared`, the gradient of what all rows share."""
  own, size = [_exponent(k, bias), *keys], tiles(name, k.shape)
  dq = backward.row_gradient(q, k, v, g, rows, own, rule, size)
  wanted = ['dk', 'dv', 'share'] if shared else ['dk', 'dv']
  factor = None if bias is None else Vector(jnp.exp(bias))
  size = tiles('dkv', k.shape)
  dk, dv, *share = backward.key_gradient(
    q, k, [v, g], rows, keys, rule, wanted, size, factor=factor
  )
  return dq, dk, dv, _over_heads(share)


def _per_row(q):
  batch, length, heads, _ = q.shape
  return jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)


def _exponent(k, bias):
  """A bias in units of log 2; where there are no keys, it hides them."""
  if bias is None:
    bias = jnp.zeros(k.shape[:2], jnp.float32)
  return Vector(bias * LOG2E, -jnp.inf)


def _log2(lse):
  """A log-sum-exp in units of log 2; where there are no rows, P is 0."""
  return Vector(lse * LOG2E, jnp.inf)


def _over_heads(share):
  """What is summed per key, [B, H, L] if asked for -> [B, L], or None."""
  return share[0].sum(1) if share else None


PASSES = Passes(
  _attend,
  _attend_backward,
  _marginal,
  _marginal_backward,
  _redistribute,
  _redistribute_backward,
)
