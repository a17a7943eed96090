"""Differentiable MiRA attention from the passes of a platform's kernels.

A kernel sweeps over the attention map without storing it, and leaves a few
numbers per row. What a sweep computes is `Passes`; how sweeps and rows make up
the operations and their gradients is here, once for all platforms. The algebra
is derived in docs/kernels.md. S = q k^T / sqrt(D), A = softmax(S).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mira_jax.devices import partition
from mira_jax.kernels.operations import (
  Operations,
  keep_output,
  keep_rows,
  row_norm,
)

Array = jax.Array


class Passes(NamedTuple):
  """Sweeps over the attention map of every head, one set per platform.

  q, k, v, their gradients and g = dL/dy are [B, L, H, D], one dtype for all.
  The rest is float32: per key [B, L] (bias, gain, mass, gamma), per row
  [B, H, L] (lse, mean_gain, delta, rho, pull). dP_ij = g_i . v_j; dq and dk
  follow from dS as dS k / sqrt(D) and dS^T q / sqrt(D).
  """

  # (q, k, v, bias | None, *, keep_rows) -> (y, lse): P = softmax(S + bias),
  # y = P v. Without keep_rows, as in inference, y is all that is needed.
  attend: Callable
  # (q, k, v, bias | None, lse, delta, g, *, bias_gradient)
  # -> (dq, dk, dv, dbias | None): dS = P (dP - delta), dv = P^T g, and
  # dbias_j = sum_hi dS_ij if asked.
  attend_backward: Callable
  # (q, k) -> (mass, lse): mass_j = sum_hi A_ij.
  marginal: Callable
  # (q, k, lse, gamma) -> (dq, dk): dS_ij = A_ij (gamma_j - sum_k A_ik gamma_k).
  marginal_backward: Callable
  # (q, k, v, gain, v_mean [B, H, D], lse | None, *, residual_mix, floor,
  # keep_rows) -> (y, z, lse, mean_gain), with the lse of `marginal` if it is
  # known: mean_gain_i = sum_j A_ij a_j,
  # norm = row_norm(mean_gain, floor),
  # z_i = ((1 - floor) sum_j A_ij a_j v_j + floor v_mean) / norm_i,
  # y = (1 - residual_mix) A v + residual_mix z.
  redistribute: Callable
  # (q, k, v, gain, lse, rho, pull, delta, g, *, residual_mix, gain_gradient)
  # -> (dq, dk, dv, dgain | None): with t_ij = rho_i dP_ij - pull_i,
  # dS = A ((1 - residual_mix) dP + a_j t - delta_i),
  # dv_j = sum_i A_ij (1 - residual_mix + rho_i a_j) g_i, and
  # dgain_j = sum_hi A_ij t_ij if asked. Where there is `gain_gradient`, it
  # takes gamma=, too, and adds the dS of `marginal_backward`.
  redistribute_backward: Callable
  # (q, k, v, lse, rho, pull, g) -> that dgain alone.
  gain_gradient: Callable | None = None


# ----- softmax(S + bias) v ----------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def biased_attention(passes: Passes, q, k, v, bias, bias_gradient):
  """softmax(S + bias) v, see `Operations.biased`."""
  del bias_gradient
  return passes.attend(q, k, v, bias, keep_rows=False)[0]


def _biased_fwd(passes, q, k, v, bias, bias_gradient):
  del bias_gradient
  y, lse = passes.attend(q, k, v, bias, keep_rows=True)
  y, lse = keep_output(y), keep_rows(lse)
  return y, (q, k, v, bias, y, lse)


def _biased_bwd(passes, bias_gradient, residuals, g):
  q, k, v, bias, y, lse = residuals
  dq, dk, dv, dbias = passes.attend_backward(
    q, k, v, bias, lse, _row_dot(g, y), g, bias_gradient=bias_gradient
  )
  return dq, dk, dv, _or_zeros(dbias, bias)


biased_attention.defvjp(_biased_fwd, _biased_bwd)


# ----- the key marginal of A --------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention_marginal(
  passes: Passes, q: Array, k: Array
) -> tuple[Array, Array]:
  """Attention that each key receives, see `Operations.marginal`."""
  return _marginal_fwd(passes, q, k)[0]


def _marginal_fwd(passes, q, k):
  mass, lse = passes.marginal(q, k)
  marginal = keep_rows(mass / (q.shape[1] * q.shape[2]))
  lse = keep_rows(lse)
  return (marginal, lse), (q, k, lse)


def _marginal_bwd(passes, residuals, gradients):
  q, k, lse = residuals
  g, _ = gradients  # lse is a constant to whoever gets it
  gamma = g / (q.shape[1] * q.shape[2])
  return passes.marginal_backward(q, k, lse, gamma)


attention_marginal.defvjp(_marginal_fwd, _marginal_bwd)


# ----- redistribute(A, gain) v ------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5, 6, 7))
def redistributed_attention(
  passes: Passes, q, k, v, gain, residual_mix, floor, gain_gradient, lse=None
):
  """redistribute(softmax(S), gain) v, see `Operations.redistributed`."""
  del gain_gradient
  options = residual_mix, floor, lse
  return _redistribute(passes, q, k, v, gain, *options, keep_rows=False)[1][0]


def _redistribute(passes, q, k, v, gain, mix, floor, lse, *, keep_rows):
  """The mean of v over its keys, and what the pass gives."""
  v_mean = v.mean(1, dtype=gain.dtype)
  options = {'residual_mix': mix, 'floor': floor, 'keep_rows': keep_rows}
  return v_mean, passes.redistribute(q, k, v, gain, v_mean, lse, **options)


def _redistributed_fwd(
  passes, q, k, v, gain, mix, floor, gain_gradient, lse=None
):
  del gain_gradient
  v_mean, (y, z, lse, mean_gain) = _redistribute(
    passes, q, k, v, gain, mix, floor, lse, keep_rows=True
  )
  y, z = (keep_output(y),) * 2 if y is z else map(keep_output, (y, z))
  lse, mean_gain = keep_rows(lse), keep_rows(mean_gain)
  return y, (q, k, v, gain, v_mean, y, z, lse, mean_gain)


def _redistributed_bwd(passes, mix, floor, gain_gradient, residuals, g):
  q, k, v, gain, v_mean, y, z, lse, mean_gain = residuals
  rho, pull, delta, share = _row_numbers(mix, floor, v_mean, y, z, mean_gain, g)
  numbers, options = (gain, lse, rho, pull, delta), {'residual_mix': mix}
  dq, dk, dv, dgain = passes.redistribute_backward(
    q, k, v, *numbers, g, gain_gradient=gain_gradient, **options
  )
  dv = _with_floor(dv, share, g)
  # The operation that gave lse has its own gradients.
  return dq, dk, dv, _or_zeros(dgain, gain), None


def _row_numbers(mix, floor, v_mean, y, z, mean_gain, g):
  """rho, pull, delta, and the share of the mean of v in a row's output."""
  norm = row_norm(mean_gain, floor)
  rho = mix * (1 - floor) / norm
  share = mix * floor / norm
  pull = rho * _row_dot(g, z)
  # sum_j A_ij dA_ij, without a sweep.
  delta = _row_dot(g, y) - pull * mean_gain
  delta -= share * jnp.einsum('blhd,bhd->bhl', g.astype(v_mean.dtype), v_mean)
  return rho, pull, delta, share


