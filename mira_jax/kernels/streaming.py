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

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from mira_jax.kernels.operations import (
  Operations,
  keep_output,
  keep_rows,
  row_norm,
)

Array = jax.Array
AtOnce = Literal['head', 'clip', 'batch']


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How the attention map is cut.

  Attributes:
    numbers: in a tile, at most: 5 MB of float32.
    at_once: what is computed at once, the rest one after the other: a 'head',
      all heads of a 'clip', or the whole 'batch'.
  """

  numbers: int = 800 * 1568
  at_once: AtOnce = 'head'

  def __post_init__(self):
    if self.at_once not in get_args(AtOnce) or not self.numbers >= 1:
      raise ValueError(f'{self} cuts nothing')

  def over_heads(
    self, one: Callable[..., Any], arrays: tuple, shared: tuple = ()
  ) -> Any:
    """Maps `one(cut, *arrays of a head, *shared of a clip)`.

    `arrays` are [B, L, H, ...] and `shared` [B, ...]; results are [B, H, ...].
    """
    arrays = tuple(jnp.moveaxis(x, 2, 1) for x in arrays)
    batch, heads, length = arrays[0].shape[:3]
    clips = batch if self.at_once == 'batch' else 1
    together = 1 if self.at_once == 'head' else heads
    rows = max(self.numbers // (length * clips * together), 1)
    one = functools.partial(one, _Cut(length, rows))

    def clip(x):
      heads, own = x
      return _map(lambda head: one(*head, *own), heads, together)

    return _map(clip, (arrays, shared), clips)


def _map(one: Callable[[Any], Any], arrays: Any, at_once: int) -> Any:
  """One after the other; or, where there are `at_once`, all together."""
  if at_once > 1:
    return jax.vmap(one)(arrays)
  return jax.lax.map(one, arrays)


# ----- tiles ------------------------------------------------------------------


class _Cut(NamedTuple):
  """How the rows of a head are cut into tiles."""

  length: int
  most: int  # rows of a tile

  def tiles(self, x: Array, fill: float = 0.0) -> Array:
    """Rows [L, ...] -> tiles [n, rows, ...], the last one filled up."""
    count = -(-self.length // self.most)
    rows = -(-self.length // count)
    pad = [(0, count * rows - self.length)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, pad, constant_values=fill).reshape(
      count, rows, *x.shape[1:]
    )

  def rows(self, x: Array) -> Array:
    """The inverse of `tiles`."""
    return x.reshape(-1, *x.shape[2:])[: self.length]

  def row_tiles(self, lse: Array) -> Array:
    """Log-sum-exps [L] or [L, 1] -> tiles [n, rows, 1].

    That of a row which only fills up a tile is infinite: its softmax is 0.
    """
    return self.tiles(lse.reshape(-1, 1), jnp.inf)


def _from_heads(x: Array) -> Array:
  """[B, H, L, D] -> [B, L, H, D]."""
  return jnp.moveaxis(x, 1, 2)


def _product(x: Array, y: Array, contract: str) -> Array:
  """einsum of two matrices, accumulated in at least float32."""
  return jnp.einsum(contract, x, y, preferred_element_type=_wide(x.dtype))


def _wide(dtype):
  return jnp.promote_types(dtype, jnp.float32)


def _row_dot(x: Array, y: Array) -> Array:
  """[L, D] twice -> [L, 1], at least float32."""
  dtype = _wide(x.dtype)
  return (x.astype(dtype) * y.astype(dtype)).sum(-1, keepdims=True)


def _logits(q: Array, k: Array, bias: Array | None = None) -> Array:
  s = _product(q, k, 'id,jd->ij') * q.shape[-1] ** -0.5
  return s if bias is None else s + bias


def _softmax(q: Array, k: Array, bias: Array | None = None):
  """Exponentials [rows, L] of a tile, their sums and log-sum-exps [rows, 1]."""
  s = _logits(q, k, bias)
  top = s.max(-1, keepdims=True)
  e = jnp.exp(s - top)
  total = e.sum(-1, keepdims=True)
  return e, total, top + jnp.log(total)


# ----- softmax(S + bias) v ----------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def biased_attention(tiling: Tiling, q, k, v, bias, bias_gradient):
  """softmax(S + bias) v, see `Operations.biased`."""
  return _biased_fwd(tiling, q, k, v, bias, bias_gradient)[0]


def _biased_fwd(tiling, q, k, v, bias, bias_gradient):
  del bias_gradient

  def head(cut, q, k, v, bias):
    def tile(_, q):
      e, total, lse = _softmax(q, k, bias)
      o = _product(e.astype(v.dtype), v, 'ij,jd->id') / total
      return None, (o.astype(v.dtype), lse[:, 0])

    _, (o, lse) = jax.lax.scan(tile, None, cut.tiles(q))
    return cut.rows(o), cut.rows(lse)

  y, lse = tiling.over_heads(head, (q, k, v), (bias,))
  y, lse = keep_output(_from_heads(y)), keep_rows(_from_heads(lse))
  return y, (q, k, v, bias, y, lse)


def _biased_bwd(tiling, bias_gradient, residuals, g):
  q, k, v, bias, y, lse = residuals

  def head(cut, q, k, v, y, lse, g, bias):
    def tile(sums, x):
      q, lse, delta, g = x
      p = jnp.exp(_logits(q, k, bias) - lse)
      ds = p * (_product(g, v, 'id,jd->ij') - delta)
      return _accumulate(sums, q, g, ds, p, ds), _to_q(ds, k)

    sums = _zeros(k, v, bias if bias_gradient else None)
    xs = (
      cut.tiles(q),
      cut.row_tiles(lse),
      cut.tiles(_row_dot(g, y)),
      cut.tiles(g),
    )
    (dk, dv, db), dq = jax.lax.scan(tile, sums, xs)
    return cut.rows(dq), dk, dv, db

  dq, dk, dv, db = tiling.over_heads(head, (q, k, v, y, lse, g), (bias,))
  return *_like((dq, dk, dv), (q, k, v)), _gradient(db, bias)


biased_attention.defvjp(_biased_fwd, _biased_bwd)


# ----- the key marginal of softmax(S) -----------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention_marginal(tiling: Tiling, q, k):
  """Attention that each key receives, see `Operations.marginal`."""
  return _marginal_fwd(tiling, q, k)[0]


def _marginal_fwd(tiling, q, k):
  length, heads = q.shape[1:3]

  def head(cut, q, k):
    def tile(mass, x):
      q, real = x
      e, total, lse = _softmax(q, k)
      # A matrix product, not a sum of e / total: e is read once.
      mass = mass + _product(real / total, e, 'io,ij->j')
      return mass, lse[:, 0]

    dtype = _wide(q.dtype)
    real = cut.tiles(jnp.ones((length, 1), dtype))
    mass, lse = jax.lax.scan(
      tile, jnp.zeros(length, dtype), (cut.tiles(q), real)
    )
    return mass, cut.rows(lse)

  mass, lse = tiling.over_heads(head, (q, k))
  marginal = keep_rows(mass.sum(1) / (heads * length))
  return marginal, (q, k, keep_rows(_from_heads(lse)))


def _marginal_bwd(tiling, residuals, g):
  q, k, lse = residuals
  gamma = g / (q.shape[1] * q.shape[2])

  def head(cut, q, k, lse, gamma):
    def tile(sums, x):
      q, lse = x
      a = jnp.exp(_logits(q, k) - lse)
      ds = a * (gamma - _product(a, gamma, 'ij,j->i')[:, None])
      return _accumulate(sums, q, None, ds), _to_q(ds, k)

    sums = _zeros(k, None, None)
    (dk, _, _), dq = jax.lax.scan(
      tile, sums, (cut.tiles(q), cut.row_tiles(lse))
    )
    return cut.rows(dq), dk

  dq, dk = tiling.over_heads(head, (q, k, lse), (gamma,))
  return _like((dq, dk), (q, k))


attention_marginal.defvjp(_marginal_fwd, _marginal_bwd)


# ----- redistribute(softmax(S), gain) v ---------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5, 6, 7))
def redistributed_attention(
  tiling: Tiling, q, k, v, gain, residual_mix, floor, gain_gradient
):
  """redistribute(softmax(S), gain) v, see `Operations.redistributed`."""
  options = residual_mix, floor, gain_gradient
  return _redistributed_fwd(tiling, q, k, v, gain, *options)[0]


def _redistributed_fwd(tiling, q, k, v, gain, mix, floor, gain_gradient):
  del gain_gradient

  def head(cut, q, k, v, gain):
    mean = v.mean(0, dtype=gain.dtype)

    def tile(_, q):
      e, total, lse = _softmax(q, k)
      mean_gain = _product(e, gain, 'ij,j->i')[:, None] / total
      norm = row_norm(mean_gain, floor)
      rho = mix * (1 - floor) / norm
      w = e * ((1 - mix) + rho * gain)
      o = _product(w.astype(v.dtype), v, 'ij,jd->id') / total
      o = o + (mix * floor / norm) * mean
      rows = jnp.concatenate([lse, norm], -1)
      return None, (o.astype(v.dtype), rows)

    _, (o, rows) = jax.lax.scan(tile, None, cut.tiles(q))
    return cut.rows(o), cut.rows(rows)

  y, rows = tiling.over_heads(head, (q, k, v), (gain,))
  y, rows = keep_output(_from_heads(y)), keep_rows(_from_heads(rows))
  return y, (q, k, v, gain, y, rows)


def _redistributed_bwd(tiling, mix, floor, gain_gradient, residuals, g):
  q, k, v, gain, y, rows = residuals

  def head(cut, q, k, v, y, rows, g, gain):
    length = len(k)
    lse, norm = rows[:, :1], rows[:, 1:]
    mean = v.mean(0, keepdims=True, dtype=gain.dtype)
    # The floor gives every key the same share of every row.
    share = mix * floor / norm
    from_mean = _product(g, mean, 'id,od->io')
    xs = (q, norm, from_mean, _row_dot(g, y) - share * from_mean, g)
    fills = (0, 1, 0, 0, 0)

    def tile(sums, x):
      lse, q, norm, from_mean, delta, g = x
      a = jnp.exp(_logits(q, k) - lse)
      dp = _product(g, v, 'id,jd->ij')
      rho = mix * (1 - floor) / norm
      # g . z, z being the output with residual mix 1.
      gz = (1 - floor) * _product(a * dp, gain, 'ij,j->i')[:, None]
      gz = (gz + floor * from_mean) / norm
      adp, pull = a * dp, rho * gz
      t = rho * adp - pull * a
      mean_gain = _product(a, gain, 'ij,j->i')[:, None]
      ds = (1 - mix) * adp + gain * t - (delta - pull * mean_gain) * a
      weight = a * ((1 - mix) + rho * gain)
      return _accumulate(sums, q, g, ds, weight, t), _to_q(ds, k)

    sums = _zeros(k, v, gain if gain_gradient else None)
    tiles = tuple(map(cut.tiles, xs, fills))
    (dk, dv, da), dq = jax.lax.scan(tile, sums, (cut.row_tiles(lse), *tiles))
    dv = dv + (share * g).sum(0) / length
    return cut.rows(dq), dk, dv, da

  dq, dk, dv, da = tiling.over_heads(head, (q, k, v, y, rows, g), (gain,))
  return *_like((dq, dk, dv), (q, k, v)), _gradient(da, gain)


redistributed_attention.defvjp(_redistributed_fwd, _redistributed_bwd)


@functools.cache
def operations(tiling: Tiling) -> Operations:
  """The operations with tiles of a size."""

  def marginal(q, k):
    return attention_marginal(tiling, q, k), None

  def redistributed(*arguments):
    # Rows are whole: a log-sum-exp, if it is there, is not needed.
    return redistributed_attention(tiling, *arguments[:7])

  biased = functools.partial(biased_attention, tiling)
  return Operations(biased, marginal, redistributed)


def tilings(batch: int, length: int, heads: int) -> list[Tiling]:
  """Tilings worth a try, each with another cut; the first is the default."""
  found = {}
  together: tuple[tuple[AtOnce, int], ...]
  together = ('head', 1), ('clip', heads), ('batch', batch * heads)
  for at_once, maps in together:
    for numbers in (Tiling.numbers, *(2**n for n in (17, 18, 19, 21, 22))):
      rows = max(numbers // (maps * length), 1)
      tiles = -(-length // rows)
      if tiles <= 32:  # smaller products are not worth a try
        found.setdefault((at_once, tiles), Tiling(numbers, at_once))
  return list(found.values()) or [Tiling()]


# ----- gradients of a head ----------------------------------------------------


def _zeros(*likes):
  """Where a head's gradients are summed over tiles; None for none."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x.dtype)), likes)


def _accumulate(sums, q, g, ds, p: Any = None, shared: Any = None):
  """Adds a tile's dk, dv and the gradient of what all rows share."""
  dk, dv, d = sums
  scale = q.shape[-1] ** -0.5
  dk = dk + _product(ds.astype(q.dtype), q, 'ij,id->jd') * scale
  if dv is not None:
    dv = dv + _product(p.astype(g.dtype), g, 'ij,id->jd')
  if d is not None:
    d = d + shared.sum(0)
  return dk, dv, d


def _to_q(ds, k):
  return _product(ds.astype(k.dtype), k, 'ij,jd->id') * k.shape[-1] ** -0.5


def _like(gradients, arrays):
  """Gradients [B, H, L, D] in the layout and dtype of their arrays."""
  return tuple(
    _from_heads(g).astype(x.dtype)
    for g, x in zip(gradients, arrays, strict=True)
  )


def _gradient(gradient, x):
  """[B, H, L] or None -> the gradient of x [B, L]."""
  if gradient is None:
    return jax.tree.map(jnp.zeros_like, x)
  return gradient.sum(1)
