"""The baseline of a dataset: descriptors without training and a linear SVM.

A model that needs pre-training, or days, must be above it to be worth them. It
is trained and tested on the same clips as a run of the same protocol: on the
training and the validation clips of each fold.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from mira_jax import files
from mira_jax.data import descriptors, holdout, protocol
from mira_jax.data.dataset import PreparedDataset, fingerprint
from mira_jax.data.pool import Pool, join
from mira_jax.errors import MiraInputError
from mira_jax.evaluation import (
  metrics,
  predictions,
  report,
  results,
  statistics,
)

_log = logging.getLogger(__name__)
Array = np.ndarray
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # C, for clips of norm 1
_INNER = 3  # folds that choose among them
_EXACT = 8000  # clips whose inner products take 0.5 GB
_COMPONENTS = 100  # of pixels


@dataclasses.dataclass(kw_only=True, frozen=True)
class Baseline:
  """The baseline of a dataset under a protocol.

  Attributes:
    features: one of `descriptors.KINDS`.
    class_names: K names.
    folds: with their confusion matrices; one, without a name, of 'split'.
    intervals: of all clips, see `statistics.intervals`.
    strengths: the C that each fold chose.
    seconds: that it took.
    predictions: of each tested clip; probabilities are the softmax of decision
      values, not calibrated. None where it was read from its file.
  """

  features: str
  class_names: tuple[str, ...]
  folds: list[results.Fold]
  intervals: dict[str, tuple[float, float]]
  strengths: list[float]
  seconds: float
  predictions: predictions.Predictions | None = None

  @property
  def matrix(self) -> Array:
    """The confusion matrix of all tested clips, [K, K]."""
    return results.pooled(self.folds)

  def __str__(self) -> str:
    scores = metrics.score(self.matrix)
    war, uar = (
      f'{name.upper()} {getattr(scores, name):.1%} ({low:.1%} to {high:.1%})'
      for name in ('war', 'uar')
      for low, high in [self.intervals[name]]
    )
    return f'{words(self)}: {war}, {uar}'


def words(made: Baseline) -> str:
  """What it is, in words."""
  return f'{made.features} and a linear SVM'


def evaluate(
  datasets: Sequence[PreparedDataset],
  rules: protocol.Rules | None = None,
  *,
  features: str = descriptors.KINDS[0],
  threads: int = 16,
) -> Baseline:
  """Trains and tests the baseline on every fold of a protocol.

  Args:
    datasets: opened.
    rules: of the protocol; None: the datasets' own split. For a run they are
      `train.datasets.rules(cfg)`.
    features: one of `descriptors.KINDS`.
    threads: that decode clips.

  Raises:
    MiraInputError: see `protocol.parts`; no clip can be read, or the rules are
      of action units ('unsupported').
  """
  start, rules = time.monotonic(), rules or protocol.Rules()
  if rules.units is not None:
    hint = 'the baseline learns classes; train with mira train, and score with '
    raise MiraInputError('unsupported', 'action units', f'{hint}mira eval')
  folds = protocol.all_parts(datasets, rules)
  clips = join(protocol.pooled(datasets, rules.classes))
  sides = _sides(clips, folds)
  used = np.unique(np.concatenate([*itertools.chain(*sides)]))
  found, readable = descriptors.of_clips(clips.take(used), features, threads)
  place = np.full(len(clips), -1)
  place[used[readable]] = np.arange(len(readable))
  tested, strengths = [], []
  for fold, side in zip(folds, sides, strict=True):
    train, test = (clips_of[place[clips_of] >= 0] for clips_of in side)
    strength, shares = classify(
      found[place[train]],
      clips.label[train],
      np.where(clips.subject == '', clips.recording, clips.subject)[train],
      found[place[test]],
      num_classes=len(clips.class_names),
      components=_COMPONENTS if features == 'pca' else 0,
    )
    strengths.append(strength)
    tested.append(clips.take(test).predicted(shares, fold.fold_name))
  whole = predictions.join(tested)
  return Baseline(
    features=features,
    class_names=clips.class_names,
    folds=[
      results.Fold(name=fold.fold_name, matrix=part.matrix)
      for fold, part in zip(folds, tested, strict=True)
    ],
    intervals=statistics.intervals(whole.by_subject()),
    strengths=strengths,
    seconds=time.monotonic() - start,
    predictions=whole,
  )


def _sides(
  clips: Pool, folds: Sequence[protocol.Parts]
) -> list[tuple[Array, Array]]:
  """Rows of the clips that train, and that are tested, in each fold."""
  row = {tuple(at): i for i, at in enumerate(clips.where.tolist())}

  def rows(*parts: Pool | None) -> Array:
    known = (part.where.tolist() for part in parts if part)
    return np.array([row[tuple(at)] for at in itertools.chain(*known)])

  return [(rows(fold.train, fold.val), rows(fold.test)) for fold in folds]


# ----- the classifier ---------------------------------------------------------


def classify(
  train: Array,
  labels: Array,
  groups: Array,
  test: Array,
  *,
  num_classes: int,
  components: int = 0,
) -> tuple[float, Array]:
  """A linear SVM, whose C has the best UAR + WAR on folds of training groups.

  It is libsvm's, of every pair of classes, up to _EXACT training clips: with
  their inner products it takes a tenth of the time of liblinear's.

  Args:
    train: descriptors [C, D].
    labels: int [C].
    groups: [C], subjects; no group is on both sides of a fold.
    test: descriptors [N, D].
    num_classes: K.
    components: principal components that are kept; 0: D.

  Returns:
    C, and the softmax of the decision values [N, K]; a class without training
    clips has 0.
  """
  # Slow to import, and commands that only read a baseline fit none.
  from sklearn.decomposition import PCA
  from sklearn.svm import SVC, LinearSVC

  known, shares = np.unique(labels), np.zeros((len(test), num_classes))
  if len(known) == 1:
    shares[:, known] = 1.0
    return STRENGTHS[0], shares
  if components:
    pca = PCA(min(components, *train.shape), random_state=0).fit(train)
    train, test = pca.transform(train), pca.transform(test)
  # C then means the same for all descriptors.
  scale = np.sqrt(np.square(train).sum(1).mean()) or 1.0
  train, test = (np.asarray(x / scale, np.float64) for x in (train, test))
  exact = len(train) <= _EXACT
  own, others = (x @ train.T if exact else x for x in (train, test))

  def values(strength: float, rows: Array, x: Array) -> Array:
    """Decision values [N, K] of x, by a machine of some training clips."""
    columns = rows if exact else slice(None)
    machine = LinearSVC(C=strength)
    if exact:
      machine = SVC(C=strength, kernel='precomputed')
    model = machine.fit(own[rows][:, columns], labels[rows])
    found = np.full((len(x), num_classes), -np.inf)
    decided = model.decision_function(x[:, columns])
    if decided.ndim == 1:  # of two classes that of the second
      decided = np.stack([-decided, decided], axis=1)
    found[:, model.classes_] = decided
    return found

  best = STRENGTHS[1]
  if (inner := _inner_folds(labels, groups)) is not None:
    best = _selected(values, own, labels, inner, num_classes)
  return best, softmax(values(best, np.arange(len(train)), others), axis=1)


def _selected(
  values: Callable[[float, Array, Array], Array],
  own: Array,
  labels: Array,
  inner: Array,
  num_classes: int,
) -> float:
  """The C whose decision values are best on the inner folds."""

  def merit(strength: float) -> float:
    predicted = np.zeros_like(labels)
    for fold in np.unique(inner):
      held = inner == fold
      found = values(strength, np.flatnonzero(~held), own[held])
      predicted[held] = found.argmax(1)
    matrix = metrics.confusion_matrix(labels, predicted, num_classes)
    scores = metrics.score(matrix)
    return scores.uar + scores.war

  return max(STRENGTHS, key=merit)


def _inner_folds(labels: Array, groups: Array) -> Array | None:
  """The fold of each training clip; None where they are too few."""
  count = min(_INNER, len(np.unique(groups)))
  if count < 2:
    return None
  folds = holdout.subject_folds(groups.tolist(), labels.tolist(), count, 0)
  sides = (labels[folds != fold] for fold in range(count))
  return folds if all(len(np.unique(side)) > 1 for side in sides) else None


# ----- the file ---------------------------------------------------------------


def folder(
  datasets: Sequence[PreparedDataset],
  rules: protocol.Rules,
  parent: pathlib.Path | None = None,
  features: str = descriptors.KINDS[0],
) -> pathlib.Path:
  """Where the baseline of datasets and a protocol is stored.

  It lies in the folder of the first dataset, or in another `parent`; its name
  depends on the content of the datasets and on all rules that choose clips.
  """
  changes: dict[str, Any] = {}
  drawn = rules.train_fraction < 1
  if not drawn:  # it is trained on validation clips, too
    changes['val_fraction'] = 0.0
  if rules.protocol != 'folds':
    changes['num_folds'] = 0
  if rules.protocol != 'split':
    changes['test_split'] = ''
  if not (drawn or (rules.protocol == 'folds' and rules.num_folds)):
    changes |= {'fold_rule': '', 'fold_seed': 0}
  facts = dataclasses.asdict(rules) | changes
  facts.pop('units')  # it learns classes
  facts['classes'] = files.sha256(rules.classes) if rules.classes else ''
  facts['datasets'] = [fingerprint(dataset) for dataset in datasets]
  kind = '' if features == descriptors.KINDS[0] else f'{features}-'
  name = f'baseline-{kind}{files.json_sha256(facts)[:12]}'
  return (parent or datasets[0].directory) / name


def write(
  made: Baseline, out: pathlib.Path, rules: protocol.Rules
) -> pathlib.Path:
  """Writes folds.json, predictions.csv and the rest of `report.write_folds`.

  Raises:
    MiraInputError: the folder cannot be written ('not_written').
  """
  metadata = {
    'features': made.features,
    'rules': dataclasses.asdict(rules),
    'intervals': made.intervals,
    'strengths': made.strengths,
    'seconds': round(made.seconds, 1),
  }
  return report.write_folds(
    out,
    made.folds,
    made.class_names,
    metadata=metadata,
    title=f'baseline, {made.features}',
    predicted=made.predictions,
  )


def find(
  datasets: Sequence[PreparedDataset],
  rules: protocol.Rules,
  *folders: pathlib.Path,
) -> Baseline | None:
  """The stored baseline of datasets and a protocol, None if there is none.

  It is looked for beside the first dataset and in `folders`.
  """
  for parent in (None, *folders):
    path = folder(datasets, rules, parent) / report.FOLDS
    try:
      return _parse(json.loads(path.read_bytes()))
    except FileNotFoundError:
      continue
    except (OSError, ValueError, LookupError, TypeError) as error:
      _log.warning('%s is damaged and left out (%s)', path, error)
  return None


def _parse(content: dict[str, Any]) -> Baseline:
  folds = [
    results.Fold(name=x['name'], matrix=np.array(x['confusion']))
    for x in content['folds']
  ]
  return Baseline(
    features=content['features'],
    class_names=tuple(content['class_names']),
    folds=folds,
    intervals={n: (x[0], x[1]) for n, x in content['intervals'].items()},
    strengths=content['strengths'],
    seconds=content['seconds'],
  )


def below(made: Baseline, folds: Sequence[results.Fold]) -> str:
  """A line where folds of a run score less than the baseline; else ''.

  The baseline is that of the same folds, by their names.
  """
  names = {fold.name for fold in folds}
  same = [fold for fold in made.folds if fold.name in names]
  if len(same) < len(folds):
    return ''
  ours, theirs = (metrics.score(results.pooled(part)) for part in (folds, same))
  if ours.war >= theirs.war and ours.uar >= theirs.uar:
    return ''
  pairs = ', '.join(
    f'{name.upper()} {getattr(ours, name):.1%} against '
    f'{getattr(theirs, name):.1%}'
    for name in ('war', 'uar')
  )
  return f'below the baseline ({words(made)}): {pairs}'
