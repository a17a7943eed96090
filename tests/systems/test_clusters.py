"""Pseudo-labels by cluster: the rule, the table, and a run that uses one."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from mira_jax.cli import main
from mira_jax.data import pseudo_labels
from mira_jax.devices import sharding
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import results
from mira_jax.systems import clusters
from mira_jax.train import loop, task
from small_runs import tiny, write

pytestmark = pytest.mark.usefixtures('compile_cache')


def _clouds(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Features around four corners; and the corner of each of 80 clips."""
  rng = np.random.default_rng(seed)
  corner = np.repeat(np.arange(4), 20)
  centres = 3 * np.eye(4)[corner]
  return centres + rng.normal(0, 0.1, centres.shape), corner


def test_a_cluster_takes_its_commonest_class_and_its_share():
  members = np.array([7, 7, 7, 2, 2, 2, 2])  # no cluster 0: nothing is 0 / 0
  predicted = np.array([1, 1, 4, 3, 0, 0, 3])
  labels, confidence = clusters.vote(members, predicted)
  assert labels.tolist() == [1, 1, 1, 0, 0, 0, 0]
  np.testing.assert_allclose(confidence, [2 / 3] * 3 + [0.5] * 4)


def test_clusters_correct_scattered_mistakes():
  features, corner = _clouds()
  predicted = corner.copy()
  wrong = np.arange(0, 80, 4)
  predicted[wrong] = (corner[wrong] + 1) % 4
  found = clusters.cluster_pseudo_labels(features, predicted, 4, 1.0)
  assert found.indices.tolist() == [*range(80)]
  np.testing.assert_array_equal(found.labels, corner)
  np.testing.assert_allclose(found.confidence, 0.75)


def test_the_purest_clusters_of_every_class_are_kept():
  features, corner = _clouds()
  predicted = np.array([0, 0, 2, 2])[corner]
  predicted[corner == 1] = np.arange(20) % 5 == 0  # some 1: purity 0.8
  predicted[60:64] = 1
  found = clusters.cluster_pseudo_labels(features, predicted, 4, 0.5)
  assert found.labels.tolist() == [0] * 20 + [2] * 20
  assert found.indices.tolist() == [*range(20), *range(40, 60)]
  assert found.confidence.min() == 1
  least = clusters.cluster_pseudo_labels(features, predicted, 4, 1e-9)
  assert least.labels.tolist() == [0, 2]  # one of each class
  near = clusters.cluster_pseudo_labels(features[:20], predicted[:20], 1, 0.25)
  unit = np.concatenate([features[:20], np.ones((20, 1))], 1)
  unit /= np.linalg.norm(unit, axis=1, keepdims=True)
  away = np.linalg.norm(unit - unit.mean(0), axis=1)
  assert near.indices.tolist() == sorted(np.argsort(away)[:5])


def test_the_seed_decides_and_duplicates_leave_no_empty_cluster():
  features, corner = _clouds()
  a, b = (
    clusters.cluster_pseudo_labels(features, corner, 9, 0.3, 5) for _ in '12'
  )
  for left, right in zip(a, b, strict=True):
    np.testing.assert_array_equal(left, right)
  same = np.ones((10, 3))
  with pytest.warns(Warning, match='distinct clusters'):
    found = clusters.cluster_pseudo_labels(same, np.arange(10) % 2, 5, 1.0)
  assert np.isfinite(found.confidence).all()
  assert set(found.labels.tolist()) == {0}


@pytest.mark.parametrize(
  ('number', 'keep', 'named'),
  [(0, 0.2, 'clusters=0'), (81, 0.2, '1 to 80'), (4, 0, 'keep=0')],
)
def test_numbers_out_of_their_ranges_are_named(number, keep, named):
  with pytest.raises(MiraInputError, match=named):
    clusters.cluster_pseudo_labels(*_clouds(), number, keep)


# ----- tables -----------------------------------------------------------------


