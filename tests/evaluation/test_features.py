"""Files of features, and the commands that write and probe them."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax.augment import transforms
from mira_jax.cli import main as cli
from mira_jax.config import ModelConfig
from mira_jax.data import dataset
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import feature_file
from mira_jax.inference import load
from mira_jax.mira import MiraConfig
from mira_jax.models import build
from mira_jax.video import decode, images
from mira_jax.weights import weights_file as weights


def subjects(count=60):
  """Features of 6 people with unequal numbers of clips."""
  rng = np.random.default_rng(0)
  starts = np.array([0, 4, 10, 22, 30, 45])
  person = np.searchsorted(starts, np.arange(count), side='right')
  return {
    'features': rng.normal(size=(count, 6)).astype(np.float32),
    'label': np.arange(count) % 3,
    'clip_id': np.array([f'c{i}' for i in range(count)]),
    'subject': np.array([f's{i}' for i in person]),
    'fold': person % 3,
    'split': np.where(person < 4, 'train', 'test'),
    'class_names': np.array(['a', 'b', 'c']),
    'about': np.array(json.dumps({'dataset': 'd', 'weights_sha256': 'w'})),
  }


def save(path, data):
  rows = {name: data[name] for name in feature_file.ROWS}
  names = tuple(data['class_names'].tolist())
  feature_file.write(path, rows, names, feature_file.about(data))
  return str(path)


def test_files_come_back_equal(tmp_path):
  data = subjects()
  found = feature_file.read(save(tmp_path / 'new' / 'a.npz', data))
  assert found.keys() == data.keys()
  for name in data:
    np.testing.assert_array_equal(found[name], data[name])


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ({'label': np.full(60, 3)}, '0 to 2'),
    ({'label': np.full(60, 0.5)}, 'whole numbers'),
    ({'fold': np.zeros(59, int)}, 'fold is not of 60 clips'),
    ({'features': np.zeros(60)}, 'not clips by numbers'),
    ({'about': np.array('{')}, 'about is not JSON'),
    ({'features': np.full((60, 6), np.nan)}, 'not_finite'),
  ],
)
def test_arrays_that_do_not_fit_together_are_named(tmp_path, change, says):
  path = tmp_path / 'a.npz'
  np.savez(path, **subjects() | change)
  with pytest.raises(MiraInputError, match=says):
    feature_file.read(path)


def test_a_damaged_file_is_named(tmp_path):
  path = tmp_path / 'a.npz'
  np.savez_compressed(path, **subjects())
  data = bytearray(path.read_bytes())
  data[100:120] = b'\xff' * 20
  path.write_bytes(data)
  with pytest.raises(MiraInputError, match=r'not_features.*no \.npz of arrays'):
    feature_file.read(path)


def other(**about):
  """Features of other subjects' clips."""
  content = {'dataset': 'e', 'weights_sha256': 'w'} | about
  return subjects() | {'about': np.array(json.dumps(content))}


def test_one_file_is_trained_on_and_another_tested():
  both = feature_file.train_and_test(subjects(), other())
  train, test = feature_file.partition(both, 'split')['test']
  assert (train.sum(), test.sum()) == (60, 60)
  # s1 of one dataset is not s1 of another.
  assert not set(both['subject'][train]) & set(both['subject'][test])


@pytest.mark.parametrize(
  ('test', 'code'),
  [
    (other(dataset='d'), 'clip_in_both: c0'),
    (other(weights_sha256='v'), 'other_weights'),
    (other() | {'features': np.zeros((60, 5))}, 'other_weights'),
    (other() | {'class_names': np.array(['a', 'c', 'b'])}, 'other_classes'),
  ],
)
def test_files_that_cannot_be_compared(test, code):
  with pytest.raises(MiraInputError, match=code):
    feature_file.train_and_test(subjects(), test)


# ----- the commands ---------------------------------------------------------

MODEL = ModelConfig(
  dim=16, depth=1, heads=2, num_classes=3, frames=4, image_size=16, patch=8,
  head_scale=1.0, mira=MiraConfig(),
)  # fmt: skip


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A dataset of 9 subjects and an untrained model's weights."""
  folder = tmp_path_factory.mktemp('probe')

  def stream(split, count):
    rng = np.random.default_rng(len(split))
    levels = (np.full(8, 60), np.full(8, 190), np.linspace(190, 60, 8))
    for i in range(count):
      level = levels[i % 3][:, None, None, None]
      video = np.clip(level + rng.normal(0, 9, (8, 16, 16, 3)), 0, 255)
      yield dataset.Clip(
        clip_id=f'{split}{i}',
        frames=[images.encode_jpeg(f) for f in video.astype(np.uint8)],
        label=i % 3,
        subject=f'{split}-{i // 3}',
      )

  dataset.write(
    folder / 'data',
    name='levels',
    class_names=('dark', 'bright', 'fading'),
    splits={
      'train': lambda: stream('train', 18), 'test': lambda: stream('test', 9)
    },
    description='Clips that differ in brightness.',
  )  # fmt: skip
  model = build.build_model(dataclasses.asdict(MODEL))
  variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 16, 16, 3)))
  card = {
    'model': dataclasses.asdict(MODEL),
    'class_names': ['dark', 'bright', 'fading'],
    'preprocessing': {'rate': 1, 'fit': 'crop'},
  }
  weights.save_weights(
    folder / 'run' / weights.WEIGHTS, variables['params'], variables['mira'],
    card,
  )  # fmt: skip
  out = folder / 'features.npz'
  code = cli.main(
    ['features', str(folder / 'data'), '--workdir', str(folder / 'run'),
     '--out', str(out), '--views', '2']
  )  # fmt: skip
  assert code == ExitCode.OK
  return folder


