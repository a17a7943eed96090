"""The public interface: `mira_jax.load` and what it gives."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import mira_jax
import torch_files
from mira_jax.errors import MiraInputError
from mira_jax.inference import load as loading
from mira_jax.mira import MiraConfig
from mira_jax.weights import convert, torch_names
from small_models import NAMES, save_model
from videos import make_video

pytestmark = pytest.mark.usefixtures('compile_cache')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return save_model(
    tmp_path_factory.mktemp('run'), MiraConfig(), head_scale=9.0
  )


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  return make_video(tmp_path_factory.mktemp('clip') / 'a.mp4', count=48)


@pytest.fixture(scope='module')
def model(run, compile_cache):
  del compile_cache  # only that it is there before
  return mira_jax.load(run, views=3)


def test_importing_the_package_is_immediate():
  program = """
import sys, mira_jax
assert not {'jax', 'flax', 'numpy', 'absl'} & sys.modules.keys()
assert mira_jax.__version__ and set(mira_jax.__all__) <= set(dir(mira_jax))
"""
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  with pytest.raises(AttributeError, match='no attribute'):
    mira_jax.nothing  # noqa: B018


def test_a_clip_has_probabilities_by_name(model, run, clip):
  found = model.predict(clip)
  assert model.class_names == tuple(NAMES) == tuple(found.probabilities)
  assert found.label == max(found.probabilities, key=found.probabilities.get)
  assert found.windows.shape == (3, 7)
  np.testing.assert_array_equal(found.windows.mean(0), found.mean)
  assert (found.frames, found.fps, found.seconds) == (48, 25, 48 / 25)
  assert (found.timeline, found.records, found.flags) == (None, None, ())
  # By hand, from the engine.
  scorer, card = loading.load_engine(run, 3)
  rules = {name: card['preprocessing'][name] for name in ('rate', 'fit')}
  windows, _ = scorer.cut_views(model.read(clip), views=3, **rules)
  expected = scorer.probabilities(windows).mean(0)
  np.testing.assert_allclose(found.mean, expected, atol=1e-6)
  with pytest.raises(dataclasses.FrozenInstanceError):
    found.label = 'Sad'


@pytest.mark.parametrize(
  'wrong', [{'views': 0}, {'views': 2.5}, {'batch_size': 0}, {'dtype': 'f64'}]
)
def test_arguments_out_of_range_are_named(run, wrong):
  with pytest.raises(MiraInputError, match='bad_value') as error:
    mira_jax.load(run, **wrong)
  assert next(iter(wrong)) in str(error.value)


def test_an_array_is_a_clip(model, clip):
  video = model.read(clip)
  found = model.predict(video.frames, fps=video.fps)
  assert found.probabilities == model.predict(clip).probabilities
  assert found.seconds == 48 / 25
  assert model.predict(video.frames).seconds == 0  # of an unknown rate
  assert model.predict(video.frames[:3]).flags == ('repeated:3/16',)
  for wrong in (video.frames / 255, video.frames[0], video.frames[:0]):
    with pytest.raises(MiraInputError, match='bad_shape'):
      model.predict(wrong)
  with pytest.raises(MiraInputError, match='not_found'):
    model.predict('nowhere.mp4')


def test_a_long_clip_has_a_timeline(model, clip):
  found = model.predict(clip, timeline=True)
  assert found.windows is None
  assert found.timeline.shape == (2, 7)
  np.testing.assert_allclose(found.timeline.mean(0), found.mean, atol=1e-6)


def test_features_are_the_input_of_the_head(model, clip):
  features = model.features(clip)
  assert features.shape == (16,)
  head = model.scorer._variables['params']['head']
  windows, _ = model._windows(model.read(clip))
  logits = model.scorer.logits(windows).mean(0)
  np.testing.assert_allclose(
    features @ head['kernel'] + head['bias'], logits, rtol=1e-4, atol=1e-5
  )


def test_records_are_those_of_the_middle_window(model, clip):
  records = model.records(clip)
  assert records.window.shape == (16, 32, 32, 3)
  assert (records.number, records.windows) == (1, 3)
  assert records.gain.shape == (2, 8)
  for marginal in (records.before, records.after):
    assert marginal.shape == (8, 4, 4)
    np.testing.assert_allclose(marginal.sum(), 1, rtol=1e-5)
  predicted = model.predict(clip, records=True).records
  np.testing.assert_array_equal(predicted.gain, records.gain)


def test_a_checkpoint_of_pytorch_predicts_the_same(model, run, clip, tmp_path):
  state = torch_names.to_torch(
    convert.read(run).variables, torch_names.CLASSIFIER
  )
  pth = torch_files.save(tmp_path / 'a.pth', {'model': state})
  says = {'heads': 2, 'image_size': 32, 'rate': 2, 'mode': 'exact'}
  other = mira_jax.load(pth, views=3, class_names=NAMES, **says)
  found, expected = other.predict(clip), model.predict(clip)
  assert found.label == expected.label
  np.testing.assert_allclose(found.mean, expected.mean, atol=1e-5)
  assert (model.notes, other.notes) == ((), ())


def test_an_export_gives_probabilities_alone(clip, request):
  path = request.config.rootpath / 'tests' / 'compatibility/0.1.0/export'
  exported = mira_jax.load(path)
  for ask in (exported.features, exported.records):
    with pytest.raises(MiraInputError, match='unsupported'):
      ask(clip)
  for wrong in ({'dtype': 'bfloat16'}, {'heads': 3}):
    with pytest.raises(MiraInputError, match='bad_flag'):
      mira_jax.load(path, **wrong)


def test_a_backbone_has_features_alone(clip, tmp_path):
  path = save_model(tmp_path / 'w.safetensors', MiraConfig(), names=[], depth=1)
  model = mira_jax.load(path)
  assert model.class_names == ()
  assert model.features(clip).shape == (16,)
  assert model.records(clip).gain.shape == (1, 8)
  with pytest.raises(MiraInputError, match='no_classifier'):
    model.predict(clip)
