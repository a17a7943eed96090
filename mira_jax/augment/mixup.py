"""Mixup and cutmix of the clips of a batch and their targets.

Mixup blends every clip with its partner, cutmix pastes a box of the partner
into it. Partners are neighbours, which lie on one device; the last clip of an
odd batch stays. (The reference pairs the first clip with the last: the same
draw for shuffled clips, but it would send all videos between devices.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mira_jax.augment.transforms import Box

Array = jax.Array


def mix(
  key: Array,
  video: Array,
  targets: Array,
  *,
  mixup_alpha: float = 0.8,
  cutmix_alpha: float = 1.0,
  copies: int = 1,
) -> tuple[Array, Array]:
  """Mixes video [B, T, H, W, 3] and targets [B, K], all clips alike.

  Where both are possible, it is mixup or cutmix with probability one half.

  Args:
    key: of the one draw for the batch.
    video: without masked rows.
    targets: of the clips.
    mixup_alpha: the share that a clip keeps is Beta(alpha, alpha) distributed;
      0 leaves mixup out.
    cutmix_alpha: likewise for cutmix.
    copies: adjacent rows of one clip, which are no partners.
  """
  if not (mixup_alpha or cutmix_alpha):
    return video, targets
  both = mixup_alpha and cutmix_alpha
  # The first key is unused: another split would change the draws of a seed.
  _, switch_key, share_key, box_key = jax.random.split(key, 4)
  switch = 0.5 if both else float(cutmix_alpha > 0)
  cuts = jax.random.bernoulli(switch_key, switch)
  alpha = jnp.where(cuts, cutmix_alpha, mixup_alpha)
  share = jax.random.beta(share_key, alpha, alpha)
  whole = (video.shape[2], video.shape[3])
  outside = ~cutmix_box(box_key, share, whole).mask(whole)
  kept = jnp.where(cuts, outside, share)  # of each pixel, [H, W, 1]
  # The box has whole pixels and may reach past an edge: targets keep what the
  # video does.
  share = jnp.where(cuts, outside.mean(), share)
  return _blend(kept, video, copies), _blend(share, targets, copies)


def cutmix_box(key: Array, share: Array, whole: tuple[int, int]) -> Box:
  """A box about a random pixel that leaves `share` of a frame of H, W pixels.

  It may reach past the edges.
  """
  centre = jax.random.randint(key, (2,), 0, jnp.asarray(whole))
  half = (jnp.sqrt(1 - share) * jnp.asarray(whole)).astype(int) // 2
  return Box(*(centre - half), *(2 * half))


def _blend(share: Array, rows: Array, copies: int) -> Array:
  return share * rows + (1 - share) * _partners(rows, copies)


def _partners(rows: Array, copies: int) -> Array:
  paired = len(rows) - len(rows) % (2 * copies)
  pairs = rows[:paired].reshape(-1, 2, copies, *rows.shape[1:])
  swapped = pairs[:, ::-1].reshape(paired, *rows.shape[1:])
  return jnp.concatenate([swapped, rows[paired:]])
