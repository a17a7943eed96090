"""The passes of `kernels.vjp` for NVIDIA H100 and H200, in Pallas Mosaic GPU.

Tensor cores multiply bfloat16; everything else is float32. q, k, v are read as
projections write them, [B, L, H, D], by a copy engine that knows where arrays
end: if L is a multiple of 8, nothing is padded but a few numbers per row. Any
other L costs a padded copy of each. In units of U, one L x L x D product per
head:

  pass           forward   backward
  attend           2 U       7 U
  marginal         2 U       5 U
  redistribute     3 U       7 U      (2 U forward if the residual mix is 1;
                                       1 U more if the rows' sums are unknown)
  the last two     5 U      10 U
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from mira_jax.kernels.gpu import backward
from mira_jax.kernels.gpu.forward import softmax_sums, weighted_sums
from mira_jax.kernels.gpu.sweep import Tuning, Vector
from mira_jax.kernels.gpu.warpgroup import LOG2E, along
from mira_jax.kernels.operations import row_norm
from mira_jax.kernels.vjp import Passes

Array = jax.Array
Choice = Callable[[str, int], Tuning]  # of a sweep's name and the heads' width


def refusal(shape: tuple[int, ...], dtype) -> str | None:
  """Why these kernels cannot serve q, k, v [B, L, H, D]; None if they can."""
  if jnp.dtype(dtype) != jnp.bfloat16:
    return f'it computes in bfloat16, not in {jnp.dtype(dtype).name}'
  width = shape[-1]
  if width % 16 or width > 128:
    return f'heads are {width} wide, not a multiple of 16 up to 128'
  return None


# By sweep, for heads up to 64 wide. Three warpgroups of 160 registers keep the
# tensor cores busy through each other's exponentials; sums over queries hold
# two matrices, which need the 232 registers of two. docs/kernels.md has the
# times that a model of the machine code gives these and others.
TUNING = {
  'attend': Tuning(64, 160, 3),
  'logsumexp': Tuning(64, 160, 3),
  'mass': Tuning(64, 160, 3),
  'redistribute': Tuning(64, 64, 3),
  'marginal_dq': Tuning(64, 64, 3, persistent=False),
  'marginal_dk': Tuning(64, 64, 3, held=True),
  'dq': Tuning(64, 64, 3, held=True),
  'dkv': Tuning(64, 64, 2, held=True),
  'redistribute_dq': Tuning(64, 64, 3),
  'redistribute_dkv': Tuning(64, 64, 2),
  'gain': Tuning(64, 64, 3),
  'mean': Tuning(64, 160, 3),
  'joint_dq': Tuning(64, 64, 2, held=True),
  'joint_dkv': Tuning(64, 64, 2),
}
# Bytes that kernels may keep in memory for want of registers, up to that width:
# what the tuning gains makes up for them.
SPILLS = {
  'dq': 48,
  'redistribute': 96,
  'redistribute_dq': 124,
  'redistribute_dkv': 16,
  'joint_dkv': 16,
}


def tuning(sweep_name: str, width: int) -> Tuning:
  """The tuning of a sweep, a key of TUNING, for heads of a width."""
  best = TUNING[sweep_name]
  if width > 64:  # wider matrices need the registers
    if sweep_name in ('redistribute', 'marginal_dq'):
      best = dataclasses.replace(best, warpgroups=2)
    tight = sweep_name.startswith(('redistribute_', 'joint_'))
    whole = best.persistent and not tight
    best = dataclasses.replace(best, held=False, persistent=whole)
  if width > 80:
    columns = 32 if sweep_name.endswith('dkv') else 64
    best = dataclasses.replace(best, columns=columns, warpgroups=2)
  return staged(best, width)


def staged(tuning: Tuning, width: int) -> Tuning:
  """A tuning with as many stages as its tiles suggest."""
  # Small tiles pass by faster: a third stage hides more of a copy's latency.
  stages = 3 if tuning.columns * width <= 64 * 80 else 2
  return dataclasses.replace(tuning, stages=stages)


# The sweeps of a forward pass, and those that a backward pass adds, by whether
# the mode is exact.
SWEEPS = {
  False: (('attend',), ('dq', 'dkv')),
  True: (
    ('logsumexp', 'mass', 'redistribute'),
    ('gain', 'mean', 'joint_dq', 'joint_dkv'),
  ),
}
# Columns and consumers that may be the best of some sweep.
SIZES = ((64, 2), (96, 2), (128, 2), (224, 2), (64, 3), (96, 3))
SIZES += ((128, 3), (160, 3))


def candidates(
  mode: str, training: bool, width: int
) -> dict[str, list[Tuning]]:
  """Tunings worth a try of each sweep of a mode, the assumed one first.

  Those that need more registers or memory than there is do not compile.
  """
  forward, back = SWEEPS[mode == 'exact']
  found = {}
  for name in forward + (back if training else ()):
    first = tuning(name, width)
    sizes = [
      dataclasses.replace(first, columns=columns, warpgroups=count)
      for columns, count in SIZES
    ]
    tried = [first, dataclasses.replace(first, persistent=not first.persistent)]
    for size in (first, *sizes):
      tried += [dataclasses.replace(size, held=held) for held in (False, True)]
    if name == 'attend':
      tried.append(Tuning(64, 128, turns=True))
    found[name] = list(dict.fromkeys(staged(x, width) for x in tried))
  return found


# ----- the passes -------------------------------------------------------------


def _attend(choose: Choice, q, k, v, bias, *, keep_rows=True):
  out = [q, _per_row(q)] if keep_rows else [q]
  size = choose('attend', k.shape[-1])
  found = softmax_sums(q, k, v, _exponent(k, bias), out, size, 'attend')
  return tuple(found) if keep_rows else (*found, None)


def _attend_backward(
  choose: Choice, q, k, v, bias, lse, delta, g, *, bias_gradient
):
  rows = [_log2(lse), Vector(delta)]
  rule = backward.biased
  return _gradients(choose, q, k, v, g, rows, [], rule, bias_gradient, bias)


def _logsumexp(choose: Choice, q, k):
  out, size = [_per_row(q)], choose('logsumexp', k.shape[-1])
  keys = _exponent(k, None)
  (lse,) = softmax_sums(q, k, None, keys, out, size, 'logsumexp')
  return lse


def _marginal(choose: Choice, q, k):
  lse = _logsumexp(choose, q, k)
  rows, size = [_log2(lse)], choose('mass', k.shape[-1])
  mass = backward.key_gradient(
    q, k, [], rows, [], backward.mass, ['share'], size, 'mass'
  )
  return _over_heads(mass), lse


def _marginal_backward(choose: Choice, q, k, lse, gamma):
  # A constant in gamma changes nothing; without it, less cancels below.
  gamma = gamma - gamma.mean(1, keepdims=True)

  def finish(sums, mean, _):
    o, weighted = sums
    dq = weighted - along(mean, 0, o.shape) * o
    return [dq * q.shape[-1] ** -0.5, mean]

  # dS k = (A * gamma) k - mean A k: sums whose values are the keys.
  lse, gamma, width = _log2(lse), Vector(gamma), k.shape[-1]
  out, size = [q, _per_row(q)], choose('marginal_dq', width)
  dq, mean = weighted_sums(
    q, k, k, lse, gamma, finish, out, size, 'marginal_dq'
  )
  rows, size = [lse, Vector(mean)], choose('marginal_dk', width)
  (dk,) = backward.key_gradient(
    q, k, [], rows, [gamma], backward.marginal, ['dk'], size, 'marginal_dk'
  )
  return dq, dk


def _redistribute(
  choose: Choice,
  q,
  k,
  v,
  gain,
  v_mean,
  lse,
  *,
  residual_mix,
  floor,
  keep_rows=True,
):
  lse = _logsumexp(choose, q, k) if lse is None else lse
  plain = residual_mix < 1  # with 1, y is z

  def finish(sums, mean, of_head):
    (*o, weighted), (v_mean,) = sums, of_head
    one = along(1 / row_norm(mean, floor), 0, weighted.shape)
    z = ((1 - floor) * weighted + floor * v_mean) * one
    y = [(1 - residual_mix) * x + residual_mix * z for x in o]
    return [*y, z, mean][: len(out)]

  out = [*[q] * plain, q, _per_row(q)] if keep_rows else [q]
  found = weighted_sums(
    q,
    k,
    v,
    _log2(lse),
    Vector(gain),
    finish,
    out,
    choose('redistribute', k.shape[-1]),
    'redistribute',
    plain=plain,
    per_head=[v_mean],
  )
  if not keep_rows:
    return found[0], None, None, None
  *yz, mean = found
  return yz[0], yz[-1], lse, mean


def _redistribute_backward(
  choose: Choice,
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
  rule = backward.redistributed(residual_mix)
  name, keys = 'redistribute_', [Vector(gain)]
  if gamma is not None:
    # A constant in gamma changes nothing; without it, less cancels.
    gamma = gamma - gamma.mean(1, keepdims=True)
    name, keys = 'joint_', [*keys, Vector(gamma)]
    delta += _mean(choose, q, k, lse, gamma)
  rows = [_log2(lse), Vector(rho), Vector(pull), Vector(delta)]
  return _gradients(
    choose, q, k, v, g, rows, keys, rule, gain_gradient, name=name
  )


def _mean(choose: Choice, q, k, lse, x):
  """sum_j A_ij x_j."""
  size = choose('mean', k.shape[-1])
  (mean,) = weighted_sums(
    *(q, k, None, _log2(lse), Vector(x)),
    lambda _, mean, __: [mean],
    [_per_row(q)],
    size,
    'mean',
  )
  return mean


def _gain_gradient(choose: Choice, q, k, v, lse, rho, pull, g):
  rows = [_log2(lse), Vector(rho), Vector(pull)]
  size = choose('gain', k.shape[-1])
  share = backward.key_gradient(
    q, k, [v, g], rows, [], backward.by_gain, ['share'], size, 'gain'
  )
  return _over_heads(share)


def _gradients(
  choose: Choice, q, k, v, g, rows, keys, rule, shared, bias=None, *, name=''
):
  """dq, dk, dv and, if `shared`, the gradient of what all rows share."""
  own, width = [_exponent(k, bias), *keys], k.shape[-1]
  size = choose(f'{name}dq', width)
  dq = backward.row_gradient(q, k, v, g, rows, own, rule, size, f'{name}dq')
  wanted = ['dk', 'dv', 'share'] if shared else ['dk', 'dv']
  factor = None if bias is None else Vector(jnp.exp(bias))
  size = choose(f'{name}dkv', width)
  dk, dv, *share = backward.key_gradient(
    q,
    k,
    [v, g],
    rows,
    keys,
    rule,
    wanted,
    size,
    f'{name}dkv',
    factor=factor,
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


def tuned(tunings: Mapping[str, Tuning]) -> Passes:
  """The passes with other tunings of some sweeps, by keys of TUNING."""

  def choose(name: str, width: int) -> Tuning:
    return tunings.get(name) or tuning(name, width)

  runs = (
    *(_attend, _attend_backward, _marginal, _marginal_backward),
    *(_redistribute, _redistribute_backward, _gain_gradient),
  )
  return Passes(*(functools.partial(run, choose) for run in runs))


PASSES = tuned({})
