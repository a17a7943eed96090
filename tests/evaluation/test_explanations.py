"""Measures of attention, against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mira_jax.data import records
from mira_jax.evaluation import explanations
from mira_jax.synthetic import faces

FRAMES = np.arange(8).reshape(4, 2)  # four temporal tokens of two frames


def test_the_share_from_onset_to_offset():
  values = np.array([1.0, 2, 3, 2])
  # Frames 2 to 4: all of token 1, half of token 2. (2 + 1.5) / 8 / (1.5 / 4)
  expected = (3.5 / 8) / (1.5 / 4)
  assert explanations.inside(values, FRAMES, 2, 4) == pytest.approx(expected)
  assert explanations.inside(np.ones(4), FRAMES, 2, 4) == pytest.approx(1)
  assert explanations.inside(values * 7, FRAMES, 2, 4) == pytest.approx(
    expected
  )


@pytest.mark.parametrize('marks', [(-1, -1), (0, 7), (20, 30), (5, 3)])
def test_a_clip_without_a_moment_has_no_share(marks):
  assert np.isnan(explanations.inside(np.ones(4), FRAMES, *marks))


def test_the_highest_value_and_the_apex():
  found = explanations.apex(np.array([0, 1, 3, 2]), FRAMES, 5)
  assert found.hit == 1
  assert found.error == pytest.approx(0.5)  # from 4.5, the middle of token 2
  assert found.chance_hit == pytest.approx(1 / 4)
  assert found.chance_error == pytest.approx((4.5 + 2.5 + 0.5 + 1.5) / 4)
  far = explanations.apex(np.array([3, 1, 0, 2]), FRAMES, 5)
  assert (far.hit, far.error) == (0, pytest.approx(4.5))
  assert np.isnan(explanations.apex(np.ones(4), FRAMES, -1)).all()


def test_a_correlation_with_the_intensity():
  intensity = np.array([0, 0, 1, 1, 3, 3, 2, 2], float)
  values = np.array([5.0, 7, 11, 9])  # 5 + 2 * strength
  assert explanations.correlation(values, FRAMES, intensity) == pytest.approx(1)
  opposite = explanations.correlation(-values, FRAMES, intensity)
  assert opposite == pytest.approx(-1)
  assert np.isnan(explanations.correlation(np.ones(4), FRAMES, intensity))
  assert np.isnan(explanations.correlation(values, FRAMES, np.zeros(8)))


def test_attention_at_the_place_of_a_change():
  change = np.zeros((2, 2, 2))
  change[1, 0, 1] = 4.0
  uniform = np.ones((2, 2, 2))
  assert explanations.place(uniform, change) == pytest.approx(1)
  there = np.zeros((2, 2, 2))
  there[1, 0, 1] = 1.0
  assert explanations.place(there, change) == pytest.approx(8)
  assert explanations.place(1 - there, change) == 0
  assert np.isnan(explanations.place(uniform, np.zeros((2, 2, 2))))


def test_pixels_as_means_of_tokens():
  change = np.zeros((8, 4, 4))
  change[2, :2, 2:] = 6.0  # a quarter of frame 2, half of token 1
  grid = explanations.to_grid(change, FRAMES, (4, 2, 2))
  assert grid.shape == (4, 2, 2)
  assert grid[1, 0, 1] == pytest.approx(3)
  assert grid.sum() == pytest.approx(3)


def test_the_area_below_a_curve():
  assert explanations.area(np.array([1.0, 0.5, 0.0])) == pytest.approx(0.5)
  assert explanations.area(np.array([1.0, 1.0])) == 1


# ----- regions of action units ------------------------------------------------


def test_units_as_tables_write_them():
  assert records.unit_numbers('6+12') == [6, 12]
  assert records.unit_numbers('L12A, R4B/25') == [4, 12, 25]
  assert records.unit_numbers('') == []


def test_a_region_covers_positions_in_part():
  assert explanations.region([99], 4, 4) is None
  area = explanations.region([9], 2, 2)  # the nose, across all four quarters
  left, top, right, bottom = explanations.REGIONS[9]
  expected = (right - left) * (bottom - top)
  assert area.mean() == pytest.approx(expected, abs=0.02)
  assert area[0, 0] == pytest.approx(area[0, 1])
  both = explanations.region([9, 26], 8, 8)
  assert (both >= explanations.region([26], 8, 8)).all()


def test_drawn_faces_change_in_the_regions_of_their_units():
  """Of the change of an expression most is there, and more than by area."""
  drawing = {'seed': 0, 'split': 'test', 'difficulty': 'macro', 'size': 64}
  shares = []
  for index in range(21):
    clip, still = (
      faces.draw_clip(index, **drawing, neutral=x) for x in (False, True)
    )
    if clip.onset < 0:
      continue
    frames = (x.frames[clip.apex].astype(float) for x in (clip, still))
    change = np.abs(next(frames) - next(frames))
    area = explanations.region(records.unit_numbers(clip.action_units), 64, 64)
    change = change.mean(-1)
    shares.append(((change * area).sum() / change.sum(), area.mean()))
  inside, by_area = np.mean(shares, axis=0)
  assert inside > 0.85
  assert inside > 1.5 * by_area