@pytest.mark.parametrize(
  ('text', 'named'),
  [
    ('clip_id,label\n', 'no clip; write it by mira adapt'),
    ('clip_id,confidence\na,1\n', 'no column for label'),
    ('clip_id,label\na,Joy\na,Sad\n', 'clip a twice'),
    ('clip_id,label\na,Boredom\n', "'Boredom'; the classes are Happy, Sad"),
    ('clip_id,label\na,Sad,1\n', 'line 2 has other cells'),
  ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, named):
  (tmp_path / 'x.csv').write_text(text)
  with pytest.raises(MiraInputError, match=named) as caught:
    pseudo_labels.read(tmp_path / 'x.csv', ('Happy', 'Sad'))
  assert caught.value.code == 'bad_table'


def test_a_table_is_read_as_it_was_written(tmp_path):
  path = tmp_path / 'x.csv'
  pseudo_labels.write(path, [('a,"b', 'joy', 0.75), ('c', 'Sad', 1.0)])
  assert path.read_text().splitlines()[0] == 'clip_id,label,confidence'
  found = pseudo_labels.read(path, ('sadness', 'Happy'))
  assert found == {'a,"b': 1, 'c': 0}


# ----- a run ------------------------------------------------------------------


@pytest.fixture(scope='module')
def levels(tmp_path_factory):
  folder = tmp_path_factory.mktemp('levels')
  names = ('Happy', 'Sad', 'Fear')
  return write(folder, 'levels', names, {'train': 36, 'test': 9})


@pytest.fixture(scope='module')
def lights(tmp_path_factory):
  """The same clips, in another vocabulary and all with the wrong label."""
  folder = tmp_path_factory.mktemp('lights')
  names = ('sadness', 'fearful', 'happiness')
  return write(folder, 'lights', names, {'train': 21, 'test': 6})


@pytest.fixture(scope='module')
def table(levels, lights, tmp_path_factory):
  """Of a run on levels alone: (the path, its rows by clip)."""
  folder = tmp_path_factory.mktemp('adapt')
  cfg = tiny(f'{levels},{lights}', data={'protocol': 'lodo', 'fold': 1})
  loop.train(cfg, folder / 'run')
  out = folder / 'labels.csv'
  flags = [f'--dataset={lights}', f'--out={out}', '--keep=0.5', '--clusters=6']
  assert main.main(['adapt', str(folder / 'run'), *flags]) == ExitCode.OK
  rows = list(csv.DictReader(out.read_text().splitlines()))
  return out, {row['clip_id']: row for row in rows}


def test_predictions_label_a_dataset_whose_labels_are_not_read(table):
  _, rows = table
  assert 9 <= len(rows) <= 15  # half of 27, of each class
  drawn = ('happiness', 'sadness', 'fear')  # as levels has them
  right = [
    row['label'] == drawn[int(clip.split('-')[1]) % 3]
    for clip, row in rows.items()
  ]
  assert np.mean(right) > 0.8  # by its own labels none would be
  assert all(0 < float(row['confidence']) <= 1 for row in rows.values())


def test_clusters_may_be_of_features(table, lights):
  path, rows = table
  out = path.with_name('features.csv')
  flags = [f'--dataset={lights}', f'--out={out}', '--keep=0.5', '--clusters=6']
  command = ['adapt', str(path.parent / 'run'), *flags, '--by=features']
  assert main.main(command) == ExitCode.OK
  found = list(csv.DictReader(out.read_text().splitlines()))
  assert 9 <= len(found) <= 15
  labels = [(row['clip_id'], row['label'], row['confidence']) for row in found]
  by_default = [(x, y['label'], y['confidence']) for x, y in rows.items()]
  assert sorted(labels) != sorted(by_default)


def test_a_run_trains_on_the_labels_of_the_table(
  table, levels, lights, tmp_path, capsys
):
  path, rows = table
  data = {'protocol': 'lodo', 'fold': 1, 'pseudo_labels': str(path)}
  cfg = tiny(f'{levels},{lights}', data=data)
  made = task.make(cfg, tmp_path / 'a', sharding.make_mesh())
  source = made.source
  new = source.dataset == 'lights'
  assert new.sum() == len(rows)
  for clip, label in zip(source.clip_id[new], source.label[new], strict=True):
    row = rows[clip.removeprefix('lights/')]
    assert source.class_names[label] == row['label']
  clip = source[len(source) - 1]
  assert clip.clip_id == source.clip_id[-1].removeprefix('lights/')
  assert clip.label == source.label[-1]
  assert set(source.subject[new]) < {f'lights/train{i}' for i in range(9)} | {
    f'lights/test{i}' for i in range(9)
  }
  loop.train(cfg, tmp_path / 'b')
  shown = f'({len(rows)} of them test clips with pseudo-labels)'
  assert shown in ' '.join(capsys.readouterr().out.split())
  (first, *_) = results.read(tmp_path / 'b')
  assert first.matrix.sum() == 27  # all of the dataset is tested
  command = ['eval', f'--workdir={tmp_path / "b"}', '--json']
  path.rename(path.with_suffix('.moved'))  # an evaluation needs no table
  try:
    assert main.main(command) == ExitCode.OK
  finally:
    path.with_suffix('.moved').rename(path)
  found = json.loads(capsys.readouterr().out)
  assert np.sum(found['confusion']) == 27


def test_a_run_that_knows_the_labels_of_the_target_is_refused(
  levels, lights, tmp_path, capsys
):
  cfg = tiny(f'{levels},{lights}', data={'protocol': 'lodo', 'fold': 0})
  loop.train(cfg, tmp_path / 'run')
  flags = [f'--dataset={lights}', f'--out={tmp_path / "labels.csv"}']
  assert main.main(['adapt', str(tmp_path / 'run'), *flags]) == (
    ExitCode.CHECKPOINT
  )
  assert 'trained on lights, whose labels it knows' in capsys.readouterr().err
  assert not (tmp_path / 'labels.csv').exists()


def test_a_run_goes_on_with_the_same_table_alone(
  table, levels, lights, tmp_path
):
  """Wherever it lies; not with other labels at the same place."""
  path = tmp_path / 'labels.csv'
  path.write_bytes(table[0].read_bytes())
  data = {'protocol': 'lodo', 'fold': 1, 'pseudo_labels': str(path)}
  cfg = tiny(f'{levels},{lights}', data=data)
  loop.train(cfg, tmp_path / 'run')
  moved = path.rename(tmp_path / 'moved.csv')
  cfg.data.pseudo_labels = str(moved)
  loop.train(cfg, tmp_path / 'run')
  lines = moved.read_text().splitlines()
  moved.write_text('\n'.join(lines[:-1]) + '\n')
  with pytest.raises(MiraInputError, match='pseudo_labels_sha256') as caught:
    loop.train(cfg, tmp_path / 'run')
  assert caught.value.code == 'run_changed'


def test_clips_of_another_dataset_are_unknown(levels, lights, tmp_path):
  other = tmp_path / 'other.csv'
  other.write_text('clip_id,label\ntrain-2,Sad\ntrain-90,Sad\n')
  data = {'protocol': 'lodo', 'fold': 0, 'pseudo_labels': str(other)}
  cfg = tiny(f'{levels},{lights}', data=data)
  with pytest.raises(MiraInputError, match=r'levels, which .* train-90') as e:
    loop.train(cfg, tmp_path / 'run')
  assert e.value.code == 'bad_table'


def test_other_protocols_test_no_whole_dataset(table, levels, tmp_path):
  cfg = tiny(levels, data={'pseudo_labels': str(table[0])})
  with pytest.raises(MiraInputError, match=r'set config.data.protocol=lodo'):
    loop.train(cfg, tmp_path)


def test_a_class_that_others_lack_is_no_obstacle(levels, tmp_path):
  """Clips of such a class may be listed: their labels are not known."""
  names = ('happiness', 'sadness', 'awe', 'fear')
  wide = write(tmp_path, 'wide', names, {'train': 12})
  out = tmp_path / 'x.csv'
  out.write_text('clip_id,label\ntrain-2,Fear\n')  # its own label is awe
  data = {'protocol': 'lodo', 'fold': 1, 'pseudo_labels': str(out)}
  cfg = tiny(f'{levels},{wide}', data=data)
  made = task.make(cfg, tmp_path / 'run', sharding.make_mesh())
  assert made.source.class_names[made.source.label[-1]] == 'fear'


def test_the_flags_of_adapt(lights, tmp_path, capsys):
  flags = ['adapt', str(tmp_path), f'--dataset={lights}']
  assert main.main([*flags, '--out=x.txt']) == ExitCode.USAGE
  assert 'end the name in .csv' in capsys.readouterr().err
  out = f'--out={tmp_path / "x.csv"}'
  assert main.main([*flags, out]) == ExitCode.CHECKPOINT
