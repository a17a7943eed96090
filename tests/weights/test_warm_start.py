"""Weights of one model as the start of another."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from mira_jax.config import ModelConfig, PretrainConfig
from mira_jax.errors import MiraInputError
from mira_jax.inference import load
from mira_jax.mira import MiraConfig
from mira_jax.models import build, mae
from mira_jax.weights import infer_model, torch_names, weights_file
from mira_jax.weights.warm_start import transfer

CONFIG = ModelConfig(
  dim=16, depth=2, heads=2, num_classes=3, frames=4, image_size=16, patch=8,
  head_scale=1.0, mira=MiraConfig(),
)  # fmt: skip
SIZE = (1, 4, 16, 16, 3)
DECODER = {'decoder_dim': 8, 'decoder_depth': 1, 'decoder_heads': 2}


def classifier(seed=0, **changes):
  model = build.build_model(dataclasses.asdict(CONFIG) | changes)
  variables = model.init(jax.random.key(seed), jnp.zeros(SIZE))
  return model, jax.device_get(variables)


def autoencoder(seed=1):
  model = build.build_autoencoder(dataclasses.asdict(CONFIG), DECODER)
  mask, hidden = mae.draw_mask(
    jax.random.key(0), SIZE, 2, 8, kind='tube', ratio=0.5
  )
  variables = model.init(
    jax.random.key(seed), jnp.zeros(SIZE), mask, num_masked=hidden
  )
  return model, jax.device_get(variables)


def card(pretrain=False, **changes):
  return {
    'model': dataclasses.asdict(CONFIG) | {'num_classes': 0} | changes,
    'pretrain': dataclasses.asdict(PretrainConfig()) if pretrain else None,
    'class_names': [],
    'preprocessing': {'rate': 1, 'fit': 'crop'},
  }


def save(path, variables, about):
  return weights_file.save_weights(
    path / weights_file.WEIGHTS,
    variables['params'],
    variables.get('mira', {}),
    about,
  )


def same(a, b):
  leaves = [jax.tree.leaves(x) for x in (a, b)]
  assert len(leaves[0]) == len(leaves[1]) > 0
  for x, y in zip(*leaves, strict=True):
    np.testing.assert_array_equal(x, y)


def test_a_pretraining_gives_its_encoder_and_nothing_else(tmp_path):
  _, source = autoencoder()
  _, own = classifier()
  save(tmp_path, source, card(pretrain=True))
  new, told = transfer(own, tmp_path)  # a run's folder names its weights
  for part in ('embed', 'encoder'):
    same(new['params'][part], source['params'][part])
  same(new['mira'], source['mira'])
  for part in ('norm', 'head'):  # its norm is of tokens, ours of their mean
    same(new['params'][part], own['params'][part])
  assert sorted(told.fresh) == [
    'params/head/bias',
    'params/head/kernel',
    'params/norm/bias',
    'params/norm/scale',
  ]
  assert not told.missing
  parts = {name.split('/')[1].split(' ')[0] for name in told.ignored}
  assert parts == {
    'decoder', 'decoder_head', 'decoder_norm', 'mask_token', 'norm',
    'to_decoder',
  }  # fmt: skip
  assert 'fresh: 4 tensors' in str(told)
  assert 'and 17 more' in str(told)


def test_a_classifier_of_other_classes_keeps_all_but_its_head(tmp_path):
  _, source = classifier(seed=1, num_classes=5)
  _, own = classifier()
  new, told = transfer(own, save(tmp_path, source, card()))
  same(new['params']['norm'], source['params']['norm'])
  same(new['params']['head'], own['params']['head'])
  assert told.fresh == ['params/head/bias', 'params/head/kernel']
  assert told.ignored == ['params/head/bias [5]', 'params/head/kernel [16, 5]']


def test_the_same_model_takes_everything(tmp_path):
  _, source = classifier(seed=1)
  new, told = transfer(classifier()[1], save(tmp_path, source, card()))
  same(new, source)
  assert (told.fresh, told.missing, told.ignored) == ([], [], [])


@pytest.mark.parametrize('stacked_first', [True, False])
def test_stacked_blocks_become_single_ones_and_back(tmp_path, stacked_first):
  _, source = classifier(seed=1, scan=stacked_first)
  model, own = classifier(scan=not stacked_first)
  new, told = transfer(own, save(tmp_path, source, card()))
  assert (told.fresh, told.missing, told.ignored) == ([], [], [])
  first, _ = classifier(scan=stacked_first)
  video = jax.random.normal(jax.random.key(3), (2, *SIZE[1:]))
  np.testing.assert_allclose(
    model.apply(new, video), first.apply(source, video), rtol=1e-5, atol=1e-6
  )


def test_what_the_source_lacks_is_missing(tmp_path):
  _, source = classifier(seed=1, mira=None)
  new, told = transfer(classifier()[1], save(tmp_path, source, card()))
  assert told.missing == [
    f'mira/encoder/block_{i}/attn/confidence' for i in range(2)
  ]
  np.testing.assert_array_equal(
    new['mira']['encoder']['block_0']['attn']['confidence'], [0.5, 0.5]
  )


@pytest.mark.parametrize('kind', ['fine-tuned', 'pre-trained'])
def test_a_pytorch_state_dict_is_taken_by_its_names(tmp_path, kind):
  if kind == 'fine-tuned':
    _, source = classifier(seed=1)
    state = torch_names.to_torch(source, torch_names.CLASSIFIER)
  else:
    _, source = autoencoder()
    state = torch_names.to_torch(source, torch_names.AUTOENCODER)
    assert 'encoder.blocks.1.attn.qkv.weight' in state
  path = tmp_path / 'torch.safetensors'
  safetensors.numpy.save_file(state, path)
  new, told = transfer(classifier()[1], path)
  for part in ('embed', 'encoder'):
    same(new['params'][part], source['params'][part])
  same(new['mira'], source['mira'])
  if kind == 'fine-tuned':
    same(new, source)
  else:
    assert len(told.fresh) == 4
    assert {'mask_token', 'norm.weight'} <= set(told.ignored)


def test_another_size_or_model_is_refused_in_one_line(tmp_path):
  _, source = classifier(seed=1, dim=32)
  path = save(tmp_path, source, card())
  with pytest.raises(MiraInputError, match=r'other_size.*\(32,\).*\(16,\)'):
    transfer(classifier()[1], path)
  other = tmp_path / 'other.safetensors'
  safetensors.numpy.save_file({'conv1': np.zeros(3)}, other)
  with pytest.raises(MiraInputError, match=r'other_model.*conv1'):
    transfer(classifier()[1], other)
  with pytest.raises(MiraInputError, match='not_found'):
    transfer(classifier()[1], tmp_path / 'absent')
  other.write_bytes(b'nothing')
  with pytest.raises(MiraInputError, match='damaged'):
    transfer(classifier()[1], other)


def test_the_backbone_of_a_pretraining_gives_features(tmp_path):
  _, source = autoencoder()
  save(tmp_path, source, card(pretrain=True))
  scorer, about, _ = load.load_backbone(tmp_path, batch_size=2)
  assert scorer.model.num_classes == 0
  assert about['pretrain']['mask'] == 'tube'
  video = jax.random.normal(jax.random.key(3), (2, *SIZE[1:]))
  model, _ = classifier(num_classes=0)
  variables = {
    'params': {
      'embed': source['params']['embed'],
      'encoder': source['params']['encoder'],
      'norm': {'scale': np.ones(16), 'bias': np.zeros(16)},
    },
    'mira': source['mira'],
  }
  np.testing.assert_allclose(
    model.apply(scorer._variables, video),
    model.apply(variables, video),
    rtol=1e-5,
  )


def test_a_pytorch_file_has_features(tmp_path):
  _, source = classifier(seed=1)
  state = torch_names.to_torch(source, torch_names.CLASSIFIER)
  path = tmp_path / 'torch.safetensors'
  safetensors.numpy.save_file(state, path)
  overrides = infer_model.Overrides(heads=2, image_size=16, rate=2)
  scorer, about, _ = load.load_backbone(path, overrides=overrides)
  assert about['preprocessing'] == {'rate': 2, 'fit': 'crop'}
  same(scorer._variables['params']['norm'], source['params']['norm'])
  with pytest.raises(MiraInputError, match='--heads'):
    load.load_backbone(path)
