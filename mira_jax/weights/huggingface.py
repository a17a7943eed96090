"""State dicts of Hugging Face's VideoMAE and ViViT, by the authors' names.

Facts about their layout are from the `transformers` library, versions 4 and 5:
names of tensors, fields of the configuration files, what the models compute.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mira_jax.augment.transforms import MEAN, STD
from mira_jax.weights.huggingface_settings import (
  CONFIG,
  CONFIG_FILE,
  PROCESSORS,
  check_tensors,
  fields,
  pixels,
)
from mira_jax.weights.settings import Settings

State = dict[str, np.ndarray]

_BLOCKS = {
  r'(?:(?:videomae|vivit)\.)?(?:encoder\.layer|layers)\.(\d+)\.': r'blocks.\1.',
  r'decoder\.decoder_layers\.(\d+)\.': r'decoder.blocks.\1.',
}
_PARTS = {
  r'layernorm_before\.': 'norm1.',
  r'layernorm_after\.': 'norm2.',
  r'attention\.attention\.': 'attn.',
  r'attention\.output\.dense\.': 'attn.proj.',
  r'intermediate\.dense\.': 'mlp.fc1.',
  r'output\.dense\.': 'mlp.fc2.',
  # As the modules of newer versions are called.
  r'attention\.q_proj\.': 'attn.query.',
  r'attention\.k_proj\.': 'attn.key.',
  r'attention\.v_proj\.': 'attn.value.',
  r'attention\.o_proj\.': 'attn.proj.',
  r'mlp\.(?=fc[12]\.)': 'mlp.',
}
_EMBEDDINGS = r'(?:\w+\.)?embeddings\.'
# The start of a name of theirs, and that of the authors' name.
_NAMES = {
  **{
    f'{a}{b}': f'{x}{y}' for a, x in _BLOCKS.items() for b, y in _PARTS.items()
  },
  rf'{_EMBEDDINGS}patch_embeddings\.projection\.': 'patch_embed.proj.',
  rf'{_EMBEDDINGS}cls_token': 'cls_token',
  rf'{_EMBEDDINGS}position_embeddings': 'pos_embed',
  r'classifier\.': 'head.',
}
# Files beside the tensors that are read.
FILES = (CONFIG_FILE, *PROCESSORS)


def is_here(state: Mapping[str, Any]) -> bool:
  """Whether these are names of Hugging Face's models."""
  return any('embeddings.patch_embeddings.projection' in n for n in state)


def knows(name: str) -> bool:
  """Whether a tensor of these models has that name, and ours another."""
  return _new_name(name, 'norm.') != name


def understand(
  state: Mapping[str, np.ndarray], files: Mapping[str, dict[str, Any]]
) -> tuple[State, dict[str, Any], list[str]]:
  """A model as the authors' code would have it.

  Args:
    state: of VideoMAEForVideoClassification, VideoMAEForPreTraining,
      VivitForVideoClassification or the backbone of one, by their names.
    files: name -> content of those of FILES that exist.

  Returns:
    Tensors by the authors' names; fields as `Source` has them; notes.

  Raises:
    ValueError: a model that ours cannot be, or files of another one.
  """
  vivit = any(n.endswith('cls_token') for n in state)
  config, notes = Settings(files.get(CONFIG_FILE, {}), CONFIG_FILE), []
  if config.values and not CONFIG.used & config.values.keys():
    # A file of another program, which has that name too.
    notes.append(f"{CONFIG_FILE} is not Hugging Face's: it is not read")
    config = Settings({}, CONFIG_FILE)
  notes += config.check(CONFIG)
  found = fields(config, vivit)
  if not config.values:
    assumed = 'norm_eps {norm_eps}, gelu {gelu}'.format(**found)
    notes.append(f'no {CONFIG_FILE}: its defaults are assumed, {assumed}')
  renamed = _rename(state, config)
  check_tensors(config, renamed)
  if 'head.weight' not in renamed:
    found['class_names'] = ()
  if 'mask_token' in state and 'encoder.norm.weight' not in renamed:
    notes.append(
      'its encoder has no last norm (use_mean_pooling=True), ours has one'
    )
  affine, fit, more = pixels(files, vivit)
  # Pixels p = s x + m of ours, with our mean m and deviation s, enter as
  # scale * p + offset.
  scale, offset = affine[0] * STD, affine[0] * MEAN + affine[1]
  if not np.allclose([scale, offset], [[1] * 3, [0] * 3], rtol=0, atol=1e-6):
    if 'mask_token' in state and not found['normalise_targets']:
      why = 'with pixels that are scaled otherwise only True is'
      raise config.refused('norm_pix_loss', why)
    _fold_pixels(renamed, scale, offset)
    more.append('other pixels: the first layer is rewritten for ours')
  return renamed, found | ({'fit': fit} if fit else {}), notes + more


