"""Scores against constants worked out by hand, and against scikit-learn."""

from __future__ import annotations

import json

import hypothesis
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import strategies as st

from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import metrics

# FERV39k test part, 7,847 clips, ViT-L with flashLite: the reference matrix.
FERV39K = np.array(
  [
    [105, 29, 112, 25, 125, 65, 6],
    [30, 826, 257, 24, 154, 77, 25],
    [26, 215, 1284, 49, 191, 182, 11],
    [10, 70, 164, 173, 114, 79, 28],
    [26, 207, 341, 55, 785, 56, 17],
    [18, 55, 248, 27, 56, 1064, 5],
    [7, 139, 105, 30, 72, 29, 49],
  ]
)


def test_reference_matrix():
  scores = metrics.score(FERV39K)
  assert scores.clips == 7847
  assert 100 * scores.uar == pytest.approx(44.41, abs=0.005)
  assert 100 * scores.war == pytest.approx(54.62, abs=0.005)
  expected = [22.48, 59.30, 65.58, 27.12, 52.79, 72.23, 11.37]
  np.testing.assert_allclose(100 * scores.recall, expected, atol=0.005)


@pytest.mark.filterwarnings('ignore:A single label was found')
@hypothesis.settings(max_examples=30, derandomize=True, deadline=None)
@hypothesis.given(st.data())
def test_scores_are_those_of_scikit_learn(data):
  """Random labels of up to 6 classes, of which some are absent or unseen."""
  classes = data.draw(st.integers(1, 6))
  some = st.lists(st.integers(0, classes - 1), min_size=1, max_size=30)
  true = np.array(data.draw(some))
  guess = np.array(
    data.draw(
      st.lists(
        st.integers(0, classes - 1), min_size=len(true), max_size=len(true)
      )
    )
  )
  matrix = metrics.confusion_matrix(true, guess, classes)
  np.testing.assert_array_equal(
    matrix, sklearn.metrics.confusion_matrix(true, guess, labels=range(classes))
  )
  found = metrics.score(matrix)
  precision, recall, f1, support = (
    sklearn.metrics.precision_recall_fscore_support(
      true, guess, labels=range(classes), zero_division=0
    )
  )
  here = support > 0
  np.testing.assert_array_equal(found.support, support)
  np.testing.assert_allclose(found.precision, precision)
  np.testing.assert_allclose(found.recall[here], recall[here])
  np.testing.assert_allclose(found.f1[here], f1[here])
  assert np.isnan(found.recall[~here]).all()
  assert np.isnan(found.f1[~here]).all()
  present = np.unique(true)  # over which this library averages
  f1 = {
    average: sklearn.metrics.f1_score(
      true, guess, labels=present, average=average, zero_division=0
    )
    for average in ('macro', 'weighted')
  }
  assert found.war == pytest.approx(sklearn.metrics.accuracy_score(true, guess))
  assert found.uar == pytest.approx(
    sklearn.metrics.recall_score(true, guess, labels=present, average='macro')
  )
  assert found.macro_f1 == pytest.approx(f1['macro'])
  assert found.weighted_f1 == pytest.approx(f1['weighted'])
  assert (found.clips, found.present) == (len(true), len(present))


def test_to_dict_is_strict_json():
  scores = metrics.score(np.array([[2, 0], [0, 0]]))
  plain = json.loads(json.dumps(scores.to_dict(('a', 'b')), allow_nan=False))
  assert plain['war'] == 1.0
  assert plain['present'] == 1
  row = {'recall': 1.0, 'precision': 1.0, 'f1': 1.0, 'support': 2}
  assert plain['classes']['a'] == row
  assert plain['classes']['b']['recall'] is None


@pytest.mark.parametrize(
  ('labels', 'predictions'), [([0, 3], [0, 0]), ([0], [-1]), ([0], [0, 1])]
)
def test_labels_that_would_be_counted_wrong(labels, predictions):
  with pytest.raises(ValueError):
    metrics.confusion_matrix(np.array(labels), np.array(predictions), 3)


def test_shapes_are_checked():
  with pytest.raises(ValueError, match='square'):
    metrics.score(np.ones((2, 3), int))
  with pytest.raises(ValueError, match='without clips'):
    metrics.score(np.zeros((2, 2), int))


def test_average_views_in_any_order():
  # Clip 1: the mean of probabilities picks class 0 (.4505 against .375), the
  # mean of logits would pick class 1 (.05 * .7 > .9 * .001).
  probabilities = np.array(
    [[0.9, 0.05, 0.05], [0.2, 0.8, 0], [0.001, 0.7, 0.299], [0.4, 0.6, 0]],
    np.float32,
  )
  mean = metrics.average_views(probabilities, np.array([1, 0, 1, 0]), 2, 2)
  assert mean.dtype == np.float64
  np.testing.assert_allclose(
    mean, [[0.3, 0.7, 0], [0.4505, 0.375, 0.1745]], rtol=1e-6
  )


def test_average_views_refuses_uneven_clips_and_nan():
  half = np.full((2, 2), 0.5)
  for clip in ([0, 0], [0, 5]):
    with pytest.raises(ValueError, match='2 clips have'):
      metrics.average_views(half, np.array(clip), 2, 1)
  half[1, 0] = np.nan
  with pytest.raises(MiraInputError, match='not_finite: clip 1') as caught:
    metrics.average_views(half, np.array([0, 1]), 2, 1)
  assert caught.value.exit_code == ExitCode.NUMERIC
