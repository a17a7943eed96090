"""The baseline: on the clips of training, without leaks, stored and found."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest

import runs
from mira_jax import baseline
from mira_jax.cli import main
from mira_jax.data import dataset
from mira_jax.data.protocol import Rules, all_parts
from mira_jax.errors import ExitCode
from mira_jax.evaluation import metrics, results
from mira_jax.video import images

FOLDS = Rules(protocol='folds', num_folds=4)


def _clips(count, turned=()):
  """Stripes of three directions with noise; `turned` have another class."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:32, :32]
  for i in range(count):
    wave = np.sin(np.stack([x, y, x + y])[i % 3] / 3)
    video = 128 + 40 * wave + rng.normal(0, 40, (3, 32, 32))
    video = np.clip(video, 0, 255).astype(np.uint8)[..., None].repeat(3, -1)
    yield dataset.Clip(
      clip_id=f'c{i}',
      frames=[images.encode_jpeg(frame) for frame in video],
      label=(i + (i in turned)) % 3,
      subject=f's{i // 4}',
    )


def _write(folder, turned=()):
  clips = list(_clips(60, turned))
  names = ('along', 'across', 'slanted')
  parts = {'train': clips[:48], 'test': clips[48:]}
  return dataset.open(runs.write(folder, 'stripes', names, **parts))


@pytest.fixture(scope='module')
def stripes(tmp_path_factory):
  return _write(tmp_path_factory.mktemp('stripes') / 'stripes')


@pytest.fixture(scope='module')
def made(stripes):
  return baseline.evaluate([stripes], FOLDS)


def test_it_tests_the_clips_that_a_run_tests(stripes, made):
  parts = all_parts([stripes], FOLDS)
  assert [fold.name for fold in made.folds] == [p.fold_name for p in parts]
  for part in parts:
    mine = made.predictions.fold == part.fold_name
    assert made.predictions.clip[mine].tolist() == part.test.clip_id.tolist()
  assert made.matrix.sum() == 60
  assert metrics.score(made.matrix).war > 0.85
  low, high = made.intervals['war']
  assert low <= metrics.score(made.matrix).war <= high <= 1


def test_validation_clips_are_trained_on_and_test_clips_are_not(
  stripes, monkeypatch
):
  seen = []

  def classify(train, labels, groups, test, **options):
    seen.append((len(train), set(groups)))
    return 1.0, np.full((len(test), 3), 1 / 3)

  monkeypatch.setattr(baseline, 'classify', classify)
  for fraction in (0.0, 0.3):
    rules = dataclasses.replace(FOLDS, val_fraction=fraction)
    found = baseline.evaluate([stripes], rules)
    for part, (count, people) in zip(
      all_parts([stripes], rules), seen, strict=True
    ):
      assert count == 60 - len(part.test)
      assert not people & {*part.test.subject}
    assert len(found.predictions) == 60
    seen.clear()


def test_labels_of_test_clips_decide_nothing(stripes, made, tmp_path):
  rules = Rules()
  before = baseline.evaluate([stripes], rules).predictions
  turned = _write(tmp_path / 'stripes', turned=range(48, 60))
  after = baseline.evaluate([turned], rules).predictions
  assert (before.label != after.label).all()
  np.testing.assert_allclose(before.probability, after.probability)


def test_pixels_and_rare_classes():
  rng = np.random.default_rng(0)
  labels = np.array([0, 0, 0, 0, 2, 2, 2, 2])
  train = np.eye(3)[labels] + rng.normal(0, 0.1, (8, 3))
  groups = np.array([*'aabbccdd'])
  options = {'num_classes': 3, 'components': 2}
  _, shares = baseline.classify(train, labels, groups, np.eye(3), **options)
  assert shares[[0, 2]].argmax(1).tolist() == [0, 2]
  assert not shares[:, 1].any()
  np.testing.assert_allclose(shares.sum(1), 1)
  # One class, and one subject.
  _, shares = baseline.classify(
    train, np.full(8, 1), groups, np.eye(3), **options
  )
  assert shares.tolist() == [[0, 1, 0]] * 3
  one = np.full(8, 'a')
  _, shares = baseline.classify(train, labels, one, np.eye(3), **options)
  assert shares[[0, 2]].argmax(1).tolist() == [0, 2]


def test_it_is_found_for_the_same_clips_alone(stripes, made, tmp_path):
  assert baseline.find([stripes], FOLDS) is None
  place = baseline.folder([stripes], FOLDS, tmp_path)
  baseline.write(made, place, FOLDS)
  same = dataclasses.replace(FOLDS, val_fraction=0.3)
  found = baseline.find([stripes], same, tmp_path)
  assert found is not None
  np.testing.assert_array_equal(found.matrix, made.matrix)
  assert str(found) == str(made)
  for change in ({'fold_seed': 1}, {'num_folds': 5}, {'train_fraction': 0.5}):
    other = dataclasses.replace(FOLDS, **change)
    assert baseline.find([stripes], other, tmp_path) is None
  split = Rules()
  assert baseline.folder([stripes], split) == baseline.folder(
    [stripes], Rules(fold_seed=3, val_fraction=0.3)
  )
  assert baseline.folder([stripes], FOLDS, tmp_path, 'pca') != place
  (place / 'folds.json').write_text('{"features": 1}')
  assert baseline.find([stripes], FOLDS, tmp_path) is None


def test_a_run_below_it_is_named(made):
  bad = results.Fold(name='fold 2', matrix=np.ones((3, 3), int))
  line = baseline.below(made, [bad])
  theirs = metrics.score(made.folds[1].matrix)
  assert f'WAR 33.3% against {theirs.war:.1%}' in line
  good = results.Fold(name='fold 2', matrix=20 * np.eye(3, dtype=int))
  assert baseline.below(made, [good]) == ''
  assert baseline.below(made, [bad, dataclasses.replace(bad, name='x')]) == ''


def test_the_command_stores_what_a_report_shows(stripes, tmp_path, capsys):
  root = str(stripes.directory)
  assert main.main(['baseline', root, '--num-folds=3']) == ExitCode.OK
  out = capsys.readouterr().out
  assert 'hog and a linear SVM: WAR' in out
  found = baseline.find([stripes], Rules(protocol='folds', num_folds=3))
  assert found is not None
  (place,) = stripes.directory.glob('baseline-*')
  with (place / 'predictions.csv').open() as file:
    assert len({row['clip'] for row in csv.DictReader(file)}) == 60
  told = json.loads((place / 'folds.json').read_text())
  assert told['rules']['num_folds'] == 3
  assert told['seconds'] > 0
  assert dataset.open(stripes.directory).splits == stripes.splits


@pytest.mark.parametrize(
  'flags',
  [
    ['baseline'],
    ['baseline', 'data', '--workdir=run'],
    ['baseline', '--workdir=run', '--split=val'],
  ],
)
def test_flags_that_do_not_go_together(flags, capsys):
  assert main.main(flags) == ExitCode.USAGE
  assert 'bad_flag' in capsys.readouterr().err
