"""MiRA: marginal-induced attention redistribution, as pure functions.

From one vector per clip, the key marginal of an attention map or the energy of
its keys, MiRA estimates a gain for each frame, and redistributes attention
between the frames by it. It has no parameters.

Shapes: B clips, T frames, N tokens per frame, L = T * N tokens ordered frame by
frame, H heads, D channels per head. Queries, keys and values are [B, L, H, D],
attention maps [B, H, L, L] with keys on the last axis.

Source: Yoon, Cho, Park, Bremond, 'Reweighting Framewise Attention in Video
Transformers for Facial Expression Understanding', ECCV 2026, arXiv 2606.30611,
and the authors' public code, to which `mira compare golden` holds every
function here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class MiraConfig:
  """Hyper-parameters; names in comments are the paper's or its code's.

  The defaults are those of the authors' code.

  With 'batch' and 'batch_ema' a clip's result depends on the other clips of its
  batch, in evaluation too: evaluate with 'instance', as the paper's fine-tuning
  does. The reference's `use_ema=False` is 'batch', its `use_residual=False` is
  residual_mix=1.

  Raises:
    ValueError: for a value outside its range.
  """

  # exact redistributes after the softmax; flashlite adds log gains before it.
  mode: Literal['exact', 'flashlite'] = 'exact'
  # Whose statistics estimate the gain: each clip's own, the batch's, or the
  # batch's with an exponential moving average (EMA) of the confidence.
  statistics: Literal['instance', 'batch', 'batch_ema'] = 'instance'
  confidence_weight: float = 0.5  # w_self: of confidence in the frame score
  concentration_weight: float = 0.5  # w_entropy: of concentration in the score
  uniform_mix: float = 0.1  # lambda: how much of the prior is uniform
  gain_min: float = 0.7  # alpha_min: gains are clipped to [gain_min, gain_max]
  gain_max: float = 1.4  # alpha_max
  ema_momentum: float = 0.9  # ema_m: weight of the past in the EMA
  # Exact mode only:
  power: float = 1.5  # beta: sharpens the prior
  power_eps: float = 1e-6  # added to the score before the power
  residual_mix: float = 0.5  # eta: 0 keeps the attention, 1 replaces it
  floor: float = 1e-3  # epsilon: uniform share of a redistributed row
  # False takes the gain as a constant, as flashlite always does: a cheaper
  # backward pass, but no longer the reference's gradient.
  gain_gradient: bool = True
  # Flashlite only:
  temperature: float = 0.17  # tau: multiplies the score in the softmax

  def __post_init__(self):
    modes = ('exact', 'flashlite')
    statistics = ('instance', 'batch', 'batch_ema')
    self._check('mode', lambda x: x in modes, f'one of {modes}')
    self._check('statistics', lambda x: x in statistics, f'one of {statistics}')
    for name in ('uniform_mix', 'residual_mix', 'floor', 'ema_momentum'):
      self._check(name, lambda x: 0 <= x <= 1, '0 to 1')
    for name in ('gain_min', 'power', 'power_eps', 'temperature'):
      self._check(name, lambda x: 0 < x < float('inf'), 'more than 0')
    self._check('gain_max', lambda x: self.gain_min <= x, 'gain_min or more')

  def _check(self, name: str, allows: Callable[[Any], bool], use: str) -> None:
    value = getattr(self, name)
    if not allows(value):
      raise ValueError(f'MiraConfig.{name} is {value!r}; use {use}')


class FrameGain(NamedTuple):
  """The gain of each frame, and the quantities that it is computed from.

  With batch statistics B is 1, except for the gain of exact mode.
  """

  gain: Array  # [B, T] factor on the attention that the frame receives
  prior: Array  # [B, T] target share of attention, sums to 1
  score: Array  # [B, T] confidence and concentration, mixed and normalised
  confidence: Array  # [B, T] present share of attention, or its EMA
  concentration: Array | None  # [B, T] 1 / entropy within the frame, 1 / nats
  ema: Array | None  # [T] the EMA after this call


def key_marginal(attention: Array) -> Array:
  """Attention that each key receives: [B, H, L, L] -> [B, L], sums to 1."""
  return attention.mean(axis=(1, 2))


def key_energy(keys: Array) -> Array:
  """Mean square of each key over heads and channels: [B, L, H, D] -> [B, L].

  Flashlite mode takes it for the key marginal. No gradient flows into the keys.
  """
  keys = jax.lax.stop_gradient(keys)
  keys = keys.astype(jnp.promote_types(keys.dtype, jnp.float32))
  return jnp.square(keys).mean(axis=(2, 3))


def frame_statistics(
  marginal: Array, num_frames: int, *, confidence_floor: float = 0.0
) -> tuple[Array, Array | None]:
  """Confidence and concentration of each frame from a marginal over tokens.

  Args:
    marginal: [B, L], not negative; need not sum to 1.
    num_frames: T.
    confidence_floor: least mass of a frame before its share is taken.

  Returns:
    Confidence [B, T], the frame's share of the mass, and concentration [B, T],
    one over the entropy (nats) of the mass within the frame. One token per
    frame has no such entropy: concentration is then None.

  Raises:
    ValueError: num_frames does not divide L.
  """
  batch, length = marginal.shape
  if length % num_frames:
    raise ValueError(
      f'{length} tokens cannot be split into {num_frames} frames; the number '
      'of tokens must be a multiple of the number of frames'
    )
  tokens = marginal.reshape(batch, num_frames, -1)
  mass = tokens.sum(-1)
  confidence = _normalise(jnp.maximum(mass, confidence_floor))
  if tokens.shape[-1] == 1:
    return confidence, None
  share = jnp.maximum(_normalise(tokens), 1e-12)
  entropy = -(share * jnp.log(share)).sum(-1)
  return confidence, 1 / (entropy + 1e-6)


def ema(past: Array, present: Array, momentum: float) -> Array:
  """One step of an exponential moving average."""
  return momentum * past + (1 - momentum) * present


def frame_gain(
  marginal: Array,
  num_frames: int,
  config: MiraConfig,
  *,
  past: Array | None = None,
  training: bool = False,
) -> FrameGain:
  """Gain of each frame from a marginal over tokens (docs/method.md).

  In the batch modes, means are over the whole (global) batch that the array
  holds, however it is sharded. The EMA is used and updated in training only;
  evaluation takes the statistics of the evaluated batch, as the reference does.

  Gradients flow through confidence and concentration into the gain in exact
  mode, but not through the confidence that the prior is divided by, nor through
  an EMA. In flashlite mode, and without gain_gradient, the gain is a constant.

  Args:
    marginal: [B, L], the key marginal (exact) or key energy (flashlite).
    num_frames: T; must divide L.
    config: hyper-parameters.
    past: [T] the EMA so far; needed to train with statistics='batch_ema'.
    training: whether a training step is running.

  Returns:
    The gain and its intermediate quantities; `ema` is the updated [T] average,
    or `past` unchanged.

  Raises:
    ValueError: num_frames does not divide L, or `past` is missing or not [T].
  """
  exact = config.mode == 'exact'
  if not (exact and config.gain_gradient):
    marginal = jax.lax.stop_gradient(marginal)
  own, concentration = frame_statistics(
    marginal, num_frames, confidence_floor=1e-6 if exact else 0.0
  )
  confidence = own
  if config.statistics != 'instance':
    confidence = own.mean(0, keepdims=True)
    if concentration is not None:
      concentration = concentration.mean(0, keepdims=True)
  if config.statistics == 'batch_ema' and training:
    if past is None or past.shape != (num_frames,):
      shape = None if past is None else past.shape
      raise ValueError(
        f"statistics='batch_ema' trains with an EMA of {num_frames} frames; "
        f'past is {shape}'
      )
    # A buffer, as in the reference: no gradient flows into the mean.
    present = jax.lax.stop_gradient(confidence[0])
    past = ema(past.astype(present.dtype), present, config.ema_momentum)
    confidence = past[None]

  score = config.confidence_weight * confidence
  if concentration is not None:
    score = score + config.concentration_weight * concentration
  score, prior = (_exact_prior if exact else _flashlite_prior)(score, config)
  uniform = config.uniform_mix / num_frames
  prior = (1 - config.uniform_mix) * prior + uniform
  if exact:
    # The clip's own confidence, also where the prior is the batch's.
    gain = prior / jnp.maximum(jax.lax.stop_gradient(own), 1e-5)
  else:
    gain = prior * num_frames
  gain = _clip(gain, config.gain_min, config.gain_max)
  return FrameGain(gain, prior, score, confidence, concentration, past)


def key_gain(gain: Array, num_tokens: int, *, num_prefix: int = 0) -> Array:
  """Gain of every key from the gain of its frame: [B or 1, T] -> [B or 1, L].

  The L tokens include a prefix of no frame (a CLS token), whose gain is 1.
  """
  batch, num_frames = gain.shape
  gain = jnp.repeat(gain, (num_tokens - num_prefix) // num_frames, axis=-1)
  return jnp.concatenate([jnp.ones((batch, num_prefix), gain.dtype), gain], -1)


def redistribute(
  attention: Array, gain: Array, *, residual_mix: float, floor: float
) -> Array:
  """Moves attention between keys (exact mode, after the softmax).

  With a = gain and A = attention, a row becomes
  `(1 - residual_mix) A + residual_mix M`, where M is
  `(1 - floor) a A + floor / L`, normalised to sum to 1. A gain of 1 with floor
  0, or residual_mix 0, changes nothing; residual_mix 1 with floor 0 is
  `softmax(logits + log a)`.

  Args:
    attention: [B, H, L, L], rows sum to 1.
    gain: [B or 1, L], the gain of every key.
    residual_mix: eta, 0 to 1.
    floor: epsilon, 0 to 1.
  """
  moved = (1 - floor) * (attention * gain[:, None, None, :])
  moved = _normalise(moved + floor / attention.shape[-1])
  return attention + residual_mix * (moved - attention)


def log_bias(gain: Array) -> Array:
  """Bias on the logits of every key: [B, L] gain -> [B, L]."""
  return jnp.log(jnp.maximum(gain, 1e-12))


def _exact_prior(score: Array, config: MiraConfig) -> tuple[Array, Array]:
  # Compilers may round `score` and its extremes differently; the gradient of
  # `jnp.max`, which compares them, is then 0 / 0. By index, gradients go to one
  # frame, as in PyTorch.
  low, high = (
    jnp.take_along_axis(score, f(score, -1, keepdims=True), -1)
    for f in (jnp.argmin, jnp.argmax)
  )
  # Below zero by an ulp of 1e-7 over a range of 1e-4, its power would be NaN.
  # Frames tied with the least keep their gradient, which jnp.maximum halves.
  score = _clip(score - low, 0, jnp.inf) / (high - low + 1e-12)
  return score, _normalise((score + config.power_eps) ** config.power)


def _flashlite_prior(score: Array, config: MiraConfig) -> tuple[Array, Array]:
  mean, std = (f(score, -1, keepdims=True) for f in (jnp.mean, jnp.std))
  score = (score - mean) / jnp.maximum(std, 1e-6)
  return score, jax.nn.softmax(config.temperature * score)


def _normalise(x: Array) -> Array:
  return x / jnp.maximum(x.sum(-1, keepdims=True), 1e-12)


def _clip(x: Array, low: float, high: float) -> Array:
  """Clips with a gradient of 1 on the bounds, where jnp.clip halves it."""
  return jnp.where(x < low, low, jnp.where(x > high, high, x))
