"""Options of a model, each defined once: name, type, default and range.

The configuration (`ModelConfig`), `ViViT`, `MaskedAutoencoder` and the
`BlockSpec` of their blocks inherit them. C is the model width, H the number of
heads, K that of classes.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

from mira_jax.kernels.dispatch import IMPLEMENTATIONS
from mira_jax.kernels.operations import REMAT
from mira_jax.mira import MiraConfig

# 'joint' attention over space and time, or a baseline: docs/method.md,
# section 7.
Variant = Literal[
  'joint',
  'intra',
  'intra_as_shipped',
  'st_block',
  'factorised_encoder',
  'factorised_self_attention',
  'factorised_dot_product',
]
VARIANTS = typing.get_args(Variant)
CLS_VARIANTS = ('joint', 'factorised_encoder')


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class BlockOptions:
  """Options of every transformer block."""

  heads: int = 12  # H, dividing dim
  mlp_ratio: float = 4.0  # hidden width of the MLPs over C
  gelu: Literal['exact', 'tanh'] = 'exact'  # 'tanh' as ViViT was trained
  norm_eps: float = 1e-6  # added to the variance
  variant: Variant = 'joint'
  mira: MiraConfig | None = None  # None: plain, with the same parameters
  layer_scale: float | None = None  # start of per-channel branch scales
  # Implementation, see kernels.dispatch; None chooses. The small attentions of
  # variants (over time, in the light block) always choose theirs.
  attention: str | None = None
  dtype: Any = 'float32'  # of the computation; parameters are float32


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class EncoderOptions(BlockOptions):
  """Options of a stack of blocks over tubelets."""

  dim: int = 768  # C
  depth: int = 12  # blocks
  patch: int = 16  # height and width of a token in pixels
  tubelet: int = 2  # frames in a token
  # What precedes the linear map of tubelets, see `layers.TubeletEmbed`.
  stem: Literal['linear', 'conv', 'hog'] = 'linear'
  last_norm_eps: float | None = None  # of the last norm; None: norm_eps
  mira_last_blocks: int | None = None  # None: MiRA in all blocks
  drop_path: float = 0.0  # rate of the last block; rates rise linearly
  remat: str | None = None  # what backward keeps, see kernels.operations
  scan: bool = False  # loops over stacked blocks: compiles faster


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class ModelOptions(EncoderOptions):
  """Options of a classifier."""

  num_classes: int = 0  # K; 0: features of a model, the dataset's of a run
  frames: int = 16
  image_size: int = 224  # height and width in pixels
  # The mean of tokens, a learned token, the mean over time of each place, or
  # means of tokens that learned queries weigh.
  pool: Literal['mean', 'cls', 'grid', 'attention'] = 'mean'
  positions: Literal['sinusoidal', 'learned'] = 'sinusoidal'
  head_scale: float = 0.001  # factor on the initial head weights
  # An ensemble: so many transformers, whose logits are averaged. Each trains on
  # its own part of every batch; all parameters have a leading axis of them.
  members: int = 1
  mirror: bool = False  # means over a clip and its mirror image, once trained


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class DecoderOptions:
  """Options of the decoder of pre-training; by default that of ViT-B."""

  decoder_dim: int = 384
  decoder_depth: int = 4
  decoder_heads: int = 6
  decoder_mlp_ratio: float | None = None  # None: the encoder's
  decoder_targets: Literal['pixels', 'hog'] = 'pixels'  # see mae.hog_targets


# Lowest and highest value of numbers, in configurations and weights files.
RANGES = {
  'dim': (1, 2**15),
  'depth': (1, 256),
  'heads': (1, 2**10),
  'num_classes': (0, 10**5),
  'frames': (1, 2**14),
  'members': (1, 64),
  'image_size': (1, 2**13),
  'patch': (1, 2**13),
  'tubelet': (1, 2**14),
  'mlp_ratio': (0.01, 2**16),
  'norm_eps': (1e-30, 1),
  'last_norm_eps': (1e-30, 1),
  'mira_last_blocks': (0, 256),
  'drop_path': (0, 0.99),
}
DECODER_RANGES = {
  'decoder_dim': (1, 2**15),
  'decoder_depth': (0, 256),
  'decoder_heads': (1, 2**10),
  'decoder_mlp_ratio': (0.01, 2**16),
  'mask_ratio': (0.01, 0.99),
}
FRAME_STRIDE = (1, 10**4)
CHOICES = {
  'variant': VARIANTS,
  'stem': ('linear', 'conv', 'hog'),
  'decoder_targets': ('pixels', 'hog'),
  'gelu': ('exact', 'tanh'),
  'pool': ('mean', 'cls', 'grid', 'attention'),
  'positions': ('sinusoidal', 'learned'),
  'remat': (None, *REMAT),
  'attention': (None, *IMPLEMENTATIONS),
  'dtype': ('float32', 'bfloat16'),
}


def contradiction(options: ModelOptions) -> tuple[str, str] | None:
  """The first option that others rule out, and why; None where all agree."""
  for whole, part in (
    ('dim', 'heads'),
    ('image_size', 'patch'),
    ('frames', 'tubelet'),
  ):
    a, b = getattr(options, whole), getattr(options, part)
    if a % b:
      why = f'{a} must be a multiple of {part} {b}, such as {a - a % b or b}'
      return whole, why
  if options.stem == 'conv' and options.patch.bit_count() > 1:
    why = f"{options.patch} must be a power of 2 for stem 'conv', such as 8"
    return 'patch', why
  if options.stem == 'hog' and options.patch % 4:
    why = f"{options.patch} must be a multiple of 4 for stem 'hog', such as 8"
    return 'patch', why
  if options.pool == 'cls' and options.variant not in CLS_VARIANTS:
    why = "'cls', a token of no frame, does not fit variant "
    return 'pool', f"{why}{options.variant!r}; use 'mean'"
  if options.members > 1 and options.scan:
    return 'scan', 'True does not go with members; use False'
  if options.pool == 'grid' and options.variant == 'factorised_encoder':
    why = f"'grid' needs tokens of places, not {options.variant!r}; use 'mean'"
    return 'pool', why
  if options.variant == 'factorised_dot_product' and options.heads % 2:
    why = f'{options.heads} must be even: variant {options.variant!r} halves'
    return 'heads', f'{why} them'
  return None


def beyond_others(fields: Mapping[str, Any]) -> list[str]:
  """Options of a model, as JSON, that no other program here has, in words."""
  usual = {'stem': 'linear', 'members': 1, 'mirror': False}
  odd = [name for name, x in usual.items() if fields.get(name, x) != x]
  if fields.get('pool', 'mean') not in ('mean', 'cls'):
    odd.append('pool')
  return [f'{name} {fields[name]!r}' for name in odd]
