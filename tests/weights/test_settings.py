"""No setting that the authors' runs save is ignored."""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import pytest

import torch_files
from foreign_models import hugging_face
from mira_jax.errors import MiraInputError
from mira_jax.models.layers import mlp_width
from mira_jax.weights import infer_model, settings, sources

ARGS = {
  'add_fmp_attention': False,
  'fmp_num_last_layers': 2,
  'use_fmp_flashlite': False,
  'stats_mode': 'batch',
  'fmp_no_use_ema': True,
  'fmp_use_residual': False,
  'flash_tau': 0.3,
  'add_intra_attention': True,
  'num_frames': 8,
  'input_size': 112,
  'window_size': (8, 7, 7),
  'patch_size': (32, 32),
  'tubelet_size': 4,
  'mask_type': 'random',
  'mask_ratio': 0.5,
  'normlize_target': False,
  'no_normlize_target': True,
  'sampling_rate': 2,
  'data_set': 'DFEW_crop',
}
USUAL = {'add_fmp_attention': True, 'use_fmp_flashlite': True,
         'stats_mode': 'batch_ema', 'patch_size': (16, 16),
         'window_size': (8, 14, 14)}  # fmt: skip


def test_every_setting_of_a_run_is_used_or_refused_or_has_no_meaning():
  table = settings.REFERENCE
  names = [*table.used, *table.only, *table.without_effect]
  assert len(names) == len(set(names))
  assert ARGS.keys() == table.used
  before, remarks = settings.of_reference(USUAL)
  assert not remarks
  for name, value in ARGS.items():
    found, remarks = settings.of_reference(USUAL | {name: value})
    assert not remarks
    # How long a tubelet is, its tensor says.
    assert (found == before) == (name == 'tubelet_size'), name
  for name, allowed in table.only.items():
    with pytest.raises(ValueError, match=f'{name} is'):
      settings.of_reference({name: not allowed[0]})
  for name in table.without_effect:
    assert settings.of_reference(USUAL | {name: object()}) == (before, [])
  _, remarks = settings.of_reference({'new_trick': 3})
  assert 'left out: new_trick' in remarks[0]


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('stats_mode', 'median'),
    ('flash_tau', 'hot'),
    ('fmp_use_residual', 1),
    ('window_size', (8, 14, 7)),
    ('mask_ratio', 1.5),
    ('flash_tau', object()),
  ],
)
def test_a_setting_of_a_run_that_cannot_be_is_named(name, value):
  with pytest.raises(ValueError, match=f'{name} is .* supported'):
    settings.of_reference(USUAL | {name: value})


def shapes(pretraining=False, **args):
  """A source with empty tensors, as far as they are used."""
  encoder = 'encoder.' * pretraining
  found = {
    f'{encoder}patch_embed.proj.weight': (192, 3, 2, 16, 16),
    f'{encoder}blocks.1.mlp.fc1.bias': (768,),
    f'{encoder}blocks.0.mlp.fc1.bias': (768,),
  }
  if pretraining:
    found |= {'mask_token': (1, 1, 192), 'decoder.blocks.0.mlp.fc1.bias': (50,)}
  state = {n: np.broadcast_to(np.float32(0), x) for n, x in found.items()}
  facts = settings.of_reference(args)[0]
  path = pathlib.Path('x')
  return sources.Source(path=path, kind='', state=state, fields=facts)


def inferred(source, **overrides):
  return infer_model.metadata_of(source, infer_model.Overrides(**overrides))[0]


def test_what_a_run_saved_is_in_its_model():
  args = USUAL | {'fmp_num_last_layers': 1, 'flash_tau': 0.3,
                  'fmp_no_use_ema': True, 'fmp_use_residual': False,
                  'input_size': 64}  # fmt: skip
  fields = inferred(shapes(**args))['model']
  mira = fields['mira']
  assert fields['mira_last_blocks'] == 1
  assert fields['image_size'] == 64
  assert (mira['mode'], mira['statistics']) == ('flashlite', 'batch')
  assert (mira['temperature'], mira['residual_mix']) == (0.3, 1.0)
  source = shapes(pretraining=True, mask_type='random', mask_ratio=0.5,
                  normlize_target=False)  # fmt: skip
  assert inferred(source)['pretrain'] == {
    'decoder_dim': 192, 'decoder_depth': 1, 'decoder_heads': 3,
    'decoder_mlp_ratio': 50 / 192, 'mask': 'random', 'mask_ratio': 0.5,
    'normalise_targets': False,
  }  # fmt: skip
  source = shapes(sampling_rate=2, data_set='FERV39k')
  rules = inferred(source, rate=3)['preprocessing']
  assert rules == {'rate': 3, 'fit': 'squash'}


def test_a_run_with_a_setting_that_ours_lacks_is_refused(tmp_path):
  state, _ = hugging_face('classification')
  args = argparse.Namespace(use_mean_pooling=False)
  path = torch_files.save(tmp_path / 'a.pth', {'model': state, 'args': args})
  with pytest.raises(MiraInputError, match=r'unsupported.*use_mean_pooling'):
    sources.read(path)


def test_what_a_model_computes_otherwise_than_its_source_is_said():
  model = {'heads': 3, 'gelu': 'exact', 'norm_eps': 1e-6,
           'frames': 16, 'image_size': 224}  # fmt: skip
  run = model, {'rate': 4, 'fit': 'crop'}
  source = shapes()
  assert not infer_model.differences(source, *run)  # unknown
  source.fields = {'heads': 3, 'gelu': 'tanh', 'norm_eps': 1e-12, 'frames': 32,
                   'fit': 'squash'}  # fmt: skip
  assert infer_model.differences(source, *run) == [
    'gelu is tanh there and exact here; --config.model.gelu=tanh',
    'norm_eps is 1e-12 there and 1e-06 here; --config.model.norm_eps=1e-12',
    'frames is 32 there and 16 here; --config.model.frames=32',
    'fit is squash there and crop here; --config.data.fit=squash',
  ]
  rules = {'rate': 2, 'fit': 'crop'}
  source.metadata = {'model': model | {'heads': 4}, 'preprocessing': rules}
  assert len(infer_model.differences(source, *run)) == 2


def test_a_width_is_whole_whatever_its_quotient_rounds_to():
  assert int(28 * (61 / 28)) == 60
  widths = [(d, n) for d in (28, 44, 768, 1280) for n in range(d, 4 * d)]
  for dim, width in widths:
    assert mlp_width(dim, width / dim) == width
  assert mlp_width(768, 2.6667) == 2048
  assert mlp_width(128, 2.999) == 383
