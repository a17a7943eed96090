"""Small models as PyTorch and Hugging Face write them."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mira_jax import config
from mira_jax.mira import MiraConfig
from mira_jax.models import build, mae
from mira_jax.weights import (
  torch_names,
)

SIZE = {'dim': 192, 'depth': 1, 'heads': 3, 'patch': 4, 'image_size': 8}
CLIP = (1, 4, 8, 8, 3)


def fields(**changes):
  return (
    dataclasses.asdict(
      config.ModelConfig(
        **SIZE, num_classes=3, frames=4, mlp_ratio=1.0, mira=MiraConfig()
      )
    )
    | changes
  )


def randomised(variables, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), variables
  )


def classifier(**changes):
  model = build.build_model(fields(**changes))
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(CLIP))
  return randomised(shapes)


def autoencoder(**changes):
  decoder = {'decoder_dim': 192, 'decoder_depth': 2, 'decoder_heads': 3}
  model = build.build_autoencoder(fields(**changes), decoder)
  mask, hidden = mae.draw_mask(
    jax.random.key(0), CLIP, 2, 4, kind='tube', ratio=0.5
  )
  shapes = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros(CLIP), mask, num_masked=hidden),
    jax.random.key(0),
  )
  return randomised(shapes)


def state_of(variables):
  table = (
    torch_names.AUTOENCODER
    if 'mask_token' in variables['params']
    else torch_names.CLASSIFIER
  )
  return torch_names.to_torch(variables, table)


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


BLOCK = (
  {
    'attention.attention.{}.weight': (12, 12),
    'attention.output.dense.weight': (12, 12),
    'intermediate.dense.bias': (24,),
    'intermediate.dense.weight': (24, 12),
    'output.dense.weight': (12, 24),
  }
  | {
    f'{name}.{kind}': (12,)
    for name in ('layernorm_before', 'layernorm_after')
    for kind in ('bias', 'weight')
  }
  | {f'{name}output.dense.bias': (12,) for name in ('attention.', '')}
)
VIDEO = np.random.default_rng(1).integers(0, 256, (2, 4, 16, 16, 3))
CONFIG = {
  'hidden_size': 12,
  'num_attention_heads': 3,
  'num_hidden_layers': 2,
  'intermediate_size': 24,
  'num_frames': 4,
  'image_size': 16,
  'num_channels': 3,
  'id2label': {'1': 'happy', '0': 'angry', '2': 'sad'},
}
VIDEOMAE = CONFIG | {
  'model_type': 'videomae',
  'hidden_act': 'gelu',
  'layer_norm_eps': 1e-12,
  'patch_size': 8,
  'tubelet_size': 2,
  'decoder_num_attention_heads': 2,
}
VIVIT = CONFIG | {
  'model_type': 'vivit',
  'hidden_act': 'gelu_fast',
  'layer_norm_eps': 1e-6,
  'tubelet_size': [2, 8, 8],
}


def blocks(prefix, count, dim, biases):
  shapes = {}
  for i in range(count):
    for name, shape in BLOCK.items():
      shape = tuple(n * dim // 12 for n in shape)
      for kind in ('query', 'key', 'value')[: 1 + 2 * ('{}' in name)]:
        shapes[f'{prefix}.{i}.{name.format(kind)}'] = shape
    for name in biases:
      shapes[f'{prefix}.{i}.attention.attention.{name}'] = (dim,)
  return shapes


def hugging_face(kind):
  """Tensors and config.json of a tiny model."""
  vivit = kind == 'vivit'
  base = 'vivit' if vivit else 'videomae'
  biases = (
    ('query.bias', 'key.bias', 'value.bias') if vivit else ('q_bias', 'v_bias')
  )
  shapes = blocks(f'{base}.encoder.layer', 2, 12, biases)
  projection = f'{base}.embeddings.patch_embeddings.projection'
  shapes |= {f'{projection}.weight': (12, 3, 2, 8, 8)}
  shapes |= {f'{projection}.bias': (12,)}
  if kind == 'pretraining':
    shapes |= blocks('decoder.decoder_layers', 1, 6, biases) | {
      'encoder_to_decoder.weight': (6, 12),
      'mask_token': (1, 1, 6),
      'decoder.head.weight': (384, 6),
      'decoder.head.bias': (384,),
      'decoder.norm.weight': (6,),
      'decoder.norm.bias': (6,),
    }
  else:
    shapes |= {'classifier.weight': (3, 12), 'classifier.bias': (3,)}
  norm = 'fc_norm' if kind == 'classification' else f'{base}.layernorm'
  shapes |= {f'{norm}.weight': (12,), f'{norm}.bias': (12,)}
  if vivit:
    shapes |= {
      'vivit.embeddings.cls_token': (1, 1, 12),
      'vivit.embeddings.position_embeddings': (1, 9, 12),
    }
  rng = np.random.default_rng(0)
  state = {
    name: (0.3 * rng.normal(size=shapes[name])).astype(np.float32)
    for name in sorted(shapes)
  }
  return state, VIVIT if vivit else VIDEOMAE


def save_hugging_face(folder, kind, **changes):
  state, about = hugging_face(kind)
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(about | changes))
  safetensors.numpy.save_file(state, folder / 'model.safetensors')
  return folder
