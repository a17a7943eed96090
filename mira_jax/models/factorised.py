"""Attention within frames and over time, as pure functions.

The parts that the factorised transformers of ViViT (Arnab et al., ICCV 2021,
arXiv 2103.15691) are made of. Shapes: queries, keys and values are
[B, L, H, D], with L = T * N tokens ordered frame by frame. The maps that are
kept are those of all L tokens, zero where no attention is, so that they mean
what the maps of joint attention mean.
"""

from __future__ import annotations

import einops
import jax
import jax.numpy as jnp

from mira_jax.kernels import reference
from mira_jax.kernels.attention import (
  Attended,
  attend_with_maps,
  mira_attention,
)
from mira_jax.mira import FrameGain, MiraConfig, frame_gain

Array = jax.Array


def within_frames(
  q: Array,
  k: Array,
  v: Array,
  *,
  num_frames: int,
  implementation: str | None = None,
  keep_maps: bool = False,
) -> Attended:
  """Attention of every token to those of its own frame, without MiRA.

  Frames are folded into the batch: no mask is made, and kernels serve.

  Args:
    q: queries [B, L, H, D].
    k: keys [B, L, H, D].
    v: values [B, L, H, D].
    num_frames: T, dividing L.
    implementation: a key of `dispatch.IMPLEMENTATIONS`; None chooses.
    keep_maps: whether to return [B, H, L, L], if the implementation has maps.
  """
  q, k, v = (
    einops.rearrange(x, 'b (t n) h d -> (b t) n h d', t=num_frames)
    for x in (q, k, v)
  )
  attended = mira_attention(
    q, k, v, num_frames=1, config=None, implementation=implementation
  )
  maps = None
  if keep_maps and attended.before is not None:
    maps = _block_diagonal(attended.before, num_frames)
    maps = einops.rearrange(maps, 'b h t q u k -> b h (t q) (u k)')
  output = einops.rearrange(
    attended.output, '(b t) n h d -> b (t n) h d', t=num_frames
  )
  return Attended(output, maps, maps, None)


def over_time(
  q: Array,
  k: Array,
  v: Array,
  *,
  num_frames: int,
  config: MiraConfig | None,
  past: Array | None = None,
  training: bool = False,
  keep_maps: bool = False,
) -> Attended:
  """Attention of every token to those at its place in all frames, with MiRA.

  MiRA sees one clip: the marginals (or energies) of the keys at all N places
  make one vector [B, L], and its gain of a frame is that of the frame's key at
  every place. The uniform floor is over the T keys that a query has. There are
  N small maps [T, T], which plain JAX is right for.

  Args:
    q: queries [B, L, H, D].
    k: keys [B, L, H, D].
    v: values [B, L, H, D].
    num_frames: T, dividing L.
    config: MiRA's hyper-parameters; None is plain attention.
    past: [T] EMA of the confidence, for statistics='batch_ema' in training.
    training: whether a training step is running.
    keep_maps: whether to return maps [B, H, L, L].
  """
  places = q.shape[1] // num_frames

  def estimate(marginal: Array) -> tuple[FrameGain, Array]:
    # Every place sums to one; the clip's vector is their mean.
    marginal = einops.rearrange(marginal, '(b n) t -> b (t n)', n=places)
    frames = frame_gain(
      marginal / places, num_frames, config, past=past, training=training
    )
    # One row if the batch shares its gain: that is the gain at all places.
    shared = frames.gain.shape[0] < marginal.shape[0]
    return frames, jnp.repeat(frames.gain, 1 if shared else places, axis=0)

  q, k, v = (
    einops.rearrange(x, 'b (t n) h d -> (b n) t h d', t=num_frames)
    for x in (q, k, v)
  )
  attended = attend_with_maps(q, k, v, config, estimate)
  before = after = None
  if keep_maps:
    before, after = (
      einops.rearrange(
        _block_diagonal(maps, places), 'b h n q m k -> b h (q n) (k m)'
      )
      for maps in (attended.before, attended.after)
    )
  output = einops.rearrange(
    attended.output, '(b n) t h d -> b (t n) h d', n=places
  )
  return Attended(output, before, after, attended.frames)


def outside_groups(
  q: Array, k: Array, v: Array, *, group: int, keep_maps: bool = False
) -> Attended:
  """Attention of every token to those of other groups than its own.

  Groups are runs of `group` tokens. Kept because published comparisons were
  made with it; by its meaning only, which stores maps.

  Raises:
    ValueError: there is one group only, outside of which there is nothing.
  """
  length = q.shape[1]
  if length <= group:
    raise ValueError(
      f'{length} tokens are one group of {group}, with nothing outside; use '
      'more tokens per frame, or another variant'
    )
  number = jnp.arange(length) // group
  outside = number[:, None] != number[None, :]
  maps = jax.nn.softmax(reference.scores(q, k), where=outside)
  output = reference.attend(maps, v)
  maps = maps if keep_maps else None
  return Attended(output, maps, maps, None)


def mean_of(everywhere: Attended, within: Attended) -> Attended:
  """Half of each attention; what MiRA thinks of frames is the first's."""

  def mean(a: Array | None, b: Array | None) -> Array | None:
    return None if a is None or b is None else (a + b) / 2

  *means, _ = map(mean, everywhere, within)
  return Attended(*means, everywhere.frames)


def heads_of(spatial: Attended, temporal: Attended) -> Attended:
  """The heads of both side by side; MiRA is in the second."""

  def beside(a: Array | None, b: Array | None, axis: int) -> Array | None:
    return None if a is None or b is None else jnp.concatenate([a, b], axis)

  return Attended(
    beside(spatial.output, temporal.output, axis=2),
    beside(spatial.before, temporal.before, axis=1),
    beside(spatial.after, temporal.after, axis=1),
    temporal.frames,
  )


def _block_diagonal(maps: Array, groups: int) -> Array:
  """[B * G, H, Q, K] -> [B, H, G, Q, G, K], zero between groups."""
  maps = einops.rearrange(maps, '(b g) h q k -> b h g q 1 k', g=groups)
  return maps * jnp.eye(groups, dtype=maps.dtype)[:, None, :, None]
