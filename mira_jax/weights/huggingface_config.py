"""What the config.json of Hugging Face's VideoMAE and ViViT says of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax.weights import settings

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
# Some of those used are held against the tensors, which say it too.
CONFIG = settings.table(
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
  # Of training, of text, or of how it is stored, computed and returned. Of
  # inference dropout and the first values of weights say nothing; our models
  # have no dropout to fine-tune with.
  without_meaning="""
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


def fields(config: Mapping[str, Any], vivit: bool) -> dict[str, Any]:
  """The fields of our model, and of its decoder, that a config.json says.

  Raises:
    ValueError: it describes a model that ours cannot be.
  """
  kind, here = config.get('model_type'), 'vivit' if vivit else 'videomae'
  if kind not in (None, here):
    raise settings.refused(NAME, 'model_type', kind, f'{here!r} is')
  gelu = config.get('hidden_act', 'gelu_fast' if vivit else 'gelu')
  if not isinstance(gelu, str) or gelu not in _GELU:
    why = f'only {", ".join(_GELU)} are'
    raise settings.refused(NAME, 'hidden_act', gelu, why)
  eps = settings.number(config, 'layer_norm_eps', NAME)
  known = {
    name: settings.whole(config, theirs, NAME)
    for name, theirs in (
      ('heads', 'num_attention_heads'),
      ('frames', 'num_frames'),
      ('decoder_heads', 'decoder_num_attention_heads'),
    )
  } | {'image_size': settings.side(config, 'image_size', NAME)}
  return {n: x for n, x in known.items() if x is not None} | {
    'gelu': _GELU[gelu],
    'norm_eps': eps or (1e-6 if vivit else 1e-12),
    # VideoMAE's last one is as PyTorch makes it.
    'last_norm_eps': None if vivit else 1e-5,
    'normalise_targets': settings.flag(config, 'norm_pix_loss', NAME, True),
  }


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
  """The classes of a config.json in their order; () where it names none.

  Raises:
    ValueError: what it has is no map of numbers from 0 on to names.
  """
  labels = config.get('id2label')
  if labels is None:
    return ()
  try:
    rows = {int(i): str(name) for i, name in labels.items()}
  except (AttributeError, ValueError, TypeError):
    rows = None
  if rows is None or sorted(rows) != list(range(len(rows))):
    why = 'only a map of numbers from 0 on to names is'
    raise settings.refused(NAME, 'id2label', labels, why)
  return tuple(rows[i] for i in range(len(rows)))


def hold(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> None:
  """Raises ValueError where a config.json and the tensors contradict."""
  prefix = 'encoder.' if 'mask_token' in state else ''
  widths = {
    'hidden_size': f'{prefix}patch_embed.proj.weight',
    'intermediate_size': f'{prefix}blocks.0.mlp.fc1.weight',
    'num_labels': 'head.weight',
    'decoder_hidden_size': 'encoder_to_decoder.weight',
    'decoder_intermediate_size': 'decoder.blocks.0.mlp.fc1.weight',
  }
  found = {n: len(state[own]) for n, own in widths.items() if own in state}
  for name, own in (
    ('num_hidden_layers', f'{prefix}blocks'),
    ('decoder_num_hidden_layers', 'decoder.blocks'),
  ):
    parts = (re.match(rf'{own}\.(\d+)\.', n) for n in state)
    if numbers := {part[1] for part in parts if part}:
      found[name] = len(numbers)
  said = {n: settings.whole(config, n, NAME) for n in found}
  heads = settings.whole(config, 'num_attention_heads', NAME)
  if heads and 'hidden_size' in found:
    found['head_dim'] = found['hidden_size'] // heads
    said['head_dim'] = settings.whole(config, 'head_dim', NAME)
  kernel = state.get(widths['hidden_size'])
  if kernel is not None and kernel.ndim == 5:
    found |= {'patch_size': kernel.shape[3], 'tubelet_size': kernel.shape[2]}
    said['patch_size'] = settings.side(config, 'patch_size', NAME)
    tubelet = config.get('tubelet_size')
    if isinstance(tubelet, (list, tuple)):
      said['tubelet_size'] = list(tubelet)
      found['tubelet_size'] = list(kernel.shape[2:])
    else:
      said['tubelet_size'] = settings.whole(config, 'tubelet_size', NAME)
  for name, value in found.items():
    if said[name] not in (None, value):
      why = f'its tensors have {value}, and nothing else is'
      raise settings.refused(NAME, name, said[name], why)
