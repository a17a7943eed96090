"""Results of runs and folds, named after what selected the weights."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import rich.console

from mira_jax.evaluation import report, results


def matrix(hits: int, misses: int, others: int = 4):
  """Two classes: the first with hits and misses, the second all right."""
  return np.array([[hits, misses], [0, others]])


def text(renderable) -> str:
  console = rich.console.Console(file=io.StringIO(), width=80)
  console.print(renderable)
  return console.file.getvalue()


WATCHED = {10: matrix(1, 3), 20: matrix(4, 0), 30: matrix(2, 2)}
FINAL = {10: WATCHED[10], 30: WATCHED[30]}


def test_the_first_result_is_never_selected_on_the_test_clips():
  found = results.of_run(FINAL, WATCHED, chosen=10, last=30, by_val=True)
  assert [(row.name, row.step) for row in found] == [
    (results.CHOSEN, 10),
    (results.LAST, 30),
    (results.BEST_ON_TEST, 20),
  ]
  assert [row.scores.war for row in found] == [5 / 8, 6 / 8, 1]
  shown = text(report.results_table(found, 'a run'))
  assert '62.5 %' in shown
  assert 'selected on the clips it is tested on' in shown
  found = results.of_run(FINAL, {}, chosen=30, last=30, by_val=False)
  assert [row.name for row in found] == [results.LAST]


def test_results_survive_their_file(tmp_path):
  found = results.of_run(FINAL, WATCHED, chosen=10, last=30, by_val=True)
  path = results.write(tmp_path, found, ('a', 'b'), fold='fold 1')
  content = json.loads(path.read_text())
  assert content['fold'] == 'fold 1'
  assert content['results'][0]['scores']['classes']['a']['recall'] == 0.25
  for a, b in zip(results.read(tmp_path), found, strict=True):
    assert (a.name, a.step) == (b.name, b.step)
    np.testing.assert_array_equal(a.matrix, b.matrix)
  assert results.read(tmp_path / 'absent') == []


FOLDS = [
  results.Fold(name='one', matrix=matrix(3, 1)),  # WAR 7/8
  results.Fold(name='two', matrix=matrix(0, 2, others=8)),  # 8/10
  results.Fold(name='three', matrix=np.array([[0, 0], [1, 1]])),  # 1/2
]


def test_folds_are_averaged_and_pooled_apart():
  content = results.folds_dict(FOLDS, ('a', 'b'))
  mean = content['mean_of_folds']['war']
  wars = [7 / 8, 8 / 10, 1 / 2]
  assert mean['mean'] == pytest.approx(np.mean(wars))
  assert mean['sd'] == pytest.approx(np.std(wars, ddof=1))
  # All clips: [[3, 3], [1, 13]].
  assert content['pooled_confusion'] == [[3, 3], [1, 13]]
  pooled = content['pooled']
  assert pooled['war'] == pytest.approx(16 / 20)
  assert pooled['uar'] == pytest.approx((3 / 6 + 13 / 14) / 2)
  f1 = [2 * 3 / (2 * 3 + 3 + 1), 2 * 13 / (2 * 13 + 1 + 3)]
  assert pooled['uf1'] == pytest.approx(np.mean(f1))
  # The third fold has no clip of 'a': its UAR is over what it has.
  third = content['folds'][2]['scores']
  assert (third['uar'], third['present']) == (0.5, 1)
  json.dumps(content, allow_nan=False)


def test_the_table_of_folds_shows_their_mean_and_pool():
  shown = text(report.folds_table(FOLDS, ('a', 'b'), 'three folds'))
  lines = [line.split() for line in shown.splitlines()]
  assert any(line[:3] == ['one', '8', '87.5'] for line in lines)
  assert any(line[:2] == ['mean', '72.5'] for line in lines)
  assert any(line[:3] == ['pooled', '20', '80.0'] for line in lines)
  assert any(line == ['b', '1', '13'] for line in lines)


def test_the_table_of_folds_fits_eighty_columns():
  best = {100000: np.diag([999] * 7)}
  found = results.of_run(best, best, chosen=100000, last=100000, by_val=True)
  fold = results.Fold(name='a_dataset_of_faces', matrix=best[100000],
                      results=found)  # fmt: skip
  names = [f'happiness {i}' for i in range(7)]
  shown = text(report.folds_table([fold] * 5, names, 'five folds'))
  assert '…' not in shown
  assert 'best on test: selected on the clips it is tested on' in shown


def test_columns_that_are_not_there_have_no_note():
  matrix = FOLDS[0].matrix
  found = results.of_run({9: matrix}, {}, chosen=9, last=9, by_val=False)
  fold = results.Fold(name='one', matrix=matrix, results=found)
  shown = text(report.folds_table([fold], ('a', 'b'), 'title'))
  assert 'last: WAR' in shown
  assert 'best on test' not in shown
