"""Runs of action units, from commands: train, eval, predict, explain."""

from __future__ import annotations

import json

import numpy as np
import pytest

import runs
from mira_jax.cli import main
from mira_jax.errors import ExitCode
from mira_jax.evaluation import units
from mira_jax.train import loop, run_folder
from small_models import save_model
from small_units import UNITS, tiny, write
from videos import make_video

pytestmark = pytest.mark.usefixtures('compile_cache')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return write(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def folds(tmp_path_factory, data):
  """The runs of three folds of subjects."""
  workdir = tmp_path_factory.mktemp('folds')
  for number in range(3):
    cfg = tiny(
      data,
      data={'protocol': 'folds', 'num_folds': 3, 'fold': number},
      train={'epochs': 2, 'eval_every': 2},
    )
    folder = run_folder.fold(workdir, number)
    loop.train(cfg, run_folder.open_workdir(str(folder)))
  return workdir


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """Weights that name two units, of which one is always shown."""
  path = tmp_path_factory.mktemp('model') / 'weights.safetensors'
  card = {'labels': 'action_units', 'unit_thresholds': [0.0, 1.0]}
  return save_model(path, names=['AU1', 'AU12'], depth=1, card=card)


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  path = tmp_path_factory.mktemp('clips') / 'a.mp4'
  make_video(path)
  return str(path)


def command(capsys, *arguments):
  code = main.main([*map(str, arguments)])
  return code, capsys.readouterr()


# ----- eval -------------------------------------------------------------------


def test_eval_pools_the_frames_of_all_folds(folds, capsys):
  code, shown = command(
    capsys, 'eval', f'--workdir={folds}', '--folds=all', '--json'
  )
  assert code == ExitCode.OK
  content = json.loads(shown.out)
  assert [x['name'] for x in content['folds']] == ['fold 1', 'fold 2', 'fold 3']
  assert not content['partial']
  predicted = units.read(folds / 'eval' / 'folds' / units.NAME)
  assert len(predicted) == content['pooled']['scores']['samples'] == 60
  assert len({*predicted.clip.tolist()}) == 60
  # No subject is in two folds.
  pairs = {
    *zip(predicted.subject.tolist(), predicted.fold.tolist(), strict=True)
  }
  assert len(pairs) == len({*predicted.subject.tolist()})
  pooled = units.score(predicted).mean('f1')
  assert content['pooled']['scores']['mean_f1'] == pytest.approx(pooled)
  # Each fold at its own thresholds, counted over all.
  least = {
    name: json.loads((path / 'outcome.json').read_text())['results'][0]
    for name, path in zip(
      ('fold 1', 'fold 2', 'fold 3'),
      run_folder.folds(folds).values(),
      strict=True,
    )
  }
  at = np.array([least[name]['thresholds'] for name in predicted.fold])
  said, shown_there = predicted.probability >= at, predicted.shown
  wrong = ((said != shown_there) & predicted.known).sum(0)
  right = (said & shown_there).sum(0)
  f1 = 2 * right / (2 * right + wrong)
  found = content['pooled']['scores']
  assert found['mean_f1_tuned'] == pytest.approx(f1.mean())
  assert found['units']['AU1']['threshold'] is None


def test_eval_of_one_fold_repeats_what_training_found(folds, capsys):
  run = run_folder.fold(folds, 0)
  code, shown = command(capsys, 'eval', f'--workdir={run}', '--json')
  assert code == ExitCode.OK
  content = json.loads(shown.out)
  outcome = json.loads((run / 'outcome.json').read_text())
  for name in ('mean_f1', 'mean_f1_tuned', 'mean_icc'):
    expected = outcome['results'][0]['scores'][name]
    assert content['scores'][name] == pytest.approx(expected, abs=1e-6)
  code, shown = command(capsys, 'eval', f'--workdir={run}', '--step=newest')
  assert code == ExitCode.OK
  assert 'tuned' not in shown.out  # a checkpoint has no thresholds
  code, shown = command(capsys, 'eval', f'--workdir={run}')
  assert code == ExitCode.OK
  assert 'F1 tuned' in shown.out


def test_eval_on_another_dataset_takes_the_common_units(
  folds, tmp_path, capsys
):
  other = write(tmp_path / 'other', names=('AU12', 'AU9', 'AU1'))
  run = run_folder.fold(folds, 0)
  code, shown = command(
    capsys, 'eval', f'--workdir={run}', f'--dataset={other}', '--json'
  )
  assert code == ExitCode.OK
  content = json.loads(shown.out)
  assert content['class_names'] == ['AU1', 'AU12']
  assert 'left out: AU9' in shown.err


# ----- predict ----------------------------------------------------------------


def test_predict_prints_the_units_that_are_shown(model, clip, capsys):
  code, shown = command(
    capsys, 'predict', clip, f'--weights={model}', '--json', '--no-picture'
  )
  assert code == ExitCode.OK
  (row,) = json.loads(shown.out)
  assert row['shown'] == ['AU1']
  assert row['thresholds'] == {'AU1': 0.0, 'AU12': 1.0}
  # Sigmoids, of logits near 0: a softmax would give them half each, too.
  assert all(0.4 < x < 0.6 for x in row['units'].values())
  assert sum(row['units'].values()) != pytest.approx(1, abs=1e-6)


def test_predict_has_a_timeline_of_units(model, clip, tmp_path, capsys):
  flags = [
    'predict',
    clip,
    f'--weights={model}',
    '--timeline',
    f'--out={tmp_path}',
  ]
  code, shown = command(capsys, *flags, '--json')
  assert code == ExitCode.OK
  (row,) = json.loads(shown.out)
  assert all(second['shown'] == ['AU1'] for second in row['timeline'])
  arrays = np.load(tmp_path / 'a.npz')
  assert arrays['timeline'].shape == (len(row['timeline']), 2)
  assert arrays['thresholds'].tolist() == [0.0, 1.0]
  code, shown = command(capsys, *flags)
  assert 'seconds that show it' in shown.out
  code, shown = command(capsys, *flags, '--format=csv')
  assert ',AU1,' in shown.out.splitlines()[1]


# ----- explain ----------------------------------------------------------------


def test_explain_names_units_on_its_page(model, clip, tmp_path, capsys):
  flags = [f'--weights={model}', f'--out={tmp_path}', '--timeline']
  code, _ = command(capsys, 'explain', clip, *flags)
  assert code == ExitCode.OK
  page = (tmp_path / 'a.html').read_text()
  assert 'Probability of each action unit' in page
  assert page.count('<tr class="best">') == 1
  assert 'Class probabilities' not in page


def test_explain_of_a_dataset_leaves_out_what_follows_one_class(
  folds, data, tmp_path, capsys
):
  run = run_folder.fold(folds, 0)
  flags = [f'--workdir={run}', f'--out={tmp_path}', '--clips=3']
  code, shown = command(capsys, 'explain', data, *flags)
  assert code == ExitCode.OK
  assert 'do not apply to a model of action units' in shown.out
  assert (tmp_path / 'measures.json').exists()


def test_levels_are_no_units(folds, tmp_path, capsys):
  path = runs.levels(tmp_path / 'levels')
  run = run_folder.fold(folds, 0)
  code, shown = command(capsys, 'eval', f'--workdir={run}', f'--dataset={path}')
  assert code == ExitCode.DATA
  assert ', '.join(UNITS) in shown.err


# ----- probe, and commands that learn classes ---------------------------------


def test_probe_has_a_classifier_for_every_unit(folds, data, tmp_path, capsys):
  out = tmp_path / 'features.npz'
  run = run_folder.fold(folds, 0)
  flags = [f'--workdir={run}', f'--out={out}', '--splits=train,test']
  assert command(capsys, 'features', data, *flags)[0] == ExitCode.OK
  code, shown = command(capsys, 'probe', out, '--units', '--json')
  assert code == ExitCode.OK
  scores = json.loads(shown.out)['pooled']['scores']
  # Colours are linear in features of any weights.
  assert scores['mean_f1'] > 0.9
  assert scores['units']['AU12']['known'] == 10  # of 12 clips
  code, shown = command(capsys, 'probe', out, '--units')
  assert code == ExitCode.OK
  assert 'AU12' in shown.out
  assert 'tuned' not in shown.out  # no threshold was chosen
  assert scores['mean_f1_tuned'] is None


def test_probe_of_units_needs_units(tmp_path, folds, capsys):
  path, out = runs.levels(tmp_path / 'levels'), tmp_path / 'features.npz'
  flags = [f'--workdir={run_folder.fold(folds, 0)}', f'--out={out}']
  assert command(capsys, 'features', path, *flags)[0] == ExitCode.OK
  code, shown = command(capsys, 'probe', out, '--units')
  assert code == ExitCode.USAGE
  assert 'no action units' in shown.err


def test_commands_of_classes_name_what_to_use_instead(
  folds, data, tmp_path, capsys
):
  fold = run_folder.fold(folds, 0)
  for arguments, named in (
    (['fit', data, f'--workdir={tmp_path / "fit"}'], 'mira train'),
    (['baseline', f'--workdir={fold}'], 'mira train'),
    (['report', fold], 'mira eval'),
    (
      ['adapt', fold, f'--dataset={data}', f'--out={tmp_path / "x.csv"}'],
      'one class',
    ),
  ):
    code, shown = command(capsys, *arguments)
    assert code in (ExitCode.USAGE, ExitCode.CHECKPOINT), shown
    (line,) = [x for x in shown.err.splitlines() if x.startswith('mira: ')]
    assert 'unsupported' in line
    assert named in line


def test_an_export_gives_the_same_probabilities(model, clip, tmp_path, capsys):
  out = tmp_path / 'export'
  code, shown = command(capsys, 'export', model, out, '--platforms=cpu')
  assert code == ExitCode.OK, shown
  rows = [
    json.loads(
      command(
        capsys, 'predict', clip, f'--weights={x}', '--json', '--no-picture'
      )[1].out
    )[0]
    for x in (model, out)
  ]
  assert rows[0]['shown'] == rows[1]['shown'] == ['AU1']
  for name in ('AU1', 'AU12'):
    first, second = (row['units'][name] for row in rows)
    assert first == pytest.approx(second, abs=1e-5)
