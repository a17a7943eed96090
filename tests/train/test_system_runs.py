"""Other systems from their configurations, from start to end."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import itertools
import json

import numpy as np
import pytest

import downloads as small
import runs
import small_units
from mira_jax import config
from mira_jax.cli import main
from mira_jax.config import recipes
from mira_jax.data import dataset
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import predictions, results, statistics, units
from mira_jax.inference import engine
from mira_jax.models import build
from mira_jax.models.vivit import SIZES
from mira_jax.systems.channels import ChannelsConfig
from mira_jax.systems.experts import ExpertsConfig
from mira_jax.systems.identity import IdentityConfig
from mira_jax.systems.reliability import ReliabilityConfig
from mira_jax.train import datasets as inputs
from mira_jax.train import log, loop, run_folder, selection
from mira_jax.weights import weights_file

NAMES = ('facesleuth', 'arbex', 'sma')


def get(name, text=None) -> config.Config:
  return importlib.import_module(f'configs.{name}').get_config(text)


def rows(run):
  lines = (run / log.METRICS).read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return [row for row in found if 'loss' in row]


def train(cfg, run):
  loop.train(cfg, run_folder.open_workdir(str(run)))
  return json.loads((run / results.NAME).read_text())


@pytest.fixture(scope='module')
def people(tmp_path_factory):
  """Clips of three classes, of nine people."""
  folder = tmp_path_factory.mktemp('data') / 'people'
  splits = {name: runs.clips(name, n) for name, n in (('train', 27), ('t', 9))}
  splits = {'train': splits['train'], 'test': splits['t']}
  return runs.write(folder, 'people', ('dark', 'bright', 'fading'), **splits)


def tiny(path, **groups):
  cfg = runs.tiny(
    path,
    data={'val_fraction': 0.0},
    train={'epochs': 2, 'log_every': 1, 'eval_every': 0},
    optim={'ema_decay': 0.0},
  )
  return runs.change(cfg, groups)


# ----- the configurations of the papers --------------------------------------


@pytest.mark.parametrize('name', NAMES)
def test_every_size_and_mode_is_valid(name):
  for size, mode in itertools.product(SIZES, recipes.MODES):
    cfg = get(name, f'{size},{mode},2')
    config.validate(cfg)
    assert config.from_json(config.to_json(cfg)) == cfg
    assert cfg.data.fold == 1


def shrunk(cfg, *paths):
  cfg.model.dim, cfg.model.heads, cfg.model.depth = 16, 2, 1
  cfg.model.image_size, cfg.model.frames = 64, 4
  cfg.data.dataset, cfg.data.batch_size = ','.join(map(str, paths)), 8
  cfg.data.rand_augment, cfg.data.threads = False, 2
  cfg.train.init_from, cfg.train.epochs, cfg.optim.warmup_epochs = '', 1, 0
  cfg.eval.views, cfg.train.log_every = 1, 1
  return cfg


def test_facesleuth_leaves_one_dataset_out(tmp_path):
  """Trained on CASME II and SAMM, tested on all of SMIC, in three classes."""
  names = ('casme2', 'samm', 'smic')
  root = small.make(tmp_path / 'downloads', *names)
  for name in names:
    small.prepare_small(name, root / name, tmp_path / name)
  paths = [tmp_path / name for name in names]
  cfg = shrunk(get('facesleuth', 'Ti,exact,3'), *paths)
  content = train(cfg, tmp_path / 'run')
  assert content['fold'] == 'smic'
  assert set(content['class_names']) == {'negative', 'positive', 'surprise'}
  smic = dataset.open(paths[2])
  assert content['results'][0]['scores']['clips'] == sum(smic.splits.values())
  found = rows(tmp_path / 'run')[-1]
  assert 0 <= found['block_0/angle'] < 180


def test_arbex_scores_both_predictions(tmp_path):
  root = small.make(tmp_path / 'downloads', 'dfew')
  small.prepare_small('dfew', root / 'dfew', tmp_path / 'dfew')
  cfg = shrunk(get('arbex', 'Ti,flashlite,1'), tmp_path / 'dfew')
  content = train(cfg, tmp_path / 'run')
  found = {row['name']: row for row in content['results']}
  errors = {
    name: found[name]['calibration_error']
    for name in (results.LAST, results.PRIMARY)
  }
  saved = results.read(tmp_path / 'run')
  assert [row.name for row in saved][:2] == [results.LAST, results.PRIMARY]
  assert main.main(['eval', f'--workdir={tmp_path / "run"}']) == ExitCode.OK
  folder = tmp_path / 'run/eval'
  both = [
    predictions.read(folder / name / predictions.NAME)
    for name in ('dfew-fold_1', f'dfew-fold_1-{results.PRIMARY}')
  ]
  for one, error in zip(both, errors.values(), strict=True):
    assert statistics.calibration(one).error == pytest.approx(error, abs=1e-4)
  # Without the correction it is the plain head.
  saved = run_folder.read_config(tmp_path / 'run')
  tree, card = weights_file.load_weights(
    tmp_path / 'run' / weights_file.WEIGHTS
  )
  plain = build.build_model(card['model'] | {'reliability': None})
  tested = inputs.open_parts(saved, inputs.open_datasets(saved.data)).test
  found = inputs.score_source(engine.Engine(plain, tree, 8), tested, saved, 1)
  assert found.clip.tolist() == both[1].clip.tolist()
  np.testing.assert_allclose(both[1].probability, found.probability, atol=1e-5)
  assert np.abs(both[0].probability - both[1].probability).max() > 1e-4
  row = rows(tmp_path / 'run')[-1]
  assert {'primary_loss', 'corrected_loss', 'center_loss'} <= row.keys()


def test_sma_learns_action_units(tmp_path):
  root = small.make(tmp_path / 'downloads', 'disfa')
  small.prepare_small('disfa', root / 'disfa', tmp_path / 'disfa')
  cfg = shrunk(get('sma', 'Ti,exact,1'), tmp_path / 'disfa')
  train(cfg, tmp_path / 'run')
  predicted = units.read(tmp_path / 'run' / units.NAME)
  assert predicted.probability.shape[1] == 8
  assert {'diversity', 'focus'} <= rows(tmp_path / 'run')[-1].keys()


# ----- what a run does with them ---------------------------------------------


def test_the_correction_grows_over_the_training(people, tmp_path):
  """At its start the loss is that of the plain head."""
  cfg = tiny(people, data={'batch_size': 8}, train={'epochs': 4})
  cfg.model.reliability = ReliabilityConfig()
  train(cfg, tmp_path / 'run')
  found = rows(tmp_path / 'run')
  first, last = found[0], found[-1]
  assert first['loss'] == pytest.approx(first['primary_loss'], rel=1e-6)
  added = last['anchor_loss'] + last['center_loss']
  assert last['loss'] > last['primary_loss'] + 0.3 * added


def test_the_adversary_needs_subjects_and_counts_them(people, tmp_path):
  cfg = tiny(people)
  cfg.model.identity = IdentityConfig()
  train(cfg, tmp_path / 'run')
  row = rows(tmp_path / 'run')[-1]
  assert row['identity_loss'] > 0
  assert 0 <= row['identity_accuracy'] <= 1
  saved = run_folder.read_config(tmp_path / 'run')
  assert saved.model.identity.subjects == 9
  unknown = tiny(runs.levels(tmp_path / 'levels'))
  unknown.model.identity = IdentityConfig()
  with pytest.raises(MiraInputError, match='name 0 subjects'):
    train(unknown, tmp_path / 'none')
  mixed = tiny(people, data={'mixup_alpha': 0.8})
  mixed.model.identity = IdentityConfig()
  with pytest.raises(MiraInputError, match='identity: it learns who'):
    config.validate(mixed)


def test_experts_tune_a_frozen_backbone_and_are_merged(people, tmp_path):
  """From weights of a plain model; what is saved is a plain model again."""
  plain = tiny(people)
  train(plain, tmp_path / 'plain')
  cfg = tiny(
    people,
    train={'init_from': str(tmp_path / 'plain')},
    optim={'freeze_backbone': True},
  )
  cfg.model.experts = ExpertsConfig(rank=2)
  train(cfg, tmp_path / 'tuned')
  (start, _), (tuned, metadata) = (
    weights_file.load_weights(tmp_path / name / weights_file.WEIGHTS)
    for name in ('plain', 'tuned')
  )
  before, after = (weights_file.flatten(x['params']) for x in (start, tuned))
  assert before.keys() == after.keys()
  assert metadata['model']['experts'] is None
  moved = {n for n in before if not np.array_equal(before[n], after[n])}
  kernels = {n for n in before if 'encoder' in n and n.endswith('kernel')}
  heads = {n for n in before if n.startswith('head/')}
  assert moved == kernels | heads


def test_units_of_an_oracle_come_from_annotations(tmp_path):
  """A class that the annotation alone shows is learned from it."""

  def clips(split, count):
    rng = np.random.default_rng(len(split))
    for i in range(count):
      frames = rng.integers(0, 255, (8, 16, 16, 3), np.uint8)
      yield dataset.Clip(
        clip_id=f'{split}-{i}',
        frames=[runs.images.encode_jpeg(frame) for frame in frames],
        label=i % 2,
        action_units=('4', 'R12A+L4')[i % 2],
      )

  path = runs.write(
    tmp_path / 'told', 'told', ('a', 'b'),
    train=clips('train', 32), test=clips('test', 8),
  )  # fmt: skip
  cfg = tiny(path, train={'epochs': 20}, optim={'lr': 0.1})
  cfg.model.oracle_units = '4,12'
  content = train(cfg, tmp_path / 'run')
  assert content['results'][0]['scores']['war'] == 1.0


def test_units_of_an_oracle_must_be_annotated_somewhere(people, tmp_path):
  cfg = tiny(people)
  cfg.model.oracle_units = '4,12'
  with pytest.raises(MiraInputError, match='no clip of people has annotated'):
    train(cfg, tmp_path / 'run')


def test_intensities_are_annotations_of_an_oracle(tmp_path):
  """Of a table with a column for each unit, which names none in words."""
  path = small_units.write(tmp_path / 'units')
  clips = dataset.open(path).source('train')
  assert [clips[i].action_units for i in range(4)] == ['12', '1', '4', '1+4+12']
  assert clips[5].action_units == '1'


def test_one_class_alone_is_refused(tmp_path):
  cfg = tiny(small_units.write(tmp_path / 'units'))
  with pytest.raises(MiraInputError, match="labels='action_units'"):
    train(cfg, tmp_path / 'run')


def test_units_are_learned_against_who_the_person_is(tmp_path):
  path = small_units.write(tmp_path / 'units')
  cfg = small_units.tiny(path, train={'epochs': 2, 'log_every': 1})
  cfg.model.identity = IdentityConfig()
  train(cfg, tmp_path / 'run')
  row = rows(tmp_path / 'run')[-1]
  assert row['identity_loss'] > 0
  assert {'f1', 'identity_accuracy'} <= row.keys()


def test_a_refit_has_more_people_than_the_training_before(people, tmp_path):
  """And its folder is known again, with what a run fills in itself."""
  cfg = tiny(people, data={'val_fraction': 0.3}, train={'refit': True})
  cfg.train.eval_every = 1
  cfg.model.identity = IdentityConfig()
  cfg.model.channels = ChannelsConfig()
  again = copy.deepcopy(cfg)
  train(cfg, tmp_path / 'run')
  first = run_folder.read_config(tmp_path / 'run' / selection.FOLDER)
  assert first.model.identity.subjects < cfg.model.identity.subjects == 9
  assert cfg.model.channels.regions == 3
  assert run_folder.other_settings(tmp_path / 'run', again) == []
  assert selection._is_of(
    tmp_path / 'run' / selection.FOLDER,
    dataclasses.replace(
      again, train=dataclasses.replace(again.train, refit=False)
    ),
    [run_folder.fingerprint(dataset.open(people))],
  )
