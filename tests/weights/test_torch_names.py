"""PyTorch names and layouts, there and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.mira import MiraConfig
from mira_jax.models.mae import MaskedAutoencoder
from mira_jax.models.vivit import SIZES, ViViT
from mira_jax.weights import torch_names

TINY = {'dim': 12, 'depth': 2, 'heads': 3, 'patch': 4}
BLOCK = (
  *('norm1.weight', 'norm1.bias', 'attn.q_bias', 'attn.v_bias'),
  *('attn.qkv.weight', 'attn.proj.weight', 'attn.proj.bias'),
  *('norm2.weight', 'norm2.bias', 'mlp.fc1.weight', 'mlp.fc1.bias'),
  *('mlp.fc2.weight', 'mlp.fc2.bias'),
)


def classifier(**options):
  model = ViViT(**TINY, num_classes=5, frames=4, image_size=8, **options)
  return template(model, (1, 4, 8, 8, 3))


def autoencoder(**options):
  model = MaskedAutoencoder(
    **TINY, decoder_dim=6, decoder_depth=1, decoder_heads=2, **options
  )
  return template(model, (1, 4, 8, 8, 3), tokens=8, num_masked=4)


def template(model, shape, tokens=None, num_masked=None):
  """Shapes of the variables of a model."""
  video = jax.ShapeDtypeStruct(shape, jnp.float32)
  if tokens is None:
    return jax.eval_shape(model.init, jax.random.key(0), video)
  mask = jax.ShapeDtypeStruct((1, tokens), jnp.bool_)
  return jax.eval_shape(
    lambda key, video, mask: model.init(
      key, video, mask, num_masked=num_masked
    ),
    jax.random.key(0),
    video,
    mask,
  )


def shapes(variables, table):
  """Shapes by PyTorch name, at the price of no memory (strides of zero)."""
  empty = jax.tree.map(
    lambda x: np.broadcast_to(np.bool_(0), x.shape), variables
  )
  return {
    name: array.shape
    for name, array in torch_names.to_torch(empty, table).items()
  }


def random_variables(template):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), template
  )


MODELS = {
  'classifier': (classifier(), torch_names.CLASSIFIER),
  'every option': (
    classifier(
      mira=MiraConfig(), pool='cls', positions='learned', layer_scale=0.1
    ),
    torch_names.CLASSIFIER,
  ),
  'st block': (
    classifier(variant='st_block', mira=MiraConfig()),
    torch_names.CLASSIFIER,
  ),
  'autoencoder': (autoencoder(mira=MiraConfig()), torch_names.AUTOENCODER),
}


@pytest.mark.parametrize('name', MODELS)
def test_there_and_back_is_bitwise(name):
  template, table = MODELS[name]
  variables = random_variables(template)
  state = torch_names.to_torch(variables, table)
  assert len(state) == len(jax.tree.leaves(variables))
  # As from a file: contiguous copies.
  state = {name: np.array(array) for name, array in state.items()}
  back = torch_names.from_torch(state, template, table)
  assert jax.tree.structure(back) == jax.tree.structure(variables)
  for a, b in zip(
    jax.tree.leaves(back), jax.tree.leaves(variables), strict=True
  ):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_layouts_by_index():
  template, table = MODELS['classifier']
  variables = random_variables(template)['params']
  state = torch_names.to_torch({'params': variables}, table)
  # [t, h, w, in, out] against [out, in, t, h, w].
  assert (
    state['patch_embed.proj.weight'][7, 2, 1, 3, 0]
    == variables['embed']['kernel'][1, 3, 0, 2, 7]
  )
  # Row 12 + 2 * 4 + 3 of qkv is channel 3 of head 2 of the keys.
  attention = variables['encoder']['block_1']['attn']
  np.testing.assert_array_equal(
    state['blocks.1.attn.qkv.weight'][12 + 2 * 4 + 3],
    attention['qkv']['kernel'][:, 1, 2, 3],
  )
  # Column 2 * 4 + 3 of proj reads channel 3 of head 2.
  np.testing.assert_array_equal(
    state['blocks.1.attn.proj.weight'][:, 2 * 4 + 3],
    attention['proj']['kernel'][2, 3],
  )
  np.testing.assert_array_equal(
    state['blocks.1.attn.q_bias'], attention['q_bias'].reshape(-1)
  )
  np.testing.assert_array_equal(
    state['head.weight'], variables['head']['kernel'].T
  )


def block_shapes(prefix, dim, inner=None, wide=None):
  """The reference's shapes of a block of so many channels, by name."""
  inner, wide = inner or dim, wide or 4 * dim
  sizes = [dim, dim, inner, inner, (3 * inner, dim), (dim, inner), dim]
  sizes += [dim, dim, (wide, dim), wide, (dim, wide), dim]
  return {
    prefix + name: size if isinstance(size, tuple) else (size,)
    for name, size in zip(BLOCK, sizes, strict=True)
  }


def test_names_and_shapes_are_the_references():
  """ViT-B with 7 classes; ST blocks; a pre-training; of two blocks each."""
  size, video = SIZES['B'] | {'depth': 2}, (1, 16, 224, 224, 3)
  expected = {
    'patch_embed.proj.weight': (768, 3, 2, 16, 16),
    'patch_embed.proj.bias': (768,),
    'fc_norm.weight': (768,),
    'fc_norm.bias': (768,),
    'head.weight': (7, 768),
    'head.bias': (7,),
    **block_shapes('blocks.0.', 768),
    **block_shapes('blocks.1.', 768),
  }
  mira = template(ViViT(**size, num_classes=7, mira=MiraConfig()), video)
  buffers = {f'blocks.{i}.attn.c_buf': (1, 8) for i in range(2)}
  assert shapes(mira, torch_names.CLASSIFIER) == expected | buffers
  model = ViViT(**size, num_classes=7, variant='st_block')
  for i in range(2):
    for name, shape in block_shapes('', 768, 288, 192).items():
      expected[f'blocks.{i}.framewise_{name}'] = shape
  assert shapes(template(model, video), torch_names.CLASSIFIER) == expected


def test_names_of_a_pretraining_are_the_references():
  model = MaskedAutoencoder(
    **SIZES['B'] | {'depth': 1},
    decoder_dim=384,
    decoder_depth=1,
    decoder_heads=6,
    mira=MiraConfig(),
  )
  variables = template(model, (1, 16, 224, 224, 3), 1568, 1408)
  assert shapes(variables, torch_names.AUTOENCODER) == {
    'mask_token': (1, 1, 384),
    'encoder.patch_embed.proj.weight': (768, 3, 2, 16, 16),
    'encoder.patch_embed.proj.bias': (768,),
    'encoder.norm.weight': (768,),
    'encoder.norm.bias': (768,),
    'decoder.norm.weight': (384,),
    'decoder.norm.bias': (384,),
    'decoder.head.weight': (1536, 384),
    'decoder.head.bias': (1536,),
    'encoder_to_decoder.weight': (384, 768),
    'encoder.blocks.0.attn.c_buf': (1, 8),
    **block_shapes('encoder.blocks.0.', 768),
    **block_shapes('decoder.blocks.0.', 384),
  }
