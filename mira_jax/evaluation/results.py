"""Test results of a run and of cross-validation folds.

A run has three results, by what selected the weights: the validation clips, the
end of training, or the test clips themselves. Only the first two are estimates
of anything. The third is common in the field, and in the authors' code; it
serves comparison, under its own name.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from mira_jax import files, terminal
from mira_jax.errors import some
from mira_jax.evaluation.metrics import Scores, score

Parsed = TypeVar('Parsed')
_DAMAGED = (
  *(OSError, ValueError, LookupError, TypeError),
  *(AttributeError, RecursionError),
)
NAME = 'outcome.json'
CHOSEN, LAST, BEST_ON_TEST = 'chosen by validation', 'last', 'best on test'
PRIMARY = 'uncorrected'  # predictions of a model with reliability balancing
UNITS = 'action_units'  # 'labels' of a run that does not learn classes
METRICS = ('war', 'uar', 'macro_f1', 'weighted_f1')


@dataclasses.dataclass(kw_only=True, frozen=True)
class Result:
  """The test confusion matrix [K, K] after some step, and why that step."""

  name: str
  step: int
  matrix: np.ndarray
  calibration: float | None = None  # the error, see `statistics.calibration`

  @property
  def scores(self) -> Scores:
    """Of the matrix."""
    return score(self.matrix)


def of_run(
  final: Mapping[int, np.ndarray],
  watched: Mapping[int, np.ndarray],
  *,
  chosen: int,
  last: int,
  by_val: bool,
) -> list[Result]:
  """The results of a run; the first is that of its weights.

  Args:
    final: test matrix of the two steps below, in all views.
    watched: test matrix at every validation, from which the best one is taken.
    chosen: step of the weights.
    last: step of the end.
    by_val: whether validation clips chose; else the weights are the last ones.
  """
  found = [Result(name=CHOSEN, step=chosen, matrix=final[chosen])] * by_val
  found.append(Result(name=LAST, step=last, matrix=final[last]))
  if watched:
    best = max(watched, key=lambda n: (score(watched[n]).war, n))
    found.append(Result(name=BEST_ON_TEST, step=best, matrix=watched[best]))
  return found


def write(
  workdir: pathlib.Path,
  results: Sequence[Result],
  class_names: Sequence[str],
  *,
  fold: str,
  why: str = '',
) -> pathlib.Path:
  """Writes the results of a run as outcome.json; returns its path.

  `why` the weights are those of their step, in words.
  """
  content = {
    'fold': fold,
    'weights': why,
    'class_names': list(class_names),
    'results': [
      {
        'name': result.name,
        'step': result.step,
        'calibration_error': result.calibration,
        'scores': result.scores.to_dict(class_names),
        'confusion': result.matrix.tolist(),
      }
      for result in results
    ],
  }
  path = workdir / NAME
  files.clear_for_file(path)
  files.write_text(path, terminal.as_json(content, indent=2) + '\n')
  return path


def read(workdir: pathlib.Path) -> list[Result]:
  """The results of a finished run; [] when there are none.

  Those of action units are no matrices, and are left out, see `steps`. A
  damaged file is ignored with a warning.
  """

  def parse(content: Mapping[str, Any]) -> list[Result]:
    if content.get('labels') == UNITS:
      return []
    classes = len(content['class_names'])
    return [_read_result(row, classes) for row in content['results']]

  return _parsed(workdir / NAME, parse, [])


def steps(workdir: pathlib.Path) -> dict[str, int]:
  """The step of each result of a finished run by its name, also of units."""
  return _parsed(
    workdir / NAME,
    lambda x: {str(row['name']): int(row['step']) for row in x['results']},
    {},
  )


def _parsed(
  path: pathlib.Path, parse: Callable[[Any], Parsed], without: Parsed
) -> Parsed:
  """What a JSON file says; `without` it, or where it is damaged, that."""
  try:
    return parse(json.loads(path.read_bytes()))
  except FileNotFoundError:
    return without
  except _DAMAGED:
    hint = 'the command that trained the run writes it anew'
    logging.warning('%s is damaged and left out; %s', path, hint)
    return without


def _read_result(row: Mapping[str, Any], classes: int) -> Result:
  name, step, matrix = (row[key] for key in ('name', 'step', 'confusion'))
  sound = type(name) is str and type(step) is int
  if not (sound and is_matrix(matrix, classes)):
    raise ValueError
  error = row.get('calibration_error')  # of no older version
  if not (error is None or type(error) is float):
    raise ValueError
  return Result(
    name=name, step=step, matrix=np.array(matrix), calibration=error
  )


def is_matrix(value: Any, classes: int) -> bool:
  """Whether JSON is a confusion matrix [K, K] of `classes` classes."""
  try:
    matrix = np.array(value)
  except ValueError:  # rows of unequal length
    return False
  whole = matrix.shape == (classes, classes) and matrix.dtype.kind == 'i'
  return whole and bool(matrix.min() >= 0 and matrix.max() < 2**53)


# ----- folds ----------------------------------------------------------------


@dataclasses.dataclass(kw_only=True, frozen=True)
class Fold:
  """The evaluation of one fold: its name, matrix [K, K] and run's results."""

  name: str
  matrix: np.ndarray
  results: Sequence[Result] = ()

  def result(self, name: str) -> Result | None:
    """The run's result of that name."""
    return next((row for row in self.results if row.name == name), None)


def pooled(folds: Sequence[Fold]) -> np.ndarray:
  """The confusion matrix of all clips of all folds, [K, K]."""
  return np.sum([fold.matrix for fold in folds], axis=0)


def partial(missing: Sequence[str]) -> str:
  """A mark for titles: the missing folds of a protocol; '' for none."""
  return f'PARTIAL, without {some(missing, 4)}' if missing else ''


def means(folds: Sequence[Fold]) -> dict[str, dict[str, float]]:
  """Mean and standard deviation (n - 1) over folds of each of METRICS."""
  each = [score(fold.matrix) for fold in folds]
  values = {name: [getattr(x, name) for x in each] for name in METRICS}
  return {
    name: {
      'mean': float(np.mean(of_folds)),
      'sd': float(np.std(of_folds, ddof=1)) if len(folds) > 1 else 0.0,
    }
    for name, of_folds in values.items()
  }


def folds_dict(
  folds: Sequence[Fold],
  class_names: Sequence[str],
  missing: Sequence[str] = (),
) -> dict[str, Any]:
  """Scores of each fold, their mean and spread, and those of the pool.

  The pooled macro F1 and UAR are the UF1 and UAR of micro-expression
  recognition (leave one subject out), where a fold alone may lack most classes.

  Args:
    folds: evaluated ones.
    class_names: K names.
    missing: folds of the protocol that are not among them; without these no
      number is that of the protocol.
  """
  whole = pooled(folds)
  return {
    'class_names': list(class_names),
    'partial': bool(missing),
    'missing': list(missing),
    'folds': [
      {
        'name': fold.name,
        'scores': score(fold.matrix).to_dict(class_names),
        'confusion': fold.matrix.tolist(),
        'runs': {
          x.name: {
            'step': x.step,
            'war': x.scores.war,
            'uar': x.scores.uar,
            'calibration_error': x.calibration,
          }
          for x in fold.results
        },
      }
      for fold in folds
    ],
    'mean_of_folds': means(folds),
    'pooled': score(whole).to_dict(class_names)
    | {'uf1': score(whole).macro_f1},
    'pooled_confusion': whole.tolist(),
  }
