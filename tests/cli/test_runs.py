"""Whole runs as recipes chain them: pre-train, fine-tune, folds, datasets."""

from __future__ import annotations

import copy
import json
import shlex

import numpy as np
import pytest

from mira_jax import config
from mira_jax.cli import main
from mira_jax.cli.eval import distinct_name
from mira_jax.data import dataset
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import predictions, results
from mira_jax.train import log, loop, run_folder
from mira_jax.weights.weights_file import (
  WEIGHTS,
  load_weights,
  save_weights,
)
from small_runs import pretraining, tiny, write

pytestmark = pytest.mark.usefixtures('compile_cache')


@pytest.fixture(scope='module')
def levels(tmp_path_factory):
  folder = tmp_path_factory.mktemp('levels')
  names = ('Happy', 'Sad', 'Fear')
  return write(folder, 'levels', names, {'train': 36, 'test': 9})


@pytest.fixture(scope='module')
def lights(tmp_path_factory):
  """The same clips in another vocabulary."""
  folder = tmp_path_factory.mktemp('lights')
  names = ('happiness', 'sadness', 'fearful')
  return write(folder, 'lights', names, {'train': 27})


@pytest.fixture(scope='module')
def pretrained(levels, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('pretrained')
  few = {'epochs': 4, 'eval_every': 2}
  loop.train(pretraining(levels, train=few), workdir)
  return workdir


def test_pretraining_leaves_pictures_and_weights(pretrained):
  rows = log.read(pretrained)
  held_out = [row['held_out_loss'] for row in rows if 'held_out_loss' in row]
  assert len(held_out) == 2
  assert held_out[-1] < held_out[0]
  pictures = sorted(p.name for p in (pretrained / 'pictures').glob('*.png'))
  assert len(pictures) == 2
  arrays = np.load(next((pretrained / 'pictures').glob('*.npz')))
  assert arrays['filled'].shape == arrays['video'].shape == (4, 4, 16, 16, 3)
  _, card = load_weights(pretrained / 'weights.safetensors')
  assert card['pretrain']['mask_ratio'] == 0.5
  assert card['model']['num_classes'] == 0


def test_fine_tuning_starts_from_a_pretraining(
  levels, pretrained, tmp_path, capsys
):
  cfg = tiny(levels)
  cfg.train.init_from = str(pretrained)
  cfg.train.epochs = 1
  cfg.optim.lr = cfg.optim.final_lr = 0.0
  workdir = tmp_path / "a run's folder $x"
  loop.train(cfg, workdir)
  shown = capsys.readouterr().out
  assert 'fresh: 4 tensors' in shown
  assert 'ignored: ' in shown
  (line,) = (x for x in shown.splitlines() if x.startswith('scores: '))
  assert shlex.split(line)[1:] == ['mira', 'eval', f'--workdir={workdir}']
  ours, _ = load_weights(workdir / 'weights.safetensors')
  theirs, _ = load_weights(pretrained / 'weights.safetensors')
  np.testing.assert_array_equal(
    ours['params']['encoder']['block_0']['attn']['qkv']['kernel'],
    theirs['params']['encoder']['block_0']['attn']['qkv']['kernel'],
  )


def test_weights_to_start_from_must_be_there(levels, tmp_path):
  cfg = tiny(levels, train={'init_from': str(tmp_path / 'absent')})
  with pytest.raises(MiraInputError, match='random weights') as caught:
    loop.train(cfg, run_folder.open_workdir(str(tmp_path / 'run')))
  assert caught.value.exit_code == 4
  assert not (tmp_path / 'run' / 'weights.safetensors').exists()


def test_every_option_of_a_step_runs_together_and_resumes(levels, tmp_path):
  cfg = tiny(levels)
  cfg.data.repeats = 2
  cfg.data.val_fraction = 0.25
  cfg.optim = config.OptimConfig(
    lr=1e-2, lr_batch=16, warmup_epochs=1, layer_decay=0.75, clip_norm=1.0,
    accumulate=2, ema_decay=0.9, label_smoothing=0.1,
    class_weights='inverse_sqrt',
  )  # fmt: skip
  whole = copy.deepcopy(cfg)
  loop.train(whole, tmp_path / 'whole')
  rates = [r['learning_rate'] for r in log.read(tmp_path / 'whole')
           if 'learning_rate' in r]  # fmt: skip
  assert max(rates) == pytest.approx(1e-2 * 8 / 16, rel=1e-3)
  assert results.read(tmp_path / 'whole')[0].name == results.CHOSEN
  # The average of the parameters is what the file holds.
  params = load_weights(tmp_path / 'whole' / 'weights-last.safetensors')[0]
  again = copy.deepcopy(cfg)
  loop.train(again, tmp_path / 'whole')  # nothing is left to do
  same = load_weights(tmp_path / 'whole' / 'weights-last.safetensors')[0]
  np.testing.assert_array_equal(
    params['params']['head']['kernel'], same['params']['head']['kernel']
  )
  again.optim.ema_decay = 0.5
  with pytest.raises(MiraInputError, match=r'optim\.ema_decay 0\.9, not 0\.5'):
    loop.train(again, tmp_path / 'whole')


def test_lateral_units_are_not_mirrored(tmp_path, levels):
  sided = write(
    tmp_path, 'sided', ('L12', 'R12', 'AU4'), {'train': 9, 'test': 3}
  )
  cfg = tiny(sided, data={'flip': True})
  with pytest.raises(MiraInputError, match=r'noconfig\.data\.flip'):
    loop.train(cfg, tmp_path / 'run')


@pytest.mark.slow
def test_folds_are_trained_and_then_only_scored(
  levels, lights, tmp_path, capsys
):
  file = tmp_path / 'levels.py'
  file.write_text(
    'import test_runs\n\n\ndef get_config():\n'
    f"  return test_runs.tiny({levels!r}, data={{'protocol': 'folds'}})\n"
  )
  place = f'--workdir={tmp_path / "all"}'
  train = ('--folds=all', f'--config={file}', '--config.train.epochs=6')
  assert main.main(['eval', place, *train]) == 0
  out = capsys.readouterr().out
  assert 'training fold 2' in out
  assert 'fold 1: WAR ' in out
  assert '; 3 of 3 folds pooled: WAR ' in out
  told = json.loads((tmp_path / 'all/eval/folds/folds.json').read_text())
  names = [fold['name'] for fold in told['folds']]
  assert names == ['fold 0', 'fold 1', 'fold 2']
  assert np.sum(told['pooled_confusion']) == 45  # every clip once
  assert told['pooled']['war'] > 0.8
  assert set(told['folds'][0]['runs']) == {
    results.CHOSEN, results.LAST, results.BEST_ON_TEST,
  }  # fmt: skip
  clips = predictions.read(tmp_path / 'all/eval/folds/predictions.csv')
  assert len({*clips.clip}) == len(clips) == 45
  assert set(clips.fold) == {*names}
  assert clips.matrix.tolist() == told['pooled_confusion']
  # Folds that another process has scored are in the table.
  assert main.main(['eval', place, '--folds=1']) == 0
  again = json.loads((tmp_path / 'all/eval/folds/folds.json').read_text())
  assert again == told
  # What another configuration would have trained is named.
  capsys.readouterr()
  others = (*train, '--config.seed=5')
  assert main.main(['eval', place, *others]) == 0
  out = capsys.readouterr().out
  assert out.count('was trained with seed 0, not 5: remove it') == 3
  # Clips of folds that were drawn from other clips are not tested.
  card = tmp_path / 'all' / 'fold-1' / WEIGHTS
  kept = card.read_bytes()
  params, mira = (load_weights(card)[0].get(n, {}) for n in ('params', 'mira'))
  metadata = load_weights(card)[1]
  metadata['datasets'][0]['fingerprint'] = 'another'
  save_weights(card, params, mira, metadata)
  assert main.main(['eval', place, '--folds=1']) == ExitCode.CHECKPOINT
  assert 'has changed since the training' in capsys.readouterr().err
  card.write_bytes(kept)
  # Another partition is not mixed with this one.
  changed = (*train, '--config.data.num_folds=4')
  assert main.main(['eval', place, *changed]) == ExitCode.CHECKPOINT
  assert 'run_changed' in capsys.readouterr().err
  # A fold that is not finished makes a report partial.
  (tmp_path / 'all' / 'fold-1' / WEIGHTS).unlink()
  assert main.main(['eval', place, '--folds=all']) == 0
  out = capsys.readouterr().out
  assert 'training' not in out
  assert 'protocol folds, 2 of 3 folds' in out
  assert 'PARTIAL, without fold 1' in out
  told = json.loads((tmp_path / 'all/eval/folds/folds.json').read_text())
  assert (told['partial'], told['missing']) == (True, ['fold 1'])
  assert main.main(['eval', place, '--folds=0,3']) == ExitCode.USAGE
  assert 'numbers from 0 to 2' in capsys.readouterr().err

  # A run is tested on another dataset by the names of its classes.
  run = tmp_path / 'all' / 'fold-0'
  elsewhere = (f'--dataset={lights}', '--split=all')
  assert main.main(['eval', f'--workdir={run}', *elsewhere]) == 0
  told = json.loads((run / 'eval/lights-all/scores.json').read_text())
  assert told['scores']['clips'] == 27
  assert told['class_names'] == ['Happy', 'Sad', 'Fear']
  assert told['scores']['war'] > 0.8
  assert main.main(['eval', f'--workdir={run}', '--int8']) == 0
  (path,) = run.glob('eval/*-int8/scores.json')
  assert json.loads(path.read_text())['scores']['war'] > 0.8
  both = ('--int8', '--step=newest')
  assert main.main(['eval', f'--workdir={run}', *both]) == ExitCode.USAGE
  assert 'bad_flag: --int8: ' in capsys.readouterr().err


@pytest.mark.slow
def test_scores_of_a_namesake_replace_none(levels, tmp_path):
  own = dataset.open(levels)
  facts = {'name': own.name, 'fingerprint': dataset.fingerprint(own)}
  assert distinct_name(own, {'datasets': [facts]}) == 'levels'
  other = write(tmp_path, 'levels', ('Happy', 'Sad', 'Fear'), {'test': 3})
  named = distinct_name(dataset.open(other), {'datasets': [facts]})
  assert named.startswith('levels ')


def test_leaving_a_dataset_out_trains_on_the_others(levels, lights, tmp_path):
  cfg = tiny(f'{levels},{lights}', data={'protocol': 'lodo', 'fold': 1})
  loop.train(cfg, tmp_path)
  assert cfg.model.num_classes == 3
  (first, *_) = results.read(tmp_path)
  assert first.matrix.sum() == 27
  assert first.scores.war > 0.8
