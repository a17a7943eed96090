"""Probes of frozen features: nearest neighbours and a linear map.

Both are exact and deterministic. What they choose (the number of neighbours,
the strength of the penalty) they choose within the training clips, never by the
tested ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.optimize

from mira_jax.errors import MiraInputError
from mira_jax.evaluation.metrics import confusion_matrix, score

Array = np.ndarray
NEIGHBOURS = (1, 3, 5, 10, 20, 50)
TEMPERATURE = 0.07
PENALTIES = tuple(10.0**n for n in range(-5, 3))
_ROWS = 1024  # of a block of similarities


# ----- nearest neighbours ---------------------------------------------------


def unit(features: Array) -> Array:
  """Rows [C, D] as float64 of length 1; a row of zeros stays."""
  rows = np.asarray(features, np.float64)
  length = np.linalg.norm(rows, axis=1, keepdims=True)
  return rows / np.maximum(length, 1e-12)


def knn_votes(
  train: Array,
  labels: Array,
  test: Array,
  *,
  ks: Sequence[int],
  num_classes: int,
  temperature: float = TEMPERATURE,
  apart: tuple[Array, Array] | None = None,
) -> dict[int, Array]:
  """Weighted k-nearest-neighbour votes by cosine similarity.

  Each of the k most similar training clips votes for its class with weight
  exp(similarity / temperature) (Wu et al., CVPR 2018, arXiv 1805.01978,
  section 3.4). Similarities are float32, so that clips which are the same are
  equally similar in spite of the order of sums; of such the first count.

  Args:
    train: features [C, D].
    labels: int [C] of `train`, in 0 to K - 1.
    test: features [N, D].
    ks: numbers of neighbours.
    num_classes: K.
    temperature: of the weights.
    apart: groups [N] of the test and [C] of the training clips; a clip has no
      neighbour of its own group.

  Returns:
    For each k: [N, K] that sum to 1; a row without any neighbour is uniform.

  Raises:
    MiraInputError: a k is below 1, or above the number of training clips.
  """
  check_k(ks, len(train))
  train, test = unit(train), unit(test)
  most, kinds = max(ks), np.eye(num_classes)[labels]
  votes = {k: np.zeros((len(test), num_classes)) for k in ks}
  for start in range(0, len(test), _ROWS):
    rows = slice(start, start + _ROWS)
    similarity = (test[rows] @ train.T).astype(np.float32)
    if apart is not None:
      own = apart[0][rows, None] == apart[1][None]
      similarity = np.where(own, -np.inf, similarity)
    nearest = greatest(similarity, most)
    near = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
    # Relative to the nearest one, or the exponential would overflow.
    top = np.where(np.isfinite(near[:, :1]), near[:, :1], 0)
    weights = np.exp((near - top) / temperature)
    weighted = weights[:, :, None] * kinds[nearest]
    for k in ks:
      votes[k][rows] = weighted[:, :k].sum(axis=1)
  return {k: _shares(x) for k, x in votes.items()}


def check_k(ks: Sequence[int], clips: int) -> None:
  """Raises MiraInputError for a k below 1 or above so many training clips."""
  bad = [k for k in ks if not 1 <= k <= clips]
  if bad:
    hint = f'there are {clips} training clips; use 1 to that many'
    raise MiraInputError('bad_k', f'k={bad[0]}', hint)


def greatest(values: Array, count: int) -> Array:
  """Where the greatest values of each row are, the greatest first.

  What a stable sort of the whole rows would give, several times as fast.

  Args:
    values: [N, C].
    count: 1 to C.

  Returns:
    int [N, count]; of equal values the first are taken, and come first.
  """
  limit = -np.partition(-values, count - 1, axis=1)[:, count - 1 : count]
  above, level = values > limit, values == limit
  room = count - above.sum(axis=1, keepdims=True)
  taken = above | (level & (level.cumsum(axis=1) <= room))
  places = np.nonzero(taken)[1].reshape(-1, count)
  found = np.take_along_axis(values, places, axis=1)
  order = np.argsort(-found, axis=1, kind='stable')
  return np.take_along_axis(places, order, axis=1)


def _shares(votes: Array) -> Array:
  total = votes.sum(axis=1, keepdims=True)
  uniform = np.full_like(votes, 1 / votes.shape[1])
  return np.divide(votes, total, out=uniform, where=total > 0)


def choose_k(
  features: Array,
  labels: Array,
  groups: Array,
  *,
  ks: Sequence[int],
  num_classes: int,
  temperature: float = TEMPERATURE,
) -> int:
  """The k that classifies the training clips best, each without its group.

  The measure is UAR; of equally good ones the smallest is taken.

  Args:
    features: [C, D] of the training clips.
    labels: int [C].
    groups: [C]; a clip's neighbours are of other groups (other subjects).
    ks: to choose from.
    num_classes: K.
    temperature: see `knn_votes`.
  """
  votes = knn_votes(
    features,
    labels,
    features,
    ks=ks,
    num_classes=num_classes,
    temperature=temperature,
    apart=(groups, groups),
  )
  uar = {
    k: score(confusion_matrix(labels, x.argmax(1), num_classes)).uar
    for k, x in votes.items()
  }
  return max(sorted(ks), key=uar.__getitem__)


# ----- a linear map ---------------------------------------------------------


@dataclasses.dataclass(kw_only=True, frozen=True)
class Linear:
  """Multinomial logistic regression on standardised features.

  Attributes:
    mean: [D], with `scale` [D] of the training features.
    scale: standard deviations; 1 where a feature is constant.
    weights: [D, K].
    bias: [K].
  """

  mean: Array
  scale: Array
  weights: Array
  bias: Array

  def probabilities(self, features: Array) -> Array:
    """[N, D] -> [N, K]."""
    x = (np.asarray(features, np.float64) - self.mean) / self.scale
    return _softmax(x @ self.weights + self.bias)


def _softmax(logits: Array) -> Array:
  shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
  return shifted / shifted.sum(axis=1, keepdims=True)


def clip_weights(labels: Array, num_classes: int, balanced: bool) -> Array:
  """The weight of every clip in a mean, [C]; they sum to 1.

  Args:
    labels: int [C].
    num_classes: K.
    balanced: every class that has clips weighs the same, else every clip.
  """
  counts = np.bincount(labels, minlength=num_classes)
  if not balanced:
    return np.full(len(labels), 1 / len(labels))
  return 1 / (counts[labels] * (counts > 0).sum())


def fit_linear(
  features: Array,
  labels: Array,
  *,
  num_classes: int,
  penalty: float,
  balanced: bool = False,
) -> Linear:
  """Minimises mean cross-entropy + penalty / 2 * |weights|^2, to convergence.

  L-BFGS in float64, from zero. The bias is not penalised.

  Args:
    features: [C, D].
    labels: int [C], in 0 to K - 1.
    num_classes: K.
    penalty: 0 or more.
    balanced: of the mean, see `clip_weights`.
  """
  x = np.asarray(features, np.float64)
  mean, scale = x.mean(axis=0), x.std(axis=0)
  scale = np.where(scale > 1e-12, scale, 1.0)
  x = (x - mean) / scale
  targets = np.eye(num_classes)[labels]
  weight = clip_weights(labels, num_classes, balanced)
  shape = (x.shape[1] + 1, num_classes)

  def loss(flat: Array) -> tuple[float, Array]:
    weights = flat.reshape(shape)
    p = _softmax(x @ weights[:-1] + weights[-1])
    logs = np.log(np.maximum((p * targets).sum(axis=1), 1e-300))
    error = (p - targets) * weight[:, None]
    gradient = np.concatenate([x.T @ error, error.sum(axis=0)[None]])
    gradient[:-1] += penalty * weights[:-1]
    value = -weight @ logs + penalty / 2 * np.square(weights[:-1]).sum()
    return value, gradient.ravel()

  found = scipy.optimize.minimize(
    loss,
    np.zeros(shape).ravel(),
    jac=True,
    method='L-BFGS-B',
    options={'maxiter': 2000, 'maxfun': 4000, 'ftol': 0, 'gtol': 1e-7},
  )
  weights = found.x.reshape(shape)
  return Linear(mean=mean, scale=scale, weights=weights[:-1], bias=weights[-1])


def choose_penalty(
  features: Array,
  labels: Array,
  held_out: Array,
  *,
  num_classes: int,
  penalties: Sequence[float] = PENALTIES,
  balanced: bool = False,
) -> float:
  """The penalty that is best on held-out training clips, by UAR.

  Args:
    features: [C, D] of the training clips.
    labels: int [C].
    held_out: bool [C].
    num_classes: K.
    penalties: to choose from; of equally good ones the largest is taken.
    balanced: see `fit_linear`.
  """
  if not held_out.any() or held_out.all():
    return sorted(penalties)[len(penalties) // 2]

  def uar(penalty: float) -> float:
    fitted = fit_linear(
      features[~held_out],
      labels[~held_out],
      num_classes=num_classes,
      penalty=penalty,
      balanced=balanced,
    )
    found = fitted.probabilities(features[held_out]).argmax(axis=1)
    return score(confusion_matrix(labels[held_out], found, num_classes)).uar

  return max(sorted(penalties, reverse=True), key=uar)


# ----- protocols ------------------------------------------------------------

# (train features, labels, groups, test features) -> name of a setting to
# predicted classes [N]; the first setting is the chosen one.
Method = Callable[[Array, Array, Array, Array], Mapping[str, Array]]


@dataclasses.dataclass(kw_only=True, frozen=True)
class Result:
  """Confusion matrices [K, K] of every fold, and what was chosen there.

  Attributes:
    folds: name of each fold.
    matrices: of the chosen setting, one per fold.
    chosen: name of the chosen setting, one per fold.
    sweep: setting -> matrix pooled over folds, to look at; of those settings
      that every fold has, so that all count the same clips.
  """

  folds: list[str]
  matrices: list[Array]
  chosen: list[str]
  sweep: dict[str, Array]


def run(
  method: Method,
  features: Array,
  labels: Array,
  groups: Array,
  tests: Mapping[str, Array],
  num_classes: int,
) -> Result:
  """Trains on what a fold does not test, fold by fold.

  Args:
    method: see `knn_method` and `linear_method`.
    features: [C, D].
    labels: int [C].
    groups: [C]; subjects, or a group per clip.
    tests: fold -> (bool [C] of its training, bool [C] of its tested clips).
    num_classes: K.
  """
  result = Result(folds=[], matrices=[], chosen=[], sweep={})
  every: list[dict[str, Array]] = []
  for name, (train, test) in tests.items():
    predicted = method(
      features[train], labels[train], groups[train], features[test]
    )
    matrices = {
      setting: confusion_matrix(labels[test], found, num_classes)
      for setting, found in predicted.items()
    }
    chosen = next(iter(matrices))
    result.folds.append(name)
    result.matrices.append(matrices[chosen])
    result.chosen.append(chosen)
    every.append(matrices)
  for setting in set.intersection(*map(set, every)):
    result.sweep[setting] = sum(matrices[setting] for matrices in every)
  return result


def knn_method(
  num_classes: int,
  ks: Sequence[int] = NEIGHBOURS,
  temperature: float = TEMPERATURE,
) -> Method:
  """k-NN with every k; the chosen one comes first. See `choose_k`."""

  def method(train, labels, groups, test):
    options = {'ks': ks, 'num_classes': num_classes}
    best = choose_k(train, labels, groups, temperature=temperature, **options)
    votes = knn_votes(train, labels, test, temperature=temperature, **options)
    order = [best, *(k for k in ks if k != best)]
    return {f'k={k}': votes[k].argmax(axis=1) for k in order}

  return method


def linear_method(
  num_classes: int,
  hold_out: Callable[[Array, Array], Array],
  balanced: bool = False,
) -> Method:
  """A linear map whose penalty is chosen on held-out training clips.

  Args:
    num_classes: K.
    hold_out: (labels, groups) of training clips -> bool mask of those held out.
    balanced: see `fit_linear`.
  """

  def method(train, labels, groups, test):
    options = {'num_classes': num_classes, 'balanced': balanced}
    held_out = hold_out(labels, groups)
    penalty = choose_penalty(train, labels, held_out, **options)
    fitted = fit_linear(train, labels, penalty=penalty, **options)
    name = f'penalty={penalty:g}'
    return {name: fitted.probabilities(test).argmax(axis=1)}

  return method
