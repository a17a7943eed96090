"""State dicts of Hugging Face's VideoMAE and ViViT, by the authors' names.

Facts about their layout are from the `transformers` library, versions 4 and 5:
names of tensors, fields of config.json, what the models compute.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax.augment import MEAN, STD

State = dict[str, np.ndarray]

# One regular expression and its replacement for every kind of tensor.
_BLOCKS = (
  (r'(?:(?:videomae|vivit)\.)?encoder\.layer\.(\d+)\.', r'blocks.\1.'),
  (r'decoder\.decoder_layers\.(\d+)\.', r'decoder.blocks.\1.'),
)
_PARTS = (
  (r'layernorm_before\.', 'norm1.'),
  (r'layernorm_after\.', 'norm2.'),
  (r'attention\.attention\.', 'attn.'),
  (r'attention\.output\.dense\.', 'attn.proj.'),
  (r'intermediate\.dense\.', 'mlp.fc1.'),
  (r'output\.dense\.', 'mlp.fc2.'),
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
_GELU = {
  'gelu': 'exact',
  'gelu_python': 'exact',
  'gelu_fast': 'tanh',
  'gelu_new': 'tanh',
  'gelu_pytorch_tanh': 'tanh',
}


def is_here(state: Mapping[str, Any]) -> bool:
  """Whether these are names of Hugging Face's models."""
  return any('embeddings.patch_embeddings.projection' in n for n in state)


def knows(name: str) -> bool:
  """Whether a tensor of these models has that name, and ours another."""
  return _new_name(name, 'norm.') != name


def fields(config: Mapping[str, Any], vivit: bool) -> dict[str, Any]:
  """The fields of our model, and of its decoder, that a config.json tells.

  Raises:
    ValueError: it describes a model that ours cannot be.
  """
  gelu = config.get('hidden_act', 'gelu_fast' if vivit else 'gelu')
  if gelu not in _GELU:
    raise ValueError(f'its activation {gelu!r} is not one of {sorted(_GELU)}')
  if config.get('num_channels', 3) != 3:
    raise ValueError(f'its clips have {config["num_channels"]} channels, not 3')
  known = {
    'heads': config.get('num_attention_heads'),
    'frames': config.get('num_frames'),
    'image_size': config.get('image_size'),
    'decoder_heads': config.get('decoder_num_attention_heads'),
  }
  found = {name: x for name, x in known.items() if type(x) is int and x > 0}
  return found | {'gelu': _GELU[gelu]}


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
  """The classes of a config.json in their order; () where it names none."""
  labels = config.get('id2label') or {}
  try:
    rows = {int(i): str(name) for i, name in labels.items()}
  except (AttributeError, ValueError):
    return ()
  return tuple(rows[i] for i in sorted(rows))


def rename(
  state: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[State, list[str]]:
  """The tensors as the authors' code has them, and what a person must know.

  Args:
    state: of VideoMAEForVideoClassification, VideoMAEForPreTraining,
      VivitForVideoClassification or the backbone of one.
    config: config.json, or {}.

  Raises:
    ValueError: a model that ours cannot be.
  """
  vivit = any(n.endswith('cls_token') for n in state)
  pretraining = 'mask_token' in state
  has = {name.partition('.')[0] for name in state}
  if 'classifier' in has and not vivit and 'fc_norm' not in has:
    hint = 'it classifies by its first token (use_mean_pooling=False)'
    raise ValueError(f'{hint}, which is a token of the video, not of a class')
  # The last norm: of the class token, of the tokens of a pre-training.
  norm = 'fc_norm.' if vivit else 'norm.'
  renamed, notes = {}, []
  for name, array in state.items():
    if 'pooler.' not in name:  # nothing that classifies reads it
      renamed[_new_name(name, norm)] = array
  biases = config.get('qkv_bias', config.get('qv_bias', True))
  renamed = _join_attention(renamed, notes, biases)
  if pretraining:
    encoder = ('patch_embed.', 'blocks.', 'norm.')
    renamed = {
      f'encoder.{n}' if n.startswith(encoder) else n: x
      for n, x in renamed.items()
    }
  if vivit:
    _fold_class_position(renamed)
    _fold_pixels(renamed)
    notes.append(
      'pixels are from -1 to 1 there: the first layer is rewritten for ours'
    )
  else:
    eps = config.get('layer_norm_eps', 1e-12)
    notes.append(
      f'norms add {eps} there (the last one 1e-5), 1e-6 here as the authors'
    )
  return renamed, notes


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
  state: Mapping[str, np.ndarray], notes: list[str], biases: bool
) -> State:
  """Queries, keys and values of every block in one tensor; keys lose a bias.

  A bias of the keys adds the same to all logits of a query, and cancels.
  """
  joined: State = {}
  dropped = 0
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


def _fold_pixels(state: State) -> None:
  """Rewrites the first layer from pixels in [-1, 1] to normalised ones.

  2 p - 1 = 2 s x + (2 m - 1) for p = s x + m, with our mean m and deviation s.
  """
  kernel = state.get('patch_embed.proj.weight')
  bias = state.get('patch_embed.proj.bias')
  if kernel is None or bias is None or kernel.ndim != 5 or kernel.shape[1] != 3:
    return  # what is wrong with them is told later
  exact = kernel.astype(np.float64)
  mean, std = (np.array(x).reshape(1, 3, 1, 1, 1) for x in (MEAN, STD))
  shift = (exact * (2 * mean - 1)).sum(axis=(1, 2, 3, 4))
  state['patch_embed.proj.weight'] = (exact * 2 * std).astype(kernel.dtype)
  state['patch_embed.proj.bias'] = (bias + shift).astype(bias.dtype)


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
