"""State dicts of Hugging Face's VideoMAE and ViViT, by the authors' names.

Facts about their layout are from the `transformers` library, versions 4 and 5:
names of tensors, fields of the configuration files, what the models compute.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax.augment.transforms import MEAN, STD
from mira_jax.weights import settings
from mira_jax.weights.huggingface_config import (
  CONFIG,
  NAME,
  class_names,
  fields,
  hold,
)
from mira_jax.weights.huggingface_pixels import PROCESSORS, Pixels, pixels

State = dict[str, np.ndarray]

# One regular expression and its replacement for every kind of tensor; of those
# that become the same name the first is the one that `restore` writes.
_BLOCKS = (
  (
    r'(?:(?:videomae|vivit)\.)?(?:encoder\.layer|layers)\.(\d+)\.',
    r'blocks.\1.',
  ),
  (r'decoder\.decoder_layers\.(\d+)\.', r'decoder.blocks.\1.'),
)
_PARTS = (
  (r'layernorm_before\.', 'norm1.'),
  (r'layernorm_after\.', 'norm2.'),
  (r'attention\.attention\.', 'attn.'),
  (r'attention\.output\.dense\.', 'attn.proj.'),
  (r'intermediate\.dense\.', 'mlp.fc1.'),
  (r'output\.dense\.', 'mlp.fc2.'),
  # As the modules of newer versions are called.
  (r'attention\.q_proj\.', 'attn.query.'),
  (r'attention\.k_proj\.', 'attn.key.'),
  (r'attention\.v_proj\.', 'attn.value.'),
  (r'attention\.o_proj\.', 'attn.proj.'),
  (r'mlp\.(?=fc[12]\.)', 'mlp.'),
)
_OTHERS = (
  (
    r'(?:\w+\.)?embeddings\.patch_embeddings\.projection\.',
    'patch_embed.proj.',
  ),
  (r'(?:\w+\.)?embeddings\.cls_token', 'cls_token'),
  (r'(?:\w+\.)?embeddings\.position_embeddings', 'pos_embed'),
  (r'classifier\.', 'head.'),
)
# What may lie beside the tensors, and is read.
FILES = (NAME, *PROCESSORS)


@dataclasses.dataclass(kw_only=True)
class Understood:
  """A model of Hugging Face as the authors' code would have it.

  Attributes:
    kind: what it is, in a few words.
    state: tensors by the authors' names.
    fields: of our models and their preprocessing, as far as files have them.
    class_names: the classes in order; () where they are not named.
    notes: what a person must know, one line each.
  """

  kind: str
  state: State
  fields: dict[str, Any]
  class_names: tuple[str, ...]
  notes: list[str]


def is_here(state: Mapping[str, Any]) -> bool:
  """Whether these are names of Hugging Face's models."""
  return any('embeddings.patch_embeddings.projection' in n for n in state)


def knows(name: str) -> bool:
  """Whether a tensor of these models has that name, and ours another."""
  return _new_name(name, 'norm.') != name


def understand(
  state: Mapping[str, np.ndarray], files: Mapping[str, dict[str, Any]]
) -> Understood:
  """What a model is, from its tensors and the files beside them.

  Args:
    state: of VideoMAEForVideoClassification, VideoMAEForPreTraining,
      VivitForVideoClassification or the backbone of one, by their names.
    files: name -> content of those of FILES that are there.

  Raises:
    ValueError: a model that ours cannot be, or files of another one.
  """
  vivit = any(n.endswith('cls_token') for n in state)
  name = 'ViViT' if vivit else 'VideoMAE'
  config, notes = files.get(NAME, {}), []
  known = CONFIG.used & config.keys() or not config
  if not known:  # a file of another program, which has that name too
    notes.append(f"{NAME} beside it is not Hugging Face's: it is not read")
    config = {}
  notes += CONFIG.check(config, NAME)
  found = fields(config, vivit)
  if not config:
    told = 'norm_eps {norm_eps}, gelu {gelu}'.format(**found)
    notes.append(f'no {NAME}: taken for it is what {name} has, {told}')
  names = class_names(config)
  renamed, more = rename(state, config)
  hold(config, renamed)
  frames, told = pixels(files, vivit, found.get('image_size'))
  if frames.fit:
    found['fit'] = frames.fit
  if not frames.usual:
    if 'mask_token' in state and not found['normalise_targets']:
      why = 'with pixels that are scaled otherwise only True is'
      raise settings.refused(NAME, 'norm_pix_loss', False, why)
    _fold_pixels(renamed, frames)
    told.append(
      'its pixels are scaled otherwise: the first layer is rewritten for ours'
    )
  return Understood(
    kind=f"Hugging Face's {name}" + (f', no {NAME}' if not config else ''),
    state=renamed,
    fields=found,
    class_names=names if 'head.weight' in renamed else (),
    notes=[*notes, *more, *told],
  )


