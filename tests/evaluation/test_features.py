"""Files of features, and the commands that write and probe them."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax import files
from mira_jax.augment import transforms
from mira_jax.cli import main as cli
from mira_jax.data import dataset
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import feature_file
from mira_jax.inference import load
from mira_jax.mira import MiraConfig
from mira_jax.video import decode, images
from mira_jax.weights import weights_file as weights
from small_features import save, subjects
from small_models import save_model
from small_runs import write


def test_files_come_back_equal(tmp_path):
  data = subjects()
  found = feature_file.read(save(tmp_path / 'a.npz', data))
  assert found.keys() == data.keys()
  for name in data:
    np.testing.assert_array_equal(found[name], data[name])


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ({'label': np.full(60, 3)}, 'whole numbers from 0 to 2'),
    ({'fold': np.zeros(59, int)}, 'fold is not of 60 clips'),
    ({'about': np.array('{')}, 'about is not JSON'),
    ({'features': np.full((60, 6), np.nan)}, 'not_finite'),
  ],
)
def test_arrays_that_do_not_fit_together_are_named(tmp_path, change, says):
  path = tmp_path / 'a.npz'
  np.savez(path, **subjects() | change)
  with pytest.raises(MiraInputError, match=says):
    feature_file.read(path)


def test_one_file_is_trained_on_and_another_tested():
  both = feature_file.train_and_test(subjects(), subjects(dataset='e'))
  train, test = feature_file.partition(both, 'split')['test']
  assert (train.sum(), test.sum()) == (60, 60)
  # s1 of one dataset is not s1 of another.
  assert not set(both['subject'][train]) & set(both['subject'][test])


@pytest.mark.parametrize(
  ('test', 'code'),
  [
    (subjects(), 'clip_in_both: c0'),
    (subjects(dataset='e', weights_sha256='v'), 'other_weights'),
    (subjects() | {'class_names': np.array(['a', 'c', 'b'])}, 'other_classes'),
  ],
)
def test_files_that_cannot_be_compared(test, code):
  with pytest.raises(MiraInputError, match=code):
    feature_file.train_and_test(subjects(), test)


# ----- the commands ---------------------------------------------------------

NAMES = ('dark', 'bright', 'fading')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A dataset of 9 subjects, an untrained model, and its features."""
  folder = tmp_path_factory.mktemp('probe')
  data = write(folder, 'levels', NAMES, {'train': 18, 'test': 9})
  run = save_model(
    folder / 'run', MiraConfig(), names=list(NAMES), depth=1, frames=4,
    image_size=16, head_scale=1.0,
  )  # fmt: skip
  model, out = f'--workdir={run}', f'--out={folder / "features.npz"}'
  assert cli.main(['features', data, model, out, '--views=2']) == ExitCode.OK
  return folder


def test_features_are_the_models_for_every_clip(place):
  with np.load(place / 'features.npz') as file:
    data = dict(file)
  assert data['features'].shape == (27, 16)
  assert data['features'].dtype == np.float32
  assert data['clip_id'][[0, 18]].tolist() == ['train-0', 'test-0']
  assert data['split'].tolist() == ['train'] * 18 + ['test'] * 9
  assert data['label'].tolist() == [0, 1, 2] * 9
  assert data['class_names'].tolist() == list(NAMES)
  about = json.loads(str(data['about']))
  assert about['dataset'] == 'levels'
  digest = files.sha256(place / 'run' / weights.WEIGHTS)
  assert about['weights_sha256'] == digest
  # Of one clip, as the model computes them: two windows, averaged.
  clip = dataset.open(place / 'levels').source('test')[4]
  scorer, card, _ = load.load_backbone(place / 'run')
  frames = np.stack([images.decode_jpeg(f) for f in clip.frames])
  video = decode.of_frames('clip', frames, 0)
  views, _ = scorer.cut_views(video, views=2, **card['preprocessing'])
  video = transforms.prepare(jnp.asarray(views))
  expected = jax.jit(scorer.model.apply)(scorer._variables, video).mean(0)
  np.testing.assert_allclose(
    data['features'][22], expected, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(
  ('method', 'protocol'), [('knn', 'loso'), ('linear', 'split')]
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


def test_what_cannot_be_probed_is_named(place, capsys):
  code = cli.main(['probe', str(place / 'features.npz'), '--k', '1,19'])
  assert code == ExitCode.USAGE
  assert 'bad_k: k=19: there are 18 tra' in capsys.readouterr().err
  unknown = subjects() | {'fold': np.full(60, -1)}
  with pytest.raises(MiraInputError, match='no_folds: folds: without'):
    feature_file.partition(unknown, 'folds')


def test_another_file_is_tested_and_json_is_one_document(
  place, tmp_path, capsys
):
  data, parts = feature_file.read(place / 'features.npz'), []
  for split in ('train', 'test'):
    rows = {n: data[n][data['split'] == split] for n in feature_file.ROWS}
    parts.append(save(tmp_path / f'{split}.npz', data | rows))

  def scores(*arguments):
    assert cli.main(['probe', *arguments, '--json', '--k', '1,5']) == 0
    return json.loads(capsys.readouterr().out)

  apart = scores(parts[0], '--test', parts[1], '--out', str(tmp_path / 'out'))
  whole = scores(str(place / 'features.npz'))
  assert apart['pooled_confusion'] == whole['pooled_confusion']
  assert apart['chosen'] == whole['chosen']
  assert (tmp_path / 'out' / 'scores.json').exists()
  code = cli.main(['probe', parts[0], '--test', parts[1], '--protocol=loso'])
  assert code == ExitCode.USAGE
  assert 'leave --protocol out' in capsys.readouterr().err


def test_a_backbone_with_holes_gives_no_features(place, tmp_path):
  variables, card = weights.load_weights(place / 'run' / weights.WEIGHTS)
  del variables['params']['encoder']['block_0']['mlp']
  path = tmp_path / 'holes.safetensors'
  weights.save_weights(path, variables['params'], variables['mira'], card)
  with pytest.raises(MiraInputError, match=r'lacks \d tensors.*block_0/mlp'):
    load.load_backbone(path)


@pytest.mark.parametrize(
  ('content', 'says'),
  [
    (b'nothing', r'no \.npz of arrays; write one with `mira features`'),
    (None, 'No such file'),
  ],
)
def test_other_files_are_no_features(tmp_path, content, says):
  path = tmp_path / 'other.npz'
  if content:
    path.write_bytes(content)
  with pytest.raises(MiraInputError, match=says):
    feature_file.read(path)


def test_the_name_of_features_ends_in_npz(place, tmp_path, capsys):
  arguments = [str(place / 'levels'), f'--workdir={place / "run"}']
  code = cli.main(['features', *arguments, f'--out={tmp_path / "x.npy"}'])
  assert code == ExitCode.USAGE
  assert 'end the name in .npz' in capsys.readouterr().err
