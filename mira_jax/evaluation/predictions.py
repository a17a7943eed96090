"""Predictions of single clips: predictions.csv, which paired tests need."""

from __future__ import annotations

import csv
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from mira_jax import files
from mira_jax.evaluation.metrics import confusion_matrix

NAME = 'predictions.csv'
COLUMNS = ('clip', 'subject', 'fold', 'true', 'predicted')
_PER_CLIP = ('clip', 'subject', 'fold', 'label', 'probability')
_PREFIX = 'p_'  # of the column of a class


@dataclasses.dataclass(kw_only=True, frozen=True)
class Predictions:
  """The class probabilities of C clips."""

  class_names: tuple[str, ...]
  clip: np.ndarray  # str [C]
  subject: np.ndarray  # str [C]; '' where unknown
  fold: np.ndarray  # str [C], that tests the clip; '' without folds
  label: np.ndarray  # int [C], the true class
  probability: np.ndarray  # float [C, K]

  def __len__(self) -> int:
    return len(self.label)

  @property
  def predicted(self) -> np.ndarray:
    """The likeliest class of each clip, int [C]."""
    return self.probability.argmax(-1)

  @property
  def matrix(self) -> np.ndarray:
    """Confusion matrix int [K, K], rows = true class."""
    count = len(self.class_names)
    return confusion_matrix(self.label, self.predicted, count)

  def take(self, rows: np.ndarray) -> Predictions:
    """The clips of a mask [C] or of indices [n], in that order."""
    return dataclasses.replace(
      self, **{name: getattr(self, name)[rows] for name in _PER_CLIP}
    )

  def by_subject(self) -> np.ndarray:
    """A matrix of each subject [G, K, K]; a clip without one is its own."""
    clips = [subject or f'\0{i}' for i, subject in enumerate(self.subject)]
    group = np.unique(clips, return_inverse=True)[1]
    count = len(self.class_names)
    found = np.zeros((group.max() + 1, count, count), np.int64)
    np.add.at(found, (group, self.label, self.predicted), 1)
    return found

  def write(self, folder: str | os.PathLike[str]) -> pathlib.Path:
    """Writes predictions.csv; returns its path.

    Columns are COLUMNS, with the names of classes, then 'p_CLASS' for the
    probability of each class.
    """
    path = pathlib.Path(folder, NAME)
    classes = [_PREFIX + name for name in self.class_names]
    names = np.array(self.class_names)
    rows = zip(
      self.clip,
      self.subject,
      self.fold,
      names[self.label],
      names[self.predicted],
      self.probability,
      strict=True,
    )
    lines = ([*row, *(f'{p:.9g}' for p in shares)] for *row, shares in rows)
    files.write_csv(path, [*COLUMNS, *classes], lines)
    return path


def read(path: str | os.PathLike[str]) -> Predictions:
  """The inverse of `Predictions.write`.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is no such table.
  """
  with open(path, newline='', encoding='utf-8') as file:
    head, *rows = csv.reader(file)
  classes = head[len(COLUMNS) :]
  if tuple(head[: len(COLUMNS)]) != COLUMNS or not rows or not classes:
    raise ValueError(f'{path} has other columns')
  names = tuple(name.removeprefix(_PREFIX) for name in classes)
  clip, subject, fold, true, _, *shares = zip(*rows, strict=True)
  return Predictions(
    class_names=names,
    clip=np.array(clip),
    subject=np.array(subject),
    fold=np.array(fold),
    label=np.array([names.index(name) for name in true]),
    probability=np.array(shares, np.float64).T,
  )


def join(parts: Sequence[Predictions]) -> Predictions:
  """The clips of all parts, which have the same classes."""
  joined = {
    name: np.concatenate([getattr(part, name) for part in parts])
    for name in _PER_CLIP
  }
  return Predictions(class_names=parts[0].class_names, **joined)
