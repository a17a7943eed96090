"""MiRA attention in O(L) memory, in plain XLA, for every platform.

One head at a time, some hundred whole rows of its map at a time. A tile of
[rows, L] stays in a processor's cache, and since its rows are whole there is no
online softmax, and every row sum of the backward pass is at hand. What is kept
for the backward pass is q, k, v and one log-sum-exp per row.

In units of U, one L x L x D product per head:

  operation                      forward   backward
  biased_attention                 2 U        5 U
  attention_marginal               1 U        3 U
  redistributed_attention          2 U        5 U
  exact mode (the last two)        3 U        8 U
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

TILE = 800 * 1568  # numbers in a tile, at most: 5 MB of float32


def biased_attention(q: Array, k: Array, v: Array, bias: Array) -> Array:
  """softmax(q k^T / sqrt(D) + bias) v, differentiable in all four.

  Args:
    q: [B, L, H, D].
    k: [B, L, H, D].
    v: [B, L, H, D].
    bias: [B or 1, L], added to the logits of each key; flashlite's log gain.

  Returns:
    [B, L, H, D].
  """
  return _biased(q, k, v, _per_clip(bias, q))


def attention_marginal(q: Array, k: Array) -> Array:
  """Attention that each key receives, mean over heads and queries: [B, L]."""
  return _marginal(q, k)


def redistributed_attention(
  q: Array,
  k: Array,
  v: Array,
  gain: Array,
  *,
  residual_mix: float,
  floor: float,
) -> Array:
  """redistribute(softmax(q k^T / sqrt(D)), gain) v, differentiable in all four.

  Row i of the redistributed map is, with A the softmax, a the gain, m the
  residual mix, f the floor and D_i = (1 - f) sum_j A_ij a_j + f,

    (1 - m + rho_i a_j) A_ij + m f / (L D_i),   rho_i = m (1 - f) / D_i.

  Args:
    q: [B, L, H, D].
    k: [B, L, H, D].
    v: [B, L, H, D].
    gain: [B or 1, L].
    residual_mix: 0 to 1.
    floor: 0 to 1.

  Returns:
    [B, L, H, D].
  """
  return _redistributed(q, k, v, _per_clip(gain, q), residual_mix, floor)


def _per_clip(x: Array, q: Array) -> Array:
  """[B or 1, L] -> [B, L] in the dtype of statistics."""
  x = x.astype(jnp.promote_types(q.dtype, jnp.float32))
  return jnp.broadcast_to(x, (q.shape[0], q.shape[1]))


# ----- heads and tiles -------------------------------------------------------


def _over_heads(one: Callable[..., Any], arrays: tuple, shared: tuple = ()):
  """Maps `one(*arrays of a head, *shared of a clip)` over clips and heads.

  `arrays` are [B, L, H, ...] and `shared` [B, ...]; results are [B, H, ...].
  """
  arrays = tuple(jnp.moveaxis(x, 2, 1) for x in arrays)

  def clip(x):
    heads, own = x
    return jax.lax.map(lambda head: one(*head, *own), heads)

  return jax.lax.map(clip, (arrays, shared))


def _from_heads(x: Array) -> Array:
  """[B, H, L, D] -> [B, L, H, D]."""
  return jnp.moveaxis(x, 1, 2)


def _tiles(x: Array, fill: float = 0.0) -> Array:
  """Rows [L, ...] -> tiles [n, rows, ...], the last one filled up."""
  length = x.shape[0]
  count = -(-length // max(TILE // length, 1))
  rows = -(-length // count)
  pad = [(0, count * rows - length)] + [(0, 0)] * (x.ndim - 1)
  return jnp.pad(x, pad, constant_values=fill).reshape(
    count, rows, *x.shape[1:]
  )


def _rows(x: Array, length: int) -> Array:
  """The inverse of `_tiles`."""
  return x.reshape(-1, *x.shape[2:])[:length]


def _product(x: Array, y: Array, contract: str) -> Array:
  """einsum of two matrices, accumulated in at least float32."""
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  return jnp.einsum(contract, x, y, preferred_element_type=dtype)


def _logits(q: Array, k: Array) -> Array:
  return _product(q, k, 'id,jd->ij') * q.shape[-1] ** -0.5


# ----- plain and flashlite ----------------------------------------------------


@jax.custom_vjp
def _biased(q, k, v, bias):
  return _biased_fwd(q, k, v, bias)[0]


def _biased_fwd(q, k, v, bias):
  def head(q, k, v, bias):
    def tile(_, q):
      s = _logits(q, k) + bias
      top = s.max(-1, keepdims=True)
      e = jnp.exp(s - top)
      total = e.sum(-1, keepdims=True)
      o = _product(e.astype(v.dtype), v, 'ij,jd->id') / total
      return None, (o.astype(v.dtype), (top + jnp.log(total))[:, 0])

    _, (o, lse) = jax.lax.scan(tile, None, _tiles(q))
    return _rows(o, len(k)), _rows(lse, len(k))

  y, lse = _over_heads(head, (q, k, v), (bias,))
  return _from_heads(y), (q, k, v, bias, _from_heads(lse))


def _biased_bwd(residuals, g):
  q, k, v, bias, lse = residuals

  def head(q, k, v, lse, g, bias):
    def tile(sums, x):
      q, lse, g = x
      p = jnp.exp(_logits(q, k) + bias - lse[:, None])
      dp = _product(g, v, 'id,jd->ij')
      ds = p * (dp - (p * dp).sum(-1, keepdims=True))
      return _accumulate(sums, q, k, g, ds, p), _to_q(ds, k)

    sums = _zeros(k, v, bias)
    # A filled-up row has an infinite log-sum-exp: its p is 0.
    xs = (_tiles(q), _tiles(lse, jnp.inf), _tiles(g))
    (dk, dv, db), dq = jax.lax.scan(tile, sums, xs)
    return _rows(dq, len(k)), dk, dv, db

  dq, dk, dv, db = _over_heads(head, (q, k, v, lse, g), (bias,))
  return *_like((dq, dk, dv), (q, k, v)), db.sum(1)


_biased.defvjp(_biased_fwd, _biased_bwd)


def _zeros(k, v, shared):
  """Where a head's gradients are summed over tiles."""
  dtype = jnp.promote_types(k.dtype, jnp.float32)
  return tuple(jnp.zeros(x.shape, dtype) for x in (k, v, shared))


