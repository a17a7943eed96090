"""Attention with MiRA: what models call.

`redistributed_attention` is the one operation. `mira_attention` estimates its
gain: from the keys (flashlite) or from the attention itself (exact). Which
implementation runs is `kernels.dispatch`'s choice; softmax and statistics run
in at least float32 everywhere. Queries, keys and values are [B, L, H, D].

Arrays that differ in shape or dtype, an unknown `implementation` and one that
cannot serve (`dispatch.RefusalError`) raise ValueError.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mira_jax.devices import partition
from mira_jax.kernels import dispatch, reference
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
Named = str | dispatch.Choice | None
Transform = Callable[[Array], Array]


class Attended(NamedTuple):
  """The output of attention and what pictures of it show."""

  output: Array  # [B, L, H, D]
  before: Array | None  # [B, H, L, L] attention without MiRA; reference only
  after: Array | None  # [B, H, L, L] attention that was used; reference only
  frames: FrameGain | None  # None without MiRA
  diversity: Array | None = None  # [B] how much heads repeat, if it is asked
  gate: Array | None = None  # [B, L] of gated attention, the mean over heads


def redistributed_attention(
  q: Array,
  k: Array,
  v: Array,
  gain: Array | None,
  *,
  residual_mix: float = 1.0,
  floor: float = 0.0,
  gain_gradient: bool = True,
  implementation: Named = None,
  lse: Array | None = None,
) -> Array:
  """Multi-head attention with a gain on the attention to every key.

  With A = softmax(q k^T / sqrt(D)) it is

    gain is None                  A v
    residual_mix 1, floor 0       softmax(q k^T / sqrt(D) + log gain) v
    otherwise                     redistribute(A, gain) v

  (the first two are the third with gain 1, and with these two numbers). Call it
  under `jax.jit`, or kernels compile anew in every call; on several devices
  also under `jax.set_mesh`, or kernels cannot be split.

  Args:
    q: queries.
    k: keys.
    v: values.
    gain: [B or 1, L], not negative.
    residual_mix: eta, 0 keeps A, 1 replaces it.
    floor: epsilon, the uniform share of a redistributed row, 0 to 1.
    gain_gradient: whether to differentiate by the gain.
    implementation: a key of `dispatch.IMPLEMENTATIONS`, or one that was chosen;
      None chooses.
    lse: of `attention_marginal`; saves some implementations a product.

  Returns:
    [B, L, H, D].
  """
  biased = residual_mix == 1 and floor == 0
  mode = 'plain' if gain is None else 'flashlite' if biased else 'exact'
  asked = dispatch.request(q, k, v, mode)
  operations = dispatch.resolve(implementation, asked).operations
  if gain is None:
    run = functools.partial(operations.biased, bias=None, bias_gradient=False)
    return partition.over_heads(run, q, k, v)
  gain = gain.astype(jnp.promote_types(q.dtype, jnp.float32))
  gain = jnp.broadcast_to(gain, q.shape[:2])
  if biased:
    run = functools.partial(operations.biased, bias_gradient=gain_gradient)
    return partition.over_heads(run, q, k, v, log_bias(gain))

  def run(q, k, v, gain, lse):
    options = residual_mix, floor, gain_gradient
    return operations.redistributed(q, k, v, gain, *options, lse)

  return partition.over_heads(run, q, k, v, gain, lse)


def attention_marginal(
  q: Array, k: Array, *, implementation: Named = None
) -> tuple[Array, Array | None]:
  """Attention that each key receives, mean over heads and queries: [B, L].

  Beside it the log-sum-exp of the logits of each row, [B, H, L], for
  `redistributed_attention`: a constant, or None where that has no use for it.
  """
  asked = dispatch.request(q, k, k, 'exact')
  operations = dispatch.resolve(implementation, asked).operations
  return partition.over_heads(operations.marginal, q, k, out=(2, 3))


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
  implementation: Named = None,
  gain: Array | None = None,
  transform: Transform | None = None,
) -> Attended:
  """Multi-head attention over a clip, with MiRA unless `config` is None.

  Parts of the result that the caller drops are not computed under `jax.jit`.
  Exact mode with a `gain`, and a `transform`, need the whole attention map:
  only the reference serves.

  Args:
    q: queries, tokens ordered frame by frame.
    k: keys.
    v: values.
    num_frames: T, dividing L - num_prefix.
    config: MiRA's hyper-parameters; None is plain attention.
    num_prefix: leading tokens of no frame (a CLS token): left out of the
      statistics, their gain is 1.
    past: [T] EMA of the confidence, for statistics='batch_ema' in training.
    training: whether a training step is running.
    implementation: a key of `dispatch.IMPLEMENTATIONS`, or one that was chosen;
      None chooses.
    gain: [B, L], more than 0: on the attention to every key, before the softmax
      and before MiRA's.
    transform: of the map [B, H, L, L], before MiRA.
  """
  mode = 'plain' if config is None else config.mode
  whole = transform is not None or (gain is not None and mode == 'exact')
  if mode == 'plain' and gain is not None:
    mode = 'flashlite'
  asked = dispatch.request(q, k, v, mode, training, whole)
  choice = dispatch.resolve(implementation, asked)

  def estimate(
    marginal: Array, past: Array | None = past
  ) -> tuple[FrameGain, Array]:
    assert config is not None  # without MiRA nothing is estimated
    frames = frame_gain(
      marginal[:, num_prefix:],
      num_frames,
      config,
      past=past,
      training=training,
    )
    return frames, key_gain(frames.gain, k.shape[1], num_prefix=num_prefix)

  if choice.name == 'reference':
    return attend_with_maps(q, k, v, config, estimate, gain, transform)
  return _fused(q, k, v, past, config, estimate, choice, gain)


def attend_with_maps(
  q: Array,
  k: Array,
  v: Array,
  config: MiraConfig | None,
  estimate: Callable[[Array], tuple[FrameGain, Array]],
  own: Array | None = None,
  transform: Transform | None = None,
) -> Attended:
  """The reference, which keeps the maps.

  `estimate` maps the key marginal or the key energy [B, L] to MiRA's estimates
  of each frame and to the gain of every key, [B or 1, L]; `own` and `transform`
  are the `gain` and the transform of `mira_attention`.
  """

  def attention_map(bias: Array | None) -> Array:
    if own is not None:
      bias = log_bias(own) + (0 if bias is None else bias)
    found = reference.attention_map(q, k, bias)
    return found if transform is None else transform(found)

  before = after = attention_map(None)
  frames = None
  if config is not None and config.mode == 'exact':
    frames, gain = estimate(key_marginal(before))
    after = redistribute(
      before, gain, residual_mix=config.residual_mix, floor=config.floor
    )
  elif config is not None:
    frames, gain = estimate(key_energy(k))
    after = attention_map(log_bias(gain))
  return Attended(reference.attend(after, v), before, after, frames)


def _fused(
  q, k, v, past, config: MiraConfig | None, estimate, choice, own
) -> Attended:
  attend = functools.partial(
    redistributed_attention, q, k, v, implementation=choice
  )
  if config is None:
    return Attended(attend(own), None, None, None)
  if config.mode == 'flashlite':
    frames, gain = estimate(key_energy(k))
    # MiRA's gain is a constant.
    total = gain if own is None else gain * own
    output = attend(total, gain_gradient=own is not None)
    return Attended(output, None, None, frames)
  options = config.residual_mix, config.floor
  if choice.operations.exact and config.gain_gradient and options != (1, 0):
    run = functools.partial(choice.operations.exact, estimate, *options)
    output, frames = run(q, k, v, past)
    return Attended(output, None, None, frames)
  marginal, lse = attention_marginal(q, k, implementation=choice)
  frames, gain = estimate(marginal)
  output = attend(
    gain,
    residual_mix=config.residual_mix,
    floor=config.floor,
    gain_gradient=config.gain_gradient,
    lse=lse,
  )
  return Attended(output, None, None, frames)
