"""Which model some weights are of, from their shapes and what lies beside."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mira_jax.errors import checkpoint_error
from mira_jax.mira import MiraConfig
from mira_jax.models.vivit import SIZES
from mira_jax.weights import settings
from mira_jax.weights.sources import Source

# Heads of the authors' models by width: shapes do not tell them.
_HEADS = {size['dim']: size['heads'] for size in SIZES.values()}
_DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}
_FRAMES, _IMAGE_SIZE = 16, 224  # where nothing tells them
MODES = ('plain', 'exact', 'flashlite')


@dataclasses.dataclass(kw_only=True)
class Recognised:
  """A model.

  Attributes:
    fields: of ViViT as JSON, without `dtype`.
    decoder: PretrainConfig of the autoencoder; None for a classifier.
    preprocessing: how clips are read, of a card.
    remarks: what was assumed, and how to say otherwise.
  """

  fields: dict[str, Any]
  decoder: dict[str, Any] | None
  preprocessing: dict[str, Any]
  remarks: list[str]


@dataclasses.dataclass(kw_only=True, frozen=True)
class Wishes:
  """What a person says about weights that do not say it; None: nothing.

  Attributes:
    mode: one of MODES.
    heads: of the encoder.
    decoder_heads: of the decoder.
    frames: in a clip.
    image_size: in pixels.
    rate: of the preprocessing: one of so many frames is read.
    fit: of it, how frames become square.
    class_names: in the order of the head; () are those of the files, or
      numbers.
    key: which model of a file that has several.
    allow_missing: parts of the model ('head') that may be missing.
  """

  mode: str | None = None
  heads: int | None = None
  decoder_heads: int | None = None
  frames: int | None = None
  image_size: int | None = None
  rate: int | None = None
  fit: str | None = None
  class_names: Sequence[str] = ()
  key: str | None = None
  allow_missing: Sequence[str] = ()


def size_name(fields: dict[str, Any]) -> str:
  """'B' of SIZES, or the numbers of a model that has no name."""
  own = {name: fields[name] for name in ('dim', 'depth', 'heads')}
  for name, size in SIZES.items():
    if own == size:
      return name
  return 'width {dim}, {depth} blocks, {heads} heads'.format(**own)


def recognise(source: Source, wishes: Wishes) -> Recognised:
  """The model that weights are of.

  Args:
    source: the weights.
    wishes: what they do not tell. What they tell may not be contradicted, but
      for the mode.

  Raises:
    MiraInputError: they are of no model that we have, or do not tell enough.
  """
  said, remarks = _said(source)
  prefix = 'encoder.' if source.pretraining else ''
  numbers = _sizes(source, said, wishes, prefix, remarks)
  depth = _depth(source, prefix)
  mira, last = _mira(source, said, wishes.mode, depth, remarks)
  state, ratio = source.state, _mlp_ratio(source, prefix, numbers['dim'])
  fields = {
    **numbers,
    'depth': depth,
    'heads': _heads('heads', numbers['dim'], _HEADS, source, wishes),
    'num_classes': (
      len(_tensor(source, 'head.weight')) if 'head.weight' in state else 0
    ),
    'mlp_ratio': ratio,
    'gelu': said.get('gelu', 'exact'),
    'norm_eps': said.get('norm_eps', 1e-6),
    'last_norm_eps': said.get('last_norm_eps'),
    'variant': _variant(source, said, prefix, mira),
    'mira': mira,
    'mira_last_blocks': last,
    'pool': 'cls' if 'cls_token' in state else 'mean',
    'positions': 'learned' if 'pos_embed' in state else 'sinusoidal',
    # A start value, which is not needed any more.
    'layer_scale': 0.1 if f'{prefix}blocks.0.gamma_1' in state else None,
  }
  decoder = None
  if source.pretraining:
    decoder = _decoder(source, said, wishes, ratio)
  usual = {'rate': 4, 'fit': 'crop'}
  rules = {n: getattr(wishes, n) or said.get(n, x) for n, x in usual.items()}
  return Recognised(
    fields=fields, decoder=decoder, preprocessing=rules, remarks=remarks
  )


def differences(source: Source, model: Mapping[str, Any]) -> list[str]:
  """Settings that no shape shows, in which weights and a model differ.

  Args:
    source: the weights that the model starts from.
    model: its fields, see ModelConfig.
  """
  own = source.card.get('model') or _said(source)[0]
  names = ('heads', 'gelu', 'norm_eps')
  return [
    f'{n} is {own[n]} there and {model[n]} here; --config.model.{n}={own[n]}'
    for n in names
    if own.get(n, model[n]) != model[n]
  ]


def grid_of(source: Source) -> tuple[int, int, int] | None:
  """Tokens in time, height and width that weights were trained with.

  None where nothing says so.
  """
  prefix = 'encoder.' if source.pretraining else ''
  _, tubelet, patch = _first_layer(source, prefix)
  told = _told(source, _said(source)[0], Wishes(), tubelet, patch)
  if 'frames' not in told or 'image_size' not in told:
    return None
  side = told['image_size'] // patch
  return told['frames'] // tubelet, side, side


def _said(source: Source) -> tuple[dict[str, Any], list[str]]:
  """What files beside the tensors and the settings of the run say."""
  try:
    said, remarks = settings.of_reference(source.args)
  except ValueError as cause:
    raise checkpoint_error('unsupported', source.path, str(cause)) from cause
  return said | source.fields, remarks


def _mlp_ratio(source: Source, prefix: str, dim: int) -> float:
  return len(_tensor(source, f'{prefix}blocks.0.mlp.fc1.bias')) / dim


def _tensor(source: Source, name: str) -> Any:
  if name not in source.state:
    first = ', '.join(list(source.state)[:3])
    hint = f'it has no {name}, as every model here has; it starts with {first}'
    raise checkpoint_error('other_model', source.path, hint)
  tensor = source.state[name]
  if not tensor.ndim or not tensor.size:
    raise checkpoint_error(
      'other_model', source.path, f'{name} is {tensor.shape}'
    )
  return tensor


def _first_layer(source: Source, prefix: str) -> tuple[int, int, int]:
  """Width, tubelet and patch, which its first layer shows."""
  kernel = _tensor(source, f'{prefix}patch_embed.proj.weight')
  if kernel.ndim != 5 or kernel.shape[1] != 3:
    hint = f'patch_embed.proj.weight is {kernel.shape}, not [C, 3, t, p, p]'
    raise checkpoint_error('other_model', source.path, hint)
  dim, _, tubelet, patch, width = kernel.shape
  if patch != width:
    hint = f'its tokens have {patch} x {width} pixels; ours are square'
    raise checkpoint_error('unsupported', source.path, hint)
  return dim, tubelet, patch


def _sizes(
  source: Source,
  said: dict[str, Any],
  wishes: Wishes,
  prefix: str,
  remarks: list[str],
) -> dict[str, int]:
  """Width, patch, tubelet, frames and pixels, or an error."""
  dim, tubelet, patch = _first_layer(source, prefix)
  told = _told(source, said, wishes, tubelet, patch)
  sizes = {'dim': dim, 'patch': patch, 'tubelet': tubelet}
  for name, usual, unit in (
    ('frames', _FRAMES, tubelet),
    ('image_size', _IMAGE_SIZE, patch),
  ):
    wish, flag = getattr(wishes, name), f'--{name.replace("_", "-")}'
    if name in told and wish not in (None, told[name]):
      hint = (
        f'{flag} {wish}: it was trained with {told[name]}; convert it with '
      )
      hint += 'that, and give the other to train.py, which starts from it'
      raise checkpoint_error('other_size', source.path, hint)
    size = sizes[name] = told.get(name, wish or usual)
    if size % unit:
      near = max(unit, size - size % unit)
      hint = f'{flag} {size} must be a multiple of {unit}, such as {near}'
      raise checkpoint_error('other_size', source.path, hint)
    if name not in told and not wish:
      remarks.append(f'{name} {usual} is assumed; say otherwise with {flag}')
  return sizes


def _told(
  source: Source,
  said: dict[str, Any],
  wishes: Wishes,
  tubelet: int,
  patch: int,
) -> dict[str, int]:
  """Frames and pixels, as far as the weights and their settings tell them."""
  told = {n: said[n] for n in ('frames', 'image_size') if n in said}
  buffers = [x for n, x in source.state.items() if n.endswith('.c_buf')]
  # The authors' pre-training has its slots, whatever frames were asked for.
  if buffers and buffers[0].size:
    told['frames'] = buffers[0].size * tubelet
  _from_positions(source, told, wishes, tubelet, patch)
  return told


def _from_positions(
  source: Source,
  told: dict[str, int],
  wishes: Wishes,
  tubelet: int,
  patch: int,
) -> None:
  """Adds what the number of learned positions tells to `told`."""
  positions = source.state.get('pos_embed')
  if positions is None or positions.ndim != 3 or not positions.size:
    return
  length = positions.size // positions.shape[-1]
  if 'frames' not in told and 'image_size' not in told:
    side = (wishes.image_size or _IMAGE_SIZE) // patch
    if side and length % side**2 == 0:
      told['frames'] = length // side**2 * tubelet
  if 'frames' in told and 'image_size' not in told:
    side = math.isqrt(length * tubelet // told['frames'])
    told['image_size'] = side * patch


def _depth(source: Source, prefix: str) -> int:
  name = re.compile(rf'{re.escape(prefix)}blocks\.(\d{{1,4}})\.')
  found = map(name.match, source.state)
  blocks = [int(match[1]) for match in found if match]
  if not blocks:
    raise checkpoint_error('other_model', source.path, 'it has no blocks')
  return max(blocks) + 1


def _heads(
  name: str,
  dim: int,
  usual: dict[int, int],
  source: Source,
  wishes: Wishes,
) -> int:
  """The number of heads of a stack of blocks."""
  flag = f'--{name.replace("_", "-")}'
  stack = "the decoder's " if name.startswith('decoder') else ''
  heads = getattr(wishes, name) or source.fields.get(name) or usual.get(dim)
  if heads is None:
    hint = (
      f'shapes do not show how many heads there are, and {stack}width {dim} '
      f'is of no known size; give {flag}=NUMBER'
    )
    raise checkpoint_error('unknown_size', source.path, hint)
  if dim % heads:
    hint = f'{heads} heads do not divide width {dim}; give {flag}'
    raise checkpoint_error('unknown_size', source.path, hint)
  return heads


def _decoder(
  source: Source, said: dict[str, Any], wishes: Wishes, ratio: float
) -> dict[str, Any]:
  """Fields of PretrainConfig; the recipe is only for further pre-training."""
  dim = _tensor(source, 'mask_token').shape[-1]
  own = _mlp_ratio(source, 'decoder.', dim)
  heads = _heads('decoder_heads', dim, _DECODER_HEADS, source, wishes)
  return {
    'decoder_dim': dim,
    'decoder_depth': _depth(source, 'decoder.'),
    'decoder_heads': heads,
    'decoder_mlp_ratio': None if own == ratio else own,
    'mask': said.get('mask', 'tube'),
    'mask_ratio': said.get('mask_ratio', 0.9),
    'normalise_targets': said.get('normalise_targets', True),
  }


def _variant(
  source: Source,
  said: dict[str, Any],
  prefix: str,
  mira: dict[str, Any] | None,
) -> str:
  if f'{prefix}blocks.0.framewise_norm1.weight' in source.state:
    return 'st_block'
  return said.get('variant', 'joint') if mira is None else 'joint'


def _mira(
  source: Source,
  said: dict[str, Any],
  wish: str | None,
  depth: int,
  remarks: list[str],
) -> tuple[dict[str, Any] | None, int | None]:
  """Fields of MiraConfig, and in how many last blocks it is (None: in all).

  Both modes of the authors' code have a buffer `c_buf`, so that it tells MiRA
  from a plain model, but not one mode from the other.
  """
  prefix = 'encoder.' if source.pretraining else ''
  blocks = range(depth)
  having = [
    i for i in blocks if f'{prefix}blocks.{i}.attn.c_buf' in source.state
  ]
  told = said.get('mira')
  if having and told == 'plain':
    hint = 'its settings say add_fmp_attention=False, its tensors have MiRA'
    raise checkpoint_error('unsupported', source.path, hint)
  has_mira = having or source.args.get('add_fmp_attention') is True
  mode = wish or ((told or 'exact') if has_mira else 'plain')
  if having and not (wish or told):
    remarks.append(
      'mode exact is assumed: nothing in it tells exact from flashlite; the '
      'authors published flashlite, --mode=flashlite'
    )
  if mode == 'plain':
    return None, None
  count = len(having) or min(said.get('mira_last_blocks', depth), depth)
  if having not in ([], list(range(depth - count, depth))):
    hint = f'MiRA is in its blocks {having}, not in the last {count}'
    raise checkpoint_error('unsupported', source.path, hint)
  mira = MiraConfig(
    mode=mode,
    statistics=said.get(
      'statistics', 'batch_ema' if source.pretraining else 'instance'
    ),
    # All of the authors' scripts ask for the residual; it is half and half.
    residual_mix=said.get('residual_mix', 0.5),
    temperature=said.get('temperature', MiraConfig.temperature),
  )
  return dataclasses.asdict(mira), None if count == depth else count
