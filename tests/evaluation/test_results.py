"""How runs and folds came out, told apart by what chose the weights."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import rich.console

from mira_jax.evaluation import results


def matrix(hits: int, misses: int, others: int = 4):
  """Two classes: the first with hits and misses, the second all right."""
  return np.array([[hits, misses], [0, others]])


def text(renderable) -> str:
  console = rich.console.Console(file=io.StringIO(), width=100)
  console.print(renderable)
  return console.file.getvalue()


WATCHED = {10: matrix(1, 3), 20: matrix(4, 0), 30: matrix(2, 2)}


def test_the_first_row_is_never_chosen_by_the_test_clips():
  final = {10: WATCHED[10], 30: WATCHED[30]}
  rows = results.rows(final, WATCHED, chosen=10, last=30, by_val=True)
  assert [(row.name, row.step) for row in rows] == [
    (results.CHOSEN, 10),
    (results.LAST, 30),
    (results.BEST_ON_TEST, 20),
  ]
  assert [row.scores.war for row in rows] == [5 / 8, 6 / 8, 1]
  rows = results.rows(final, {}, chosen=30, last=30, by_val=False)
  assert [row.name for row in rows] == [results.LAST]


def test_an_outcome_survives_its_file(tmp_path):
  final = {10: WATCHED[10], 30: WATCHED[30]}
  rows = results.rows(final, WATCHED, chosen=10, last=30, by_val=True)
  path = results.write(tmp_path, rows, ('a', 'b'), fold='fold 1')
  told = json.loads(path.read_text())
  assert told['fold'] == 'fold 1'
  assert told['results'][0]['scores']['classes']['a']['recall'] == 0.25
  for a, b in zip(results.read(tmp_path), rows, strict=True):
    assert (a.name, a.step) == (b.name, b.step)
    np.testing.assert_array_equal(a.matrix, b.matrix)
  assert results.read(tmp_path / 'absent') == []


def test_the_table_warns_of_what_the_test_clips_chose():
  rows = results.rows(WATCHED, WATCHED, chosen=10, last=30, by_val=True)
  shown = text(results.table(rows, 'a run'))
  assert '62.5 %' in shown
  assert 'chosen by the clips it is tested on' in shown


FOLDS = [
  results.Fold(name='one', matrix=matrix(3, 1)),  # WAR 7/8
  results.Fold(name='two', matrix=matrix(0, 2, others=8)),  # 8/10
  results.Fold(name='three', matrix=np.array([[0, 0], [1, 1]])),  # 1/2
]


def test_folds_are_averaged_and_pooled_apart():
  told = results.folds_dict(FOLDS, ('a', 'b'))
  mean = told['mean_of_folds']['war']
  wars = [7 / 8, 8 / 10, 1 / 2]
  assert mean['mean'] == pytest.approx(np.mean(wars))
  assert mean['sd'] == pytest.approx(np.std(wars, ddof=1))
  # All clips: [[3, 3], [1, 13]].
  assert told['pooled_confusion'] == [[3, 3], [1, 13]]
  pooled = told['pooled']
  assert pooled['war'] == pytest.approx(16 / 20)
  assert pooled['uar'] == pytest.approx((3 / 6 + 13 / 14) / 2)
  f1 = [2 * 3 / (2 * 3 + 3 + 1), 2 * 13 / (2 * 13 + 1 + 3)]
  assert pooled['uf1'] == pytest.approx(np.mean(f1))
  # The third fold has no clip of 'a': its UAR is over what it has.
  third = told['folds'][2]['scores']
  assert (third['uar'], third['present']) == (0.5, 1)
  json.dumps(told, allow_nan=False)


def test_the_fold_table_fits_eighty_columns():
  rows = results.rows(
    {100000: FOLDS[0].matrix},
    {100000: FOLDS[0].matrix},
    chosen=100000,
    last=100000,
    by_val=True,
  )
  folds = [
    results.Fold(
      name=f'a_dataset_of_faces_{i}', matrix=np.diag([999] * 7), results=rows
    )
    for i in range(5)
  ]
  console = rich.console.Console(file=io.StringIO(), width=80)
  names = [f'happiness {i}' for i in range(7)]
  console.print(results.folds_table(folds, names, 'five folds'))
  shown = console.file.getvalue()
  assert '…' not in shown
  assert 'best on test' in shown


def test_the_fold_table_shows_mean_and_pool_together():
  shown = text(results.folds_table(FOLDS, ('a', 'b'), 'three folds'))
  lines = [line.split() for line in shown.splitlines()]
  assert any(line[:3] == ['one', '8', '87.5'] for line in lines)
  assert any(line[:2] == ['mean', '72.5'] for line in lines)
  assert any(line[:3] == ['pooled', '20', '80.0'] for line in lines)
  assert any(line == ['b', '1', '13'] for line in lines)
  runs = [
    results.rows(
      {1: fold.matrix}, {1: fold.matrix}, chosen=1, last=1, by_val=True
    )
    for fold in FOLDS
  ]
  folds = [
    results.Fold(name=f.name, matrix=f.matrix, results=r)
    for f, r in zip(FOLDS, runs, strict=True)
  ]
  shown = text(results.folds_table(folds, ('a', 'b'), 'three folds'))
  assert 'best on test' in shown
  assert 'chosen by the clips it is tested on' in shown
