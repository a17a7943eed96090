"""MiRA again, in float64 NumPy: slow, plain, and written apart.

It shares no line with `mira_jax`, materialises every matrix and follows the
published equations in their order: softmax, statistics, prior, gain,
redistribution (exact) or key bias (flashLite). Tests compare the two. Below it
are inputs made by formulas, so that published numbers need no file.

Letters: B batch, H heads, L = T * N tokens, T frames, D head width. Tokens
are ordered by frame, and the natural logarithm is meant everywhere.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(kw_only=True)
class Hyper:
  """The reference's hyper-parameters, by its own names."""

  w_self: float = 0.5
  w_entropy: float = 0.5
  beta: float = 1.5
  lam: float = 0.1
  eps: float = 1e-6
  floor_eps: float = 1e-3
  alpha_min: float = 0.7
  alpha_max: float = 1.4
  flash_tau: float = 0.17
  ema_m: float = 0.9
  mix_eta: float = 0.5


class Result(NamedTuple):
  """Everything the equations name on their way to the output.

  Attributes:
    y: output, [B, H, L, D].
    c: confidence of every clip's own frames, [B, T].
    h: concentration of every clip's own frames, [B, T].
    f: score, [B, T] (one row when the batch shares its statistics).
    pi: prior over frames, shaped like f.
    alpha: gain, [B, T].
    average: the running confidence afterwards, [T].
    before: softmax(s q k'), [B, H, L, L].
    after: the attention that weighs the values, [B, H, L, L].
  """

  y: np.ndarray
  c: np.ndarray
  h: np.ndarray
  f: np.ndarray
  pi: np.ndarray
  alpha: np.ndarray
  average: np.ndarray
  before: np.ndarray
  after: np.ndarray


def softmax(z: np.ndarray) -> np.ndarray:
  """Softmax over the last axis."""
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def attention(
  q: np.ndarray,
  k: np.ndarray,
  v: np.ndarray,
  *,
  frames: int,
  mode: str,
  statistics: str,
  train: bool,
  average: np.ndarray,
  hyper: Hyper,
) -> Result:
  """Runs `mode` on q, k, v [B, H, L, D] with the running confidence [T]."""
  _, _, l, d = q.shape
  n = l // frames
  logits = np.einsum('bhqd,bhkd->bhqk', q * d**-0.5, k)
  before = softmax(logits)
  if mode == 'exact':
    c, h = _exact_statistics(before.mean(1), frames)
  else:
    c, h = _flash_statistics(np.square(k).mean((1, 3)), frames)
  c_star, h_star, average = _source(c, h, statistics, train, average, hyper)
  estimate = exact_gain if mode == 'exact' else flash_gain
  f, pi, alpha = estimate(c, c_star, h_star, hyper)
  gain = np.repeat(alpha, n, axis=1)[:, None, None, :]
  if mode == 'exact':
    after = _redistribute(before, gain, hyper)
  else:
    after = softmax(logits + np.log(np.maximum(gain, 1e-12)))
  y = np.einsum('bhqk,bhkd->bhqd', after, v)
  return Result(y, c, h, f, pi, alpha, average, before, after)


def exact_gain(c, c_star, h_star, hyper):
  """Score, prior and gain of exact mode; c is the clips' own confidence."""
  f, pi = _exact_prior(hyper.w_self * c_star + hyper.w_entropy * h_star, hyper)
  alpha = np.clip(pi / np.maximum(c, 1e-5), hyper.alpha_min, hyper.alpha_max)
  return f, pi, alpha


def flash_gain(c, c_star, h_star, hyper):
  """Score, prior and gain of flashLite mode, for as many clips as c has."""
  f, pi = _flash_prior(hyper.w_self * c_star + hyper.w_entropy * h_star, hyper)
  alpha = np.clip(c.shape[1] * pi, hyper.alpha_min, hyper.alpha_max)
  return f, pi, np.broadcast_to(alpha, c.shape)


def inverse_entropy(mass):
  """1 / (entropy + 1e-6) of masses [B, T, N] made to sum to one."""
  r = mass / np.maximum(mass.sum(2, keepdims=True), 1e-12)
  r = np.maximum(r, 1e-12)
  return 1 / (-(r * np.log(r)).sum(2) + 1e-6)


def formula_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Parameters by a formula: element e of key i is 0.1 sin(0.37 e + i).

  Keys (PyTorch names, without the buffers) count in alphabetical order; the
  weights of the norms are one more.
  """
  state = {}
  keys = sorted(key for key in shapes if not key.endswith('c_buf'))
  for i, key in enumerate(keys):
    value = 0.1 * np.sin(0.37 * np.arange(np.prod(shapes[key])) + i)
    norm = key.endswith(('norm1.weight', 'norm2.weight', 'norm.weight'))
    state[key] = (value + norm).reshape(shapes[key])
  return state


def formula_video(batch: int, frames: int, size: int) -> np.ndarray:
  """sin(0.37 e) over [B, 3, F, H, W], as [B, F, H, W, 3]."""
  video = np.sin(0.37 * np.arange(batch * 3 * frames * size * size))
  return video.reshape(batch, 3, frames, size, size).transpose(0, 2, 3, 4, 1)


def _exact_statistics(mean_attention, frames):
  """Confidence and inverse entropy of the head mean [B, L, L]."""
  b, l, _ = mean_attention.shape
  by_frame = mean_attention.reshape(b, l, frames, l // frames)
  c = np.maximum(by_frame.sum(3).mean(1), 1e-6)
  c = c / np.maximum(c.sum(1, keepdims=True), 1e-12)
  column = mean_attention.sum(1).reshape(b, frames, l // frames)
  return c, inverse_entropy(column)


def _flash_statistics(energy, frames):
  """Confidence and inverse entropy of the key energy [B, L]."""
  energy = energy.reshape(len(energy), frames, -1)
  c = energy.sum(2)
  c = c / np.maximum(c.sum(1, keepdims=True), 1e-12)
  return c, inverse_entropy(energy)


def _source(c, h, statistics, train, average, hyper):
  """The statistics that the prior reads, and the new running confidence."""
  if statistics == 'instance':
    return c, h, average
  c_mean, h_mean = c.mean(0, keepdims=True), h.mean(0, keepdims=True)
  if statistics == 'batch_ema' and train:
    average = hyper.ema_m * average + (1 - hyper.ema_m) * c_mean[0]
    return average[None], h_mean, average
  return c_mean, h_mean, average


def _exact_prior(f, hyper):
  """Min-max, power, normalise, mix with the uniform prior."""
  low, high = f.min(1, keepdims=True), f.max(1, keepdims=True)
  scaled = (f - low) / (high - low + 1e-12)
  power = (scaled + hyper.eps) ** hyper.beta
  power = power / np.maximum(power.sum(1, keepdims=True), 1e-12)
  return scaled, (1 - hyper.lam) * power + hyper.lam / f.shape[1]


def _flash_prior(f, hyper):
  """Population z-score, softmax, mix with the uniform prior."""
  z = f - f.mean(1, keepdims=True)
  z = z / np.maximum(f.std(1, keepdims=True), 1e-6)
  prior = softmax(hyper.flash_tau * z)
  return z, (1 - hyper.lam) * prior + hyper.lam / f.shape[1]


def _redistribute(before, gain, hyper):
  """Gain, uniform floor, row sums, residual mix."""
  m = before * gain
  if hyper.floor_eps > 0:
    m = (1 - hyper.floor_eps) * m + hyper.floor_eps / before.shape[-1]
  m = m / np.maximum(m.sum(-1, keepdims=True), 1e-12)
  return before + hyper.mix_eta * (m - before)