def rename(
  state: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[State, list[str]]:
  """The tensors as the authors' code has them, and what a person must know.

  Raises:
    ValueError: a model that ours cannot be.
  """
  vivit = any(n.endswith('cls_token') for n in state)
  pretraining = 'mask_token' in state
  has = {name.partition('.')[0] for name in state}
  mean = settings.flag(config, 'use_mean_pooling', NAME, 'fc_norm' in has)
  if 'classifier' in has and not vivit and not (mean and 'fc_norm' in has):
    hint = 'it classifies by its first token (use_mean_pooling=False)'
    raise ValueError(f'{hint}, which is a token of the video, not of a class')
  # The last norm: of the class token, of the tokens of a pre-training.
  norm = 'fc_norm.' if vivit else 'norm.'
  notes: list[str] = []
  # Nothing that classifies reads a pooler.
  kept = {n: x for n, x in state.items() if 'pooler.' not in n}
  renamed = _join_attention(_by_new_names(kept, norm), notes, config)
  if pretraining:
    encoder = ('patch_embed.', 'blocks.', 'norm.')
    renamed = {
      f'encoder.{n}' if n.startswith(encoder) else n: x
      for n, x in renamed.items()
    }
    if 'encoder.norm.weight' not in renamed:
      notes.append(
        'its encoder has no last norm (use_mean_pooling=True), ours has one'
      )
  if vivit:
    _fold_class_position(renamed)
  return renamed, notes


def _by_new_names(state: Mapping[str, np.ndarray], norm: str) -> State:
  """Renames tensors; two of one name are a model within another, or worse."""
  old: dict[str, str] = {}
  for name in state:
    first = old.setdefault(_new_name(name, norm), name)
    if first != name:
      raise ValueError(f'{first} and {name} are the same tensor of the model')
  return {new: state[name] for new, name in old.items()}


def _new_name(name: str, norm: str) -> str:
  for pattern, new in _BLOCKS:
    if match := re.match(pattern, name):
      rest = name[match.end() :]
      for part, short in _PARTS:
        if re.match(part, rest):
          return match.expand(new) + re.sub(f'^{part}', short, rest)
  for pattern, new in (*_OTHERS, (r'(?:\w+\.)?layernorm\.', norm)):
    if re.match(pattern, name):
      return re.sub(f'^{pattern}', new, name)
  return name


def _join_attention(
  state: Mapping[str, np.ndarray],
  notes: list[str],
  config: Mapping[str, Any],
) -> State:
  """Queries, keys and values of every block in one tensor; keys lose a bias.

  A bias of the keys adds the same to all logits of a query, and cancels.
  """
  joined: State = {}
  dropped = 0
  biases = settings.flag(config, 'qv_bias', NAME, True)
  biases = settings.flag(config, 'qkv_bias', NAME, biases)
  for name, array in state.items():
    match = re.fullmatch(r'(.*\.attn\.)(query|key|value)\.(\w+)', name)
    if not match:
      joined[name] = array
      continue
    prefix, kind, what = match.groups()
    if what == 'bias':
      if kind == 'key':
        dropped += 1
      else:
        joined[f'{prefix}{kind[0]}_bias'] = array
    elif kind == 'query':
      parts = [f'{prefix}{n}.weight' for n in ('query', 'key', 'value')]
      if all(p in state for p in parts):
        joined[f'{prefix}qkv.weight'] = np.concatenate(
          [state[p] for p in parts]
        )
      if not biases:
        zeros = np.zeros(len(array), array.dtype)
        joined |= {f'{prefix}{n}_bias': zeros for n in 'qv'}
  if dropped:
    notes.append(f'{dropped} biases of keys are left out: they cancel')
  return joined


def _fold_class_position(state: State) -> None:
  """Its class token has a position, ours has none: the sum of both is ours."""
  positions = state.get('pos_embed')
  if positions is not None and positions.ndim == 3 and positions.shape[1] > 1:
    state['cls_token'] = state['cls_token'] + positions[:, :1]
    state['pos_embed'] = positions[:, 1:]


def _fold_pixels(state: State, pixels: Pixels) -> None:
  """Rewrites the first layer from the pixels that it takes to normalised ones.

  a p + b = a s x + (a m + b) for p = s x + m, with our mean m and deviation s.
  """
  prefix = 'encoder.' if 'mask_token' in state else ''
  names = [f'{prefix}patch_embed.proj.{n}' for n in ('weight', 'bias')]
  kernel, bias = map(state.get, names)
  if kernel is None or bias is None or kernel.ndim != 5 or kernel.shape[1] != 3:
    return  # what is wrong with them is said later
  exact = kernel.astype(np.float64)
  scale, offset, mean, std = (
    np.reshape(x, (1, 3, 1, 1, 1))
    for x in (pixels.scale, pixels.offset, MEAN, STD)
  )
  shift = (exact * (scale * mean + offset)).sum(axis=(1, 2, 3, 4))
  state[names[0]] = (exact * scale * std).astype(kernel.dtype)
  state[names[1]] = (bias + shift).astype(bias.dtype)


# ----- the other way ----------------------------------------------------------


def restore(state: Mapping[str, np.ndarray], vivit: bool) -> State:
  """The tensors of a classifier by Hugging Face's names.

  Args:
    state: by the authors' names. Where ours has no tensor (biases of keys, the
      position of the class token), theirs is 0.
    vivit: of VivitForVideoClassification, else VideoMAEForVideoClassification;
      its first layer takes our pixels.
  """
  root = 'vivit.' if vivit else 'videomae.'
  norm = f'{root}layernorm.' if vivit else 'fc_norm.'
  embed = f'{root}embeddings.patch_embeddings.projection.'
  prefixes = {
    'patch_embed.proj.': embed,
    'fc_norm.': norm,
    'head.': 'classifier.',
  }
  found: State = {}
  for name, array in state.items():
    if match := re.match(r'blocks\.(\d+)\.', name):
      block = f'{root}encoder.layer.{match[1]}.'
      found |= _restore_block(block, name[match.end() :], array, vivit)
      continue
    for ours, theirs in prefixes.items():
      if name.startswith(ours):
        found[theirs + name.removeprefix(ours)] = array
  if vivit:
    cls, positions = state['cls_token'], state['pos_embed']
    found[f'{root}embeddings.cls_token'] = cls
    found[f'{root}embeddings.position_embeddings'] = np.concatenate(
      [np.zeros_like(positions[:, :1]), positions], axis=1
    )
  return found


def _restore_block(
  block: str, name: str, array: np.ndarray, vivit: bool
) -> State:
  inner = f'{block}attention.attention.'
  kinds = ('query', 'key', 'value')
  if name == 'attn.qkv.weight':
    parts = np.split(array, 3)
    return {f'{inner}{k}.weight': x for k, x in zip(kinds, parts, strict=True)}
  if name in ('attn.q_bias', 'attn.v_bias'):
    if not vivit:
      return {inner + name.removeprefix('attn.'): array}
    kind = 'query' if name == 'attn.q_bias' else 'value'
    zeros = {f'{inner}key.bias': np.zeros_like(array)}
    return {f'{inner}{kind}.bias': array, **zeros}
  for pattern, short in _PARTS:
    if name.startswith(short) and short != 'attn.':
      return {
        block + pattern.replace('\\', '') + name.removeprefix(short): array
      }
  raise ValueError(f'{name} has no name there')
