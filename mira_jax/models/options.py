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
from mira_jax.systems.channels import ChannelsConfig
from mira_jax.systems.cross_windows import CrossWindowsConfig
from mira_jax.systems.experts import ExpertsConfig
from mira_jax.systems.gates import GateConfig
from mira_jax.systems.heads import HeadsConfig
from mira_jax.systems.identity import IdentityConfig
from mira_jax.systems.orientation import OrientationConfig
from mira_jax.systems.reliability import ReliabilityConfig

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
JOINT = ('joint', 'st_block')  # whose blocks attend once, jointly
# Options that are a configuration of a published system, or None.
SYSTEMS = (
  *('orientation', 'gate', 'head_mix', 'experts'),
  *('cross_windows', 'channels', 'reliability', 'identity'),
)


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
  # Other published systems, see docs/systems.md; None leaves one out.
  orientation: OrientationConfig | None = None  # single-orientation attention
  gate: GateConfig | None = None  # of what each head returns
  head_mix: HeadsConfig | None = None  # diverse heads
  experts: ExpertsConfig | None = None  # masked LoRA experts beside each layer
  # Implementation, see kernels.dispatch; None chooses. The small attentions of
  # variants (over time, in the light block) always choose theirs.
  attention: str | None = None
  dtype: Any = 'float32'  # of the computation; parameters are float32

  @property
  def needs_map(self) -> bool:
    """Whether something reads whole attention maps: kernels never have them."""
    keys = self.orientation is not None and self.orientation.target == 'keys'
    exact = self.mira is not None and self.mira.mode == 'exact'
    return self.head_mix is not None or (keys and exact)


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
  # The mean of tokens, a learned token, the mean over time of each place, means
  # of tokens that learned queries weigh, or the mean of each temporal token,
  # which then has logits of its own.
  pool: Literal['mean', 'cls', 'grid', 'attention', 'frame'] = 'mean'
  positions: Literal['sinusoidal', 'learned'] = 'sinusoidal'
  head_scale: float = 0.001  # factor on the initial head weights
  # An ensemble: so many transformers, whose logits are averaged. Each trains on
  # its own part of every batch; all parameters have a leading axis of them.
  members: int = 1
  mirror: bool = False  # means over a clip and its mirror image, once trained
  # Other published systems, see docs/systems.md; None leaves one out.
  cross_windows: CrossWindowsConfig | None = None  # guided attention (ARBEx)
  channels: ChannelsConfig | None = None  # several maps of a region (SMA-style)
  reliability: ReliabilityConfig | None = None  # balanced predictions (ARBEx)
  identity: IdentityConfig | None = None  # adversarial training on subjects
  # FaceSleuth's inputs of the head: tokens of the first and the peak frame, and
  # annotated action units of the clip, such as '1,2,4', which no clip outside
  # of a dataset has.
  position_stream: bool = False
  oracle_units: str = ''

  @property
  def reads_inputs(self) -> bool:
    """Whether a loss needs more of the model than logits of the video."""
    systems = self.head_mix, self.channels, self.reliability, self.identity
    return any(systems) or bool(self.oracle_units)


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
  'pool': ('mean', 'cls', 'grid', 'attention', 'frame'),
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
  return _system_contradiction(options)


def _system_contradiction(options: ModelOptions) -> tuple[str, str] | None:
  """As `contradiction`, of the options of other systems."""
  variant, attention = options.variant, options.attention
  soa, reliability = options.orientation, options.reliability
  if soa and soa.target == 'keys' and variant not in JOINT:
    why = f"'keys' is of the joint attention, not of variant {variant!r}; use "
    return 'orientation.target', f"{why}'tokens'"
  if options.head_mix and variant not in JOINT:
    why = f'it is of the joint attention, not of variant {variant!r}'
    return 'head_mix', f'{why}; use None'
  if options.needs_map and attention not in (None, 'reference'):
    name = 'head_mix' if options.head_mix else "orientation.target 'keys'"
    why = f'{attention!r} never has the whole attention map, which {name} needs'
    return 'attention', f'{why}; use None'
  if variant == 'factorised_encoder':
    for name in ('orientation', 'channels', 'position_stream'):
      if getattr(options, name):
        return name, f'it needs tokens of places, not variant {variant!r}'
  if reliability and reliability.pool == 'frames' and options.pool != 'mean':
    why = f"it pools frames itself; use 'mean', not {options.pool!r}"
    return 'pool', why
  if -1 in (units := oracle_numbers(options)) or len({*units}) < len(units):
    why = f"{options.oracle_units!r} must be action units, such as '1,2,4'"
    return 'oracle_units', why
  windows, side = options.cross_windows, options.image_size // options.patch
  if windows is not None and windows.scales > side.bit_length():
    why = f'{windows.scales} halvings do not fit {side} x {side} tokens; use '
    return 'cross_windows.scales', f'{why}{side.bit_length()} or less'
  if windows is not None and windows.guide == 'landmarks' and options.mirror:
    return 'mirror', 'True would swap landmarks of left and right; use False'
  if options.pool == 'frame':
    for name in ('reliability', 'channels', 'oracle_units', 'position_stream'):
      if getattr(options, name):
        return name, "it predicts for whole clips, not for pool 'frame'"
  return None


def oracle_numbers(options: ModelOptions) -> tuple[int, ...]:
  """The action units in `oracle_units`; -1 for a word that is none."""
  words = options.oracle_units.split(',') if options.oracle_units else []
  numbers = [word.strip().upper().removeprefix('AU') for word in words]
  return tuple(int(x) if x.isdecimal() else -1 for x in numbers)


def beyond_others(fields: Mapping[str, Any]) -> list[str]:
  """Options of a model, as JSON, that no other program here has, in words."""
  usual = {'stem': 'linear', 'members': 1, 'mirror': False}
  usual |= dict.fromkeys(SYSTEMS) | {
    'position_stream': False,
    'oracle_units': '',
  }
  odd = [name for name, x in usual.items() if fields.get(name, x) != x]
  if fields.get('pool', 'mean') not in ('mean', 'cls'):
    odd.append('pool')
  return [f'{name} {fields[name]!r}' for name in odd]
