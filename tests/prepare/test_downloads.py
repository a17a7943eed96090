"""From a download to scores: prepare, train, evaluate, by each protocol."""

from __future__ import annotations

import json

import pytest

import miniatures
from mira_jax.cli import main as cli
from mira_jax.data import dataset
from mira_jax.evaluation import results
from mira_jax.prepare import prepare
from mira_jax.train import log, loop
from small_runs import pretraining, tiny

# Most datasets have seven classes: their steps are the same program.
pytestmark = pytest.mark.usefixtures('compile_cache')


def _prepared(name, folder) -> str:
  miniatures.DATASETS[name](folder / 'download')
  crop = 'none' if name == 'voxceleb2' else 'center'
  options = {'size': 32, 'crop': crop, 'workers': 0}
  out = folder / 'out'
  report = prepare.prepare_dataset(name, folder / 'download', out, **options)
  assert report.failures == []
  return str(out)


@pytest.mark.parametrize(
  ('name', 'protocol'),
  [
    ('dfew', {'protocol': 'folds', 'fold': 2}),
    ('casme2', {'protocol': 'loso', 'fold': 1}),
    ('ck_plus', {'protocol': 'folds', 'num_folds': 2}),
    ('afew', {}),
    ('ferv39k', {}),
  ],
)
def test_a_download_is_trained_on_and_evaluated(
  name, protocol, tmp_path, capsys
):
  path = _prepared(name, tmp_path)
  cfg = tiny(path, data=protocol, optim={'name': 'adamw'})
  cfg.train.epochs, cfg.data.val_fraction = 1, 0.0
  loop.train(cfg, tmp_path / 'run')
  mark = dataset.fingerprint(dataset.open(path))
  assert f'dataset {name} {mark}' in capsys.readouterr().out
  scores = results.read(tmp_path / 'run')
  assert scores[0].matrix.sum() >= 3


def test_voxceleb2_is_pretrained_on(tmp_path):
  cfg = pretraining(_prepared('voxceleb2', tmp_path))
  cfg.train.epochs = 2
  loop.train(cfg, tmp_path / 'run')
  assert any('loss' in row for row in log.read(tmp_path / 'run'))
  assert (tmp_path / 'run/weights.safetensors').exists()


@pytest.mark.slow
def test_the_commands_do_it_too(capsys, tmp_path):
  path = _prepared('dfew', tmp_path)
  cfg = tiny(path, data={'protocol': 'folds', 'fold': 2})
  cfg.train.epochs = 1
  loop.train(cfg, tmp_path / 'run')
  assert cli.main(['eval', f'--workdir={tmp_path}/run']) == 0
  assert 'dataset dfew ' in capsys.readouterr().out
  scores = json.loads(next((tmp_path / 'run').rglob('scores.json')).read_text())
  assert scores['scores']['clips'] == 3
