"""Scores of a classifier, all of them functions of its confusion matrix.

Field conventions: WAR, the weighted average recall, is plain accuracy. UAR,
the unweighted average recall, is the mean recall over the classes that have
clips: an absent class is left out and counted (`Scores.present`), not scored 0.
Macro F1 follows the same rule. scikit-learn scores labels, not matrices, and
absent classes as 0; the tests hold these scores against it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mira_jax.errors import ExitCode, MiraInputError, data_error, some

_NAMED = 8  # clips that an error names


@dataclasses.dataclass(kw_only=True)
class Scores:
  """Scores as fractions in [0, 1]; arrays are per class, [K].

  `recall` and `f1` are NaN for a class without clips; `precision` is 0 for a
  class that was never predicted.
  """

  war: float
  uar: float
  macro_f1: float
  weighted_f1: float
  clips: int  # number of scored clips
  present: int  # how many of the K classes have clips
  recall: np.ndarray
  precision: np.ndarray
  f1: np.ndarray
  support: np.ndarray  # clips per class

  def __str__(self) -> str:
    return (
      f'UAR {self.uar:.2%}  ·  WAR {self.war:.2%}  ·  {self.clips} clips  ·  '
      f'{self.present} of {len(self.support)} classes present'
    )

  def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
    """The scores as strict JSON: NaN becomes None, classes go by name.

    Raises:
      MiraInputError: see `check_names`.
    """
    check_names(len(self.support), class_names)
    totals = ('war', 'uar', 'macro_f1', 'weighted_f1', 'clips', 'present')
    per_class = ('recall', 'precision', 'f1', 'support')
    return {name: getattr(self, name) for name in totals} | {
      'classes': {
        label: {k: _plain(getattr(self, k)[i]) for k in per_class}
        for i, label in enumerate(class_names)
      }
    }


def check_names(count: int, class_names: Sequence[str]) -> None:
  """Checks that a confusion matrix of `count` classes has a name for each.

  Raises:
    MiraInputError: it has not ('class_count').
  """
  if count != len(class_names):
    where = f'{len(class_names)} class names ({some(class_names, _NAMED)})'
    hint = f'the confusion matrix is of {count} classes; score the model again'
    raise data_error('class_count', where, hint)


def _plain(value: np.generic) -> float | int | None:
  number = value.item()
  return None if math.isnan(number) else number


def confusion_matrix(
  labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> np.ndarray:
  """Counts clips by true class (row) and predicted class (column).

  Args:
    labels: int [N], true classes.
    predictions: int [N], predicted classes.
    num_classes: K.

  Returns:
    int64 [K, K]; row sums are the clips per class.

  Raises:
    ValueError: a class is outside 0..K-1, or the two differ in length.
  """
  pairs = np.stack([labels, predictions])
  if ((pairs < 0) | (pairs >= num_classes)).any():
    raise ValueError(f'classes must lie in 0..{num_classes - 1}: {pairs}')
  matrix = np.zeros((num_classes, num_classes), np.int64)
  np.add.at(matrix, (*pairs,), 1)
  return matrix


def score(matrix: np.ndarray) -> Scores:
  """Scores a confusion matrix [K, K] (rows = true class).

  Raises:
    ValueError: it is not square, or it counts no clip.
  """
  matrix = np.asarray(matrix)
  if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
    raise ValueError(f'a confusion matrix is square, not {matrix.shape}')
  hits, support = np.diag(matrix), matrix.sum(1)
  predicted, clips = matrix.sum(0), int(matrix.sum())
  if clips == 0:
    raise ValueError('a confusion matrix without clips has no scores')
  present = support > 0
  recall = np.where(present, hits / np.maximum(support, 1), np.nan)
  # 2 tp / (2 tp + fp + fn): the harmonic mean, defined even at precision 0.
  f1 = np.where(present, 2 * hits / np.maximum(support + predicted, 1), np.nan)
  return Scores(
    war=float(hits.sum() / clips),
    uar=float(recall[present].mean()),
    macro_f1=float(f1[present].mean()),
    weighted_f1=float((f1 * support)[present].sum() / clips),
    clips=clips,
    present=int(present.sum()),
    recall=recall,
    precision=hits / np.maximum(predicted, 1),
    f1=f1,
    support=support,
  )


def average_views(
  probabilities: np.ndarray, clip: np.ndarray, num_clips: int, views: int
) -> np.ndarray:
  """Averages the softmax probabilities of the views of each clip, in float64.

  Args:
    probabilities: [N, K] softmax outputs in any order, without padding rows.
    clip: int [N], the clip of each row.
    num_clips: number of clips.
    views: rows that each clip must have.

  Returns:
    float64 [num_clips, K].

  Raises:
    MiraInputError: a probability is not finite; the error names the clips.
    ValueError: a clip has not exactly `views` rows, which would change a score
      silently.
  """
  probabilities, clip = np.asarray(probabilities), np.asarray(clip)
  counts = np.bincount(clip, minlength=num_clips)
  if len(counts) > num_clips or (counts != views).any():
    raise ValueError(f'{num_clips} clips have {counts} views, not {views}')
  broken = np.unique(clip[~np.isfinite(probabilities).all(1)])
  if broken.size:
    where = f'clip {some([*map(str, broken)], _NAMED)}'
    hint = 'the model gave NaN or infinity for them: check its weights'
    code = ExitCode.NUMERIC
    raise MiraInputError('not_finite', where, hint, exit_code=code)
  total = np.zeros((num_clips, probabilities.shape[1]), np.float64)
  np.add.at(total, clip, probabilities)
  return total / views
