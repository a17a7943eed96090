"""A video vision transformer (ViViT) with joint space-time attention and MiRA.

The backbone is VideoMAE's, which the reference uses: tubelets, fixed sinusoidal
positions, pre-norm blocks, mean pooling (docs/method.md, section 5).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mira_jax.models.blocks import Record
from mira_jax.models.encoder import clip_record, encoder_of
from mira_jax.models.head import ClassifierHead, Inputs, Terms
from mira_jax.models.layers import (
  Grid,
  TubeletEmbed,
  default_init,
  sinusoid,
  token_grid,
)
from mira_jax.models.options import CHOICES, contradiction
from mira_jax.models.spec import BlockSpec, spec_of
from mira_jax.systems.cross_windows import CrossWindows
from mira_jax.systems.orientation import mean_axis

Array = jax.Array

# Named sizes: `ViViT(**SIZES['B'], num_classes=7)`.
SIZES = {
  'Ti': {'dim': 192, 'depth': 12, 'heads': 3},
  'S': {'dim': 384, 'depth': 12, 'heads': 6},
  'B': {'dim': 768, 'depth': 12, 'heads': 12},
  'L': {'dim': 1024, 'depth': 24, 'heads': 16},
  'H': {'dim': 1280, 'depth': 32, 'heads': 16},
}
# Layers of the second encoder of 'factorised_encoder', as in the paper.
TEMPORAL_DEPTH = 4


class ViViT(ClassifierHead):
  """Classifies clips: [B, frames, image_size, image_size, 3] -> logits [B, K].

  Attributes are those of `options.ModelOptions`. With `num_classes` 0 the
  result is the pooled features [B, C]; with variant 'factorised_encoder'
  `mira_last_blocks` counts blocks of the temporal encoder.
  """

  @property
  def grid(self) -> Grid:
    """Tokens in time, height and width that the positions are made for."""
    side = self.image_size // self.patch
    return self.frames // self.tubelet, side, side

  @nn.compact
  def __call__(
    self,
    video: Array,
    *,
    train: bool = False,
    record: bool = False,
    inputs: Inputs = Inputs(),
  ) -> Any:
    """Logits of normalised clips.

    Args:
      video: [B, F, H, W, 3], normalised.
      train: drop path is drawn (rng 'dropout') and MiRA's EMA is updated
        (collection 'mira').
      record: also return, per block, the arrays of `blocks.Block`
        (`encoder.clip_record` for a spatial encoder); the last one also has
        what `head.ClassifierHead.record_of` gives, and of window
        cross-attention `window_change` [B, T * N], by how much it moved tokens
        (root mean square).
      inputs: what some options read beside the video.

    Returns:
      Logits [B, K] in float32 (at least), or [B, T, K] with pool 'frame'; and
      the records, if asked, or the `head.Terms` of a loss, if `inputs` have a
      progress.

    Raises:
      ValueError: the shape of the video does not fit, or a field is wrong.
    """
    self._check()
    grid = token_grid(video.shape, self.tubelet, self.patch)
    if grid != self.grid:
      raise ValueError(
        f'video has {grid} tokens in (time, height, width), the model '
        f'{self.grid}; resample it'
      )
    clips, mirrors = video.shape[0], self.mirror and not train
    if mirrors:
      video = jnp.concatenate([video, video[:, :, :, ::-1]])
      inputs = jax.tree.map(lambda x: jnp.concatenate([x, x]), inputs)
    spec = spec_of(
      self,
      num_frames=grid[0],
      num_prefix=int(self.pool == 'cls'),
      size=grid[1:],
      train=train,
      record=record,
    )
    whole = self._members if self.members > 1 else self._member
    logits, records, terms = whole(
      spec, (video, inputs._replace(progress=None)), inputs.progress
    )
    if mirrors:  # records are those of the clips as they are
      logits = (logits[:clips] + logits[clips:]) / 2
      records = jax.tree.map(lambda x: x[:clips], records)
    if record:
      return logits, records
    return logits if inputs.progress is None else (logits, terms)

  def _members(
    self, spec: BlockSpec, batch: tuple[Array, Inputs], progress: Array | None
  ) -> tuple[Array, list[Record], Terms]:
    """Mean logits and records of all members; side by side features.

    In training each has its own part of the batch, so that the gradient of a
    mean over clips is that of members which are trained alone.
    """
    split = spec.train
    in_axes: Any = 0 if split else None
    if split:
      pattern = '(b m) ... -> m b ...'
      batch = jax.tree.map(
        lambda x: einops.rearrange(x, pattern, m=self.members), batch
      )
    each = nn.vmap(
      lambda model, x: model._member(spec, x, progress),
      in_axes=in_axes,
      variable_axes={'params': 0, 'mira': 0},
      split_rngs={'params': True, 'dropout': True},
      axis_size=self.members,
    )
    found = each(self, batch)
    if split:
      pattern = 'm b ... -> (b m) ...'
      return jax.tree.map(lambda x: einops.rearrange(x, pattern), found)
    logits, each, terms = found
    records = [
      {n: mean_axis(x) if n == 'angle' else x.mean(0) for n, x in own.items()}
      for own in each
    ]
    terms = jax.tree.map(lambda x: x.mean(axis=0), terms)
    if self.num_classes:
      return logits.mean(axis=0), records, terms
    return einops.rearrange(logits, 'm b ... c -> b ... (m c)'), records, terms

  def _member(
    self, spec: BlockSpec, batch: tuple[Array, Inputs], progress: Array | None
  ) -> tuple[Array, list[Record], Terms]:
    """Logits [B, K], or features, records and terms of one transformer."""
    video, inputs = batch
    inputs = inputs._replace(progress=progress)
    x = TubeletEmbed(
      self.dim, self.tubelet, self.patch, self.stem, spec.dtype, name='embed'
    )(video)
    guided: Record = {}
    if self.cross_windows is not None:
      before = x
      x = CrossWindows(
        self.cross_windows,
        self.heads,
        self.grid,
        spec.dtype,
        spec.kernel_init,
        name='cross_windows',
      )(x, inputs.landmarks)
      guided['window_change'] = jnp.sqrt(jnp.square(x - before).mean(-1))
    embedded = x
    if self.variant == 'factorised_encoder':
      x, records = self._two_encoders(spec, x)
    else:
      encoder = encoder_of(self, spec, name='encoder')
      x, records = encoder(self._inputs(x))
    logits, terms = self._head(x, embedded, spec, inputs)
    if self.head_mix is not None:
      each = [record['head_diversity'] for record in records]
      terms['head_diversity'] = jnp.stack(each).mean(axis=0)
    if spec.record:
      records[-1] |= self.record_of(terms) | guided
    return logits, records, terms

  def _inputs(self, x: Array, suffix: str = '') -> Array:
    """Adds positions to tokens [B, L, C] and, if asked, a class token.

    `suffix` is that of the parameters' names.
    """
    if self.positions == 'sinusoidal':
      table = jnp.asarray(sinusoid(x.shape[1], self.dim))
    else:
      table = self.param(f'positions{suffix}', default_init, x.shape[1:])
    x = x + table.astype(x.dtype)
    if self.pool == 'cls':
      cls = self.param(f'cls{suffix}', default_init, (1, 1, self.dim))
      cls = jnp.broadcast_to(cls, (x.shape[0], 1, self.dim))
      x = jnp.concatenate([cls.astype(x.dtype), x], axis=1)
    return x

  def _two_encoders(
    self, spec: BlockSpec, x: Array
  ) -> tuple[Array, list[Record]]:
    """Model 2 of ViViT: an encoder of frames, then one of frame vectors.

    Both have positions, and class tokens if asked. Drop path in the first drops
    frames. Tokens [B, L, C] -> [B, T, C], after a class token if there is one.
    """
    frames, depth, cls = spec.num_frames, self.depth, spec.num_prefix
    rates = np.linspace(0, self.drop_path, depth + TEMPORAL_DEPTH).tolist()
    x = einops.rearrange(x, 'b (t n) c -> (b t) n c', t=frames)
    x, spatial = encoder_of(
      self,
      dataclasses.replace(spec, variant='joint', num_frames=1, mira=None),
      drop_path=rates[depth - 1],
      name='encoder',
    )(self._inputs(x))
    x = x[:, 0] if cls else x.mean(axis=1)
    x = einops.rearrange(x, '(b t) c -> b t c', t=frames)
    x, temporal = encoder_of(
      self,
      # So few tokens are no work for a kernel.
      dataclasses.replace(spec, variant='joint', attention='reference'),
      depth=TEMPORAL_DEPTH,
      first_drop_path=rates[depth],
      drop_path=rates[-1],
      name='temporal',
    )(self._inputs(x, '_time'))
    return x, [clip_record(r, frames, cls) for r in spatial] + temporal

  def _check(self):
    for name in ('pool', 'gelu', 'positions', 'stem', 'variant'):
      if getattr(self, name) not in CHOICES[name]:
        raise ValueError(
          f'{name} is {getattr(self, name)!r}; use one of {CHOICES[name]}'
        )
    if fault := contradiction(self):
      raise ValueError('{}: {}'.format(*fault))


def in_passes(model: ViViT, variables: dict[str, Any], video: Array) -> Array:
  """`model.apply` by one pass for each member and mirror image.

  For exporters that know neither layers with an axis of members nor a batch of
  two times an unknown number of clips.
  """
  single: Any = model.clone(members=1, mirror=False)
  own = [variables]
  if model.members > 1:
    indices = range(model.members)
    own = [jax.tree.map(lambda x, i=i: x[i], variables) for i in indices]
  views = [video, video[:, :, :, ::-1]] if model.mirror else [video]
  each: list[Any] = [
    sum(single.apply(x, view) for view in views) / len(views) for x in own
  ]
  total: Any = sum(each)
  return total / len(each) if model.num_classes else jnp.concatenate(each, -1)
