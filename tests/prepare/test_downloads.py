"""From a download to a score, for every dataset: prepare, train, evaluate."""

from __future__ import annotations

import json

import pytest
from test_runs import command, pretraining, tiny

import miniatures
from mira_jax.data import dataset
from mira_jax.evaluation import results
from mira_jax.prepare import prepare
from mira_jax.prepare.builders import BUILDERS
from mira_jax.train import log, loop

# How each is evaluated, where not by a split of its own.
PROTOCOLS = {
  'dfew': {'protocol': 'folds', 'fold': 2},
  'mafw': {'protocol': 'folds', 'fold': 4},
  'crema_d': {'protocol': 'folds', 'fold': 1},
  'ravdess': {'protocol': 'folds', 'fold': 1},
  'casme2': {'protocol': 'loso', 'fold': 1},
  'samm': {'protocol': 'loso'},
  'mmew': {'protocol': 'loso'},
  'smic': {'protocol': 'loso'},
  'ck_plus': {'protocol': 'folds', 'num_folds': 2},
}


# Most datasets have seven classes: their steps are the same program.
pytestmark = pytest.mark.usefixtures('compile_cache')


def _prepared(name, folder):
  miniatures.DATASETS[name](folder / 'download')
  report = prepare.prepare_dataset(
    name,
    folder / 'download',
    folder / 'out',
    size=32,
    crop='none' if name == 'voxceleb2' else 'center',
    workers=0,
  )
  assert report.failures == []
  return str(folder / 'out')


@pytest.mark.parametrize('name', [n for n in BUILDERS if n != 'voxceleb2'])
def test_a_download_is_trained_on_and_evaluated(name, tmp_path, capsys):
  path = _prepared(name, tmp_path)
  cfg = tiny(path, data=PROTOCOLS.get(name, {}), optim={'name': 'adamw'})
  cfg.train.epochs, cfg.data.val_fraction = 1, 0.0
  loop.train(cfg, tmp_path / 'run')
  mark = dataset.fingerprint(dataset.open(path))
  assert f'dataset {name} {mark}' in capsys.readouterr().out
  scores = results.read(tmp_path / 'run')
  assert scores[0].matrix.sum() >= 3


def test_voxceleb2_is_pretrained_on(tmp_path):
  path = _prepared('voxceleb2', tmp_path)
  cfg = pretraining(path)
  cfg.train.epochs = 2
  loop.train(cfg, tmp_path / 'run')
  assert any('loss' in row for row in log.read(tmp_path / 'run'))
  assert (tmp_path / 'run/weights.safetensors').exists()


@pytest.mark.slow
def test_the_commands_do_it_too(tmp_path):
  path = _prepared('dfew', tmp_path)
  cfg = tiny(path, data={'protocol': 'folds', 'fold': 2})
  cfg.train.epochs = 1
  loop.train(cfg, tmp_path / 'run')
  done = command('eval.py', f'--workdir={tmp_path}/run')
  assert done.returncode == 0, done.stderr
  assert 'dataset dfew ' in done.stdout
  scores = json.loads(next((tmp_path / 'run').rglob('scores.json')).read_text())
  assert scores['scores']['clips'] == 3
