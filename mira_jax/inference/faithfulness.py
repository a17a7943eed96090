"""Deletion and insertion curves: does what is attended to decide?

Petsiuk, Das and Saenko, RISE, BMVC 2018 (arXiv 1806.07421), over the frames or
the patches of a video: the highest ranked ones are blurred one after another,
or appear one after another in a blurred video, and the probability of the
predicted class is followed. A good order lowers it fast, or raises it fast.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mira_jax.inference.scorer import Scorer
from mira_jax.video import geometry

STEPS = 8  # of a curve
_COARSE = 4  # pixels that are left of a blurred side


def curves(
  scorer: Scorer,
  window: np.ndarray,
  orders: Mapping[str, np.ndarray],
  steps: int = STEPS,
) -> tuple[int, dict[str, np.ndarray]]:
  """The probability of the predicted class along every order.

  Args:
    scorer: of probabilities.
    window: uint8 [F, S, S, 3].
    orders: by name, values of the tokens [T, h, w], the highest first; [T, 1,
      1] are whole frames.
    steps: K of a curve, at most the number of tokens.

  Returns:
    The predicted class, and by name [2, K + 1], deletion and insertion after
    0, 1 / K, ..., 1 of the tokens.
  """
  steps = min(steps, *(values.size for values in orders.values()))
  blurred = _blur(window)
  batch = [window, blurred]
  for values in orders.values():
    rank = np.argsort(np.argsort(-values.ravel(), kind='stable'))
    rank = _pixels(rank.reshape(values.shape), window.shape)
    for k in range(1, steps):
      first = (rank < values.size * k / steps)[..., None]
      batch.append(np.where(first, blurred, window))
      batch.append(np.where(first, window, blurred))
  found = scorer.probabilities(np.stack(batch))
  target = int(found[0].argmax())
  whole, nothing = found[:2, target]
  inner = found[2:, target].reshape(len(orders), steps - 1, 2)
  return target, {
    name: np.stack(
      [
        np.concatenate([[whole], inner[i, :, 0], [nothing]]),
        np.concatenate([[nothing], inner[i, :, 1], [whole]]),
      ]
    )
    for i, name in enumerate(orders)
  }


def _pixels(tokens: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Values of tokens [T, h, w] for every pixel [F, S, S]."""
  for axis in range(3):
    tokens = np.repeat(tokens, shape[axis] // tokens.shape[axis], axis)
  return tokens


def _blur(window: np.ndarray) -> np.ndarray:
  """Frames of which only the coarsest colours are left."""
  size = window.shape[1:3]
  small = [geometry.fit_to(x, (_COARSE, _COARSE)) for x in window]
  return np.stack([geometry.fit_to(x, size) for x in small])
