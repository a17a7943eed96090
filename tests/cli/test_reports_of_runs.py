"""`mira report`: runs beside each other and their baseline."""

from __future__ import annotations

import numpy as np
import pytest

import runs
from mira_jax import baseline, config
from mira_jax.cli import main
from mira_jax.data import dataset
from mira_jax.errors import ExitCode
from mira_jax.evaluation import results
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
