"""VideoMAE pre-training around the same blocks (docs/method.md, section 6).

The encoder, with MiRA, sees only the visible tubelets; a light plain decoder
predicts the normalised pixels of the masked ones. Masks leave the same number
of tokens visible in every temporal token (slot), as MiRA needs.
"""

from __future__ import annotations

import dataclasses

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from mira_jax.models.blocks import BLOCKS, Record
from mira_jax.models.encoder import Encoder, encoder_of
from mira_jax.models.layers import (
  HOG_BINS,
  TubeletEmbed,
  layer_norm,
  oriented_gradients,
  sinusoid,
  token_grid,
  torch_uniform,
  tubelets,
  untubelets,
)
from mira_jax.models.options import DecoderOptions, EncoderOptions
from mira_jax.models.spec import BlockSpec, spec_of

Array = jax.Array

xavier = nn.initializers.xavier_uniform()
HOG_CELLS = 2  # along each side of a token


def tube_mask(
  key: Array, batch: int, slots: int, tokens: int, ratio: float
) -> Array:
  """One random set of spatial positions per clip, hidden in every slot.

  `int(ratio * tokens)` of the N tokens of each of the T slots are True in the
  mask, [B, T * N] bool.
  """
  order = jax.vmap(lambda k: jax.random.permutation(k, tokens))(
    jax.random.split(key, batch)
  )
  return jnp.tile(order < int(ratio * tokens), (1, slots))


def random_mask(
  key: Array, batch: int, slots: int, tokens: int, ratio: float
) -> Array:
  """A random set of positions for each slot; otherwise as `tube_mask`."""
  mask = tube_mask(key, batch * slots, 1, tokens, ratio)
  return mask.reshape(batch, slots * tokens)


MASKS = {'tube': tube_mask, 'random': random_mask}


def draw_mask(
  key: Array,
  shape: tuple[int, ...],
  tubelet: int,
  patch: int,
  *,
  kind: str,
  ratio: float,
) -> tuple[Array, int]:
  """A mask [B, L] of videos [B, F, H, W, 3], and how many tokens it hides.

  `kind` is a key of MASKS; `ratio` as in `tube_mask`.
  """
  slots, height, width = token_grid(shape, tubelet, patch)
  places = height * width
  mask = MASKS[kind](key, shape[0], slots, places, ratio)
  return mask, slots * int(ratio * places)


def split_tokens(mask: Array, num_masked: int) -> tuple[Array, Array]:
  """Indices of the visible [B, L - num_masked] and masked [B, num_masked]."""
  order = jnp.argsort(mask, axis=1, stable=True)
  visible = mask.shape[1] - num_masked
  return order[:, :visible], order[:, visible:]


def take_tokens(x: Array, index: Array) -> Array:
  """Tokens of x [B or 1, L, C] at index [B, n]: [B, n, C]."""
  x = jnp.broadcast_to(x, (index.shape[0], *x.shape[1:]))
  return jnp.take_along_axis(x, index[:, :, None], axis=1)


def tubelet_targets(
  video: Array, *, tubelet: int, patch: int, normalise: bool = True
) -> Array:
  """Pixels of every tubelet, normalised per tubelet and channel.

  Args:
    video: [B, F, H, W, 3] in [0, 1].
    tubelet: frames in a token.
    patch: height and width of a token.
    normalise: False keeps the pixels.

  Returns:
    [B, L, tubelet * patch * patch * 3], channel fastest.
  """
  x = tubelets(video, tubelet, patch)
  if normalise:
    mean, std = _statistics(x)
    x = (x - mean) / std
  return einops.rearrange(x, 'b l p c -> b l (p c)')