def _accumulate(sums, q, k, g, ds, p, shared=None):
  """Adds a tile's dk, dv and the gradient of what all rows share."""
  dk, dv, d = sums
  scale = q.shape[-1] ** -0.5
  dk = dk + _product(ds.astype(q.dtype), q, 'ij,id->jd') * scale
  dv = dv + _product(p.astype(g.dtype), g, 'ij,id->jd')
  return dk, dv, d + (ds if shared is None else shared).sum(0)


def _to_q(ds, k):
  return _product(ds.astype(k.dtype), k, 'ij,jd->id') * k.shape[-1] ** -0.5


def _like(gradients, arrays):
  """Gradients [B, H, L, D] in the layout and dtype of their arrays."""
  return tuple(
    _from_heads(g).astype(x.dtype)
    for g, x in zip(gradients, arrays, strict=True)
  )


# ----- exact: the marginal, and redistribution -----------------------------


@jax.custom_vjp
def _marginal(q, k):
  return _marginal_fwd(q, k)[0]


def _marginal_fwd(q, k):
  length, heads = q.shape[1:3]

  def head(q, k):
    def tile(mass, x):
      q, real = x
      s = _logits(q, k)
      top = s.max(-1, keepdims=True)
      e = jnp.exp(s - top)
      total = e.sum(-1)
      # A matrix product, not a sum of e / total: e is read once.
      mass = mass + _product(real / total, e, 'i,ij->j')
      return mass, top[:, 0] + jnp.log(total)

    dtype = jnp.promote_types(q.dtype, jnp.float32)
    real = _tiles(jnp.ones(length, dtype))
    mass, lse = jax.lax.scan(tile, jnp.zeros(length, dtype), (_tiles(q), real))
    return mass, _rows(lse, length)

  mass, lse = _over_heads(head, (q, k))
  return mass.sum(1) / (heads * length), (q, k, _from_heads(lse))


