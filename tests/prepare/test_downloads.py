"""From a download to scores: prepare, train, evaluate."""

from __future__ import annotations

import json

import pytest

import downloads
import miniatures
from downloads import prepare_small
from mira_jax.cli import main as cli
from mira_jax.data import dataset, protocol
from mira_jax.train import loop
from small_runs import tiny


def _prepared(name, folder):
  downloads.make(folder, name)
  options = {'size': 32, 'crop': 'center'}
  return prepare_small(name, folder / name, folder / 'out', **options)


@pytest.mark.usefixtures('compile_cache')
def test_a_download_is_trained_on_and_evaluated(tmp_path, capsys):
  _, prepared = _prepared('dfew', tmp_path)
  path = str(tmp_path / 'out')
  cfg = tiny(path, data={'protocol': 'folds', 'fold': 2})
  cfg.train.epochs, cfg.data.val_fraction = 1, 0.0
  loop.train(cfg, tmp_path / 'run')
  mark = dataset.fingerprint(prepared)
  assert f'dataset dfew {mark}' in capsys.readouterr().out
  assert cli.main(['eval', f'--workdir={tmp_path}/run']) == 0
  assert f'dataset dfew {mark}' in capsys.readouterr().out
  scores = json.loads(next((tmp_path / 'run').rglob('scores.json')).read_text())
  assert scores['scores']['clips'] == 3


@pytest.mark.parametrize(
  ('name', 'options', 'fold', 'tested'),
  [
    ('casme2', {'protocol': 'loso'}, 1, 6),
    ('ck_plus', {'protocol': 'folds', 'num_folds': 2}, 0, 4),
    ('crema_d', {'protocol': 'folds'}, 4, 5),
    ('afew', {}, 0, 7),
  ],
)
def test_the_protocols_of_downloads(name, options, fold, tested, tmp_path):
  report, prepared = _prepared(name, tmp_path)
  assert report.failures == []
  rules = protocol.Rules(val_fraction=0.0, **options)
  parts = protocol.parts([prepared], rules, fold)
  count = int((tmp_path / f'{name}.count').read_text())
  assert (len(parts.train), len(parts.test)) == (count - tested, tested)
  assert len(parts.test[0]) == miniatures.FRAMES
