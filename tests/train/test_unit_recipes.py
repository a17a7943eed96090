"""The configurations of DISFA and BP4D train on prepared miniatures."""

from __future__ import annotations

import importlib
import itertools
import json

import pytest

import downloads as small
from mira_jax import config
from mira_jax.config import recipes
from mira_jax.evaluation import results, units
from mira_jax.models.vivit import SIZES
from mira_jax.train import loop, run_folder

NAMES = {
  'disfa': (1, 2, 4, 6, 9, 12, 25, 26),
  'bp4d': (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24),
}


def get(name, text=None) -> config.Config:
  return importlib.import_module(f'configs.{name}').get_config(text)


@pytest.mark.parametrize('name', NAMES)
def test_every_size_and_mode_is_valid(name):
  for size, mode in itertools.product(SIZES, recipes.MODES):
    cfg = get(name, f'{size},{mode},3')
    config.validate(cfg)
    assert config.from_json(config.to_json(cfg)) == cfg
    assert (cfg.data.protocol, cfg.data.num_folds) == ('folds', 3)
    assert (cfg.data.fold, cfg.data.labels) == (2, 'action_units')


@pytest.mark.parametrize('name', NAMES)
def test_a_miniature_trains_from_start_to_end(name, tmp_path):
  root = small.make(tmp_path / 'downloads', name)
  small.prepare_small(name, root / name, tmp_path / 'data')
  cfg = get(name, 'Ti,exact,2')
  cfg.model.dim, cfg.model.heads, cfg.model.depth = 16, 2, 1
  cfg.model.image_size, cfg.model.frames = 32, 4
  cfg.data.dataset, cfg.data.batch_size = str(tmp_path / 'data'), 8
  cfg.data.rand_augment, cfg.data.threads = False, 2
  cfg.train.init_from, cfg.train.epochs, cfg.optim.warmup_epochs = '', 2, 0
  loop.train(cfg, run_folder.open_workdir(str(tmp_path / 'run')))
  predicted = units.read(tmp_path / 'run' / units.NAME)
  assert predicted.unit_names == tuple(f'AU{n}' for n in NAMES[name])
  assert predicted.positive_from == {'disfa': 2, 'bp4d': 1}[name]
  assert len({*predicted.subject.tolist()}) == 1  # of three people
  assert {*predicted.fold.tolist()} == {'fold 2'}
  content = json.loads((tmp_path / 'run' / results.NAME).read_text())
  assert content['results'][0]['scores']['present'] > 0
