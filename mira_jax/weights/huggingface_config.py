"""The config.json of Hugging Face's VideoMAE and ViViT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax.weights.settings import Settings, Table

NAME = 'config.json'
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
    model_type hidden_size num_hidden_layers num_attention_heads head_dim
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
  # Of training, of text, or of how it is stored, computed and returned. Our
  # models have no dropout to fine-tune with.
  without_effect="""
    hidden_dropout_prob attention_probs_dropout_prob initializer_range
    pooler_output_size pooler_act label2id architectures transformers_version
    _name_or_path dtype torch_dtype torchscript use_bfloat16 tf_legacy_loss
    return_dict output_hidden_states output_attentions chunk_size_feed_forward
    attn_implementation _attn_implementation _attn_implementation_autoset
    _attn_implementation_internal gradient_checkpointing use_cache
    tie_word_embeddings tie_encoder_decoder finetuning_task task_specific_params
    tokenizer_class prefix bos_token_id pad_token_id eos_token_id sep_token_id
    decoder_start_token_id max_length min_length do_sample early_stopping
    num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    output_scores return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
    suppress_tokens begin_suppress_tokens
    """,
)


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
  prefix = 'encoder.' if 'mask_token' in state else ''
  found: dict[str, list[Any]] = {}  # the values that agree with the tensors
  for name, own in (
    ('hidden_size', f'{prefix}patch_embed.proj.weight'),
    ('intermediate_size', f'{prefix}blocks.0.mlp.fc1.weight'),
    ('num_labels', 'head.weight'),
    ('decoder_hidden_size', 'encoder_to_decoder.weight'),
    ('decoder_intermediate_size', 'decoder.blocks.0.mlp.fc1.weight'),
  ):
    if own in state and state[own].ndim:
      found[name] = [len(state[own])]
  for name, own in (
    ('num_hidden_layers', f'{prefix}blocks'),
    ('decoder_num_hidden_layers', 'decoder.blocks'),
  ):
    parts = (re.match(rf'{own}\.(\d+)\.', n) for n in state)
    if numbers := {part[1] for part in parts if part}:
      found[name] = [len(numbers)]
  heads = config.whole('num_attention_heads')
  if heads and 'hidden_size' in found:
    found['head_dim'] = [found['hidden_size'][0] // heads]
  kernel = state.get(f'{prefix}patch_embed.proj.weight')
  if kernel is not None and kernel.ndim == 5:
    tubelet, height, width = kernel.shape[2:]
    found['patch_size'] = [height, [height, width]]
    found['tubelet_size'] = [tubelet, [tubelet, height, width]]
  for name, values in found.items():
    value = config.values.get(name)
    value = list(value) if isinstance(value, tuple) else value
    if value is not None and value not in values:
      raise config.refused(name, f'its tensors have {values[0]}, only that is')
