"""What MiRA attention means, in plain JAX.

Every faster implementation must give what these functions give. They hold the
whole [B, H, L, L] map; softmax and statistics run in at least float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

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
  before: Array  # [B, H, L, L] attention without MiRA
  after: Array  # [B, H, L, L] attention that was used
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
  """
  before = after = attention_map(q, k)
  frames = None
  if config is not None:
    exact = config.mode == 'exact'
    marginal = key_marginal(before) if exact else key_energy(k)
    frames = frame_gain(
      marginal[:, num_prefix:],
      num_frames,
      config,
      past=past,
      training=training,
    )
    gain = key_gain(frames.gain, k.shape[1], num_prefix=num_prefix)
    if exact:
      after = redistribute(
        before, gain, residual_mix=config.residual_mix, floor=config.floor
      )
    else:
      after = attention_map(q, k, log_bias(gain))
  output = jnp.einsum('bhqk,bkhd->bqhd', after.astype(v.dtype), v)
  return Attended(output, before, after, frames)