def test_features_are_the_models_for_every_clip(place):
  with np.load(place / 'features.npz') as file:
    data = dict(file)
  assert data['features'].shape == (27, 16)
  assert data['features'].dtype == np.float32
  assert data['clip_id'][[0, 18]].tolist() == ['train0', 'test0']
  assert data['split'].tolist() == ['train'] * 18 + ['test'] * 9
  assert data['label'].tolist() == [0, 1, 2] * 9
  assert data['class_names'].tolist() == ['dark', 'bright', 'fading']
  about = json.loads(str(data['about']))
  assert about['dataset'] == 'levels'
  content = (place / 'run' / weights.WEIGHTS).read_bytes()
  assert about['weights_sha256'] == hashlib.sha256(content).hexdigest()
  # Of one clip, as the model computes them: two windows, averaged.
  made = dataset.open(place / 'data')
  clip = made.source('test')[4]
  scorer, _, _ = load.load_backbone(place / 'run')
  frames = np.stack([images.decode_jpeg(f) for f in clip.frames])
  views, _ = scorer.cut_views(
    decode.of_frames('clip', frames, 0), rate=1, views=2, fit='crop'
  )
  expected = scorer.model.apply(
    scorer._variables, transforms.prepare(jnp.asarray(views))
  ).mean(0)
  np.testing.assert_allclose(
    data['features'][22], expected, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(
  ('method', 'protocol'),
  [('knn', 'split'), ('knn', 'loso'), ('linear', 'split')],
)
def test_probes_from_the_command_line(place, capsys, method, protocol):
  out = place / f'{method}-{protocol}'
  code = cli.main(
    ['probe', str(place / 'features.npz'), '--method', method, '--protocol',
     protocol, '--out', str(out), '--k', '1,3']
  )  # fmt: skip
  shown = capsys.readouterr().out
  assert code == ExitCode.OK
  assert 'selected within the training clips' in shown
  content = json.loads((out / 'folds.json').read_text())
  assert len(content['folds']) == (1 if protocol == 'split' else 9)
  assert content['pooled']['clips'] == (9 if protocol == 'split' else 27)
  # Brightness shows in the features of any network.
  assert content['pooled']['war'] > 0.6
  assert {'uf1', 'uar'} <= content['pooled'].keys()
  if method == 'knn':
    assert content['sweep'].keys() == {'k=1', 'k=3'}
    assert 'k=3' in shown


@pytest.mark.parametrize(
  ('arguments', 'says'),
  [
    (['--protocol', 'folds'], 'no_folds: folds: 27 clips'),
    (['--k', '1,19'], 'there are 18 training clips'),
    (['--k', 'many'], 'whole numbers'),
    (['--temperature', '0'], 'above 0'),
  ],
)
def test_what_cannot_be_probed_is_named(place, capsys, arguments, says):
  code = cli.main(['probe', str(place / 'features.npz'), *arguments])
  assert code in (ExitCode.USAGE, ExitCode.DATA)
  error = capsys.readouterr().err
  assert says in error
  assert error.count('\n') == 1


def test_another_file_is_tested_and_json_is_one_document(
  place, tmp_path, capsys
):
  data, files = feature_file.read(place / 'features.npz'), []
  for split in ('train', 'test'):
    rows = {n: data[n][data['split'] == split] for n in feature_file.ROWS}
    files.append(save(tmp_path / f'{split}.npz', data | rows))

  def scores(*arguments):
    assert cli.main(['probe', *arguments, '--json', '--k', '1,5']) == 0
    return json.loads(capsys.readouterr().out)

  apart = scores(files[0], '--test', files[1], '--out', str(tmp_path / 'out'))
  whole = scores(str(place / 'features.npz'))
  assert apart['pooled_confusion'] == whole['pooled_confusion']
  assert apart['chosen'] == whole['chosen']
  assert (tmp_path / 'out' / 'scores.json').exists()
  code = cli.main(['probe', files[0], '--test', files[1], '--protocol=loso'])
  assert code == ExitCode.USAGE
  assert 'leave --protocol out' in capsys.readouterr().err


def test_a_backbone_with_holes_gives_no_features(place, tmp_path):
  variables, card = weights.load_weights(place / 'run' / weights.WEIGHTS)
  del variables['params']['encoder']['block_0']['mlp']
  path = tmp_path / 'holes.safetensors'
  weights.save_weights(path, variables['params'], variables['mira'], card)
  with pytest.raises(MiraInputError, match=r'lacks \d tensors.*block_0/mlp'):
    load.load_backbone(path)


def test_other_files_are_no_features(place, tmp_path, capsys):
  path = tmp_path / 'other.npz'
  np.savez(path, features=np.zeros((2, 2)))
  assert cli.main(['probe', str(path)]) == ExitCode.USAGE
  assert 'it has no label' in capsys.readouterr().err
  path.write_bytes(b'nothing')
  assert cli.main(['probe', str(path)]) == ExitCode.USAGE
  error = capsys.readouterr().err
  assert 'mira features' in error
  assert 'pickle' not in error
  assert cli.main(['probe', str(tmp_path / 'absent.npz')]) == ExitCode.USAGE
  assert 'No such file' in capsys.readouterr().err
  code = cli.main(
    ['features', str(place / 'data'), '--workdir', str(place / 'run'), '--out',
     str(tmp_path / 'x.npy')]
  )  # fmt: skip
  assert code == ExitCode.USAGE
  assert 'end the name in .npz' in capsys.readouterr().err