def _with_floor(dv, share, g):
  """dv, with what comes through the mean of v."""
  rest = jnp.einsum('bhl,blhd->bhd', share, g.astype(share.dtype))
  return (dv + rest[:, None] / dv.shape[1]).astype(dv.dtype)


redistributed_attention.defvjp(_redistributed_fwd, _redistributed_bwd)


# ----- both, with the gain of the marginal ------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def exact_attention(
  passes: Passes, estimate, residual_mix, floor, q, k, v, x
) -> tuple[Array, Any]:
  """`Operations.exact`: the sweeps of its backward pass are of both operations.

  Estimates may need the clips of all devices: only sweeps are shared out.
  """
  (y, *_), frames, _ = _exact(
    passes, estimate, residual_mix, floor, q, k, v, x, keep_rows=False
  )
  return y, frames


def _exact(passes, estimate, mix, floor, q, k, v, x, *, keep_rows):
  """(y, z, mean gain), the estimates, and (marginal, gain, lse)."""

  def redistribute(q, k, v, gain, lse):
    options = mix, floor, lse
    y, z, _, mean_gain = _redistribute(
      passes, q, k, v, gain, *options, keep_rows=keep_rows
    )[1]
    return y, z, mean_gain

  marginal, lse = partition.over_heads(
    lambda q, k: _marginal_fwd(passes, q, k)[0], q, k, out=(2, 3)
  )
  frames, gain = estimate(marginal, x)
  outputs = partition.over_heads(
    redistribute, q, k, v, gain, lse, out=(4, 4, 3)
  )
  return outputs, frames, (marginal, gain, lse)


