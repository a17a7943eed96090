"""Action units as a task: losses by hand, and runs from start to end."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import runs
from mira_jax import config
from mira_jax.errors import MiraInputError
from mira_jax.evaluation import results, units
from mira_jax.inference import load
from mira_jax.train import datasets as inputs
from mira_jax.train import loop, losses, run_folder
from mira_jax.weights import weights_file
from small_units import UNITS, tiny, write


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return write(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def run(tmp_path_factory, data, caching):
  folder = tmp_path_factory.mktemp('unit_run') / 'run'
  with caching():
    loop.train(tiny(data), run_folder.open_workdir(str(folder)))
  return folder


# ----- the loss ---------------------------------------------------------------


def test_unknown_units_count_nowhere():
  logits = jnp.array([[2.0, -1.0], [0.5, 3.0]])
  shown = jnp.array([[True, False], [True, True]])
  known = jnp.array([[True, True], [False, True]])
  loss = losses.unit_cross_entropy(logits, shown, known)
  each = optax.sigmoid_binary_cross_entropy(logits, shown.astype(float))
  expected = (each[0, 0] + each[0, 1] + each[1, 1]) / 3
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  gradient = jax.grad(losses.unit_cross_entropy)(logits, shown, known)
  assert gradient[1, 0] == 0
  assert (np.asarray(gradient).ravel()[[0, 1, 3]] != 0).all()


def test_without_a_known_unit_the_loss_is_zero_and_gradients_finite():
  logits = jnp.array([[1e3, -1e3]])
  nothing = jnp.zeros((1, 2), bool)
  both = jax.value_and_grad(losses.unit_cross_entropy)
  loss, gradient = both(logits, nothing, nothing, 0.1, [0.0, 2.0])
  assert loss == 0
  np.testing.assert_array_equal(gradient, 0)
  found = losses.unit_metrics(logits, nothing, nothing)
  assert (found['accuracy'], found['f1']) == (0, 0)


def test_weights_of_units_are_those_of_a_mean():
  logits = jnp.array([[2.0, -1.0], [0.5, 3.0]])
  shown = jnp.array([[True, False], [True, True]])
  known = jnp.array([[True, True], [False, True]])
  loss = losses.unit_cross_entropy(logits, shown, known, 0.0, [3.0, 0.5])
  each = optax.sigmoid_binary_cross_entropy(logits, shown.astype(float))
  expected = (3 * each[0, 0] + 0.5 * each[0, 1] + 0.5 * each[1, 1]) / 4
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_weights_are_inverse_to_the_frequency_with_mean_one():
  weights = losses.inverse_weights([0.5, 0.1, 0.25])
  np.testing.assert_allclose(np.array(weights) * [0.5, 0.1, 0.25] / weights[0],
                             0.5)  # fmt: skip
  assert np.mean(weights) == pytest.approx(1)
  assert losses.inverse_weights([0.5, 0.0])[1] == 0


def test_smoothing_is_towards_a_half():
  known = jnp.ones((1, 1), bool)
  zero = jnp.zeros((1, 1))
  gradient = jax.grad(losses.unit_cross_entropy)(zero, known, known, 1.0)
  np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_metrics_of_known_units():
  logits = jnp.array([[1.0, 1.0, -1.0, -1.0, 1.0]])
  shown = jnp.array([[True, False, True, False, True]])
  known = jnp.array([[True, True, True, True, False]])
  found = losses.unit_metrics(logits, shown, known)
  assert found['accuracy'] == pytest.approx(2 / 4)
  assert found['f1'] == pytest.approx(2 / 4)


# ----- runs -------------------------------------------------------------------


def test_a_run_learns_units_and_its_weights_say_so(run):
  content = json.loads((run / results.NAME).read_text())
  assert content['labels'] == 'action_units'
  assert content['class_names'] == list(UNITS)
  first = content['results'][0]
  assert first['name'] == results.CHOSEN
  assert first['scores']['mean_f1'] > 0.85
  assert content['results'][-1]['name'] == results.BEST_ON_TEST
  _, card = weights_file.load_weights(run / weights_file.WEIGHTS)
  assert card['labels'] == 'action_units'
  assert card['class_names'] == list(UNITS)
  assert card['unit_thresholds'] == first['thresholds']


def test_thresholds_are_the_best_of_validation_clips(tmp_path, data):
  """Scored again from the weights, the threshold is theirs, not a test's."""
  run = tmp_path / 'run'
  weak = tiny(data, optim={'lr': 1e-3}, train={'epochs': 1, 'eval_every': 1})
  loop.train(weak, run_folder.open_workdir(str(run)))
  content = json.loads((run / results.NAME).read_text())
  cfg = run_folder.read_config(run)
  made, card = load.load_engine(run, cfg.data.batch_size)
  parts = inputs.open_parts(cfg, inputs.open_datasets(cfg.data))
  own, others = (
    units.best_thresholds(
      inputs.score_units(
        made, part, cfg, cfg.eval.views, '', card['class_names']
      )
    )
    for part in (parts.val, parts.test)
  )
  assert content['results'][0]['thresholds'] == pytest.approx(own, rel=1e-4)
  assert own != pytest.approx(others, rel=1e-4)