def _marginal_bwd(residuals, g):
  q, k, lse = residuals
  g = g / (q.shape[1] * q.shape[2])

  def head(q, k, lse, g):
    def tile(dk, x):
      q, lse = x
      a = jnp.exp(_logits(q, k) - lse[:, None])
      ds = a * (g - _product(a, g, 'ij,j->i')[:, None])
      scale = q.shape[-1] ** -0.5
      dk = dk + _product(ds.astype(q.dtype), q, 'ij,id->jd') * scale
      return dk, _to_q(ds, k)

    dk = jnp.zeros(k.shape, g.dtype)
    dk, dq = jax.lax.scan(tile, dk, (_tiles(q), _tiles(lse, jnp.inf)))
    return _rows(dq, len(k)), dk

  dq, dk = _over_heads(head, (q, k, lse), (g,))
  return _like((dq, dk), (q, k))


_marginal.defvjp(_marginal_fwd, _marginal_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _redistributed(q, k, v, gain, mix, floor):
  return _redistributed_fwd(q, k, v, gain, mix, floor)[0]


def _redistributed_fwd(q, k, v, gain, mix, floor):
  def head(q, k, v, gain):
    mean = v.mean(0, dtype=gain.dtype)

    def tile(_, q):
      s = _logits(q, k)
      top = s.max(-1, keepdims=True)
      e = jnp.exp(s - top)
      total = e.sum(-1, keepdims=True)
      norm = (1 - floor) * _product(e, gain, 'ij,j->i')[:, None] / total + floor
      rho = mix * (1 - floor) / norm
      w = e * ((1 - mix) + rho * gain)
      o = _product(w.astype(v.dtype), v, 'ij,jd->id') / total
      o = o + (mix * floor / norm) * mean
      return None, (o.astype(v.dtype), (top + jnp.log(total))[:, 0])

    _, (o, lse) = jax.lax.scan(tile, None, _tiles(q))
    return _rows(o, len(k)), _rows(lse, len(k))

  y, lse = _over_heads(head, (q, k, v), (gain,))
  return _from_heads(y), (q, k, v, gain, _from_heads(lse))


def _redistributed_bwd(mix, floor, residuals, g):
  q, k, v, gain, lse = residuals

  def head(q, k, v, lse, g, gain):
    length = len(k)

    def tile(sums, x):
      q, lse, g = x
      a = jnp.exp(_logits(q, k) - lse[:, None])
      dp = _product(g, v, 'id,jd->ij')
      norm = (1 - floor) * _product(a, gain, 'ij,j->i')[:, None] + floor
      norm = jnp.maximum(norm, 1e-12)  # a filled-up row's is 0
      rho = mix * (1 - floor) / norm
      weight = (1 - mix) + rho * gain
      # g . z, z being the output with residual mix 1.
      gz = (1 - floor) * _product(a * dp, gain, 'ij,j->i')[:, None]
      gz = (gz + floor * dp.mean(-1, keepdims=True)) / norm
      da = weight * dp - rho * gain * gz
      ds = a * (da - (a * da).sum(-1, keepdims=True))
      dgain = a * (rho * (dp - gz))
      sums, rest = sums
      sums = _accumulate(sums, q, k, g, ds, a * weight, dgain)
      # The floor gives every key the same share of every row.
      rest = rest + ((mix * floor / length) / norm * g).sum(0)
      return (sums, rest), _to_q(ds, k)

    start = (_zeros(k, v, gain), jnp.zeros(v.shape[1:], gain.dtype))
    xs = (_tiles(q), _tiles(lse, jnp.inf), _tiles(g))
    ((dk, dv, dgain), rest), dq = jax.lax.scan(tile, start, xs)
    return _rows(dq, length), dk, dv + rest, dgain

  dq, dk, dv, dgain = _over_heads(head, (q, k, v, lse, g), (gain,))
  return *_like((dq, dk, dv), (q, k, v)), dgain.sum(1)


_redistributed.defvjp(_redistributed_fwd, _redistributed_bwd)
