"""Probes of frozen features: nearest neighbours and a linear classifier.

Both are exact and deterministic. The number of neighbours and the strength of
the penalty are selected within the training clips, never by the tested ones.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances_chunked
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mira_jax.errors import MiraInputError
from mira_jax.evaluation.metrics import confusion_matrix, score
from mira_jax.evaluation.results import Fold

Array = np.ndarray
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
TEMPERATURE = 0.07
PENALTIES = tuple(10.0**n for n in range(-5, 3))


# ----- nearest neighbours ---------------------------------------------------


def knn_votes(
  train: Array,
  labels: Array,
  test: Array,
  *,
  ks: Sequence[int],
  num_classes: int,
  apart: tuple[Array, Array] | None = None,
) -> dict[int, Array]:
  """Weighted k-nearest-neighbour votes by cosine similarity.

  Each of the k most similar training clips votes for its class with weight
  exp(similarity / TEMPERATURE) (Wu et al., CVPR 2018, arXiv 1805.01978,
  section 3.4). Similarities are rounded to float32, so that equal clips are
  equally similar whatever the order of summation; of these the first count,
  which is why scikit-learn's own k-NN, whose order is arbitrary, is not used.

  Args:
    train: features [C, D].
    labels: int [C] of `train`, in 0 to K - 1.
    test: features [N, D].
    ks: numbers of neighbours.
    num_classes: K.
    apart: groups [N] of the test and [C] of the training clips; neighbours of
      a clip's own group are left out.

  Returns:
    For each k: [N, K], rows sum to 1; a row without any neighbour is uniform.

  Raises:
    MiraInputError: a k is below 1, or above the number of training clips.
  """
  check_k(ks, len(train))
  kinds = np.eye(num_classes)[labels]

  def vote(distances: Array, start: int) -> Array:
    similar = (1 - distances).astype(np.float32)
    if apart is not None:
      own = apart[0][start : start + len(similar), None]
      similar[own == apart[1]] = -np.inf
    nearest = np.argsort(-similar, axis=1, kind='stable')[:, : max(ks)]
    near = np.take_along_axis(similar, nearest, axis=1).astype(np.float64)
    # Relative to the nearest one, or the exponential would overflow.
    top = np.where(np.isfinite(near[:, :1]), near[:, :1], 0)
    weighted = np.exp((near - top) / TEMPERATURE)[..., None] * kinds[nearest]
    return np.stack([weighted[:, :k].sum(axis=1) for k in ks], axis=1)

  features = [np.asarray(x, np.float64) for x in (test, train)]
  blocks = pairwise_distances_chunked(
    *features, metric='cosine', reduce_func=vote, working_memory=64
  )
  votes = np.concatenate([*blocks])
  total = votes.sum(axis=2, keepdims=True)
  uniform = np.full_like(votes, 1 / num_classes)
  shares = np.divide(votes, total, out=uniform, where=total > 0)
  return {k: shares[:, i] for i, k in enumerate(ks)}


def check_k(ks: Sequence[int], clips: int) -> None:
  """Raises MiraInputError for a k below 1 or above so many training clips."""
  bad = [k for k in ks if not 1 <= k <= clips]
  if bad:
    hint = f'there are {clips} training clips; use 1 to that many'
    raise MiraInputError('bad_k', f'k={bad[0]}', hint)


def knn(
  train: Array,
  labels: Array,
  groups: Array,
  test: Array,
  *,
  num_classes: int,
  ks: Sequence[int] = NEIGHBOURS,
) -> dict[str, Array]:
  """The predictions [N] of every k, 'k=5' for one; the selected k comes first.

  The selected k has the best UAR on the training clips, each classified by
  those of other groups (subjects); of equally good ones the smallest. Arguments
  are those of `Method` and `knn_votes`.
  """
  votes = functools.partial(
    knn_votes, train, labels, ks=ks, num_classes=num_classes
  )
  inside = votes(train, apart=(groups, groups))
  uar = {k: _uar(labels, x.argmax(1), num_classes) for k, x in inside.items()}
  ranked = sorted(ks, key=lambda k: (-uar[k], k))
  predicted = votes(test)
  return {f'k={k}': predicted[k].argmax(axis=1) for k in ranked}


def _uar(labels: Array, predicted: Array, num_classes: int) -> float:
  return score(confusion_matrix(labels, predicted, num_classes)).uar


# ----- a linear classifier --------------------------------------------------


def fit_linear(
  features: Array,
  labels: Array,
  *,
  penalty: float,
  balanced: bool = False,
  tolerance: float = 1e-7,
  start: DummyClassifier | Pipeline | None = None,
) -> DummyClassifier | Pipeline:
  """Multinomial logistic regression on standardised features.

  Minimises mean cross-entropy + penalty / 2 * |weights|^2 by L-BFGS in float64;
  the bias is not penalised. Classes without clips are never predicted.

  Args:
    features: [C, D].
    labels: int [C].
    penalty: above 0.
    balanced: every class that has clips weighs the same, else every clip.
    tolerance: largest derivative of the result.
    start: a fit of the same clips, which is changed to this penalty.
  """
  classes = len(np.unique(labels))
  if classes == 1:
    return DummyClassifier(strategy='most_frequent').fit(features, labels)
  # Of two classes scikit-learn fits the difference of their weights alone,
  # whose penalty is twice that of the two.
  strength = (2 if classes == 2 else 1) / (penalty * len(labels))
  if start is None:
    model = LogisticRegression(
      class_weight='balanced' if balanced else None,
      tol=tolerance,
      max_iter=2000,
      warm_start=True,
    )
    start = make_pipeline(StandardScaler(), model)
  start.set_params(logisticregression__C=strength)
  return start.fit(np.asarray(features, np.float64), labels)


def select_penalty(
  features: Array,
  labels: Array,
  held_out: Array,
  *,
  num_classes: int,
  balanced: bool = False,
) -> float:
  """The penalty with the best UAR on the training clips of a mask [C].

  Of equally good ones the largest; the middle one where nothing is held out.
  They fall from the largest, each fit from the one before, until two more are
  no better: the smallest take most of the time, and overfit few clips.
  """
  if not held_out.any() or held_out.all():
    return PENALTIES[len(PENALTIES) // 2]
  kept = features[~held_out], labels[~held_out]

  fitted, uar = None, {}
  for penalty in sorted(PENALTIES, reverse=True):
    options = {'balanced': balanced, 'tolerance': 1e-4, 'start': fitted}
    fitted = fit_linear(*kept, penalty=penalty, **options)
    predicted = np.asarray(fitted.predict(features[held_out]))
    uar[penalty] = _uar(labels[held_out], predicted, num_classes)
    best = max(uar, key=lambda x: uar[x])  # the first of equal ones
    if [*uar].index(best) + 2 < len(uar):
      break
  return best


def linear(
  train: Array,
  labels: Array,
  groups: Array,
  test: Array,
  *,
  num_classes: int,
  hold_out: Callable[[Array, Array], Array],
  balanced: bool = False,
) -> dict[str, Array]:
  """The predictions [N] under the selected penalty, by its name.

  `hold_out` takes the labels and groups of the training clips and gives bool
  [C], those held out to select it; other arguments are those of `Method`.
  """
  penalty = select_penalty(
    train,
    labels,
    hold_out(labels, groups),
    num_classes=num_classes,
    balanced=balanced,
  )
  fitted = fit_linear(train, labels, penalty=penalty, balanced=balanced)
  return {f'penalty={penalty:g}': np.asarray(fitted.predict(test))}


# ----- protocols ------------------------------------------------------------

# (training features [C, D], labels [C], groups [C], test features [N, D]) ->
# predicted classes [N] by name of a setting; the selected setting comes first.
Method = Callable[[Array, Array, Array, Array], Mapping[str, Array]]


@dataclasses.dataclass(kw_only=True, frozen=True)
class Result:
  """The folds under the settings selected there.

  Attributes:
    folds: with their confusion matrices.
    chosen: name of the selected setting, one per fold.
    sweep: setting -> matrix pooled over folds, for comparison; of the settings
      that every fold has, so that all count the same clips.
  """

  folds: list[Fold]
  chosen: list[str]
  sweep: dict[str, Array]


def run(
  method: Method,
  features: Array,
  labels: Array,
  groups: Array,
  tests: Mapping[str, tuple[Array, Array]],
  num_classes: int,
) -> Result:
  """Trains on the training clips of each fold and tests on its tested ones.

  Args:
    method: `knn` or `linear` with their options bound.
    features: [C, D].
    labels: int [C].
    groups: [C]; subjects, or a group per clip.
    tests: fold -> (bool [C] of its training, bool [C] of its tested clips).
    num_classes: K.
  """
  folds, chosen, every = [], [], []
  for name, (train, test) in tests.items():
    columns = (features[train], labels[train], groups[train], features[test])
    matrices = {
      setting: confusion_matrix(labels[test], predicted, num_classes)
      for setting, predicted in method(*columns).items()
    }
    chosen.append(next(iter(matrices)))
    folds.append(Fold(name=name, matrix=matrices[chosen[-1]]))
    every.append(matrices)
  shared = set.intersection(*map(set, every))
  sweep = {name: np.sum([m[name] for m in every], axis=0) for name in shared}
  return Result(folds=folds, chosen=chosen, sweep=sweep)
