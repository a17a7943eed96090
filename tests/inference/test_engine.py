"""The inference engine: buckets, padding, views, and clear errors."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from mira_jax.config import ModelConfig
from mira_jax.devices import sharding
from mira_jax.errors import MiraInputError
from mira_jax.inference import engine, load
from mira_jax.kernels import dispatch
from mira_jax.mira import MiraConfig
from mira_jax.models import build
from mira_jax.weights.weights_file import (
  WEIGHTS,
  flatten,
  load_weights,
  save_weights,
)
from small_models import save_model

CLASSES = ('dark', 'bright', 'fading')
MODEL = ModelConfig(
  dim=16,
  depth=1,
  heads=2,
  num_classes=3,
  frames=4,
  image_size=16,
  patch=8,
  head_scale=1.0,
  mira=MiraConfig(statistics='batch_ema'),
)


@pytest.fixture(scope='module')
def weights_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / WEIGHTS
  return save_model(path, names=list(CLASSES), **dataclasses.asdict(MODEL))


def test_engine_scores_are_the_models(weights_file):
  # Statistics per clip, so that padding cannot matter.
  single = dataclasses.replace(MODEL, mira=MiraConfig())
  variables, _ = load_weights(weights_file)
  model = build.build_model(dataclasses.asdict(single))
  scorer = engine.Engine(model, variables, batch_size=4)
  video = runs.batch(6)['video']
  from_mean = (video / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  logits = jax.jit(model.apply)(variables, jnp.asarray(from_mean, jnp.float32))
  expected = jax.nn.softmax(logits)
  np.testing.assert_allclose(
    scorer.probabilities(video), expected, rtol=1e-4, atol=1e-6
  )
  (record,) = scorer.records(video[:2])
  assert record['gain'].shape == (2, 2)
  assert record['before'].shape == (2, 8)


def engine_of_four(weights_file):
  """An engine that scores four clips at once, on as many devices."""
  mesh = sharding.make_mesh(devices=jax.devices()[:4])
  whole, _ = load.load_engine(weights_file)
  return engine.Engine(whole.model, load_weights(weights_file)[0], 4, mesh)


def test_engine_averages_views_and_ignores_padding(weights_file):
  scorer = engine_of_four(weights_file)
  a, b = runs.batch(4), runs.batch(4, seed=1)
  b['mask'][2:] = False  # 6 rows are real: 3 clips in 2 views
  a['clip'][:], b['clip'][:] = [0, 0, 1, 1], [2, 2, 0, 0]
  a['label'][:], b['label'][:] = [2, 2, 0, 0], [1, 1, 0, 0]
  mean, labels, damaged = scorer.score_split([a, b], clips=3, views=2)
  first, second = (scorer.probabilities(x['video']) for x in (a, b))
  expected = [first[:2].mean(0), first[2:].mean(0), second[:2].mean(0)]
  np.testing.assert_allclose(mean, expected, rtol=1e-5)
  assert labels.tolist() == [2, 0, 1]
  assert damaged.tolist() == []


def test_engine_leaves_out_clips_that_were_not_seen_whole(weights_file):
  scorer = engine_of_four(weights_file)
  batch = runs.batch(4)
  batch['clip'][:], batch['label'][:] = [0, 0, 1, 3], [2, 2, 0, 1]
  mean, labels, damaged = scorer.score_split([batch], clips=4, views=2)
  assert (mean.shape, labels.tolist()) == ((1, 3), [2])
  assert damaged.tolist() == [1, 2, 3]
  with pytest.raises(MiraInputError, match='damaged'):
    scorer.score_split([batch], clips=4, views=3)
  batch['clip'][:] = 0
  with pytest.raises(ValueError, match='1 clips have'):
    scorer.score_split([batch], clips=1, views=2)


def test_the_size_of_the_batch_does_not_change_a_prediction(weights_file):
  video = runs.batch(4)['video']
  few, many = (
    load.load_engine(weights_file, size)[0].probabilities(video)
    for size in (4, 16)
  )
  np.testing.assert_allclose(few, many, rtol=1e-5)


def test_engine_names_what_does_not_fit(weights_file, tmp_path):
  scorer, card = load.load_engine(weights_file)
  with pytest.raises(MiraInputError, match='bad_shape'):
    scorer.probabilities(np.zeros((1, 8, 16, 16, 3), np.uint8))
  for name in ('absent', '.'):
    with pytest.raises(MiraInputError, match='not_found'):
      load.load_engine(tmp_path / name)
  (tmp_path / 'one').mkdir()
  (tmp_path / 'one' / 'config.json').touch()
  with pytest.raises(MiraInputError, match='not_finished'):
    load.load_engine(tmp_path / 'one')
  variables, _ = load_weights(weights_file)
  card['model']['depth'] = 2
  params, mira = variables['params'], variables['mira']
  path = save_weights(tmp_path / 'w', params, mira, card)
  with pytest.raises(MiraInputError, match=r'mira.*block_1.*norm2/scale'):
    load.load_engine(path)
  with pytest.raises(MiraInputError, match='bad_metadata'):
    build.build_model({'dtype': 'float32', 'width': 3})


def test_engines_of_a_model_share_programs(weights_file, tmp_path, caplog):
  """As folds do: other weights of one model compile nothing."""
  variables, card = load_weights(weights_file)
  other = jax.tree.map(lambda x: x + 0.1, variables['params'])
  path = save_weights(tmp_path / WEIGHTS, other, variables['mira'], card)
  video = runs.batch(2)['video']

  def scores(path):
    scorer, _ = load.load_engine(path, 2)
    scorer.records(video)
    return scorer.probabilities(video)

  first = scores(weights_file)
  with jax.log_compiles():
    assert not np.allclose(scores(path), first)
  lines = [line for line in caplog.messages if 'XLA compilation' in line]
  assert not [line for line in lines if 'score' in line or 'record' in line]
  # What is known of the devices chooses attention: then all is traced anew.
  caplog.clear()
  forced = dispatch.known().forced
  dispatch.learn(forced='reference')
  with jax.log_compiles():
    scores(path)
  dispatch.learn(forced=forced)
  assert 'jit(score)' in caplog.text


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('last', [None, 1, 0])
@pytest.mark.parametrize('variant', ['joint', 'st_block', 'factorised_encoder'])
def test_one_block_stands_for_all(variant, last, scan):
  """The variables that weights are checked for are those of the model."""
  fields = dataclasses.replace(
    MODEL, depth=3, variant=variant, mira_last_blocks=last, scan=scan
  )
  if scan and last is not None:
    fields = dataclasses.replace(fields, mira=None)
  model = build.build_model(dataclasses.asdict(fields))
  video = jax.ShapeDtypeStruct(load._video_shape(model), jnp.float32)
  tree = jax.eval_shape(model.init, jax.random.key(0), video)
  shapes = {name: leaf.shape for name, leaf in flatten(tree).items()}
  assert load._expected(model) == shapes
