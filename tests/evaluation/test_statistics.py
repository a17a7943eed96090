"""Intervals, paired tests and calibration, against hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve

from mira_jax.errors import MiraInputError
from mira_jax.evaluation import metrics, statistics
from mira_jax.evaluation.predictions import Predictions

NAMES = ('a', 'b', 'c')


def made(label, predicted, *, subject=None, sure=0.8, clip=None):
  """Predictions of so much confidence."""
  label, count = np.asarray(label), len(label)
  probability = np.full((count, 3), (1 - sure) / 2)
  probability[np.arange(count), predicted] = sure
  names = [f's{i // 4}' for i in range(count)] if subject is None else subject
  return Predictions(
    class_names=NAMES,
    clip=np.array([f'c{i}' for i in range(count)] if clip is None else clip),
    subject=np.array(names),
    fold=np.full(count, ''),
    label=label,
    probability=probability,
  )


# ----- paired tests -----------------------------------------------------------


@pytest.mark.parametrize(
  ('first', 'second', 'p'),
  # Two-sided binomial tails by hand: 2 * 2^-5; 2 * (1 + 6) * 2^-6; symmetric.
  [(5, 0, 0.0625), (5, 1, 0.21875), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_by_hand(first, second, p):
  assert statistics.mcnemar(first, second) == pytest.approx(p)
  assert statistics.mcnemar(second, first) == pytest.approx(p)


def test_mcnemar_is_close_to_its_chi_squared_form_for_many_clips():
  chi = (abs(420 - 380) - 1) ** 2 / 800
  expected = stats.chi2.sf(chi, 1)
  assert statistics.mcnemar(420, 380) == pytest.approx(expected, rel=0.01)


def test_a_paired_comparison_by_hand():
  label = np.arange(12) % 3
  right, wrong = label, (label + 1) % 3
  good = made(label, np.where(np.arange(12) < 10, right, wrong))
  bad = made(label, np.where(np.arange(12) < 6, right, wrong))
  found = statistics.paired(good, bad)
  assert (found.clips, found.subjects) == (12, 3)
  assert (found.first_only, found.second_only) == (4, 0)
  assert found.difference['war'] == pytest.approx(4 / 12)
  assert found.p_value == pytest.approx(2 / 2**4)
  # Subject 0 has no difference, the others have two of four. One in 27 of three
  # draws, more than 2.5 %, is of subject 0 alone.
  low, high = found.intervals['war']
  assert low == pytest.approx(0)
  assert high == pytest.approx(0.5)
  back = statistics.paired(bad, good)
  assert back.difference['war'] == -found.difference['war']
  text = found.sentence('A', 'B')
  assert 'the WAR of A is 33.3 points higher than that of B' in text
  assert '4 clips are classified correctly by A alone and 0 by B' in text
  assert 'p = 0.125' in text


def test_clips_are_paired_by_name_in_any_order():
  label = np.arange(12) % 3
  a = made(label, label)
  order = np.random.default_rng(0).permutation(12)
  b = made(label, (label + (np.arange(12) == 5)) % 3).take(order)
  found = statistics.paired(a, b)
  assert (found.first_only, found.second_only) == (1, 0)
  some = statistics.paired(a, b.take(np.arange(7)))
  assert some.clips == 7


def test_runs_of_other_clips_are_refused():
  label = np.arange(6) % 3
  a = made(label, label)
  with pytest.raises(MiraInputError, match='no_clips'):
    statistics.paired(a, made(label, label, clip=list('uvwxyz')))
  with pytest.raises(MiraInputError, match='other_labels'):
    statistics.paired(a, made((label + 1) % 3, label))


# ----- intervals --------------------------------------------------------------


def test_a_mean_by_subject_by_hand():
  values = np.array([1.0, 1, 1, np.nan, 0, 0])
  subject = np.array(['x', 'x', 'x', 'x', 'y', 'y'])
  mean, (low, high) = statistics.mean_interval(values, subject)
  assert mean == pytest.approx(0.6)
  assert (low, high) == (0, 1)  # both draws of one subject have a quarter each
  nothing, _ = statistics.mean_interval(np.full(3, np.nan), subject[:3])
  assert np.isnan(nothing)


def test_an_interval_has_the_width_of_the_textbook():
  rng = np.random.default_rng(3)
  values = rng.normal(2, 1, 400)
  subject = np.arange(400).astype(str)
  _, (low, high) = statistics.mean_interval(values, subject)
  error = values.std(ddof=1) / 20
  assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_groups_of_clips():
  label = np.arange(24) % 3
  right = np.arange(24) < 16
  found = made(label, np.where(right, label, (label + 1) % 3))
  sex = {'s0': 'f', 's1': 'f', 's2': 'm', 's3': 'm', 's4': 'f', 's5': ''}
  groups = statistics.by_group(found, lambda _, subject: sex[subject])
  assert [(x.name, x.scores.clips, x.subjects) for x in groups] == [
    ('f', 12, 3),
    ('m', 8, 2),
  ]
  assert groups[0].scores.war == pytest.approx(8 / 12)
  assert groups[1].scores.war == 1
  assert groups[1].intervals['war'] == (1, 1)


# ----- calibration ------------------------------------------------------------


def test_a_calibration_error_by_hand():
  # 10 clips of confidence 0.8, 6 right; 10 of 0.5, 5 right.
  label = np.zeros(20, int)
  sure = made(label[:10], [0] * 6 + [1] * 4, sure=0.8)
  half = made(label[10:], [0] * 5 + [1] * 5, sure=0.5)
  both = np.concatenate([sure.probability, half.probability])
  found = made(label, both.argmax(-1))
  object.__setattr__(found, 'probability', both)
  result = statistics.calibration(found, bins=10)
  assert result.error == pytest.approx((10 * 0.2 + 0) / 20)
  assert result.count.sum() == 20
  assert result.count[7] == 10  # (0.7, 0.8]
  assert np.isnan(result.accuracy[0])


def test_bins_are_those_of_scikit_learn():
  rng = np.random.default_rng(1)
  probability = rng.dirichlet([1, 1, 1], 500)
  label = rng.integers(0, 3, 500)
  found = made(label, label)
  object.__setattr__(found, 'probability', probability)
  result = statistics.calibration(found)
  right = (probability.argmax(-1) == label).astype(int)
  accuracy, confidence = calibration_curve(
    right, probability.max(-1), n_bins=statistics.BINS
  )
  known = result.count > 0
  np.testing.assert_allclose(result.accuracy[known], accuracy)
  np.testing.assert_allclose(result.confidence[known], confidence)
  shares = result.count[known] / 500
  expected = (np.abs(accuracy - confidence) * shares).sum()
  assert result.error == pytest.approx(expected)


def test_intervals_hold_all_three_scores():
  label = np.arange(24) % 3
  found = made(label, np.where(np.arange(24) < 20, label, 0))
  spans = statistics.intervals(found.by_subject())
  scores = metrics.score(found.matrix)
  assert spans.keys() == {'war', 'uar', 'macro_f1'}
  for name, (low, high) in spans.items():
    assert low <= getattr(scores, name) <= high