def hog_targets(video: Array, *, tubelet: int, patch: int) -> Array:
  """Histograms of oriented gradients of every tubelet.

  The targets of MaskFeat (Wei et al. 2022, https://arxiv.org/abs/2112.09133),
  of every frame: of each cell, a quarter of a token, the gradients by
  direction, divided by their norm.

  Args:
    video: [B, F, H, W, 3] in [0, 1].
    tubelet: frames in a token.
    patch: height and width of a token, even.

  Returns:
    [B, L, tubelet * HOG_CELLS**2 * HOG_BINS].
  """
  cells = oriented_gradients(video, patch // HOG_CELLS)
  norm = jnp.sqrt(jnp.square(cells).sum(-1, keepdims=True) + 1e-4)
  pattern = 'b (t dt) (h y) (w x) k -> b (t h w) (dt y x k)'
  size = {'dt': tubelet, 'y': HOG_CELLS, 'x': HOG_CELLS}
  return einops.rearrange(cells / norm, pattern, **size)


def reconstruct(
  prediction: Array,
  video: Array,
  mask: Array,
  *,
  tubelet: int,
  patch: int,
  normalise: bool = True,
) -> tuple[Array, Array]:
  """The masked video and the reconstructed one, for pictures.

  Predictions of normalised pixels take the mean and contrast of the hidden
  tubelet.

  Args:
    prediction: [B, n, P] of the masked tokens.
    video: see `tubelet_targets`, as are those that follow.
    mask: [B, L], n of them True.
    tubelet: frames.
    patch: pixels.
    normalise: whether the prediction is of normalised pixels.

  Returns:
    The video with masked tubelets grey, and predicted; [B, F, H, W, 3] both.
  """
  x = tubelets(video, tubelet, patch)
  _, masked = split_tokens(mask, prediction.shape[1])
  place = masked[:, :, None, None]
  pixels = einops.rearrange(prediction, 'b n (p c) -> b n p c', c=3)
  if normalise:
    mean, std = _statistics(jnp.take_along_axis(x, place, axis=1))
    pixels = pixels * std + mean
  grey = jnp.where(mask[:, :, None, None], 0.5, x)
  filled = jax.vmap(lambda a, i, b: a.at[i].set(b))(x, masked, pixels)
  grid = token_grid(video.shape, tubelet, patch)
  shown, drawn = (untubelets(y, grid, tubelet, patch) for y in (grey, filled))
  return shown, jnp.clip(drawn, 0, 1)


def _statistics(x: Array) -> tuple[Array, Array]:
  """Mean and deviation (ddof 1, plus 1e-6) of tubelets [B, L, P, 3]."""
  mean = x.mean(axis=2, keepdims=True)
  return mean, x.std(axis=2, ddof=1, keepdims=True) + 1e-6


def reconstruction_loss(
  prediction: Array, targets: Array, mask: Array
) -> Array:
  """Mean squared error over masked tubelets: [B, n, P], [B, L, P], [B, L]."""
  _, masked = split_tokens(mask, prediction.shape[1])
  return jnp.square(prediction - take_tokens(targets, masked)).mean()


class MaskedAutoencoder(nn.Module, EncoderOptions, DecoderOptions):
  """Predicts the masked tubelets of a clip.

  Attributes are those of `options.EncoderOptions` and `DecoderOptions`. The
  `variant` is the encoder's, `last_norm_eps` of the decoder's last norm.
  Variants with attention over time need tube masks: the n-th visible token of
  every slot must be at the same place.
  """

  @nn.compact
  def __call__(
    self,
    video: Array,
    mask: Array,
    *,
    num_masked: int,
    train: bool = False,
    record: bool = False,
  ) -> Array | tuple[Array, list[Record]]:
    """[B, F, H, W, 3] normalised -> prediction [B, num_masked, P].

    Args:
      video: normalised clips.
      mask: [B, L] bool, True where masked, `num_masked` in every row and, with
        MiRA, the same number in every slot. Not checked: it is data.
      num_masked: a Python int, since it is a shape.
      train: as in `vivit.ViViT`.
      record: also return the encoder's records.
    """
    slots, _, _ = token_grid(video.shape, self.tubelet, self.patch)
    if self.variant not in BLOCKS:
      raise ValueError(
        f'variant is {self.variant!r}; pre-training knows {tuple(BLOCKS)}'
      )
    spec = spec_of(
      self, num_frames=slots, train=train, record=record, kernel_init=xavier
    )
    visible, masked = split_tokens(mask, num_masked)
    if self.stem != 'linear':  # it would see hidden pixels at the borders
      video = self._hide(video, mask)
    x = TubeletEmbed(
      self.dim, self.tubelet, self.patch, self.stem, spec.dtype, name='embed'
    )(video)
    x = x + jnp.asarray(sinusoid(x.shape[1], self.dim), x.dtype)
    x, records = encoder_of(self, spec, name='encoder')(take_tokens(x, visible))
    x = layer_norm(spec.dtype, 'norm', self.norm_eps)(x)
    x = self._decode(x, visible, masked, spec)
    return (x, records or []) if record else x

  def targets(self, video: Array, *, normalise: bool = True) -> Array:
    """What is predicted of a video in [0, 1]: [B, L, P], see `hog_targets`.

    `normalise` as in `tubelet_targets`; histograms always are.
    """
    size = {'tubelet': self.tubelet, 'patch': self.patch}
    if self.decoder_targets == 'hog':
      return hog_targets(video, **size)
    return tubelet_targets(video, **size, normalise=normalise)

  def _hide(self, video: Array, mask: Array) -> Array:
    """The video with masked tubelets at 0, the mean."""
    t, h, w = token_grid(video.shape, self.tubelet, self.patch)
    keep = jnp.logical_not(mask.reshape(-1, t, h, w, 1))
    for axis, size in enumerate((self.tubelet, self.patch, self.patch), 1):
      keep = jnp.repeat(keep, size, axis)
    return video * keep

  def _decode(
    self, x: Array, visible: Array, masked: Array, spec: BlockSpec
  ) -> Array:
    length = visible.shape[1] + masked.shape[1]
    table = jnp.asarray(sinusoid(length, self.decoder_dim))[None]
    x = nn.Dense(
      self.decoder_dim,
      use_bias=False,
      dtype=spec.dtype,
      kernel_init=torch_uniform(self.dim),
      name='to_decoder',
    )(x)
    init = nn.initializers.truncated_normal(0.02, lower=-1, upper=1)
    token = self.param('mask_token', init, (1, 1, self.decoder_dim))
    # Visible tokens come first, so that the last ones are the masked ones.
    x = jnp.concatenate(
      [x + take_tokens(table, visible), token + take_tokens(table, masked)], 1
    )
    x, _ = self._decoder(spec)(x)
    x = x[:, visible.shape[1] :]
    eps = self.norm_eps if self.last_norm_eps is None else self.last_norm_eps
    x = layer_norm(spec.dtype, 'decoder_norm', eps)(x)
    hog = self.decoder_targets == 'hog'
    return nn.Dense(
      self.tubelet * (HOG_CELLS**2 * HOG_BINS if hog else 3 * self.patch**2),
      dtype=spec.dtype,
      kernel_init=xavier,
      name='decoder_head',
    )(x)

  def _decoder(self, spec: BlockSpec) -> Encoder:
    """Plain blocks over all tokens."""
    ratio = self.decoder_mlp_ratio
    spec = dataclasses.replace(
      spec,
      heads=self.decoder_heads,
      mlp_ratio=self.mlp_ratio if ratio is None else ratio,
      variant='joint',
      num_frames=1,
      mira=None,
      gate=None,
      record=False,
    )
    return encoder_of(self, spec, depth=self.decoder_depth, name='decoder')
