"""Infers the model of weights from shapes, settings and files beside them."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mira_jax.errors import MiraInputError, checkpoint_error, some
from mira_jax.mira import MiraConfig
from mira_jax.models.vivit import SIZES
from mira_jax.weights.huggingface_settings import CONFIG_FILE
from mira_jax.weights.metadata import Metadata, check_metadata
from mira_jax.weights.saved_models import shown
from mira_jax.weights.sources import Source

# Heads of the authors' models by width: no shape depends on them.
_HEADS = {
  'heads': {size['dim']: size['heads'] for size in SIZES.values()},
  'decoder_heads': {192: 3, 384: 6, 512: 8, 640: 8},
}
_USUAL = {'frames': 16, 'image_size': 224}
MODES = ('plain', 'exact', 'flashlite')


@dataclasses.dataclass(kw_only=True, frozen=True)
class Overrides:
  """Facts that weights lack, as given by flags; None: not given."""

  mode: str | None = None  # one of MODES
  heads: int | None = None
  decoder_heads: int | None = None
  frames: int | None = None
  image_size: int | None = None  # pixels
  rate: int | None = None  # frame stride
  fit: str | None = None  # resize mode
  class_names: Sequence[str] = ()  # (): those of the files, or numbers
  key: str | None = None  # which model of a file that has several
  allow_missing: Sequence[str] = ()  # parts of the model, such as 'head'


def metadata_of(
  source: Source, overrides: Overrides
) -> tuple[Metadata, list[str]]:
  """The metadata of weights, and notes on its assumptions.

  Overrides may not contradict the weights, except for the mode where that is
  inferred.

  Raises:
    MiraInputError: overrides that contradict the files, classes that do not fit
      the head, weights of no model that we have, or facts are missing.
  """
  if source.metadata:
    check_overrides(source.metadata, overrides, source.path)
    return dict(source.metadata), []
  found = _Inference(source, overrides)
  model = found.model()
  decoder = found.decoder(model['mlp_ratio']) if source.pretraining else None
  metadata = {
    'model': model,
    'pretrain': decoder,
    'class_names': found.class_names(model['num_classes']),
    'preprocessing': {
      n: getattr(overrides, n) or source.fields.get(n, usual)
      for n, usual in (('rate', 4), ('fit', 'crop'))
    },
  }
  beside = source.path.with_name(CONFIG_FILE)
  hugging_face = source.kind.startswith('Hugging') and beside.is_file()
  where = f'its {CONFIG_FILE}' if hugging_face else 'the inferred model'
  return check_metadata(metadata, source.path, where), found.notes


def check_overrides(
  metadata: Metadata, overrides: Overrides, path: str | os.PathLike[str]
) -> None:
  """Raises MiraInputError ('bad_flag') for a flag that contradicts metadata."""
  model = metadata['model']
  said = {
    'mode': (model.get('mira') or {}).get('mode', 'plain'),
    'class_names': metadata['class_names'],
    'key': 'one model',
    **{n: model.get(n) for n in ('heads', 'frames', 'image_size')},
    **metadata['preprocessing'],
  }
  for field in dataclasses.fields(Overrides):
    given = getattr(overrides, field.name)
    given = list(given) if field.name == 'class_names' else given
    if given and given != said.get(field.name, given):
      hint = f'{_flag(field.name)} {given}: its metadata has '
      hint += f'{said[field.name]}; leave the flag out'
      raise MiraInputError('bad_flag', path, hint)


def differences(
  source: Source, model: Mapping[str, Any], data: Mapping[str, Any]
) -> list[str]:
  """Settings that no shape depends on and that differ from those of a run.

  Args:
    source: weights that the run starts from.
    model: fields of the run's model.
    data: of its data, with the frame stride and the resize mode.
  """
  notes = []
  for group, fields, names in (
    ('model', model, ('heads', 'gelu', 'norm_eps', 'frames', 'image_size')),
    ('data', data, ('rate', 'fit')),
  ):
    of_ours = {'model': 'model', 'data': 'preprocessing'}[group]
    own = source.metadata.get(of_ours) or source.fields
    notes += [
      f'{n} is {own[n]} there and {fields[n]} here; '
      f'--config.{group}.{n}={own[n]}'
      for n in names
      if own.get(n, fields[n]) != fields[n]
    ]
  return notes


def grid_of(source: Source) -> tuple[int, int, int] | None:
  """Tokens in time, height and width in training; None: unknown."""
  if source.metadata:
    model = source.metadata['model']
    sizes, tubelet, patch = model, model['tubelet'], model['patch']
  else:
    found = _Inference(source, Overrides())
    _, tubelet, patch = found.first_layer()
    sizes = found.known_sizes(tubelet, patch)
  if not sizes.keys() >= _USUAL.keys():
    return None
  side = sizes['image_size'] // patch
  return sizes['frames'] // tubelet, side, side


class _Inference:
  """One inference: the weights, the flags, and the notes so far."""

  def __init__(self, source: Source, overrides: Overrides):
    self.source, self.overrides = source, overrides
    self.state, self.said = source.state, source.fields
    self.prefix = 'encoder.' if source.pretraining else ''
    self.notes: list[str] = []

  def model(self) -> dict[str, Any]:
    """The fields of ViViT, as JSON."""
    state, said = self.state, self.said
    dim, tubelet, patch = self.first_layer()
    depth = self.depth(self.prefix)
    mira, last = self.mira(depth)
    variant = 'joint' if mira else said.get('variant', 'joint')
    if f'{self.prefix}blocks.0.framewise_norm1.weight' in state:
      variant = 'st_block'
    return {
      'dim': dim,
      'depth': depth,
      'heads': self.heads('heads', dim),
      'num_classes': self.length('head.weight')
      if 'head.weight' in state
      else 0,
      **self.sizes(tubelet, patch),
      'patch': patch,
      'tubelet': tubelet,
      'mlp_ratio': self.mlp_ratio(self.prefix, dim),
      'gelu': said.get('gelu', 'exact'),
      'norm_eps': said.get('norm_eps', 1e-6),
      'last_norm_eps': said.get('last_norm_eps'),
      'variant': variant,
      'mira': mira,
      'mira_last_blocks': last,
      'pool': 'cls' if 'cls_token' in state else 'mean',
      'positions': 'learned' if 'pos_embed' in state else 'sinusoidal',
      # Its start value has no effect on trained weights.
      'layer_scale': 0.1 if f'{self.prefix}blocks.0.gamma_1' in state else None,
      'dtype': 'float32',
    }

  def class_names(self, count: int) -> list[str]:
    names = list(self.overrides.class_names or self.source.class_names)
    if count and not names:
      self.notes.append('its classes are only numbered; --classes names them')
      return [str(i) for i in range(count)]
    if len(names) != count or len(set(names)) != count:
      hint = f'its head has {count} classes; {len(set(names))} are named: '
      raise self.error('bad_classes', hint + shown(names))
    return names

  def error(self, code: str, hint: str) -> MiraInputError:
    return checkpoint_error(code, self.source.path, hint)

  def tensor(self, name: str) -> Any:
    """A tensor that every such model has."""
    if name not in self.state:
      hint = f'it has no {name}, as every model here has; it starts with '
      raise self.error('other_model', hint + some(list(self.state), 3))
    tensor = self.state[name]
    if not tensor.ndim or not tensor.size:
      raise self.error('other_model', f'{name} is {tensor.shape}')
    return tensor

  def length(self, name: str) -> int:
    return len(self.tensor(name))

  def first_layer(self) -> tuple[int, int, int]:
    """Width, tubelet and patch."""
    name = f'{self.prefix}patch_embed.proj.weight'
    shape = self.tensor(name).shape
    if len(shape) != 5 or shape[1] != 3:
      raise self.error('other_model', f'{name} is {shape}, not [C, 3, t, p, p]')
    if shape[3] != shape[4]:
      raise self.error('unsupported', f'{name} is {shape}; ours are square')
    return shape[0], *shape[2:4]

  def sizes(self, tubelet: int, patch: int) -> dict[str, int]:
    """Frames and pixels, or an error."""
    known = self.known_sizes(tubelet, patch)
    sizes = {}
    for name, unit in (('frames', tubelet), ('image_size', patch)):
      given, flag = getattr(self.overrides, name), _flag(name)
      if name in known and given not in (None, known[name]):
        hint = f'{flag} {given}: it was trained with {known[name]}; convert it '
        hint += 'with that; train.py can start from it with another'
        raise self.error('other_size', hint)
      size = sizes[name] = known.get(name, given or _USUAL[name])
      if size % unit:
        hint = f'{flag} {size} must be a multiple of {unit}'
        raise self.error('other_size', hint)
      if name not in known and not given:
        self.notes.append(f'{name} {size} is assumed; {flag} changes it')
    return sizes

  def known_sizes(self, tubelet: int, patch: int) -> dict[str, int]:
    """Frames and pixels, as far as the weights and their settings have them."""
    known = {n: self.said[n] for n in _USUAL if n in self.said}
    buffers = [x for n, x in self.state.items() if n.endswith('.c_buf')]
    # The authors' pre-training has its slots, whatever frames were asked for.
    if buffers and buffers[0].size:
      known['frames'] = buffers[0].size * tubelet
    positions = self.state.get('pos_embed')
    if positions is None or positions.ndim != 3 or not positions.size:
      return known
    length = positions.size // positions.shape[-1]
    if not known:
      usual = self.overrides.image_size or _USUAL['image_size']
      tokens = (usual // patch) ** 2
      if tokens and length % tokens == 0:
        known['frames'] = length // tokens * tubelet
    if 'frames' in known and 'image_size' not in known:
      side = math.isqrt(length * tubelet // known['frames'])
      known['image_size'] = side * patch
    return known

  def depth(self, prefix: str) -> int:
    pattern = re.compile(rf'{re.escape(prefix)}blocks\.(\d{{1,4}})\.')
    found = map(pattern.match, self.state)
    blocks = [int(match[1]) for match in found if match]
    if not blocks:
      raise self.error('other_model', 'it has no blocks')
    return max(blocks) + 1

  def mlp_ratio(self, prefix: str, dim: int) -> float:
    return self.length(f'{prefix}blocks.0.mlp.fc1.bias') / dim

  def heads(self, name: str, dim: int) -> int:
    """The heads of the encoder or decoder; `name` is their field."""
    heads = getattr(self.overrides, name) or self.said.get(name)
    heads = heads or _HEADS[name].get(dim)
    if heads and dim % heads == 0:
      return heads
    hint = f'shapes do not show the heads, and width {dim} is of no known size'
    if heads:
      hint = f'{heads} heads do not divide width {dim}'
    raise self.error('unknown_size', f'{hint}; give {_flag(name)}=NUMBER')

  def decoder(self, mlp_ratio: float) -> dict[str, Any]:
    """Fields of PretrainConfig; the recipe is only for further pre-training."""
    dim = self.tensor('mask_token').shape[-1]
    own = self.mlp_ratio('decoder.', dim)
    return {
      'decoder_dim': dim,
      'decoder_depth': self.depth('decoder.'),
      'decoder_heads': self.heads('decoder_heads', dim),
      'decoder_mlp_ratio': None if own == mlp_ratio else own,
      'mask': self.said.get('mask', 'tube'),
      'mask_ratio': self.said.get('mask_ratio', 0.9),
      'normalise_targets': self.said.get('normalise_targets', True),
    }

  def mira(self, depth: int) -> tuple[dict[str, Any] | None, int | None]:
    """Fields of MiraConfig, and the number of last blocks with it (None: all).

    Both modes of the authors' code have a buffer `c_buf`: it separates MiRA
    from a plain model, but not one mode from the other.
    """
    state, said = self.state, self.said
    names = [f'{self.prefix}blocks.{i}.attn.c_buf' for i in range(depth)]
    having = [i for i, name in enumerate(names) if name in state]
    mode: Any = self.overrides.mode or said.get('mira')
    if having and said.get('mira') == 'plain':
      hint = 'its tensors have MiRA, its settings add_fmp_attention=False'
      raise self.error('unsupported', hint)
    if having and not mode:
      mode = 'exact'
      note = 'mode exact is assumed, as tensors do not show it; the authors '
      self.notes.append(f'{note}published flashlite: --mode=flashlite')
    if mode in (None, 'plain'):
      return None, None
    count = len(having) or min(said.get('mira_last_blocks', depth), depth)
    if having and having != list(range(depth - count, depth)):
      hint = f'MiRA is in its blocks {having}, not in the last {count}'
      raise self.error('unsupported', hint)
    statistics = 'batch_ema' if self.source.pretraining else 'instance'
    mira = MiraConfig(
      mode=mode,
      statistics=said.get('statistics', statistics),
      # All of the authors' scripts ask for the residual; it is half and half.
      residual_mix=said.get('residual_mix', 0.5),
      temperature=said.get('temperature', MiraConfig.temperature),
    )
    return dataclasses.asdict(mira), None if count == depth else count


def _flag(name: str) -> str:
  return '--classes' if name == 'class_names' else f'--{name.replace("_", "-")}'