def _rename(state: Mapping[str, np.ndarray], config: Settings) -> State:
  """The tensors as the authors' code has them.

  Raises:
    ValueError: a model that ours cannot be.
  """
  vivit = any(n.endswith('cls_token') for n in state)
  parts = {name.partition('.')[0] for name in state}
  mean = config.flag('use_mean_pooling', 'fc_norm' in parts)
  if 'classifier' in parts and not vivit and not (mean and 'fc_norm' in parts):
    hint = 'it classifies by its first token (use_mean_pooling=False)'
    raise ValueError(f'{hint}, which is a token of the video, not of a class')
  old: dict[str, str] = {}
  for name in state:
    if 'pooler.' in name:  # which no classifier reads
      continue
    # The last norm is of the class token, or of the tokens of a pre-training.
    new = _new_name(name, 'fc_norm.' if vivit else 'norm.')
    if (first := old.setdefault(new, name)) != name:
      raise ValueError(f'{first} and {name} are the same tensor of the model')
  biases = config.flag('qkv_bias', config.flag('qv_bias', True))
  renamed = _join_attention({new: state[n] for new, n in old.items()}, biases)
  if 'mask_token' in state:
    encoder = ('patch_embed.', 'blocks.', 'norm.')
    renamed = {
      f'encoder.{n}' if n.startswith(encoder) else n: x
      for n, x in renamed.items()
    }
  positions = renamed.get('pos_embed')
  if vivit and positions is not None and positions.ndim == 3:
    # Its class token has a position, ours has none: the sum of both is ours.
    renamed['cls_token'] = renamed['cls_token'] + positions[:, :1]
    renamed['pos_embed'] = positions[:, 1:]
  return renamed


def _new_name(name: str, norm: str) -> str:
  for pattern, new in (_NAMES | {r'(?:\w+\.)?layernorm\.': norm}).items():
    if match := re.match(pattern, name):
      return match.expand(new) + name[match.end() :]
  return name


_JOINED = re.compile(r'(.*\.attn\.)(query|key|value)\.(weight|bias)')
_KINDS = ('query', 'key', 'value')


def _join_attention(state: State, biases: bool) -> State:
  """Queries, keys and values of every block in one tensor; keys lose a bias.

  A bias of the keys adds the same to all logits of a query, and cancels.
  """
  joined: State = {}
  for name, array in state.items():
    match = _JOINED.fullmatch(name)
    prefix, kind, what = match.groups() if match else ('', '', '')
    if not match:
      joined[name] = array
    elif what == 'bias' and kind != 'key':
      joined[f'{prefix}{kind[0]}_bias'] = array
    elif what == 'weight' and kind == 'query':
      parts = [f'{prefix}{n}.weight' for n in _KINDS]
      if all(part in state for part in parts):
        joined[f'{prefix}qkv.weight'] = np.concatenate(
          [state[part] for part in parts]
        )
      if not biases:
        zeros = np.zeros(array.shape[:1], array.dtype)
        joined |= {f'{prefix}{n}_bias': zeros for n in 'qv'}
  return joined


def _fold_pixels(state: State, scale: np.ndarray, offset: np.ndarray) -> None:
  """Rewrites the first layer to compute of x what it did of scale x + offset.

  In float64; both are [3], of the channels.
  """
  prefix = 'encoder.' if 'mask_token' in state else ''
  weight, bias = (f'{prefix}patch_embed.proj.{n}' for n in ('weight', 'bias'))
  kernel = state.get(weight, np.zeros(0))
  if bias not in state or kernel.ndim != 5 or kernel.shape[1] != 3:
    return  # an error names them later
  exact = kernel.astype(np.float64)
  scale, offset = (np.reshape(x, (1, 3, 1, 1, 1)) for x in (scale, offset))
  shift = (exact * offset).sum(axis=(1, 2, 3, 4))
  state[weight] = (exact * scale).astype(kernel.dtype)
  state[bias] = (state[bias] + shift).astype(state[bias].dtype)


def restore(state: Mapping[str, np.ndarray], names: Iterable[str]) -> State:
  """The tensors of a classifier by Hugging Face's names: the way back.

  Where ours has none (biases of keys, the position of the class token), theirs
  is 0. Raises KeyError for another name that ours lacks.
  """
  found: State = {}
  for name in names:
    own = _new_name(name, 'fc_norm.')
    match = _JOINED.fullmatch(own)
    prefix, kind, what = match.groups() if match else ('', '', '')
    if what == 'weight':
      qkv = state[f'{prefix}qkv.weight']
      found[name] = np.split(qkv, 3)[_KINDS.index(kind)]
    elif what == 'bias' and kind == 'key':
      found[name] = np.zeros_like(state[f'{prefix}q_bias'])
    elif what == 'bias':
      found[name] = state[f'{prefix}{kind[0]}_bias']
    elif own == 'pos_embed':
      found[name] = np.pad(state[own], ((0, 0), (1, 0), (0, 0)))
    else:
      found[name] = state[own]
  return found
