"""Reports: files that round trip, tables that say the right numbers."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console, RenderableType

from mira_jax.errors import MiraInputError
from mira_jax.evaluation import metrics, report, results

NAMES = ('neutral', 'happiness', 'fear')
MATRIX = np.array([[9, 1, 0], [5, 15, 0], [0, 0, 0]])


def show(renderable: RenderableType, width: int = 80) -> str:
  console = Console(width=width, file=io.StringIO(), color_system=None)
  console.print(renderable)
  return console.file.getvalue()


def line(text: str, word: str) -> list[str]:
  return next(x for x in text.splitlines() if word in x).split()


def test_write_evaluation(tmp_path):
  path = report.write_evaluation(
    tmp_path / 'eval',
    matrix=MATRIX,
    class_names=NAMES,
    metadata={'dataset': 'Gesichter', 'views': 2},
    title='Gesichter test',
  )
  found = json.loads(path.read_text())
  assert found['metadata'] == {'dataset': 'Gesichter', 'views': 2}
  assert found['scores']['uar'] == pytest.approx((0.9 + 0.75) / 2)
  assert found['scores']['classes']['fear']['recall'] is None
  assert found['confusion'] == MATRIX.tolist()
  header, *rows = csv.reader((path.parent / 'confusion.csv').open())
  assert tuple(header[1:]) == NAMES
  assert rows[1] == ['happiness', '5', '15', '0']
  assert (path.parent / 'confusion.png').stat().st_size > 10_000
  assert (path.parent / 'confusion.npz').exists()


def test_metadata_must_be_json(tmp_path):
  data = {'matrix': MATRIX, 'class_names': NAMES, 'title': 'x'}
  with pytest.raises(ValueError, match='JSON'):
    report.write_evaluation(tmp_path, metadata={'x': float('nan')}, **data)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('width', [60, 90])
def test_evaluation_table(width):
  text = show(report.evaluation_table(MATRIX, NAMES, 'Test part'), width)
  assert 'Test part' in text
  assert line(text, 'WAR')[:6] == ['WAR', '80.00', '%', 'UAR', '82.50', '%']
  # Precision 15 of 16, F1 30 of 36.
  expected = ['75.0', '%', '93.8', '%', '83.3', '%', '20']
  assert line(text, 'happiness')[-7:] == expected
  assert line(text, 'fear') == ['fear', '-', '0.0', '%', '-', '0']
  assert '30 clips, 2 of 3 classes present' in text
  bars = [line(text, name)[1].count('━') for name in NAMES[:2]]
  assert width < 90 or bars == [21, 18]  # of 24


def test_predictions_are_sorted_and_keep_brackets():
  clip, row = '[bold]a\x1b[31m\n:smile: 张.mp4', np.array([0.1, 0.2, 0.7])
  text = show(report.prediction_table(clip, row, NAMES, top=2))
  title, first, second, *_ = text.splitlines()
  assert title == r'[bold]a\x1b[31m\n:smile: 张.mp4'
  assert first.split()[::2] == ['fear', '70.0']
  assert (second.split()[0], '10.0 %' in text) == ('happiness', False)
  long = show(report.prediction_table('x' * 500, row, NAMES))
  assert long.count('x') == 500


def test_seconds_of_one_class_are_one_line():
  timeline = np.eye(3)[[0, 0, 0, 2, 1, 1]]
  text = show(report.timeline_table('a.mp4', timeline, NAMES, rows=2))
  assert line(text, 'neutral')[0] == '0-3'
  assert line(text, 'happiness')[0] == '4-6'
  assert '1 shorter stretches are not shown' in text


FOLD = results.Fold(name='one', matrix=np.eye(4, dtype=int))


@pytest.mark.parametrize(
  'make',
  [
    lambda names: metrics.score(FOLD.matrix).to_dict(names),
    lambda names: report.evaluation_table(FOLD.matrix, names, 'title'),
    lambda names: report.folds_table([FOLD], names, 'title'),
  ],
)
def test_more_classes_than_names(make):
  with pytest.raises(MiraInputError, match=r'class_count: 3 class names.* 4 c'):
    make(NAMES)


def test_forty_classes_stay_readable():
  names = [f'compound expression {i}' for i in range(40)]
  matrix = 10 * np.eye(40, dtype=int)
  text = show(report.evaluation_table(matrix, names, 'title'))
  assert all(f'{name} ' in text for name in names)
  fold = results.Fold(name='one', matrix=matrix)
  text += show(report.folds_table([fold], names, 'title'))
  assert '…' not in text


def test_folds_that_are_missing_make_a_report_partial(tmp_path):
  folds, names = [FOLD], ('a', 'b', 'c', 'd')
  assert results.folds_dict(folds, names)['partial'] is False
  assert 'PARTIAL' not in show(report.folds_table(folds, names, ''))
  missing = [f'subject {i}' for i in range(9)]
  text = show(report.folds_table(folds, names, '', missing))
  assert 'PARTIAL, without subject 0, ' in text
  assert 'and 5 more' in text
  path = report.write_folds(
    tmp_path, folds, names, metadata={'x': 1}, title='t', missing=missing
  )
  content = json.loads(path.read_text())
  assert (content['missing'], content['x']) == (missing, 1)
  assert (
    json.loads((tmp_path / 'scores.json').read_text())['metadata']['x'] == 1
  )


def test_names_of_classes_are_whole_in_the_matrix():
  names = ('contempt and disgust', 'b', 'surprised, positively')
  fold = results.Fold(name='fold 1', matrix=5 * np.eye(3, dtype=int))
  text = ''.join(show(report.folds_table([fold], names, 'x')).split())
  for name in names:
    for word in name.split():
      assert text.count(word) >= 1
