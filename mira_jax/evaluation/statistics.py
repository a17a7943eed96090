"""Intervals, paired tests and calibration of predictions.

Clips of one subject are alike: whatever is drawn anew is whole subjects (Efron
and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from mira_jax.errors import data_error
from mira_jax.evaluation import metrics
from mira_jax.evaluation.predictions import Predictions

Interval = tuple[float, float]
DRAWS = 2000
BINS = 15  # of a reliability diagram, as in the paper that has them


def intervals(
  groups: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval]:
  """95 % intervals of WAR, UAR and macro F1: a percentile bootstrap of groups.

  Args:
    groups: int [G, K, K], the confusion matrix of each group; none is empty.
    draws: how often G groups are drawn, with replacement.
    seed: of the draws.

  Returns:
    Low and high of 'war', 'uar' and 'macro_f1'.
  """
  found = [metrics.score(x) for x in _drawn(groups, draws, seed)]
  return {
    name: _span(np.array([getattr(scores, name) for scores in found]))
    for name in ('war', 'uar', 'macro_f1')
  }


def interval(
  groups: np.ndarray,
  value: Callable[[np.ndarray], float],
  draws: int = DRAWS,
  seed: int = 0,
) -> Interval:
  """95 % interval of a value of the sum of groups, see `intervals`.

  Args:
    groups: [G, ...], counts.
    value: of such a sum [...]; draws where it is NaN are left out.
    draws: see there.
    seed: see there.
  """
  values = np.array([value(x) for x in _drawn(groups, draws, seed)])
  known = values[~np.isnan(values)]
  return _span(known) if len(known) else (np.nan, np.nan)


def _drawn(groups: np.ndarray, draws: int, seed: int) -> np.ndarray:
  """Sums [draws, ...] of as many groups as there are, with replacement."""
  count = len(groups)
  rng = np.random.default_rng(seed)
  times = rng.multinomial(count, np.full(count, 1 / count), size=draws)
  return np.tensordot(times, groups, axes=1)


def _span(values: np.ndarray) -> Interval:
  low, high = np.percentile(values, [2.5, 97.5]).tolist()
  return low, high


def mean_interval(
  values: np.ndarray, subject: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> tuple[float, Interval]:
  """The mean of values [C] of clips, and its 95 % interval by subject.

  NaN is left out. Without any value all are NaN.
  """
  known = ~np.isnan(values)
  if not known.any():
    return np.nan, (np.nan, np.nan)
  names = np.unique(subject[known], return_inverse=True)[1]
  sums = np.zeros((names.max() + 1, 2))
  np.add.at(sums, names, np.stack([values[known], np.ones(known.sum())], -1))
  drawn = _drawn(sums, draws, seed)
  return float(values[known].mean()), _span(drawn[:, 0] / drawn[:, 1])


# ----- two models on the same clips -------------------------------------------


@dataclasses.dataclass(kw_only=True, frozen=True)
class Paired:
  """Two models on the same clips: scores of the first minus the second.

  Attributes:
    clips: that both predicted.
    subjects: of these; a clip without one is its own.
    difference: of 'war', 'uar' and 'macro_f1'.
    intervals: 95 %, of a bootstrap that draws the same subjects for both.
    first_only: clips that the first alone classifies correctly.
    second_only: the second alone.
    p_value: of the exact McNemar test (McNemar, Psychometrika 12, 1947): the
      probability of a split as uneven as that, if either were as likely.
  """

  clips: int
  subjects: int
  difference: Mapping[str, float]
  intervals: Mapping[str, Interval]
  first_only: int
  second_only: int
  p_value: float

  def sentence(self, first: str, second: str) -> str:
    """The comparison as a paper could print it."""
    low, high = self.intervals['war']
    more = 'higher' if self.difference['war'] >= 0 else 'lower'
    uar_low, uar_high = self.intervals['uar']
    p = f'p = {self.p_value:.3f}' if self.p_value >= 1e-3 else 'p < 0.001'
    return (
      f'On the same {self.clips} clips of {self.subjects} subjects the WAR of '
      f'{first} is {abs(100 * self.difference["war"]):.1f} points {more} than '
      f'that of {second} (95 % interval of the difference '
      f'{100 * low:+.1f} to {100 * high:+.1f}, UAR '
      f'{100 * self.difference["uar"]:+.1f}, {100 * uar_low:+.1f} to '
      f'{100 * uar_high:+.1f}; bootstrap over subjects, {DRAWS} draws); '
      f'{self.first_only} clips are classified correctly by {first} alone and '
      f'{self.second_only} by {second} alone (exact McNemar test, {p}).'
    )


def paired(first: Predictions, second: Predictions, seed: int = 0) -> Paired:
  """Compares two models on the clips that both predicted.

  Raises:
    MiraInputError: they share no clip ('no_clips'), or disagree on the true
      classes of one ('other_labels').
  """
  names = _names(first)
  where = {name: i for i, name in enumerate(_names(second))}
  rows = [i for i, name in enumerate(names) if name in where]
  if not rows:
    hint = 'compare runs that were tested on the same clips'
    raise data_error('no_clips', 'predictions.csv', hint)
  others = [where[names[i]] for i in rows]
  a, b = first.take(np.array(rows)), second.take(np.array(others))
  labels = [[x.class_names[i] for i in x.label] for x in (a, b)]
  if len(a.class_names) != len(b.class_names) or labels[0] != labels[1]:
    hint = 'the runs disagree on its class; were they of one dataset?'
    raise data_error('other_labels', str(a.clip[0]), hint)
  both = np.concatenate([a.by_subject(), b.by_subject()], axis=1)
  count = len(a.class_names)
  drawn = _drawn(both, DRAWS, seed)
  of_draws = [
    (metrics.score(x[:count]), metrics.score(x[count:])) for x in drawn
  ]
  whole = metrics.score(a.matrix), metrics.score(b.matrix)
  difference, spans = {}, {}
  for name in ('war', 'uar', 'macro_f1'):
    difference[name] = getattr(whole[0], name) - getattr(whole[1], name)
    values = [getattr(x, name) - getattr(y, name) for x, y in of_draws]
    spans[name] = _span(np.array(values))
  right, also = a.predicted == a.label, b.predicted == b.label
  first_only, second_only = (
    int((right & ~also).sum()),
    int((also & ~right).sum()),
  )
  return Paired(
    clips=len(a),
    subjects=len(both),
    difference=difference,
    intervals=spans,
    first_only=first_only,
    second_only=second_only,
    p_value=mcnemar(first_only, second_only),
  )


def _names(predicted: Predictions) -> list[tuple[str, str]]:
  """Clips and subjects: datasets may share names of clips."""
  return [
    *zip(predicted.clip.tolist(), predicted.subject.tolist(), strict=True)
  ]


def mcnemar(first_only: int, second_only: int) -> float:
  """p of the exact two-sided McNemar test; 1 where both always agree."""
  from scipy import stats  # slow to import, and most commands need none

  total = first_only + second_only
  return float(stats.binomtest(first_only, total).pvalue) if total else 1.0


# ----- calibration ------------------------------------------------------------


@dataclasses.dataclass(kw_only=True, frozen=True)
class Calibration:
  """A reliability diagram: B bins of confidence of equal width.

  Attributes:
    edges: float [B + 1].
    count: int [B], clips.
    confidence: float [B], their mean; NaN of an empty bin, as is
    accuracy: float [B].
    error: the expected calibration error, the mean distance of the two over
      clips (Guo et al., On Calibration of Modern Neural Networks, ICML 2017,
      equation 3).
  """

  edges: np.ndarray
  count: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray
  error: float


def calibration(predicted: Predictions, bins: int = BINS) -> Calibration:
  """How far confidence is that of the truth."""
  top = predicted.probability.max(-1)
  right = (predicted.predicted == predicted.label).astype(float)
  edges = np.linspace(0, 1, bins + 1)
  # A confidence on an edge belongs to the bin below it, as in the paper.
  place = np.clip(np.searchsorted(edges, top, side='left') - 1, 0, bins - 1)
  count = np.bincount(place, minlength=bins)
  with np.errstate(invalid='ignore'):
    confidence = np.bincount(place, top, bins) / count
    accuracy = np.bincount(place, right, bins) / count
  apart = np.nan_to_num(np.abs(confidence - accuracy))
  error = float((apart * count).sum() / len(top))
  return Calibration(
    edges=edges,
    count=count,
    confidence=confidence,
    accuracy=accuracy,
    error=error,
  )


# ----- groups of clips --------------------------------------------------------


@dataclasses.dataclass(kw_only=True, frozen=True)
class Group:
  """The scores of the clips of one value of a column."""

  name: str
  scores: metrics.Scores
  intervals: Mapping[str, Interval]
  subjects: int


def by_group(
  predicted: Predictions, group_of: Callable[[str, str], str]
) -> list[Group]:
  """Scores of each group with intervals by subject, the largest group first.

  Args:
    predicted: of clips.
    group_of: of a clip and its subject, the group; '' is left out.
  """
  names = np.array(
    [group_of(*x) for x in zip(predicted.clip, predicted.subject, strict=True)]
  )
  found = []
  for name in sorted({*names.tolist()} - {''}):
    part = predicted.take(names == name)
    groups = part.by_subject()
    found.append(
      Group(
        name=name,
        scores=metrics.score(part.matrix),
        intervals=intervals(groups),
        subjects=len(groups),
      )
    )
  return sorted(found, key=lambda x: -x.scores.clips)
