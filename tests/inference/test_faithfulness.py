"""Deletion and insertion curves of a scorer whose reasons are known."""

from __future__ import annotations

import numpy as np
import pytest

from mira_jax.inference import faithfulness
from mira_jax.inference.scorer import Scorer

GRID = (4, 2, 2)


class Bright(Scorer):
  """Class 1 as far as the top right of frames 4 and 5 is a chessboard."""

  frames, image_size, batch_size, buckets = 8, 16, 64, (64,)

  def _scores(self, windows):
    patch = windows[:, 4:6, :8, 8:].astype(float)
    contrast = patch.std((2, 3, 4)).mean(1) / 127.5
    both = np.stack([1 - contrast, contrast], -1).astype(np.float32)
    return {'logits': both, 'probabilities': both}


@pytest.fixture
def window():
  board = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
  return np.broadcast_to(board[None, ..., None], (8, 16, 16, 3)).copy()


def test_the_right_order_falls_and_rises_at_once(window):
  truth = np.zeros(GRID)
  truth[2, 0, 1] = 1.0
  orders = {'right': truth, 'wrong': -truth}
  target, found = faithfulness.curves(Bright(), window, orders)
  assert target == 1
  fall, rise = found['right']
  assert fall[0] == pytest.approx(1)
  assert fall[1:] == pytest.approx(np.zeros(8), abs=0.05)
  assert rise[0] == pytest.approx(0, abs=0.05)
  assert rise[1:] == pytest.approx(np.ones(8))
  fall, rise = found['wrong']
  assert fall[:-1] == pytest.approx(np.ones(8))
  assert rise[:-1] == pytest.approx(np.zeros(8), abs=0.05)


def test_frames_are_as_many_steps_as_there_are(window):
  order = np.array([0, 1, 3, 2.0]).reshape(4, 1, 1)
  _, found = faithfulness.curves(Bright(), window, {'frames': order})
  assert found['frames'].shape == (2, 5)
  fall, rise = found['frames']
  assert fall[0] == pytest.approx(1)
  assert fall[1:] == pytest.approx(np.zeros(4), abs=0.05)
  assert rise[1] == pytest.approx(1)