def _exact_fwd(passes, estimate, mix, floor, q, k, v, x):
  (y, z, mean_gain), frames, numbers = _exact(
    passes, estimate, mix, floor, q, k, v, x, keep_rows=True
  )
  y, z = (keep_output(y),) * 2 if mix == 1 else map(keep_output, (y, z))
  kept = y, z, keep_rows(mean_gain), *numbers
  return (y, frames), (q, k, v, x, *kept)


def _exact_bwd(passes, estimate, mix, floor, residuals, gradients):
  q, k, v, x, y, z, mean_gain, marginal, gain, lse = residuals
  g, by_frames = gradients
  _, length, heads, _ = q.shape

  def by_gain(q, k, v, g, y, z, lse, mean_gain):
    v_mean = v.mean(1, dtype=lse.dtype)
    rho, pull, *rest = _row_numbers(mix, floor, v_mean, y, z, mean_gain, g)
    dgain = passes.gain_gradient(q, k, v, lse, rho, pull, g)
    return dgain / q.shape[2], rho, pull, *rest

  def rest(q, k, v, g, gain, gamma, lse, rho, pull, delta, share):
    numbers = gain, lse, rho, pull, delta, g
    options = {'residual_mix': mix, 'gain_gradient': False, 'gamma': gamma}
    dq, dk, dv, _ = passes.redistribute_backward(q, k, v, *numbers, **options)
    return dq, dk, _with_floor(dv, share, g)

  dgain, *rows = partition.over_heads(
    by_gain, q, k, v, g, y, z, lse, mean_gain, out=(2, 3, 3, 3, 3)
  )
  pull_back = jax.vjp(estimate, marginal, x)[1]
  dmarginal, dx = pull_back((by_frames, dgain * heads))
  gamma = dmarginal / (length * heads)
  gradients = partition.over_heads(
    rest, q, k, v, g, gain, gamma, lse, *rows, out=(4, 4, 4)
  )
  return *gradients, dx


exact_attention.defvjp(_exact_fwd, _exact_bwd)


def operations(passes: Passes) -> Operations:
  """The differentiable operations of a platform's kernels."""
  return Operations(
    functools.partial(biased_attention, passes),
    functools.partial(attention_marginal, passes),
    functools.partial(redistributed_attention, passes),
    functools.partial(exact_attention, passes)
    if passes.gain_gradient
    else None,
  )


def _row_dot(x: Array, y: Array) -> Array:
  """[B, L, H, D] twice -> their dot products [B, H, L], at least float32."""
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  return jnp.einsum('blhd,blhd->bhl', x.astype(dtype), y.astype(dtype))


def _or_zeros(gradient: Array | None, x: Array | None) -> Array | None:
  return jax.tree.map(jnp.zeros_like, x) if gradient is None else gradient
