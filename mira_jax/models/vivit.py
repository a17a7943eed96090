"""A video vision transformer (ViViT) with joint space-time attention and MiRA.

The backbone is VideoMAE's, which the reference uses: tubelets, fixed sinusoidal
positions, pre-norm blocks, mean pooling (docs/method.md, section 5).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import einops
import jax
import jax.numpy as jnp
import numpy as np
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
from mira_jax.models.variants import (
  BLOCKS,
  CLS_VARIANTS,
  TEMPORAL_DEPTH,
  VARIANTS,
  clip_record,
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
    gelu: of the MLPs, 'exact', or 'tanh', the approximation that ViViT's
      authors trained with.
    norm_eps: what the norms add to a variance.
    last_norm_eps: what the one before the head adds; None is norm_eps.
    variant: 'joint' attention over space and time, or one of the baselines in
      `variants.VARIANTS` (docs/method.md, section 7).
    mira: None is the plain transformer, with the same parameters.
    mira_last_blocks: MiRA is in the last so many blocks; None is all. With
      'factorised_encoder' these are blocks of the temporal encoder.
    pool: 'mean' over all tokens, then norm; or 'cls', a learned token ('joint'
      and 'factorised_encoder' only).
    positions: 'sinusoidal' (fixed) or 'learned'.
    layer_scale: start value of the per-channel branch scales; None is none.
    attention: its implementation, see `kernels.dispatch`; None chooses by
      device, shape and dtype. Small attentions of variants beside their large
      one (over time, and of a light second block) are not its subject.
    drop_path: drop-path rate of the last block.
    head_scale: factor on the initial head weights.
    remat: what the backward pass keeps, see `kernels.operations.REMAT`.
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
  gelu: Literal['exact', 'tanh'] = 'exact'
  norm_eps: float = 1e-6
  last_norm_eps: float | None = None
  variant: str = 'joint'
  mira: MiraConfig | None = None
  mira_last_blocks: int | None = None
  pool: Literal['mean', 'cls'] = 'mean'
  positions: Literal['sinusoidal', 'learned'] = 'sinusoidal'
  layer_scale: float | None = None
  attention: str | None = None
  drop_path: float = 0.0
  head_scale: float = 0.001
  remat: str | None = None
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
      record: also return, per block, the arrays of `encoder.block_record`
        (`variants.clip_record` for a spatial encoder).
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
    encoder = self._encoder(train, record)
    if self.variant == 'factorised_encoder':
      x, records = self._two_encoders(encoder, x, grid)
    else:
      x, records = encoder(
        depth=self.depth,
        num_frames=grid[0],
        mira=self.mira,
        attention=self.attention,
        block=BLOCKS[self.variant],
        drop_path=self.drop_path,
        name='encoder',
      )(self._inputs(x, self.grid, grid))
    logits = self._head(x)
    return (logits, records) if record else logits

  def _inputs(
    self,
    x: Array,
    own: tuple[int, int, int],
    grid: tuple[int, int, int],
    suffix: str = '',
  ) -> Array:
    """Adds positions to tokens [B, L, C] and, if asked, a class token.

    Args:
      x: tokens of `grid`.
      own: the grid that positions are made for.
      grid: the one that they are interpolated to.
      suffix: of the parameters' names.
    """
    table = self._position_table(f'positions{suffix}', int(np.prod(own)))
    x = x + jnp.asarray(resize_positions(table, own, grid), x.dtype)
    if self.pool == 'cls':
      cls = self.param(f'cls{suffix}', default_init, (1, 1, self.dim))
      cls = jnp.broadcast_to(cls, (x.shape[0], 1, self.dim))
      x = jnp.concatenate([cls.astype(x.dtype), x], axis=1)
    return x

  def _encoder(self, train: bool, record: bool) -> Callable[..., Encoder]:
    """An encoder, but for the fields in which two of them differ."""
    return functools.partial(
      Encoder,
      heads=self.heads,
      mira_last_blocks=self.mira_last_blocks,
      num_prefix=int(self.pool == 'cls'),
      mlp_ratio=self.mlp_ratio,
      gelu=self.gelu,
      norm_eps=self.norm_eps,
      layer_scale=self.layer_scale,
      remat=self.remat,
      scan=self.scan,
      train=train,
      record=record,
      dtype=self.dtype,
    )

  def _two_encoders(
    self, encoder: Callable[..., Encoder], x: Array, grid: tuple[int, int, int]
  ) -> tuple[Array, list[Record] | None]:
    """Model 2 of ViViT: an encoder of frames, then one of frame vectors.

    Both have positions, and class tokens if asked. Drop path in the first drops
    frames. Tokens [B, L, C] -> [B, T, C], after a class token if there is one.
    """
    frames, depth, cls = grid[0], self.depth, self.pool == 'cls'
    rates = np.linspace(0, self.drop_path, depth + TEMPORAL_DEPTH).tolist()
    x = einops.rearrange(x, 'b (t n) c -> (b t) n c', t=frames)
    x, spatial = encoder(
      depth=depth,
      num_frames=1,
      attention=self.attention,
      drop_path=rates[depth - 1],
      name='encoder',
    )(self._inputs(x, (1, *self.grid[1:]), (1, *grid[1:])))
    x = x[:, 0] if cls else x.mean(axis=1)
    x = einops.rearrange(x, '(b t) c -> b t c', t=frames)
    x, temporal = encoder(
      depth=TEMPORAL_DEPTH,
      num_frames=frames,
      mira=self.mira,
      attention='meaning',  # so few tokens are no work for a kernel
      first_drop_path=rates[depth],
      drop_path=rates[-1],
      name='temporal',
    )(self._inputs(x, (self.grid[0], 1, 1), (frames, 1, 1), '_time'))
    if spatial is None:
      return x, None
    return x, [clip_record(r, frames, int(cls)) for r in spatial] + temporal

  def _head(self, x: Array) -> Array:
    """Pools tokens [B, L, C] and classifies them: [B, K]."""
    eps = self.norm_eps if self.last_norm_eps is None else self.last_norm_eps
    norm = layer_norm(self.dtype, 'norm', eps)
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
      ('gelu', ('exact', 'tanh')),
      ('positions', ('sinusoidal', 'learned')),
      ('variant', VARIANTS),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'{name} is {getattr(self, name)!r}; use one of {allowed}'
        )
    if self.pool == 'cls' and self.variant not in CLS_VARIANTS:
      raise ValueError(
        f"pool is 'cls', a token of no frame, which variant "
        f"{self.variant!r} has no place for; use pool='mean'"
      )

  def _position_table(self, name: str, length: int) -> Array:
    if self.positions == 'sinusoidal':
      return jnp.asarray(sinusoid(length, self.dim))
    return self.param(name, default_init, (length, self.dim))

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
