"""Options of variants: class tokens, sizes, rules, and their optimisers."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from mira_jax import config
from mira_jax.errors import MiraInputError
from mira_jax.mira import MiraConfig
from mira_jax.models.options import VARIANTS
from mira_jax.models.vivit import ViViT
from mira_jax.train import optim
from mira_jax.weights.weights_file import flatten
from tiny_models import (
  TINY,
  B,
  C,
  N,
  T,
  model_and_variables,
  shapes_of,
)

# ----- options ----------------------------------------------------------------


def test_the_factorised_encoder_reads_class_tokens(x64):
  model, variables, video = model_and_variables(
    'factorised_encoder', pool='cls', positions='learned', mira=MiraConfig()
  )
  params = variables['params']
  assert params['cls'].shape == params['cls_time'].shape == (1, 1, C)
  assert params['positions'].shape == (N, C)
  assert params['positions_time'].shape == (T, C)
  run = jax.jit(functools.partial(model.apply, record=True))
  logits, records = run(variables, video)
  assert records[0]['output'].shape == (B, T, 1 + N, C)
  assert records[-1]['output'].shape == (B, 1 + T, C)
  x = np.asarray(records[-1]['output'][:, 0])
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  x = x * params['norm']['scale'] + params['norm']['bias']
  want = x @ params['head']['kernel'] + params['head']['bias']
  np.testing.assert_allclose(logits, want, atol=1e-12)
  for name in ('cls', 'cls_time', 'positions', 'positions_time'):
    changed = {'params': params | {name: params[name] + np.arange(C)}}
    assert np.abs(run(changed, video)[0] - logits).max() > 1e-4, name


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'variant': 'axial'}, 'axial.*joint'),
    ({'variant': 'intra', 'pool': 'cls'}, "pool: 'cls'.*intra.*use 'mean'"),
    (
      {'variant': 'factorised_dot_product', 'heads': 1},
      'heads: 1 must be even',
    ),
    ({'image_size': 9}, 'image_size: 9 must be a multiple of patch 4'),
    (
      {'variant': 'intra_as_shipped', 'image_size': 4},
      '3 tokens are one group of 3',
    ),
    (
      {
        'variant': 'factorised_encoder',
        'mira': MiraConfig(),
        'mira_last_blocks': 1,
        'scan': True,
      },
      'last 1 of 4',
    ),
  ],
)
def test_what_cannot_be_is_an_error(fields, words):
  with pytest.raises(ValueError, match=words):
    shapes_of(ViViT(**TINY | fields))


def test_the_configuration_has_the_same_rules():
  cfg = config.Config()
  for variant in VARIANTS:
    cfg.model.variant = variant
    config.validate(cfg)
  cfg.model.variant, cfg.model.pool = 'intra', 'cls'
  with pytest.raises(MiraInputError, match=r"model\.pool.*use 'mean'"):
    config.validate(cfg)


# ----- optimisers -------------------------------------------------------------


def params_of(variant, scan):
  options = {'positions': 'learned', 'layer_scale': 0.1, 'scan': scan}
  if variant == 'factorised_encoder':
    options['pool'] = 'cls'
  return shapes_of(ViViT(**TINY, variant=variant, **options))['params']


@pytest.mark.parametrize('scan', [False, True])
def test_temporal_layers_come_after_spatial_ones(scan):
  params = params_of('factorised_encoder', scan)
  scales = flatten(optim.layer_scales(params, 0.5))
  # Seven layers follow the inputs: two spatial, four temporal, and the head.
  want = {
    'embed': 0,
    'positions': 0,
    'cls': 0,
    'encoder/block_0': 1,
    'encoder/block_1': 2,
    'positions_time': 2,
    'cls_time': 2,
    'temporal/block_0': 3,
    'temporal/block_1': 4,
    'temporal/block_2': 5,
    'temporal/block_3': 6,
    'norm': 7,
    'head': 7,
    'encoder/blocks': np.array([1, 2]),
    'temporal/blocks': np.array([3, 4, 5, 6]),
  }
  for name, leaf in flatten(params).items():
    parts = name.split('/')
    inside = parts[0] in ('encoder', 'temporal')
    layer = want['/'.join(parts[: 1 + inside])]
    np.testing.assert_array_equal(
      np.squeeze(scales[name]), 0.5 ** (7.0 - layer), err_msg=name
    )
    if 'blocks' in parts:
      assert scales[name].ndim == leaf.ndim