def test_samples_are_written_as_they_were_scored(run):
  predicted = units.read(run / units.NAME)
  assert (len(predicted), predicted.positive_from) == (12, 2)
  assert predicted.unit_names == UNITS
  assert (predicted.intensity[4] == [1, 1, -1]).all()
  assert (predicted.frame == 4).all()  # of 2, 3, 4, 5
  content = json.loads((run / results.NAME).read_text())
  found = units.score(predicted).to_dict()
  for unit in UNITS:
    expected = content['results'][0]['scores']['units'][unit]['f1']
    assert found['units'][unit]['f1'] == pytest.approx(expected)


def test_a_finished_run_keeps_its_chosen_weights(run, data, caching):
  before, card = weights_file.load_weights(run / weights_file.WEIGHTS)
  assert results.steps(run)[results.CHOSEN] > 0
  assert results.read(run) == []
  with caching():
    loop.train(tiny(data), run_folder.open_workdir(str(run)))
  again = weights_file.load_weights(run / weights_file.WEIGHTS)
  assert again[1] == card
  jax.tree.map(np.testing.assert_array_equal, again[0], before)


def test_some_units_are_learned_from_every_token(tmp_path, data):
  cfg = tiny(
    data,
    model={'pool': 'frame'},
    data={'unit_labels': 'token', 'units': 'AU12,AU1'},
    train={'epochs': 2},
    eval={'views': 2},
  )
  loop.train(cfg, run_folder.open_workdir(str(tmp_path / 'run')))
  predicted = units.read(tmp_path / 'run' / units.NAME)
  assert predicted.unit_names == ('AU12', 'AU1')
  # Tokens of two frames, in windows of 0 to 3 and 4 to 7.
  assert sorted({*predicted.frame.tolist()}) == [0, 2, 4, 6]
  assert len(predicted) == 12 * 4


@pytest.mark.parametrize(
  ('groups', 'named'),
  [
    ({'data': {'mixup_alpha': 0.8}}, 'mixup_alpha'),
    (
      {'data': {'pseudo_labels': 'x.csv', 'protocol': 'lodo'}},
      'pseudo_labels',
    ),
    ({'data': {'labels': 'classes', 'units': 'AU1'}}, 'units'),
    ({'data': {'cutmix_alpha': 1.0}}, 'cutmix_alpha'),
    ({'data': {'unit_labels': 'token'}}, 'pool'),
    ({'model': {'pool': 'frame'}}, 'pool'),
    ({'data': {'labels': 'classes'}, 'model': {'pool': 'frame'}}, 'pool'),
    ({'train': {'refit': True}}, 'refit'),
  ],
)
def test_what_does_not_go_with_units_is_refused(data, groups, named):
  groups = dict(groups)
  if 'mixup_alpha' in named or 'cutmix_alpha' in named:
    groups['optim'] = {'class_weights': 'none'}
  with pytest.raises(MiraInputError, match=named):
    config.validate(tiny(data, **groups))


def test_a_dataset_without_units_is_refused(tmp_path):
  path = runs.levels(tmp_path / 'levels')
  with pytest.raises(MiraInputError, match='no action units'):
    loop.train(tiny(path), run_folder.open_workdir(str(tmp_path / 'run')))
