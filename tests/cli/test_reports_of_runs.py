"""`mira report`: runs beside each other and their baseline."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest

import runs
from mira_jax import baseline, config
from mira_jax.cli import main
from mira_jax.data import dataset
from mira_jax.errors import ExitCode
from mira_jax.evaluation import feature_file, predictions, results
from mira_jax.train import datasets as inputs


@pytest.fixture
def folder(tmp_path):
  """Two finished runs, one of them of two folds, and one that is not."""
  names = ('a', 'b', 'c')
  clips = list(runs.clips('train', 24))
  path = runs.write(tmp_path / 'data', 'levels', names, train=clips)
  for name, fold, matrix in (
    ('good', 0, 4 * np.eye(3, dtype=int)),
    ('folds/fold-0', 0, np.ones((3, 3), int)),
    ('folds/fold-1', 1, np.ones((3, 3), int)),
    ('half', 0, None),
  ):
    run = tmp_path / 'runs' / name
    run.mkdir(parents=True)
    cfg = runs.tiny(path, data={'protocol': 'folds', 'num_folds': 2})
    cfg.data.fold, cfg.model.num_classes = fold, 3
    (run / 'config.json').write_text(config.to_json(cfg))
    if matrix is not None:
      row = results.Result(name=results.LAST, step=12, matrix=matrix)
      results.write(run, [row], names, fold=f'fold {fold + 1}')
  return tmp_path / 'runs'


def test_runs_of_the_same_clips_are_a_table_with_their_baseline(folder, capsys):
  cfg = config.from_json((folder / 'good' / 'config.json').read_text())
  opened = [dataset.open(cfg.data.dataset)]
  rules = inputs.rules(cfg)
  made = baseline.evaluate(opened, rules)
  baseline.write(made, baseline.folder(opened, rules), rules)
  assert main.main(['report', str(folder)]) == ExitCode.OK
  lines = capsys.readouterr().out.splitlines()
  rows = [line.split() for line in lines if line.strip()]
  while rows[0][0] != 'run':  # the title, in as many lines as its path takes
    rows.pop(0)
  first = [row[0] for row in rows]
  order = [first.index(name) for name in ('good', 'folds', 'half', 'baseline')]
  assert order == sorted(order)
  assert rows[order[0]][:5] == ['good', 'number', '0', '12', '100.0']
  assert rows[order[1]][:6] == ['folds', '2', 'of', '2', '18', '33.3']
  assert rows[order[2]][3] == '-'
  assert rows[order[3]][2] == '24'
  wrong = np.roll(np.eye(3, dtype=int), 1, axis=1)
  fold = results.Fold(name='fold 1', matrix=wrong)
  line = inputs.below_baseline(cfg, opened, folder, [fold])
  assert line.startswith('below the baseline (hog and a linear SVM): WAR 0.0%')


def test_a_folder_without_runs(tmp_path, capsys):
  assert main.main(['report', str(tmp_path)]) == ExitCode.USAGE
  assert 'not_a_run' in capsys.readouterr().err


def test_folds_of_another_partition_are_not_pooled(folder, capsys):
  path = folder / 'folds' / 'fold-1' / 'config.json'
  cfg = config.from_json(path.read_text())
  cfg.data.fold_seed = 1
  path.write_text(config.to_json(cfg))
  eval_one = ['eval', f'--workdir={folder / "folds"}', '--folds=0']
  for command in (eval_one, ['report', str(folder)]):
    assert main.main(command) == ExitCode.CHECKPOINT
    error = capsys.readouterr().err
    assert 'run_changed' in error
    assert 'data.fold_seed 1, not 0' in error


def test_a_run_beside_its_folds_hides_none_of_them(folder, capsys):
  one = folder / 'good' / 'config.json'
  (folder / 'folds' / 'config.json').write_text(one.read_text())
  assert main.main(['report', str(folder / 'folds')]) == ExitCode.OK
  assert '2 of 2' in capsys.readouterr().out


# ----- the page ---------------------------------------------------------------


@pytest.fixture
def predicted(folder):
  """The runs, with the predictions of their clips: `good` and `folds`."""
  names, rng = ('a', 'b', 'c'), np.random.default_rng(0)
  clips = np.array([f'train-{i}' for i in range(18)])
  label = np.arange(18) % 3
  for name, rows, right in (
    ('good', np.arange(18), 1.0),
    ('folds/fold-0', np.arange(9), 0.4),
    ('folds/fold-1', np.arange(9, 18), 0.4),
  ):
    own = label[rows]
    guess = np.where(rng.random(len(rows)) < right, own, (own + 1) % 3)
    made = predictions.Predictions(
      class_names=names,
      clip=clips[rows],
      subject=np.array([f's{i % 6}' for i in rows]),
      fold=np.full(len(rows), 'fold 1'),
      label=own,
      probability=np.eye(3)[guess] * 0.7 + 0.1,
    )
    made.write(folder / name)
    row = results.Result(name=results.LAST, step=12, matrix=made.matrix)
    results.write(folder / name, [row], names, fold='fold 1')
  return folder


def test_a_page_compares_runs(predicted, tmp_path, capsys):
  table = tmp_path / 'people.csv'
  rows = [f's{i},{"fm"[i % 2]}' for i in range(6)]
  table.write_text('\n'.join(['subject,sex', *rows]))
  flags = [f'--out={tmp_path / "page.html"}', f'--groups={table}']
  assert main.main(['report', str(predicted), *flags]) == ExitCode.OK
  assert 'page: ' in capsys.readouterr().out
  page = html.unescape((tmp_path / 'page.html').read_text())
  assert 'On the same 18 clips of 6 subjects the WAR of good is' in page
  assert 'exact McNemar test' in page
  assert 'Groups: sex' in page
  assert 'data.fold' not in page.split('What differs')[0]
  assert page.count('data:image/png') >= 4  # two matrices, two diagrams
  assert not re.search(r'(src|href)="(https?:)?//', page)
  flags = ['--json', f'--out={tmp_path / "page.html"}']
  assert main.main(['report', str(predicted), *flags]) == ExitCode.OK
  (group,) = json.loads(capsys.readouterr().out)
  assert [row['run'] for row in group['runs']] == ['good', 'folds', 'half']
  assert group['runs'][0]['war'] == 1


def test_frames_of_mistakes_are_left_out_where_asked(predicted, tmp_path):
  page = tmp_path / 'page.html'
  for flag, shown in (('--no-publish-safe', True), ('--publish-safe', False)):
    flags = [f'--out={page}', flag]
    assert main.main(['report', str(predicted / 'folds'), *flags]) == 0
    assert ('data:image/jpeg' in page.read_text()) == shown


def test_a_table_of_groups_needs_a_key(predicted, tmp_path, capsys):
  table = tmp_path / 'people.csv'
  table.write_text('person,sex\na,f\n')
  arguments = ['report', str(predicted), f'--groups={table}']
  assert main.main(arguments) == ExitCode.USAGE
  assert 'bad_table' in capsys.readouterr().err


@pytest.mark.parametrize('projection', ['pca', 'tsne'])
def test_features_are_points(predicted, tmp_path, projection):
  rows = {
    'features': np.random.default_rng(0).normal(size=(12, 5)),
    'label': np.arange(12) % 3,
    'clip_id': np.arange(12).astype(str),
    'subject': np.full(12, 'a'),
    'fold': np.zeros(12, int),
    'split': np.full(12, 'test'),
  }
  file, page = tmp_path / 'f.npz', tmp_path / 'page.html'
  feature_file.write(file, rows, ('a', 'b', 'c'), {'dataset': 'levels'})
  flags = [f'--features={file}', f'--projection={projection}', f'--out={page}']
  assert main.main(['report', str(predicted), *flags]) == ExitCode.OK
  assert 'Features of 12 clips of 3 classes.' in page.read_text()
