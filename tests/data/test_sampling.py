"""The frame-index rules, against constants worked out by hand."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mira_jax.data import sampling


def _rng() -> np.random.Generator:
  return np.random.default_rng(0)


@pytest.mark.parametrize(
  ('num_frames', 'T', 'rate', 'expected'),
  [
    (3, 6, 4, [0, 1, 2, 2, 2, 2]),  # the last one again
    (6, 5, 2, [0, 1, 2, 4, 5]),  # linspace: 0, 1.25, 2.5, 3.75, 5
    (16, 16, 4, range(16)),
  ],
)
def test_clips_that_are_shorter_than_a_window(num_frames, T, rate, expected):
  for indices in (
    sampling.train_indices(num_frames, T, rate, _rng()),
    sampling.test_indices(num_frames, T, rate, 1, 5),
  ):
    np.testing.assert_array_equal(indices, expected)


@pytest.mark.parametrize(
  ('view', 'start'),
  # n = 100, window 64: round(10 - 32) < 0; round(30 - 32) < 0;
  # round(50 - 32) = 18; round(70 - 32) = 38 > 36; round(90 - 32) > 36.
  [(0, 0), (1, 0), (2, 18), (3, 36), (4, 36)],
)
def test_views_are_centred_on_equal_parts(view, start):
  indices = sampling.test_indices(100, 16, 4, view, 5)
  np.testing.assert_array_equal(indices, start + 4 * np.arange(16))


def test_a_half_start_goes_to_the_even_frame():
  # n = 9, window 4: 4.5 - 2 = 2.5; n = 11: 5.5 - 2 = 3.5.
  assert sampling.test_indices(9, 4, 1, 0, 1)[0] == 2
  assert sampling.test_indices(11, 4, 1, 0, 1)[0] == 4


def test_train_start_takes_every_place_that_fits_equally_often():
  rng = _rng()
  starts = [sampling.train_indices(12, 4, 2, rng)[0] for _ in range(5000)]
  counts = np.bincount(starts)
  assert counts.shape == (5,)
  assert counts.min() > 900
  assert counts.max() < 1100


sizes = st.integers(1, 200), st.integers(1, 20), st.integers(1, 6)


@hypothesis.settings(max_examples=100, derandomize=True, deadline=None)
@hypothesis.given(*sizes, st.integers(0, 2**32), st.integers(1, 9), st.data())
def test_indices_are_in_order_inside_and_repeatable(
  n, T, rate, seed, views, data
):
  view = data.draw(st.integers(0, views - 1))
  rules = (
    lambda: sampling.test_indices(n, T, rate, view, views),
    lambda: sampling.train_indices(n, T, rate, np.random.default_rng(seed)),
    lambda: sampling.pretrain_indices(n, T, rate, np.random.default_rng(seed)),
  )
  for rule in rules:
    indices = rule()
    assert indices.shape == (T,)
    assert indices.dtype == np.int64
    assert 0 <= indices[0] <= indices[-1] < n
    assert (np.diff(indices) >= 0).all()
    np.testing.assert_array_equal(rule(), indices)
    if n >= T * rate:
      assert (np.diff(indices) == rate).all()
