"""The settings beside Hugging Face's VideoMAE and ViViT.

config.json has those of the model, the file of a processor those of its pixels:
their scale and normalisation, which the first layer of our model takes over
exactly, and how frames become square, of which ours has two ways.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax.augment.transforms import MEAN, STD
from mira_jax.errors import short
from mira_jax.weights.settings import Settings, Table

CONFIG_FILE = 'config.json'
_GELU = {
  'gelu': 'exact',
  'gelu_python': 'exact',
  'gelu_accurate': 'tanh',
  'gelu_fast': 'tanh',
  'gelu_new': 'tanh',
  'gelu_python_tanh': 'tanh',
  'gelu_pytorch_tanh': 'tanh',
}
# Every field of VideoMAEConfig, VivitConfig and what all configurations have.
# Some of those used are only compared with the tensors, which show them too.
CONFIG = Table(
  used="""
    model_type hidden_size num_hidden_layers num_attention_heads
    intermediate_size hidden_act layer_norm_eps qv_bias qkv_bias
    use_mean_pooling image_size num_frames patch_size tubelet_size
    decoder_hidden_size decoder_num_hidden_layers decoder_num_attention_heads
    decoder_intermediate_size norm_pix_loss id2label num_labels
    """,
  only={
    'num_channels': (3,),
    'problem_type': ('single_label_classification', None),
    'pruned_heads': ({}, None),
    'quantization_config': (None,),
    'auto_map': (None, {}),  # code of one's own
    'is_decoder': (False,),
    'is_encoder_decoder': (False,),
    'add_cross_attention': (False,),
    'cross_attention_hidden_size': (None,),
  },
  # Shown by the tensors; of training, or of how it is stored, computed and
  # returned. Our models have no dropout to fine-tune with.
  without_effect="""
    head_dim hidden_dropout_prob attention_probs_dropout_prob initializer_range
    pooler_output_size pooler_act label2id architectures transformers_version
    _name_or_path dtype torch_dtype torchscript return_dict output_attentions
    output_hidden_states chunk_size_feed_forward _attn_implementation
    _attn_implementation_autoset gradient_checkpointing use_cache
    tie_word_embeddings finetuning_task bos_token_id pad_token_id eos_token_id
    """,
)
# Files that describe a processor; the first one counts, as in transformers.
PROCESSORS = (
  'processor_config.json',
  'video_preprocessor_config.json',
  'preprocessor_config.json',
)
_KINDS = (
  'image_processor_type',
  'feature_extractor_type',
  'video_processor_type',
)
PROCESSOR = Table(
  used="""
    do_resize size do_center_crop crop_size resample do_rescale rescale_factor
    offset do_normalize image_mean image_std do_sample_frames fps num_frames
    image_processor_type feature_extractor_type video_processor_type
    """,
  only={
    'do_flip_channel_order': (False, None),
    'do_pad': (False, None),
    'do_zero_centering': (False, None),
  },
  without_effect="""
    processor_class do_convert_rgb default_to_square data_format pad_size
    input_data_format return_tensors device return_metadata video_metadata
    model_valid_processing_keys model_input_names
    """,
)
# Settings of frames that ours follow only roughly, and which a note lists.
_FRAMES = ('do_resize', 'size', 'do_center_crop', 'crop_size', 'resample',
           'do_sample_frames', 'fps', 'num_frames')  # fmt: skip


def fields(config: Settings, vivit: bool) -> dict[str, Any]:
  """The fields of our model, its decoder and preprocessing in a config.json.

  Raises:
    ValueError: it describes a model that ours cannot be.
  """
  config.choice('model_type', ('vivit' if vivit else 'videomae',))
  gelu = config.values.get('hidden_act', 'gelu_fast' if vivit else 'gelu')
  if not isinstance(gelu, str) or gelu not in _GELU:
    raise config.refused('hidden_act', f'only {", ".join(_GELU)} are')
  known = {
    'heads': config.whole('num_attention_heads'),
    'frames': config.whole('num_frames'),
    'decoder_heads': config.whole('decoder_num_attention_heads'),
    'image_size': config.side('image_size'),
  }
  return {n: x for n, x in known.items() if x is not None} | {
    'gelu': _GELU[gelu],
    'norm_eps': config.number('layer_norm_eps') or (1e-6 if vivit else 1e-12),
    # VideoMAE's last one is as PyTorch makes it.
    'last_norm_eps': None if vivit else 1e-5,
    'normalise_targets': config.flag('norm_pix_loss', True),
    'class_names': _class_names(config),
  }


def _class_names(config: Settings) -> tuple[str, ...]:
  """The classes in their order; () where none are named."""
  labels = config.values.get('id2label')
  if labels is None:
    return ()
  try:
    rows = {int(i): str(name).strip() for i, name in labels.items()}
  except (AttributeError, ValueError, TypeError):
    rows = {-1: ''}
  if sorted(rows) != list(range(len(rows))):
    why = 'only a map of numbers from 0 on to names is'
    raise config.refused('id2label', why)
  return tuple(rows[i] for i in range(len(rows)))


def check_tensors(config: Settings, state: Mapping[str, np.ndarray]) -> None:
  """Raises ValueError where a config.json and the tensors contradict."""
  encoder = 'encoder.' if 'mask_token' in state else ''
  embed, hidden = 'patch_embed.proj.weight', 'blocks.0.mlp.fc1.weight'
  for name, tensor, axis in (
    ('hidden_size', f'{encoder}{embed}', 0),
    ('tubelet_size', f'{encoder}{embed}', 2),  # a number, or with the patch
    ('patch_size', f'{encoder}{embed}', 3),
    ('intermediate_size', f'{encoder}{hidden}', 0),
    ('num_labels', 'head.weight', 0),
    ('decoder_hidden_size', 'encoder_to_decoder.weight', 0),
    ('decoder_intermediate_size', f'decoder.{hidden}', 0),
  ):
    value = config.values.get(name)
    value = list(value) if isinstance(value, (list, tuple)) else [value]
    shape = state[tensor].shape[axis:] if tensor in state else ()
    if value != [None] and shape and value != list(shape[: len(value)]):
      raise config.refused(name, f'its tensors have {shape[0]}, only that is')
  for name, part in (
    ('num_hidden_layers', encoder),
    ('decoder_num_hidden_layers', 'decoder.'),
  ):
    pattern = rf'{part}blocks\.\d+\.norm1\.weight'
    count = sum(bool(re.fullmatch(pattern, n)) for n in state)
    if count and config.values.get(name) not in (None, count):
      raise config.refused(name, f'its tensors have {count}, only that is')


def pixels(
  files: Mapping[str, dict[str, Any]], vivit: bool
) -> tuple[np.ndarray, str | None, list[str]]:
  """The input of a model, its resize mode if that is known, and notes.

  Args:
    files: content of those of PROCESSORS that exist, by name.
    vivit: whether the model is a ViViT.

  Returns:
    The scale and the offset [2, 3] of pixels from 0 to 1, 'crop' or 'squash',
    and notes.

  Raises:
    ValueError: a setting has a value that ours cannot follow.
  """
  rules = _processor(files)
  if rules is None:
    found = np.array([[2.0] * 3, [-1.0] * 3])
    if not vivit:
      found = np.array([1 / np.array(STD), -np.array(MEAN) / STD])
    assumed = 'from -1 to 1' if vivit else 'normalised as ours'
    return found, None, [f'no {PROCESSORS[-1]}: pixels {assumed} are assumed']
  notes = rules.check(PROCESSOR)
  name = next((n for n in _KINDS if n in rules.values), '')
  kind = str(rules.values.get(name, '')).lower()
  if kind and 'vivit' not in kind and 'videomae' not in kind:
    needed = ('image_mean', 'image_std', 'size')
    if lacking := [n for n in needed if n not in rules.values]:
      why = f'its own {", ".join(lacking)} are unknown, so it is not'
      raise rules.refused(name, why)
  found = _affine(rules, 'vivit' in kind or (vivit and 'videomae' not in kind))
  fit = _fit(rules)
  frames = [f'{n} {short(x)}' for n in _FRAMES if (x := rules.values.get(n))]
  if frames:
    notes.append(
      f'{rules.file}: frames were prepared with {", ".join(frames)}; here with '
      f'--fit={fit}, areas where they shrink, and one of --rate frames'
    )
  return found, fit, notes


def _processor(files: Mapping[str, dict[str, Any]]) -> Settings | None:
  for name in PROCESSORS:
    values: Any = files.get(name)
    if values and name == PROCESSORS[0]:
      values = values.get('video_processor', values.get('image_processor'))
    if values is not None:
      if not isinstance(values, dict):
        raise ValueError(f'{name}: its processor is no group of settings')
      return Settings(values, name)
  return None


def _affine(rules: Settings, vivit: bool) -> np.ndarray:
  """Scale and offset [2, 3] of pixels from 0 to 1."""
  scale, offset = np.full(3, 255.0), np.zeros(3)
  if rules.flag('do_rescale', True):
    scale *= rules.number('rescale_factor') or 1 / (127.5 if vivit else 255)
    if rules.flag('offset', vivit):
      offset -= 1
  if rules.flag('do_normalize', True):
    mean, std = _channels(rules, 'image_mean'), _channels(rules, 'image_std')
    if (std <= 0).any():
      raise rules.refused('image_std', 'only numbers above 0 are')
    scale, offset = scale / std, (offset - mean) / std
  return np.array([scale, offset])


def _channels(rules: Settings, name: str) -> np.ndarray:
  """One number for every channel; a single one is of all."""
  value = rules.values.get(name)
  value = 0.5 if value is None else value
  numbers = value if isinstance(value, (list, tuple)) else [value] * 3
  whole = len(numbers) == 3 and all(type(x) in (int, float) for x in numbers)
  if not whole or not np.isfinite(numbers).all():
    raise rules.refused(name, 'only three numbers are')
  return np.array(numbers, np.float64)


def _fit(rules: Settings) -> str:
  """'squash' where frames become a height and width, 'crop' for an edge."""
  size = rules.values.get('size') or 224
  match {'shortest_edge': size} if type(size) is int else size:
    case {'height': int(side), 'width': width} if side == width > 0:
      return 'squash'
    case {'shortest_edge': int(side)} if side > 0:
      return 'crop'
  raise rules.refused('size', 'only one length, or equal sides, are')
