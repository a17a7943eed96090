"""A video vision transformer (ViViT) with joint space-time attention and MiRA.

The backbone is VideoMAE's, which the reference uses: tubelets, fixed sinusoidal
positions, pre-norm blocks, mean pooling (docs/method.md, section 5).
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from mira_jax.mira import MiraConfig
from mira_jax.models.encoder import Encoder, Record
from mira_jax.models.layers import (
  TubeletEmbed,
  default_init,
  layer_norm,
  resize_positions,
  sinusoid,
  token_grid,
)

Array = jax.Array

# Named sizes: `ViViT(**SIZES['B'], num_classes=7)`.
SIZES = {
  'Ti': {'dim': 192, 'depth': 12, 'heads': 3},
  'S': {'dim': 384, 'depth': 12, 'heads': 6},
  'B': {'dim': 768, 'depth': 12, 'heads': 12},
  'L': {'dim': 1024, 'depth': 24, 'heads': 16},
  'H': {'dim': 1280, 'depth': 32, 'heads': 16},
}


class ViViT(nn.Module):
  """Classifies clips: [B, frames, image_size, image_size, 3] -> logits [B, K].

  Attributes:
    dim: model width C.
    depth: number of blocks.
    heads: H, dividing dim.
    num_classes: K; 0 returns the pooled features [B, C] instead of logits.
    frames: input frames; T = frames / tubelet temporal slots.
    image_size: height and width of the input in pixels.
    patch: height and width of a token in pixels.
    tubelet: frames in a token.
    mlp_ratio: hidden width of the MLPs over C.
    mira: None is the plain transformer, with the same parameters.
    mira_last_blocks: MiRA is in the last so many blocks; None is all.
    pool: 'mean' over all tokens, then norm; or 'cls', a learned token.
    positions: 'sinusoidal' (fixed) or 'learned'.
    layer_scale: start value of the per-channel branch scales; None is none.
    attention: its implementation, see `kernels.dispatch`; None chooses by
      device, shape and dtype.
    drop_path: drop-path rate of the last block.
    head_scale: factor on the initial head weights.
    remat: recompute blocks in the backward pass.
    scan: loop over stacked blocks instead of unrolling them.
    dtype: of the computation; parameters, softmax and statistics are float32.
  """

  dim: int
  depth: int
  heads: int
  num_classes: int
  frames: int = 16
  image_size: int = 224
  patch: int = 16
  tubelet: int = 2
  mlp_ratio: float = 4.0
  mira: MiraConfig | None = None
  mira_last_blocks: int | None = None
  pool: Literal['mean', 'cls'] = 'mean'
  positions: Literal['sinusoidal', 'learned'] = 'sinusoidal'
  layer_scale: float | None = None
  attention: str | None = None
  drop_path: float = 0.0
  head_scale: float = 0.001
  remat: bool = False
  scan: bool = False
  dtype: Any = jnp.float32

  @property
  def grid(self) -> tuple[int, int, int]:
    """Tokens in time, height and width that the positions are made for."""
    if self.frames % self.tubelet or self.image_size % self.patch:
      raise ValueError(
        f'frames {self.frames} and image_size {self.image_size} must be '
        f'multiples of tubelet {self.tubelet} and patch {self.patch}'
      )
    side = self.image_size // self.patch
    return self.frames // self.tubelet, side, side

  @nn.compact
  def __call__(
    self,
    video: Array,
    *,
    train: bool = False,
    record: bool = False,
    interpolate_positions: bool = False,
  ) -> Array | tuple[Array, list[Record]]:
    """Logits of normalised clips.

    Args:
      video: [B, F, H, W, 3], normalised.
      train: drop path is drawn (rng 'dropout') and MiRA's EMA moves on
        (collection 'mira').
      record: also return, per block, the arrays of `encoder.block_record`.
      interpolate_positions: accept other F, H, W than the model's own and
        interpolate the positions.

    Returns:
      Logits [B, K] in float32 (at least), and the records if asked.

    Raises:
      ValueError: the shape of the video does not fit, or a field is wrong.
    """
    self._check()
    grid = self._grid_of(video.shape, interpolate_positions)
    x = TubeletEmbed(
      self.dim, self.tubelet, self.patch, self.dtype, name='embed'
    )(video)
    table = resize_positions(self._position_table(), self.grid, grid)
    x = x + jnp.asarray(table, x.dtype)
    num_prefix = int(self.pool == 'cls')
    if num_prefix:
      cls = self.param('cls', default_init, (1, 1, self.dim))
      cls = jnp.broadcast_to(cls, (x.shape[0], 1, self.dim))
      x = jnp.concatenate([cls.astype(x.dtype), x], axis=1)
    x, records = Encoder(
      depth=self.depth,
      heads=self.heads,
      num_frames=grid[0],
      mira=self.mira,
      mira_last_blocks=self.mira_last_blocks,
      num_prefix=num_prefix,
      mlp_ratio=self.mlp_ratio,
      layer_scale=self.layer_scale,
      attention=self.attention,
      drop_path=self.drop_path,
      remat=self.remat,
      scan=self.scan,
      train=train,
      record=record,
      dtype=self.dtype,
      name='encoder',
    )(x)
    logits = self._head(x)
    return (logits, records) if record else logits

  def _head(self, x: Array) -> Array:
    """Pools tokens [B, L, C] and classifies them: [B, K]."""
    norm = layer_norm(self.dtype, 'norm')
    x = norm(x)[:, 0] if self.pool == 'cls' else norm(x.mean(axis=1))
    if self.num_classes:
      scale = 0.02 * self.head_scale
      x = nn.Dense(
        self.num_classes,
        dtype=self.dtype,
        kernel_init=nn.initializers.normal(scale),
        name='head',
      )(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def _check(self):
    for name, allowed in (
      ('pool', ('mean', 'cls')),
      ('positions', ('sinusoidal', 'learned')),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'{name} is {getattr(self, name)!r}; use one of {allowed}'
        )

  def _position_table(self) -> Array:
    slots, height, width = self.grid
    length = slots * height * width
    if self.positions == 'sinusoidal':
      return jnp.asarray(sinusoid(length, self.dim))
    return self.param('positions', default_init, (length, self.dim))

  def _grid_of(
    self, shape: tuple[int, ...], interpolate: bool
  ) -> tuple[int, int, int]:
    """The token grid of a video shape, which must be the model's own."""
    grid = token_grid(shape, self.tubelet, self.patch)
    if grid != self.grid and not interpolate:
      raise ValueError(
        f'video has {grid} tokens in (time, height, width), the model '
        f'{self.grid}; resample it, or pass interpolate_positions=True'
      )
    return grid
