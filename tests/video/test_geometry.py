"""Identities of cuts and sizes, on random frames."""

from __future__ import annotations

import hypothesis
import numpy as np
from hypothesis import strategies as st

from mira_jax.video import geometry

settings = hypothesis.settings(max_examples=60, derandomize=True, deadline=None)
sides = st.integers(1, 90)
shares = st.floats(0, 1)


def _frame(height: int, width: int) -> np.ndarray:
  rng = np.random.default_rng((height, width))
  return rng.integers(0, 256, (height, width, 3), np.uint8)


@settings
@hypothesis.given(sides)
def test_a_crop_of_everything_is_the_identity(side):
  frame = _frame(side, side)
  whole = geometry.Square(left=0, top=0, width=1, height=1)
  np.testing.assert_array_equal(geometry.apply(frame, whole), frame)
  for fit in ('squash', 'crop'):
    np.testing.assert_array_equal(geometry.resize(frame, side, fit), frame)


@settings
@hypothesis.given(sides, sides, shares, shares, shares)
def test_a_cut_is_a_square_part_of_the_frame(height, width, left, top, share):
  frame = _frame(height, width)
  square = geometry.Square(left=left, top=top, width=share, height=share)
  cut = geometry.apply(frame, square)
  side = len(cut)
  assert cut.shape == (side, side, 3)
  assert abs(side - max(1, share * min(height, width))) <= 0.5
  x = min(max(0, round(left * width)), width - side)
  y = min(max(0, round(top * height)), height - side)
  np.testing.assert_array_equal(cut, frame[y : y + side, x : x + side])


@settings
@hypothesis.given(sides, sides, st.integers(1, 120))
def test_shrinking_keeps_the_aspect_and_never_enlarges(height, width, short):
  shrunk = geometry.shrunk((height, width), short)
  assert min(shrunk) == min(short, height, width)
  assert shrunk[0] <= height
  assert shrunk[1] <= width
  assert geometry.shrunk(shrunk, short) == shrunk
  exact = max(height, width) * min(shrunk) / min(height, width)
  assert abs(max(shrunk) - exact) <= 0.5
