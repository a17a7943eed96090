"""Probes of frozen features: by hand, by an oracle, and without leaks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.errors import MiraInputError
from mira_jax.evaluation import feature_file, probe
from small_features import blobs, subjects

# ----- nearest neighbours ---------------------------------------------------

# Directions at 0, 60 and 90 degrees; lengths do not matter.
TRAIN = np.array([[2.0, 0.0], [0.5, 0.75**0.5], [0.0, 3.0]])
LABELS = np.array([0, 1, 1])


def test_votes_by_hand(monkeypatch):
  test = np.array([[5.0, 0.0]])  # similarities 1, 1/2 and 0
  monkeypatch.setattr(probe, 'TEMPERATURE', 0.5)
  votes = probe.knn_votes(TRAIN, LABELS, test, ks=(1, 2, 3), num_classes=2)
  np.testing.assert_allclose(votes[1], [[1, 0]])
  two = np.exp([2.0, 1.0])
  np.testing.assert_allclose(votes[2], [two / two.sum()])
  three = np.exp([2.0, 1.0, 0.0])
  expected = np.array([[three[0], three[1] + three[2]]]) / three.sum()
  np.testing.assert_allclose(votes[3], expected)
  monkeypatch.setattr(probe, 'TEMPERATURE', 1e-4)  # nothing overflows
  votes = probe.knn_votes(TRAIN, LABELS, TRAIN, ks=(3,), num_classes=2)
  np.testing.assert_allclose(votes[3], np.eye(2)[LABELS], atol=1e-12)


def test_of_clips_that_are_the_same_the_first_counts():
  rng = np.random.default_rng(2)
  once = rng.normal(size=(101, 768))
  labels = np.repeat([0, 1], 101)
  votes = probe.knn_votes(
    np.concatenate([once, once]), labels, rng.normal(size=(400, 768)),
    ks=(1,), num_classes=2,
  )  # fmt: skip
  assert (votes[1][:, 0] == 1).all()


def test_more_neighbours_than_clips_are_refused():
  for k in (0, 4):
    with pytest.raises(MiraInputError, match='there are 3 training clips'):
      probe.knn_votes(TRAIN, LABELS, TRAIN, ks=(1, k), num_classes=2)


def test_a_clip_is_no_neighbour_of_its_own_group():
  groups = np.array(['a', 'a', 'b'])
  votes = probe.knn_votes(
    TRAIN, LABELS, TRAIN, ks=(1,), num_classes=2, apart=(groups, groups)
  )
  # The first two have the third alone, the third has the second.
  assert votes[1].argmax(1).tolist() == [1, 1, 1]
  alone = np.array(['a', 'a', 'a'])
  votes = probe.knn_votes(
    TRAIN, LABELS, TRAIN, ks=(1,), num_classes=2, apart=(alone, alone)
  )
  np.testing.assert_array_equal(votes[1], np.full((3, 2), 0.5))


def test_k_is_selected_without_the_own_subject():
  # The three clips of a subject are the same, and one is of another class, so
  # that with the own subject k=1 is mostly wrong, and across subjects right.
  rng = np.random.default_rng(0)
  own = np.arange(20) % 2
  seen = 2 * own[:, None] * [1, 0.3, 0] - [1, 0.3, 0]
  features = np.repeat(seen + rng.normal(0, 0.5, (20, 3)), 3, axis=0)
  labels = np.stack([own, 1 - own, own], axis=1).ravel()
  for groups, best in ((np.arange(60) // 3, 'k=1'), (np.arange(60), 'k=10')):
    found = probe.knn(
      features, labels, groups, features, num_classes=2, ks=(1, 10)
    )
    assert next(iter(found)) == best


def test_blocks_of_rows_change_nothing():
  rng = np.random.default_rng(0)
  train, test = rng.normal(size=(9000, 3)), rng.normal(size=(1000, 3))
  labels = rng.integers(0, 3, 9000)  # similarities of 72 MB: two blocks
  ends = [0, 500, 999]
  whole, some = (
    probe.knn_votes(train, labels, x, ks=(1, 7), num_classes=3)
    for x in (test, test[ends])
  )
  for k in (1, 7):
    np.testing.assert_allclose(whole[k][ends], some[k], rtol=1e-5)


# ----- a linear classifier --------------------------------------------------


@pytest.mark.parametrize(
  ('penalty', 'absent', 'balanced'),
  [(1e-3, None, False), (1e-3, 2, True), (10.0, None, True), (10.0, 2, False)],
)
def test_the_fit_is_where_the_gradient_vanishes(penalty, absent, balanced):
  features, labels = (x[:80] for x in blobs())
  labels = np.where(labels == absent, 1, labels)
  features[:, 5] = 3.0  # constant: it can say nothing
  fitted = probe.fit_linear(
    features, labels, penalty=penalty, balanced=balanced
  )
  scaler, model = fitted
  x = jnp.asarray(scaler.transform(features), jnp.float32)

  def loss(weights, bias):
    logs = jax.nn.log_softmax(x @ weights + bias)
    picked = logs[jnp.arange(len(labels)), labels]
    if balanced:
      fit = -sum(picked[labels == c].mean() for c in set(labels.tolist()))
      fit = fit / len(set(labels.tolist()))
    else:
      fit = -picked.mean()
    return fit + penalty / 2 * jnp.square(weights).sum()

  weights, bias = model.coef_.T, model.intercept_
  if absent:  # scikit-learn gives the difference of the two classes
    weights, bias = (
      np.hstack([-weights, weights]) / 2,
      np.array([-bias, bias]) / 2,
    )
  gradients = jax.grad(loss, (0, 1))(jnp.asarray(weights), jnp.ravel(bias))
  for gradient in gradients:
    np.testing.assert_allclose(gradient, 0, atol=2e-6)
  assert (weights[5] == 0).all()
  # Under a strong penalty the bias is left, and predicts the largest class.
  right = (fitted.predict(features) == labels).mean()
  assert right > 0.7 or penalty == 10


def test_the_only_class_of_a_fold_is_predicted():
  fitted = probe.fit_linear(np.eye(3), np.array([2, 2, 2]), penalty=1.0)
  assert fitted.predict(np.eye(3)).tolist() == [2, 2, 2]


def test_a_penalty_is_selected_on_what_was_held_out(monkeypatch):
  monkeypatch.setattr(probe, 'PENALTIES', (1e-5, 0.1, 1.0, 100.0))
  features, labels = blobs(count=30, dim=25, spread=2.0)
  held = np.arange(30) >= 20
  best = probe.select_penalty(features, labels, held, num_classes=3)
  uar = {}
  for penalty in probe.PENALTIES:
    fitted = probe.fit_linear(features[~held], labels[~held], penalty=penalty)
    right = fitted.predict(features[held]) == labels[held]
    uar[penalty] = np.mean([right[labels[held] == k].mean() for k in range(3)])
  assert min(uar.values()) < max(uar.values())
  assert best == max(p for p in uar if uar[p] == max(uar.values()))
  nothing = np.zeros(30, bool)
  assert (
    probe.select_penalty(features, labels, nothing, num_classes=3)
    in probe.PENALTIES
  )


def test_small_penalties_that_overfit_are_not_tried(monkeypatch):
  tried, fit = [], probe.fit_linear

  def counted(*args, penalty, **options):
    tried.append(penalty)
    return fit(*args, penalty=penalty, **options)

  monkeypatch.setattr(probe, 'fit_linear', counted)
  features, labels = blobs(count=60, dim=40, spread=2.0)
  held = np.arange(60) >= 40
  best = probe.select_penalty(features, labels, held, num_classes=3)
  assert tried == sorted(probe.PENALTIES, reverse=True)[: len(tried)]
  assert tried.index(best) == len(tried) - 3
  assert len(tried) < len(probe.PENALTIES)
  # A fit that goes on from another one ends where a new one does.
  start = fit(features, labels, penalty=10.0)
  again = fit(features, labels, penalty=0.1, start=start)
  new = fit(features, labels, penalty=0.1)
  np.testing.assert_allclose(again[-1].coef_, new[-1].coef_, atol=1e-5)


# ----- protocols ------------------------------------------------------------

METHODS = {
  'knn': functools.partial(probe.knn, num_classes=3, ks=(1, 3, 9)),
  'linear': functools.partial(
    probe.linear,
    num_classes=3,
    hold_out=lambda labels, groups: groups == groups[0],
  ),
}


def run(data, protocol, method):
  return probe.run(
    METHODS[method],
    data['features'],
    data['label'],
    data['subject'],
    feature_file.partition(data, protocol),
    3,
  )


def test_no_subject_is_trained_on_and_tested():
  data = subjects()
  for protocol, folds in (('loso', 6), ('folds', 3), ('split', 1)):
    tests = feature_file.partition(data, protocol)
    assert len(tests) == folds
    for train, test in tests.values():
      trained, tested = (set(data['subject'][m]) for m in (train, test))
      assert trained
      assert tested
      assert not trained & tested
    if protocol != 'split':
      assert (sum(test for _, test in tests.values()) == 1).all()
      for train, test in tests.values():
        assert (train == ~test).all()
  assert list(feature_file.partition(data, 'loso')) == [
    f's{i}' for i in range(1, 7)
  ]


@pytest.mark.parametrize('method', METHODS)
def test_what_is_tested_decides_nothing(method, monkeypatch):
  monkeypatch.setattr(probe, 'PENALTIES', (0.01, 1.0, 100.0))
  data = subjects()
  one = data['fold'] == 1
  clean = run(data, 'folds', method)
  at = [fold.name for fold in clean.folds].index('fold 1')
  # Other labels: the same choice and predictions; rows swap, no more.
  relabelled = data | {'label': np.where(one, 2 - data['label'], data['label'])}
  found = run(relabelled, 'folds', method)
  assert found.chosen[at] == clean.chosen[at]
  np.testing.assert_array_equal(
    found.folds[at].matrix[::-1], clean.folds[at].matrix
  )
  # Other features of all tested clips but one: that one is seen as before.
  last = np.flatnonzero(one)[-1]
  junk = data['features'].copy()
  others = one & (np.arange(len(one)) != last)
  junk[others] = 100 * np.random.default_rng(3).normal(size=(others.sum(), 6))
  args = (data['features'][~one], data['label'][~one], data['subject'][~one])
  before, after = (
    METHODS[method](*args, features[one])
    for features in (data['features'], junk)
  )
  assert list(before) == list(after)
  assert all(before[name][-1] == after[name][-1] for name in before)


def test_a_sweep_pools_the_same_clips_for_every_setting():
  data = subjects()

  def method(train, labels, groups, test):
    some = {'k=1': 0, 'k=50': 1} if len(train) >= 50 else {'k=1': 0}
    return {name: np.full(len(test), i) for name, i in some.items()}

  tests = feature_file.partition(data, 'loso')
  result = probe.run(
    method, data['features'], data['label'], data['subject'], tests, 3
  )
  assert result.sweep.keys() == {'k=1'}
  assert result.sweep['k=1'].sum() == 60
