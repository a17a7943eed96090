"""Reports: files that round trip, tables that say the right numbers."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from rich import cells
from rich.console import Console, RenderableType

from mira_jax.evaluation import report

NAMES = ('neutral', 'happiness', 'fear')
MATRIX = np.array([[9, 1, 0], [5, 15, 0], [0, 0, 0]])


def _print(renderable: RenderableType, width: int = 90) -> str:
  console = Console(width=width, file=io.StringIO(), color_system=None)
  console.print(renderable)
  return console.file.getvalue()


def _line(text: str, word: str) -> list[str]:
  return next(line for line in text.splitlines() if word in line).split()


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
  with pytest.raises(ValueError, match='JSON'):
    report.write_evaluation(
      tmp_path,
      matrix=MATRIX,
      class_names=NAMES,
      metadata={'loss': float('nan')},
      title='x',
    )
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('width', [60, 90])
def test_evaluation_table(width):
  text = _print(report.evaluation_table(MATRIX, NAMES, 'Test part'), width)
  assert 'Test part' in text
  assert _line(text, 'WAR')[:6] == ['WAR', '80.00', '%', 'UAR', '82.50', '%']
  # Precision 15 of 16, F1 30 of 36.
  line = _line(text, 'happiness')
  assert line[-7:] == ['75.0', '%', '93.8', '%', '83.3', '%', '20']
  assert _line(text, 'fear') == ['fear', '-', '0.0', '%', '-', '0']
  assert '30 clips, 2 of 3 classes present' in text
  bars = [_line(text, name)[1].count('━') for name in NAMES[:2]]
  assert width < 90 or bars == [21, 18]  # of 24


def test_prediction_tables_sort_and_keep_brackets():
  clips = ['[bold]a.mp4', 'a\x1b[31m\nvery long name.mp4', ':smile: 张.mp4']
  width = report.name_width(clips, NAMES, 90)
  text = ''.join(
    _print(
      report.prediction_table(
        clip, np.array(row), NAMES, width=width, header=not i, top=2
      )
    )
    for i, (clip, row) in enumerate(
      zip(clips, ([0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0, 0, 1]), strict=True)
    )
  )
  assert _line(text, 'a.mp4')[:2] == ['[bold]a.mp4', 'fear']
  line = _line(text, 'very')
  assert line[:4] == [r'a\x1b[31m\nvery', 'long', 'name.mp4', 'neutral']
  assert _line(text, '张')[:3] == [':smile:', '张.mp4', 'fear']
  assert text.count('probability') == 1
  assert '10.0 %' not in text
  # One below the other, whatever the names.
  ends = {cells.cell_len(x) for x in text.splitlines() if x.endswith(' %')}
  assert len(ends) == 1
  width = report.name_width(['x' * 500], NAMES, 80)
  table = report.prediction_table(
    'x' * 500, np.array([0.1, 0.7, 0.2]), NAMES, width=width, header=True
  )
  assert _line(_print(table, 80), 'xxx')[1] == NAMES[1]  # whole


def test_prediction_dict_is_sorted_json():
  found = report.prediction_dict(
    'a.mp4', np.array([0.125, 0.25, 0.625], np.float32), NAMES
  )
  assert json.loads(json.dumps(found)) == {
    'clip': 'a.mp4',
    'label': 'fear',
    'probability': 0.625,
    'classes': {'fear': 0.625, 'happiness': 0.25, 'neutral': 0.125},
  }
  assert list(found['classes']) == ['fear', 'happiness', 'neutral']
