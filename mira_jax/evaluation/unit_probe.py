"""A linear probe of frozen features for action units, one for each.

Features are of whole clips: a clip shows a unit where any of its frames does,
and it is unknown where no frame is annotated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mira_jax.evaluation import probe
from mira_jax.evaluation.feature_file import Features
from mira_jax.evaluation.units import UnitPredictions

Array = np.ndarray


def run(
  data: Features,
  groups: Array,
  tests: Mapping[str, tuple[Array, Array]],
  *,
  hold_out: Callable[[Array, Array], Array],
  balanced: bool = False,
) -> dict[str, UnitPredictions]:
  """Trains on the training clips of each fold and tests on its tested ones.

  Args:
    data: of a file of features with action units.
    groups: [C]; subjects, or a group per clip.
    tests: fold -> (bool [C] of its training, bool [C] of its tested clips).
    hold_out: as in `probe.linear`.
    balanced: see `probe.fit_linear`.

  Returns:
    The tested clips by the name of their fold; the frame of each is 0.
  """
  intensity = clip_labels(data)
  found = {}
  for name, (train, test) in tests.items():
    columns = [
      _probabilities(
        data['features'],
        intensity[:, unit],
        groups,
        train & (intensity[:, unit] >= 0),
        test,
        hold_out,
        balanced,
      )
      for unit in range(intensity.shape[1])
    ]
    count = int(test.sum())
    found[name] = UnitPredictions(
      unit_names=tuple(data['action_units'].tolist()),
      positive_from=1,
      clip=data['clip_id'][test],
      frame=np.zeros(count, int),
      subject=data['subject'][test],
      fold=np.full(count, name),
      intensity=intensity[test],
      probability=np.stack(columns, -1),
    )
  return found


def clip_labels(data: Features) -> Array:
  """Whether each clip shows each unit, int [C, A]: 0, 1, or -1 unknown."""
  shown = (data['positive'] > 0).astype(int)
  return np.where(data['known'] > 0, shown, -1)


def _probabilities(
  features: Array,
  labels: Array,
  groups: Array,
  train: Array,
  test: Array,
  hold_out: Callable[[Array, Array], Array],
  balanced: bool,
) -> Array:
  """The probability of one unit in the tested clips, [N].

  It is 0 where no training clip is annotated.
  """
  if not train.any():
    return np.zeros(int(test.sum()))
  own = features[train], labels[train]
  held_out = hold_out(labels[train], groups[train])
  penalty = probe.select_penalty(
    *own, held_out, num_classes=2, balanced=balanced
  )
  fitted = probe.fit_linear(*own, penalty=penalty, balanced=balanced)
  each = np.asarray(fitted.predict_proba(features[test]))
  return each @ np.asarray(fitted.classes_, float)  # of the class 1
