"""Weights of one model as the start of another."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

from foreign_models import randomised, same
from mira_jax.config import PretrainConfig
from mira_jax.inference import load
from mira_jax.models import build
from mira_jax.systems.channels import ChannelsConfig
from mira_jax.systems.identity import IdentityConfig
from mira_jax.systems.reliability import ReliabilityConfig
from mira_jax.weights import torch_names, weights_file
from mira_jax.weights.warm_start import transfer
from small_weights import CONFIG, NAMES, save, variables

SIZE = (1, 4, 16, 16, 3)
DECODER = {'decoder_dim': 8, 'decoder_depth': 1, 'decoder_heads': 2}


def autoencoder():
  model = build.build_autoencoder(dataclasses.asdict(CONFIG), DECODER)
  mask = jax.ShapeDtypeStruct((1, 8), bool)
  video = jax.ShapeDtypeStruct(SIZE, np.float32)
  return randomised(
    jax.eval_shape(
      lambda key, video, mask: model.init(key, video, mask, num_masked=4),
      jax.random.key(0),
      video,
      mask,
    ),
    seed=1,
  )


def save_pretraining(folder, tree):
  metadata = {
    'model': dataclasses.asdict(CONFIG) | {'num_classes': 0},
    'pretrain': dataclasses.asdict(PretrainConfig()),
    'class_names': [],
    'preprocessing': {'rate': 1, 'fit': 'crop'},
  }
  path = folder / weights_file.WEIGHTS
  weights_file.save_weights(path, tree['params'], tree['mira'], metadata)


def test_a_pretraining_gives_its_encoder_and_nothing_else(tmp_path):
  source, own = autoencoder(), variables()
  save_pretraining(tmp_path, source)
  new, told = transfer(own, tmp_path)  # a run's folder names its weights
  for part in ('embed', 'encoder'):
    same(new['params'][part], source['params'][part])
  same(new['mira'], source['mira'])
  for part in ('norm', 'head'):  # its norm is of tokens, ours of their mean
    same(new['params'][part], own['params'][part])
  assert sorted(told.fresh) == [
    f'params/{x}'
    for x in ('head/bias', 'head/kernel', 'norm/bias', 'norm/scale')
  ]
  assert not told.missing
  assert {'params/mask_token', 'params/norm/scale (of tokens)'} <= set(
    told.ignored
  )
  assert 'fresh: 4 tensors' in str(told)
  assert 'and 17 more' in str(told)
  # So does its state dict of PyTorch.
  state = torch_names.to_torch(source, torch_names.AUTOENCODER)
  path = tmp_path / 'torch.safetensors'
  safetensors.numpy.save_file(state, path)
  again, told = transfer(own, path)
  same(again, new)
  assert {'mask_token', 'norm.weight'} <= set(told.ignored)


@pytest.mark.parametrize('stacked_first', [True, False])
def test_stacked_blocks_become_single_ones_and_back(tmp_path, stacked_first):
  source = variables(seed=1, scan=stacked_first)
  path = save(tmp_path, source, scan=stacked_first)
  new, told = transfer(variables(scan=not stacked_first), path)
  assert (told.fresh, told.missing, told.ignored) == ([], [], [])
  back, _ = transfer(source, save(tmp_path, new, scan=not stacked_first))
  same(back, source)
  encoders = [x['params']['encoder'] for x in (new, source)]
  single, stacked = encoders if stacked_first else encoders[::-1]
  kernel = single['block_1']['mlp']['fc1']['kernel']
  same(kernel, stacked['blocks']['mlp']['fc1']['kernel'][1])


def test_every_head_of_other_classes_or_people_starts_anew(tmp_path):
  systems = {
    'reliability': dataclasses.asdict(ReliabilityConfig()),
    'channels': dataclasses.asdict(ChannelsConfig(regions=3)),
    'identity': dataclasses.asdict(IdentityConfig(subjects=5)),
    'oracle_units': '1,2',
  }
  path = save(tmp_path, variables(seed=1, **systems), **systems)
  heads = ('head', 'reliability', 'channels', 'channel_head', 'oracle')
  for names, new in ((NAMES, ()), (NAMES[::-1], heads)):
    _, report = transfer(variables(**systems), path, class_names=names)
    fresh = {name.split('/')[1] for name in report.fresh}
    assert fresh == {*new, 'identity_head'}


def test_what_the_source_lacks_is_missing(tmp_path):
  source, own = variables(seed=1, mira=None), variables()
  new, told = transfer(own, save(tmp_path, source, mira=None))
  assert told.missing == [
    f'mira/encoder/block_{i}/attn/confidence' for i in range(2)
  ]
  same(new['mira'], own['mira'])
  same(new['params'], source['params'])


def test_the_backbone_of_a_pretraining_gives_features(tmp_path):
  source = autoencoder()
  save_pretraining(tmp_path, source)
  scorer, about, _ = load.load_backbone(tmp_path, batch_size=2)
  assert scorer.model.num_classes == 0
  assert about['pretrain']['mask'] == 'tube'
  params = scorer._variables['params']
  same(params['encoder'], source['params']['encoder'])
  same(scorer._variables['mira'], source['mira'])
  same(params['norm'], {'scale': np.ones(16), 'bias': np.zeros(16)})
