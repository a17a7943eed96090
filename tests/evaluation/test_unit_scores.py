"""Scores of action units, by hand, by scikit-learn and by a textbook."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score

from mira_jax.evaluation import units

# Shrout and Fleiss 1979, table 2: four ratings of six targets.
RATINGS = np.array(
  [
    [9, 2, 5, 8],
    [6, 1, 3, 2],
    [8, 4, 6, 8],
    [7, 1, 2, 6],
    [10, 5, 6, 9],
    [6, 2, 4, 7],
  ],
  float,
)


def made(intensity, probability, *, positive_from=1, subject=None, frame=None):
  intensity, count = np.array(intensity), len(intensity)
  return units.UnitPredictions(
    unit_names=tuple(f'AU{i}' for i in range(intensity.shape[1])),
    positive_from=positive_from,
    clip=np.array([f'clip {i}' for i in range(count)]),
    frame=np.arange(count) if frame is None else np.array(frame),
    subject=np.array(subject or [''] * count),
    fold=np.full(count, 'fold 1'),
    intensity=intensity,
    probability=np.array(probability, float),
  )


def drawn(count=60, seed=0):
  rng = np.random.default_rng(seed)
  intensity = rng.integers(-1, 6, (count, 4))
  intensity[:, 3] = np.minimum(intensity[:, 3], 0)  # is never shown
  return made(
    intensity,
    rng.random((count, 4)),
    positive_from=2,
    subject=[f's{i % 7}' for i in range(count)],
  )


def test_icc_is_that_of_the_textbook():
  # 0.71 in table 4 there.
  assert units.icc(RATINGS) == pytest.approx(0.7148, abs=1e-4)


def test_icc_is_one_for_judges_that_differ_by_a_constant():
  assert units.icc(np.array([[1, 3], [2, 4], [5, 7.0]])) == pytest.approx(1)
  assert math.isnan(units.icc(np.ones((1, 2))))
  assert math.isnan(units.icc(np.ones((3, 2))))


def test_f1_and_accuracy_by_hand():
  predicted = made(
    [[0, 2], [2, -1], [3, 1], [1, 5]],
    [[0.6, 0.4], [0.7, 0.9], [0.2, 0.5], [0.1, 0.8]],
    positive_from=2,
  )
  found = units.score(predicted)
  # AU0: one true, one false positive, one missed. AU1: the second is unknown.
  np.testing.assert_allclose(found.f1, [2 / 4, 2 / 4])
  np.testing.assert_allclose(found.accuracy, [2 / 4, 1 / 3])
  assert found.known.tolist() == [4, 3]
  assert found.positives.tolist() == [2, 2]
  assert found.mean('f1') == pytest.approx(0.5)


def test_f1_is_that_of_scikit_learn():
  predicted = drawn()
  found = units.score(predicted, [0.3, 0.5, 0.7, 0.5])
  for i in range(3):
    rows = predicted.known[:, i]
    truth = predicted.intensity[rows, i] >= 2
    for name, at in (('f1', 0.5), ('f1_tuned', found.threshold[i])):
      said = predicted.probability[rows, i] >= at
      assert getattr(found, name)[i] == pytest.approx(f1_score(truth, said))


def test_a_unit_that_no_sample_shows_is_left_out_of_means():
  found = units.score(drawn())
  assert np.isnan([found.f1[3], found.icc[3]]).all()
  assert found.present == 3
  assert found.mean('f1') == pytest.approx(found.f1[:3].mean())
  assert found.to_dict()['units']['AU3']['f1'] is None


def test_unknown_intensities_count_nowhere():
  predicted = drawn()
  flipped = np.where(predicted.known, predicted.probability, 1.0)
  other = made(
    predicted.intensity,
    flipped,
    positive_from=2,
    subject=predicted.subject.tolist(),
  )
  a, b = units.score(predicted), units.score(other)
  for name in ('f1', 'accuracy', 'icc', 'known', 'positives'):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_thresholds_are_the_best_there_are():
  predicted = drawn()
  thresholds = units.best_thresholds(predicted)
  best = units.score(predicted, thresholds).f1_tuned
  for at in np.linspace(0, 1, 101):
    others = units.f1_of(units.counts(predicted, at).sum(0))
    assert (others[:3] <= best[:3] + 1e-12).all()
  assert thresholds[3] == 0.5


def test_a_threshold_stays_at_a_half_where_that_is_best():
  assert units.best_thresholds(made([[0], [1]], [[0.2], [0.9]])) == [0.5]
  # All alike: whoever says yes to one says yes to all.
  assert units.best_thresholds(made([[0], [1]], [[0.4], [0.4]])) == [0.2]


def test_icc_of_occurrence_is_scaled_to_one():
  probability = [[0.0], [1.0], [0.0], [1.0]]
  found = units.score(made([[0], [1], [0], [1]], probability))
  assert found.icc[0] == pytest.approx(1)
  found = units.score(made([[0], [5], [0], [5]], probability))
  assert found.icc[0] == pytest.approx(1)
  found = units.score(made([[0], [2], [0], [2]], probability))
  assert found.icc[0] < 0.8


def test_intervals_hold_the_mean_and_draw_whole_subjects():
  predicted = drawn(200)
  low, high = units.f1_interval(predicted)
  assert low < units.score(predicted).mean('f1') < high
  alone = made([[1], [1], [0]], [[0.9], [0.1], [0.9]], subject=['a'] * 3)
  assert units.f1_interval(alone) == (0.5, 0.5)


def test_written_and_read_back(tmp_path):
  predicted = drawn()
  found = units.read(predicted.write(tmp_path))
  assert (found.unit_names, found.positive_from) == (predicted.unit_names, 2)
  for name in ('clip', 'frame', 'subject', 'fold', 'intensity'):
    left, right = getattr(found, name), getattr(predicted, name)
    np.testing.assert_array_equal(left, right)
  np.testing.assert_allclose(found.probability, predicted.probability, 1e-8)


def test_another_table_is_refused(tmp_path):
  path = tmp_path / 'x.csv'
  path.write_text('clip,frame\na,1\n')
  with pytest.raises(ValueError, match='columns'):
    units.read(path)


def test_joined_samples_are_scored_together():
  whole = drawn()
  parts = [whole.take(np.arange(20)), whole.take(np.arange(20, 60))]
  a, b = units.score(whole), units.score(units.join(parts))
  np.testing.assert_array_equal(a.f1, b.f1)


def test_windows_that_coincide_count_once():
  predicted = made([[1], [0], [1]], [[0.9], [0.2], [0.1]], frame=[4, 4, 4])
  same = predicted.take(np.array([0, 0, 1, 2, 1]))
  assert same.once().clip.tolist() == ['clip 0', 'clip 1', 'clip 2']
