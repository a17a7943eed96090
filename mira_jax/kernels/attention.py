"""Attention with MiRA: one operation, and the implementations that serve it.

`meaning` is plain JAX on the whole [B, H, L, L] map, a few lines that every
other implementation must agree with. `streaming` needs O(L) memory. Softmax and
statistics run in at least float32 everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mira_jax.kernels import streaming
from mira_jax.mira import (
  FrameGain,
  MiraConfig,
  frame_gain,
  key_energy,
  key_gain,
  key_marginal,
  log_bias,
  redistribute,
)

Array = jax.Array


class Attended(NamedTuple):
  """The output of attention and all that a person may want to see of it."""

  output: Array  # [B, L, H, D]
  before: Array | None  # [B, H, L, L] attention without MiRA; meaning only
  after: Array | None  # [B, H, L, L] attention that was used; meaning only
  frames: FrameGain | None  # None without MiRA


def attention_map(q: Array, k: Array, bias: Array | None = None) -> Array:
  """softmax(q k^T / sqrt(D) + bias): [B, L, H, D] twice -> [B, H, L, L].

  Args:
    q: queries [B, L, H, D].
    k: keys [B, L, H, D].
    bias: [B or 1, L], added to the logits of each key.
  """
  dtype = jnp.promote_types(q.dtype, jnp.float32)
  q = q * q.shape[-1] ** -0.5
  logits = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=dtype)
  if bias is not None:
    logits = logits + bias[:, None, None, :].astype(dtype)
  return jax.nn.softmax(logits)


def choose(length: int, platform: str) -> tuple[str, str]:
  """The implementation for L tokens on a platform ('cpu', 'gpu', 'tpu').

  Returns:
    Its name, a key of IMPLEMENTATIONS, and why.
  """
  if length <= 256:
    return 'meaning', f'maps of {length} tokens are small'
  if platform == 'cpu':
    return 'streaming', 'tiles of the map stay in the cache'
  if length > 4096:
    return 'streaming', f'maps of {length} tokens would fill the memory'
  return 'meaning', f'one head at a time would leave a {platform} idle'


def mira_attention(
  q: Array,
  k: Array,
  v: Array,
  *,
  num_frames: int,
  config: MiraConfig | None,
  num_prefix: int = 0,
  past: Array | None = None,
  training: bool = False,
  implementation: str | None = None,
) -> Attended:
  """Multi-head attention over a clip, with MiRA unless `config` is None.

  Parts of the result that the caller drops are not computed under `jax.jit`.

  Args:
    q: queries [B, L, H, D], tokens ordered frame by frame.
    k: keys [B, L, H, D].
    v: values [B, L, H, D].
    num_frames: T, dividing L - num_prefix.
    config: MiRA's hyper-parameters; None is plain attention.
    num_prefix: leading tokens of no frame (a CLS token): left out of the
      statistics, their gain is 1.
    past: [T] EMA of the confidence, for statistics='batch_ema' in training.
    training: whether a training step is running.
    implementation: a key of IMPLEMENTATIONS; None takes what `choose` says.

  Raises:
    ValueError: an unknown implementation.
  """
  if implementation is None:
    implementation, _ = choose(k.shape[1], jax.default_backend())
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'implementation is {implementation!r}; use one of '
      f'{tuple(IMPLEMENTATIONS)}'
    )
  attend = IMPLEMENTATIONS[implementation]
  if config is None:
    return attend(q, k, v, None, None)

  def estimate(marginal: Array) -> tuple[FrameGain, Array]:
    frames = frame_gain(
      marginal[:, num_prefix:],
      num_frames,
      config,
      past=past,
      training=training,
    )
    return frames, key_gain(frames.gain, k.shape[1], num_prefix=num_prefix)

  return attend(q, k, v, config, estimate)


def _meaning(q, k, v, config: MiraConfig | None, estimate) -> Attended:
  before = after = attention_map(q, k)
  frames = None
  if config is not None and config.mode == 'exact':
    frames, gain = estimate(key_marginal(before))
    after = redistribute(
      before, gain, residual_mix=config.residual_mix, floor=config.floor
    )
  elif config is not None:
    frames, gain = estimate(key_energy(k))
    after = attention_map(q, k, log_bias(gain))
  output = jnp.einsum('bhqk,bkhd->bqhd', after.astype(v.dtype), v)
  return Attended(output, before, after, frames)


def _streaming(q, k, v, config: MiraConfig | None, estimate) -> Attended:
  frames = None
  if config is not None and config.mode == 'exact':
    frames, gain = estimate(streaming.attention_marginal(q, k))
    output = streaming.redistributed_attention(
      q, k, v, gain, residual_mix=config.residual_mix, floor=config.floor
    )
  else:
    bias = jnp.zeros((1, k.shape[1]))
    if config is not None:
      frames, gain = estimate(key_energy(k))
      bias = log_bias(gain)
    output = streaming.biased_attention(q, k, v, bias)
  return Attended(output, None, None, frames)


IMPLEMENTATIONS = {'meaning': _meaning, 'streaming': _streaming}
