"""What attends to what: the attention of every variant, as pure functions.

Each maps a `BlockSpec`, queries, keys, values [B, L, H, D] (L = T * N tokens
ordered frame by frame) and MiRA's EMA so far ([T] or None) to `Attended`. MiRA
acts where frames meet: on the joint attention, or on that over time. Recorded
maps are those of all L tokens, zero where nothing attends. docs/method.md,
section 7; the factorised ones are ViViT's (Arnab et al., arXiv 2103.15691).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp

from mira_jax.kernels import reference
from mira_jax.kernels.attention import (
  Attended,
  attend_with_maps,
  mira_attention,
)
from mira_jax.mira import FrameGain, frame_gain
from mira_jax.models.spec import BlockSpec

Array = jax.Array
Attend = Callable[..., Attended]


def joint(
  spec: BlockSpec,
  q: Array,
  k: Array,
  v: Array,
  past: Array | None = None,
  **own: Any,
) -> Attended:
  """Attention of all tokens to all, with MiRA.

  `own` are the `gain` and the `transform` of `kernels.mira_attention`.
  """
  return mira_attention(
    q,
    k,
    v,
    num_frames=spec.num_frames,
    config=spec.mira,
    num_prefix=spec.num_prefix,
    past=past,
    training=spec.train,
    implementation=spec.implementation,
    **own,
  )


def within_frames(
  spec: BlockSpec, q: Array, k: Array, v: Array, past: Array | None = None
) -> Attended:
  """Attention of every token to those of its own frame, without MiRA.

  Frames are folded into the batch: no mask is made, and kernels serve.
  """
  del past
  frames = spec.num_frames
  one = dataclasses.replace(spec, num_frames=1, num_prefix=0, mira=None)
  fold = 'b (t n) h d -> (b t) n h d'
  q, k, v = (einops.rearrange(x, fold, t=frames) for x in (q, k, v))
  attended = joint(one, q, k, v)
  output = einops.rearrange(
    attended.output, '(b t) n h d -> b (t n) h d', t=frames
  )
  maps = None
  if spec.record and attended.before is not None:
    unfold = 'b h t q u k -> b h (t q) (u k)'
    maps = _block_diagonal(attended.before, frames, unfold)
  return Attended(output, maps, maps, None)


def over_time(
  spec: BlockSpec, q: Array, k: Array, v: Array, past: Array | None = None
) -> Attended:
  """Attention of every token to those at its place in all frames, with MiRA.

  MiRA sees one clip: the marginals (or energies) of the keys at all N places
  make one vector [B, L], and its gain of a frame is that of the frame's key at
  every place. The uniform floor is over the T keys that a query has. The N
  maps [T, T] are small: plain JAX serves.
  """
  frames = spec.num_frames
  places = q.shape[1] // frames

  def estimate(marginal: Array) -> tuple[FrameGain, Array]:
    assert spec.mira is not None
    # Every place sums to one; the clip's vector is their mean.
    marginal = einops.rearrange(marginal, '(b n) t -> b (t n)', n=places)
    found = frame_gain(
      marginal / places, frames, spec.mira, past=past, training=spec.train
    )
    # One row if the batch shares its gain: that is the gain at all places.
    shared = found.gain.shape[0] < marginal.shape[0]
    return found, jnp.repeat(found.gain, 1 if shared else places, axis=0)

  fold = 'b (t n) h d -> (b n) t h d'
  q, k, v = (einops.rearrange(x, fold, t=frames) for x in (q, k, v))
  attended = attend_with_maps(q, k, v, spec.mira, estimate)
  output = einops.rearrange(
    attended.output, '(b n) t h d -> b (t n) h d', n=places
  )
  before = after = None
  if spec.record:
    before, after = (
      _block_diagonal(x, places, 'b h n q m k -> b h (q n) (k m)')
      for x in (attended.before, attended.after)
    )
  return Attended(output, before, after, attended.frames)


def outside_groups(
  spec: BlockSpec, q: Array, k: Array, v: Array, past: Array | None = None
) -> Attended:
  """Attention of every token to those outside its run of T tokens.

  Two mistakes of the authors' code (runs of T tokens instead of N, and the
  mask inverted), kept to reproduce its results; stores maps.

  Raises:
    ValueError: there is one run only, with nothing outside.
  """
  del past
  length, group = q.shape[1], spec.num_frames
  if length <= group:
    raise ValueError(
      f'{length} tokens are one group of {group}, with nothing outside; use '
      'more tokens per frame, or another variant'
    )
  number = jnp.arange(length) // group
  outside = number[:, None] != number[None, :]
  maps = jax.nn.softmax(reference.scores(q, k), where=outside)
  output = reference.attend(maps, v)
  maps = maps if spec.record else None
  return Attended(output, maps, maps, None)


def intra(
  spec: BlockSpec,
  q: Array,
  k: Array,
  v: Array,
  past: Array | None = None,
  *,
  part: Attend = within_frames,
) -> Attended:
  """Half joint attention with MiRA, half `part`, by default within frames.

  In the authors' code MiRA replaces both halves, which is variant 'joint'.
  """
  own, all_tokens = part(spec, q, k, v, None), joint(spec, q, k, v, past)

  def mean(a: Array, b: Array) -> Array:
    return (a + b) / 2

  return _both(mean, mean, own, all_tokens)


def dot_product(
  spec: BlockSpec, q: Array, k: Array, v: Array, past: Array | None = None
) -> Attended:
  """The first half of the heads attends within frames, the other over time."""
  (qs, qt), (ks, kt), (vs, vt) = (jnp.split(x, 2, axis=2) for x in (q, k, v))
  return heads_of(
    within_frames(spec, qs, ks, vs), over_time(spec, qt, kt, vt, past)
  )


# Of the variants whose blocks attend once.
ATTENTION: dict[str, Attend] = {
  'joint': joint,
  'intra': intra,
  'intra_as_shipped': functools.partial(intra, part=outside_groups),
  'st_block': joint,
  'factorised_dot_product': dot_product,
}


def heads_of(spatial: Attended, temporal: Attended) -> Attended:
  """The heads of both side by side; MiRA is in the second."""

  def beside(axis: int) -> Callable[[Array, Array], Array]:
    return lambda a, b: jnp.concatenate([a, b], axis)

  return _both(beside(2), beside(1), spatial, temporal)


def _both(
  outputs: Callable[[Array, Array], Array],
  maps: Callable[[Array, Array], Array],
  plain: Attended,
  mira: Attended,
) -> Attended:
  """Two attentions in one, the second with MiRA: their outputs, their maps."""
  before, after = (
    None if a is None or b is None else maps(a, b)
    for a, b in ((plain.before, mira.before), (plain.after, mira.after))
  )
  return Attended(
    outputs(plain.output, mira.output), before, after, mira.frames
  )


def _block_diagonal(maps: Any, groups: int, unfold: str) -> Array:
  """[B * G, H, Q, K] -> [B, H, G, Q, G, K], zero between groups, unfolded."""
  maps = einops.rearrange(maps, '(b g) h q k -> b h g q 1 k', g=groups)
  maps = maps * jnp.eye(groups, dtype=maps.dtype)[:, None, :, None]
  return einops.rearrange(maps, unfold)
