"""Pseudo-labels by cluster: from a model's predictions to labels to train on.

Clips of an unlabelled dataset are clustered by their features, and each cluster
takes the class that a model predicts most often in it. The labels of the purest
clusters are then trained on: unsupervised adaptation.

Shapes: N clips, D numbers in the features of one.

Source: cluster-level pseudo-labels, arXiv 2210.05246 (BMVC 2022). The rule is
that of the abstract and of the authors' public code, as it behaves: K-means on
features with a 1 added, at unit length; the share of the commonest class is the
confidence; of every class the most confident clips are kept. Among clips of the
same confidence, those nearest to the centre of their cluster come first: ours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mira_jax.errors import MiraInputError


class PseudoLabels(NamedTuple):
  """The M clips that are kept, by index."""

  indices: np.ndarray  # int [M], rising
  labels: np.ndarray  # int [M]
  confidence: np.ndarray  # float [M], share of the class in the cluster


def cluster_pseudo_labels(
  embedding: np.ndarray,
  predicted: np.ndarray,
  num_clusters: int,
  keep: float,
  seed: int = 0,
) -> PseudoLabels:
  """Labels for the clips of pure clusters.

  Args:
    embedding: [N, D], features of the clips.
    predicted: int [N], classes that a model gives them.
    num_clusters: 1 to N.
    keep: the share of the clips of each class that are kept, at least one;
      more than 0, to 1.
    seed: of the first centres.

  Raises:
    MiraInputError: a number out of its range ('bad_value').
  """
  # Few commands need it, and it takes a second to import.
  from sklearn import cluster

  count = len(embedding)
  if not 1 <= num_clusters <= count:
    hint = f'use 1 to {count}, the number of clips'
    raise MiraInputError('bad_value', f'clusters={num_clusters}', hint)
  if not 0 < keep <= 1:
    hint = 'use a share: more than 0, and 1 at most'
    raise MiraInputError('bad_value', f'keep={keep}', hint)
  ones = np.ones((count, 1))
  points = np.concatenate([np.asarray(embedding, np.float64), ones], axis=1)
  points /= np.linalg.norm(points, axis=1, keepdims=True)
  starts: Any = 10  # which the types of scikit-learn take for a word
  means = cluster.KMeans(num_clusters, n_init=starts, random_state=seed)
  distance = means.fit_transform(points)
  members = np.asarray(means.labels_)
  labels, confidence = vote(members, predicted)
  order = np.lexsort((distance[np.arange(count), members], -confidence))
  kept = [
    own[: max(1, round(keep * len(own)))]
    for own in (order[labels[order] == c] for c in np.unique(labels))
  ]
  indices = np.sort(np.concatenate(kept))
  return PseudoLabels(indices, labels[indices], confidence[indices])


def vote(
  members: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The commonest class in the cluster of each clip, and its share there.

  Of two that are as common, the first. Clusters are any whole numbers; one that
  has no clip has no vote.

  Args:
    members: int [N], the cluster of each clip.
    predicted: int [N], its class.

  Returns:
    int [N] and float [N].
  """
  labels, confidence = np.zeros(len(members), int), np.zeros(len(members))
  for number in np.unique(members):
    own = members == number
    counts = np.bincount(predicted[own])
    labels[own] = counts.argmax()
    confidence[own] = counts.max() / own.sum()
  return labels, confidence
