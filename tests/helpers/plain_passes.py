"""The passes of `kernels.vjp` on the whole map: the oracle of kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mira_jax.kernels.vjp import Passes


def wide(*arrays):
  return tuple(
    x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in arrays
  )


def logits(q, k):
  q, k = wide(q, k)
  return jnp.einsum('bihd,bjhd->bhij', q, k) * q.shape[-1] ** -0.5


def keys(x):
  """[B, L] -> [B, 1, 1, L]."""
  return x[:, None, None, :]


def from_logits(q, k, ds):
  """dq and dk from dS [B, H, L, L]."""
  scale = q.shape[-1] ** -0.5
  wide_q, wide_k = wide(q, k)
  dq = jnp.einsum('bhij,bjhd->bihd', ds, wide_k) * scale
  dk = jnp.einsum('bhij,bihd->bjhd', ds, wide_q) * scale
  return dq.astype(q.dtype), dk.astype(k.dtype)


def apply(a, v):
  return jnp.einsum('bhij,bjhd->bihd', a, *wide(v))


def attend(q, k, v, bias, *, keep_rows=True):
  del keep_rows
  s = logits(q, k) + (0 if bias is None else keys(bias))
  lse = jax.nn.logsumexp(s, -1)
  return apply(jnp.exp(s - lse[..., None]), v).astype(v.dtype), lse


def attend_backward(q, k, v, bias, lse, delta, g, *, bias_gradient):
  s = logits(q, k) + (0 if bias is None else keys(bias))
  p = jnp.exp(s - lse[..., None])
  dp = jnp.einsum('bihd,bjhd->bhij', *wide(g, v))
  ds = p * (dp - delta[..., None])
  dv = jnp.einsum('bhij,bihd->bjhd', p, *wide(g)).astype(v.dtype)
  dbias = ds.sum((1, 2)) if bias_gradient else None
  return *from_logits(q, k, ds), dv, dbias


def marginal(q, k):
  s = logits(q, k)
  return jax.nn.softmax(s).sum((1, 2)), jax.nn.logsumexp(s, -1)


def marginal_backward(q, k, lse, gamma):
  a = jnp.exp(logits(q, k) - lse[..., None])
  mean = (a * keys(gamma)).sum(-1, keepdims=True)
  return from_logits(q, k, a * (keys(gamma) - mean))


def redistribute(
  q, k, v, gain, v_mean, lse, *, residual_mix, floor, keep_rows=True
):
  del lse, keep_rows
  s = logits(q, k)
  a = jax.nn.softmax(s)
  mean_gain = (a * keys(gain)).sum(-1)
  norm = (1 - floor) * mean_gain + floor
  norm = jnp.moveaxis(jnp.maximum(norm, 1e-12), 1, 2)[..., None]
  z = (1 - floor) * apply(a * keys(gain), v) + floor * v_mean[:, None]
  z = z / norm
  y = (1 - residual_mix) * apply(a, v) + residual_mix * z
  lse = jax.nn.logsumexp(s, -1)
  return y.astype(v.dtype), z.astype(v.dtype), lse, mean_gain


def redistribute_backward(
  q,
  k,
  v,
  gain,
  lse,
  rho,
  pull,
  delta,
  g,
  *,
  residual_mix,
  gain_gradient,
  gamma=None,
):
  rho, pull, delta, lse = (x[..., None] for x in (rho, pull, delta, lse))
  a = jnp.exp(logits(q, k) - lse)
  dp = jnp.einsum('bihd,bjhd->bhij', *wide(g, v))
  t = rho * dp - pull
  ds = a * ((1 - residual_mix) * dp + keys(gain) * t - delta)
  if gamma is not None:
    ds += a * (keys(gamma) - (a * keys(gamma)).sum(-1, keepdims=True))
  weight = a * (1 - residual_mix + rho * keys(gain))
  dv = jnp.einsum('bhij,bihd->bjhd', weight, *wide(g)).astype(v.dtype)
  dgain = (a * t).sum((1, 2)) if gain_gradient else None
  return *from_logits(q, k, ds), dv, dgain


def gain_gradient(q, k, v, lse, rho, pull, g):
  a = jnp.exp(logits(q, k) - lse[..., None])
  dp = jnp.einsum('bihd,bjhd->bhij', *wide(g, v))
  return (a * (rho[..., None] * dp - pull[..., None])).sum((1, 2))


PASSES = Passes(
  attend,
  attend_backward,
  marginal,
  marginal_backward,
  redistribute,
  redistribute_backward,
  gain_gradient,
)
