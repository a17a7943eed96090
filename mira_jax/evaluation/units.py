"""Action units of single frames: unit_predictions.csv, and their scores.

A sample is one frame of a clip, or one temporal token; its annotation is the
intensity of each unit, 0 to 5 (or 0 and 1 where only occurrence is coded). A
unit is shown from the intensity `positive_from` on: 2 in DISFA, 1 in BP4D.
What is unknown counts nowhere.

Field conventions: F1 of each unit over all samples at once, and the mean of
these, at a threshold of 0.5; and at thresholds that are best on validation
samples, never on tested ones. ICC(3,1) is that of Shrout and Fleiss,
Intraclass correlations, Psychological Bulletin 86, 1979.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mira_jax import files
from mira_jax.evaluation import statistics

Array = np.ndarray
NAME = 'unit_predictions.csv'
COLUMNS = ('clip', 'frame', 'subject', 'fold', 'positive_from')
HALF = 0.5  # the threshold of the field
MOST = 5  # the highest intensity
_ROWS = ('clip', 'frame', 'subject', 'fold', 'intensity', 'probability')
_INTENSITY, _PROBABILITY = 'i_', 'p_'  # of the columns of a unit


@dataclasses.dataclass(kw_only=True, frozen=True)
class UnitPredictions:
  """The probabilities of A action units in S samples."""

  unit_names: tuple[str, ...]
  positive_from: int  # the intensity from which a unit is shown
  clip: Array  # str [S]
  frame: Array  # int [S], of the clip
  subject: Array  # str [S]; '' where unknown
  fold: Array  # str [S], that tests the clip; '' without folds
  intensity: Array  # int [S, A], 0 to 5; -1 unknown
  probability: Array  # float [S, A]

  def __len__(self) -> int:
    return len(self.clip)

  @property
  def known(self) -> Array:
    """Whether a unit is annotated, bool [S, A]."""
    return self.intensity >= 0

  @property
  def shown(self) -> Array:
    """Whether a unit is there, bool [S, A]; False where unknown."""
    return self.known & (self.intensity >= self.positive_from)

  def take(self, rows: Array) -> UnitPredictions:
    """The samples of a mask [S] or of indices [n], in that order."""
    return dataclasses.replace(
      self, **{name: getattr(self, name)[rows] for name in _ROWS}
    )

  def once(self) -> UnitPredictions:
    """Each frame of a clip once, the first time that it is there.

    Windows of a short clip coincide; counted twice, they would weigh double.
    """
    pairs = [*zip(self.clip.tolist(), self.frame.tolist(), strict=True)]
    first = {pair: i for i, pair in reversed([*enumerate(pairs)])}
    return self.take(np.array(sorted(first.values()), int))

  def write(self, folder: str | os.PathLike[str]) -> pathlib.Path:
    """Writes unit_predictions.csv; returns its path.

    Columns are COLUMNS, then 'i_UNIT' for intensities, 'p_UNIT' for
    probabilities.
    """
    path = pathlib.Path(folder, NAME)
    head = [p + n for p in (_INTENSITY, _PROBABILITY) for n in self.unit_names]
    each = zip(*(getattr(self, name) for name in _ROWS), strict=True)
    lines = (
      [*about, self.positive_from, *intensity, *(f'{x:.9g}' for x in shares)]
      for *about, intensity, shares in each
    )
    files.write_csv(path, [*COLUMNS, *head], lines)
    return path


def read(path: str | os.PathLike[str]) -> UnitPredictions:
  """The inverse of `UnitPredictions.write`.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is no such table.
  """
  with open(path, newline='', encoding='utf-8') as file:
    head, *rows = csv.reader(file)
  count = (len(head) - len(COLUMNS)) // 2
  names = [x.removeprefix(_INTENSITY) for x in head[len(COLUMNS) :][:count]]
  named = [p + n for p in (_INTENSITY, _PROBABILITY) for n in names]
  if head != [*COLUMNS, *named] or not rows or not names:
    raise ValueError(f'{path} has other columns')
  clip, frame, subject, fold, least, *values = zip(*rows, strict=True)
  return UnitPredictions(
    unit_names=tuple(names),
    positive_from=int(least[0]),
    clip=np.array(clip),
    frame=np.array(frame, int),
    subject=np.array(subject),
    fold=np.array(fold),
    intensity=np.array(values[:count], int).T,
    probability=np.array(values[count:], np.float64).T,
  )


def join(parts: Sequence[UnitPredictions]) -> UnitPredictions:
  """The samples of all parts, which have the same units."""
  joined = {
    name: np.concatenate([getattr(part, name) for part in parts])
    for name in _ROWS
  }
  return dataclasses.replace(parts[0], **joined)


# ----- scores -----------------------------------------------------------------


@dataclasses.dataclass(kw_only=True, frozen=True)
class UnitScores:
  """Scores as fractions; arrays are per unit, [A].

  `f1`, `f1_tuned` and `icc` are NaN for a unit that no sample shows; means are
  over the others (`present`).
  """

  unit_names: tuple[str, ...]
  samples: int
  known: Array  # int, samples where the unit is annotated
  positives: Array  # int, of them, that show it
  threshold: Array  # that f1_tuned is at; NaN where it is none
  f1: Array  # at 0.5
  f1_tuned: Array  # NaN where no threshold was chosen
  accuracy: Array  # at 0.5
  icc: Array  # ICC(3,1) of the probability and the scaled intensity

  @property
  def tuned(self) -> bool:
    """Whether thresholds were chosen."""
    return not np.isnan(self.f1_tuned).all()

  @property
  def present(self) -> int:
    """Units that a sample shows."""
    return int((self.positives > 0).sum())

  def mean(self, name: str) -> float:
    """Over the present units; NaN without any."""
    values = getattr(self, name)[self.positives > 0]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan

  def __str__(self) -> str:
    return (
      f'F1 {self.mean("f1"):.2%}  ·  accuracy {self.mean("accuracy"):.2%}  ·  '
      f'{self.samples} frames  ·  {self.present} of {len(self.known)} units '
      'present'
    )

  def to_dict(self) -> dict[str, Any]:
    """The scores as strict JSON: NaN becomes None, units go by name."""
    means = ('f1', 'f1_tuned', 'accuracy', 'icc')
    each = (*means, 'threshold', 'positives', 'known')
    return {
      **{f'mean_{name}': plain(self.mean(name)) for name in means},
      'samples': self.samples,
      'present': self.present,
      'units': {
        unit: {name: plain(getattr(self, name)[i]) for name in each}
        for i, unit in enumerate(self.unit_names)
      },
    }


def plain(value: Any) -> float | int | None:
  """A number as JSON; None for NaN."""
  number = value.item() if isinstance(value, np.generic) else value
  return None if math.isnan(number) else number


def score(
  predicted: UnitPredictions, thresholds: Sequence[float] | Array | None = None
) -> UnitScores:
  """Scores of samples.

  `thresholds` [A] are those of f1_tuned, or [S, A] where samples are of several
  models; all at 0.5, nothing was chosen.
  """
  count = len(predicted.unit_names)
  at = np.asarray(HALF if thresholds is None else thresholds, float)
  f1_tuned = threshold = np.full(count, np.nan)
  if (at != HALF).any():
    f1_tuned = f1_of(counts(predicted, at).sum(0))
    threshold = at if at.ndim == 1 else threshold
  known, shown = predicted.known, predicted.shown
  total = np.maximum(known.sum(0), 1)
  right = (predicted.probability >= HALF) == shown
  return UnitScores(
    unit_names=predicted.unit_names,
    samples=len(predicted),
    known=known.sum(0),
    positives=shown.sum(0),
    threshold=threshold,
    f1=f1_of(counts(predicted).sum(0)),
    f1_tuned=f1_tuned,
    accuracy=np.where(known.any(0), (right & known).sum(0) / total, np.nan),
    icc=np.array([_icc(predicted, i) for i in range(count)]),
  )


def counts(
  predicted: UnitPredictions, thresholds: float | Array = HALF
) -> Array:
  """True and false positives, and false negatives, by subject: [G, A, 3].

  A clip without a subject is a group of its own.
  """
  both = zip(predicted.subject, predicted.clip, strict=True)
  names = [subject or f'\0{clip}' for subject, clip in both]
  group = np.unique(names, return_inverse=True)[1]
  said, shown = predicted.probability >= thresholds, predicted.shown
  each = [said & shown, said & predicted.known & ~shown, ~said & shown]
  found = np.zeros((group.max() + 1, len(predicted.unit_names), 3), int)
  np.add.at(found, group, np.stack(each, -1))
  return found


def f1_of(found: Array) -> Array:
  """F1 of each unit from counts [A, 3]; NaN where no sample shows it."""
  true, false, missed = np.moveaxis(found, -1, 0)
  whole = 2 * true + false + missed
  value = 2 * true / np.maximum(whole, 1)
  return np.where(true + missed > 0, value, np.nan)


def f1_interval(
  predicted: UnitPredictions, thresholds: float | Array = HALF
) -> statistics.Interval:
  """95 % interval of the mean F1: a percentile bootstrap of subjects.

  NaN where no sample shows a unit.
  """

  def mean(found: Array) -> float:
    values = f1_of(found)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan

  return statistics.interval(counts(predicted, thresholds), mean)


def best_thresholds(predicted: UnitPredictions) -> list[float]:
  """The threshold of each unit with the best F1, [A].

  Of equally good ones that nearest to 0.5, which a unit without a sample that
  shows it has, too. They lie between probabilities.
  """
  return [
    _best_threshold(predicted.probability[rows, i], predicted.shown[rows, i])
    for i, rows in enumerate(predicted.known.T)
  ]


def _best_threshold(probability: Array, shown: Array) -> float:
  if not shown.any():
    return HALF
  order = np.argsort(-probability, kind='stable')
  values, true = probability[order], np.cumsum(shown[order])
  said = np.arange(1, len(values) + 1)
  f1 = 2 * true / (said + shown.sum())
  # A threshold says yes to all of a probability, or to none.
  ends = np.append(values[1:] < values[:-1], True)
  below = np.append(values[1:], 0.0)
  middles = (values + below) / 2
  near = -np.abs(middles - HALF)
  found = [*zip(f1[ends], near[ends], middles[ends], strict=True)]
  # 0.5 itself, where it is as good as any other.
  half = probability >= HALF
  own = 2 * (half & shown).sum() / max(half.sum() + shown.sum(), 1)
  return float(max([*found, (own, 0.0, HALF)])[2])


def icc(values: Array) -> float:
  """ICC(3,1) of values [n, k], n targets by k judges; NaN if undefined.

  The consistency of single judges, all of whom rate all targets (Shrout and
  Fleiss 1979, equation 6): (BMS - EMS) / (BMS + (k - 1) EMS).
  """
  targets, judges = values.shape
  if targets < 2 or judges < 2:
    return math.nan
  mean = values.mean()
  between = judges * np.square(values.mean(1) - mean).sum() / (targets - 1)
  rest = values - values.mean(1, keepdims=True) - values.mean(0) + mean
  error = np.square(rest).sum() / ((targets - 1) * (judges - 1))
  whole = between + (judges - 1) * error
  return float((between - error) / whole) if whole > 1e-12 else math.nan


def _icc(predicted: UnitPredictions, unit: int) -> float:
  rows = predicted.known[:, unit]
  if not predicted.shown[:, unit].any():
    return math.nan
  # Where only occurrence is coded, no intensity is above 1.
  most = MOST if predicted.intensity.max() > 1 else 1
  truth = predicted.intensity[rows, unit] / most
  return icc(np.stack([predicted.probability[rows, unit], truth], -1))
