"""Probes of frozen features: by hand, by an oracle, and without leaks."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mira_jax import cli, engine, probe, weights
from mira_jax.config import ModelConfig
from mira_jax.data import dataset, decode
from mira_jax.errors import ExitCode
from mira_jax.mira import MiraConfig

# ----- nearest neighbours ---------------------------------------------------

# Directions at 0, 60 and 90 degrees; lengths do not matter.
TRAIN = np.array([[2.0, 0.0], [0.5, 0.75**0.5], [0.0, 3.0]])
LABELS = np.array([0, 1, 1])


def test_votes_by_hand():
  test = np.array([[5.0, 0.0]])  # similarities 1, 1/2 and 0
  votes = probe.knn_votes(
    TRAIN, LABELS, test, ks=(1, 2, 3), num_classes=2, temperature=0.5
  )
  np.testing.assert_allclose(votes[1], [[1, 0]])
  two = np.exp([2.0, 1.0])
  np.testing.assert_allclose(votes[2], [two / two.sum()])
  three = np.exp([2.0, 1.0, 0.0])
  expected = np.array([[three[0], three[1] + three[2]]]) / three.sum()
  np.testing.assert_allclose(votes[3], expected)


def test_small_temperatures_do_not_overflow():
  votes = probe.knn_votes(
    TRAIN, LABELS, TRAIN, ks=(3,), num_classes=2, temperature=1e-4
  )
  np.testing.assert_allclose(votes[3], np.eye(2)[LABELS], atol=1e-12)


def test_a_clip_is_no_neighbour_of_its_own_group():
  groups = np.array(['a', 'a', 'b'])
  votes = probe.knn_votes(
    TRAIN, LABELS, TRAIN, ks=(1,), num_classes=2, apart=(groups, groups)
  )
  # The first two have the third alone, the third has the second.
  assert votes[1].argmax(1).tolist() == [1, 1, 1]
  alone = np.array(['a', 'a', 'a'])
  votes = probe.knn_votes(
    TRAIN, LABELS, TRAIN, ks=(1,), num_classes=2, apart=(alone, alone)
  )
  np.testing.assert_array_equal(votes[1], np.full((3, 2), 0.5))


def test_blocks_of_rows_change_nothing(monkeypatch):
  rng = np.random.default_rng(0)
  train, test = rng.normal(size=(40, 5)), rng.normal(size=(23, 5))
  labels = rng.integers(0, 3, 40)
  options = {'ks': (1, 7), 'num_classes': 3}
  whole = probe.knn_votes(train, labels, test, **options)
  monkeypatch.setattr(probe, '_ROWS', 4)
  parts = probe.knn_votes(train, labels, test, **options)
  for k in (1, 7):
    np.testing.assert_allclose(whole[k], parts[k], rtol=1e-12)
    np.testing.assert_allclose(whole[k].sum(1), 1)


def test_k_is_chosen_without_the_own_subject():
  # Every person's two clips are alike, and of unlike classes; across people
  # the class shows. With the own subject, k=1 would look perfectly wrong.
  rng = np.random.default_rng(1)
  person = np.repeat(np.arange(20), 2)
  labels = np.tile([0, 1], 20)
  kind = np.where(labels, 1.0, -1.0)[:, None] * np.array([[1.0, 0, 0]])
  noise = rng.normal(0, 0.8, (40, 3))
  features = kind + noise
  same = features.copy()
  same[1::2] = same[::2]  # the two clips of a person are the same
  apart = probe.knn_votes(
    same, labels, same, ks=(1,), num_classes=2, apart=(person, person)
  )
  alone = np.arange(40)
  with_own = probe.knn_votes(
    same, labels, same, ks=(1,), num_classes=2, apart=(alone, alone)
  )
  assert (with_own[1].argmax(1) == labels).mean() == 0
  assert (apart[1].argmax(1) == labels).mean() > 0.2


# ----- a linear map ---------------------------------------------------------


def blobs(seed=0, count=120, classes=3, dim=6, spread=1.0):
  rng = np.random.default_rng(seed)
  centres = 2 * np.eye(classes, dim)
  labels = np.arange(count) % classes
  return centres[labels] + rng.normal(0, spread, (count, dim)), labels


@pytest.mark.parametrize('penalty', [1e-3, 0.1, 10.0])
def test_the_linear_map_is_where_the_gradient_vanishes(penalty):
  features, labels = blobs()
  features[:, 5] = 3.0  # constant: it can say nothing
  fitted = probe.fit_linear(features, labels, num_classes=3, penalty=penalty)

  def loss(weights, bias):
    x = (jnp.asarray(features) - fitted.mean) / fitted.scale
    logs = jax.nn.log_softmax(x @ weights + bias)
    return (
      -logs[jnp.arange(len(labels)), labels].mean()
      + penalty / 2 * jnp.square(weights).sum()
    )

  with jax.enable_x64(True):
    gradients = jax.grad(loss, (0, 1))(
      jnp.asarray(fitted.weights), jnp.asarray(fitted.bias)
    )
  for gradient in gradients:
    np.testing.assert_allclose(gradient, 0, atol=2e-6)
  assert (fitted.weights[5] == 0).all()
  probabilities = fitted.probabilities(features)
  np.testing.assert_allclose(probabilities.sum(1), 1)
  assert (probabilities.argmax(1) == labels).mean() > 0.7


def test_scales_of_features_do_not_matter():
  features, labels = blobs()
  fits = [
    probe.fit_linear(
      features * s + 7, labels, num_classes=3, penalty=0.1
    ).probabilities(features * s + 7)
    for s in (1.0, np.array([1e-3, 1, 10, 1e3, 5, 2]))
  ]
  np.testing.assert_allclose(*fits, atol=1e-5)


def test_a_penalty_is_chosen_on_what_was_held_out():
  features, labels = blobs(count=30, dim=25, spread=2.0)
  held = np.arange(30) >= 20
  best = probe.choose_penalty(features, labels, held, num_classes=3)
  assert best in probe.PENALTIES
  wrong = labels.copy()
  wrong[held] = (wrong[held] + 1) % 3  # another truth, another choice
  scores = {
    p: (
      probe.fit_linear(features[~held], labels[~held], num_classes=3, penalty=p)
      .probabilities(features[held])
      .argmax(1)
      == labels[held]
    ).mean()
    for p in probe.PENALTIES
  }
  assert scores[best] >= max(scores.values()) - 0.11
  nothing = np.zeros(30, bool)
  assert (
    probe.choose_penalty(features, labels, nothing, num_classes=3)
    in probe.PENALTIES
  )


def test_no_method_sees_what_it_is_tested_on():
  features, labels = blobs(count=60)
  groups = np.repeat([f's{i}' for i in range(6)], 10)
  seen = []

  def spy(train, train_labels, train_groups, test):
    seen.append((set(train_groups), len(train), len(test)))
    assert len(train) == len(train_labels)
    return {'spy': np.zeros(len(test), int)}

  tests = {g: (groups != g, groups == g) for g in np.unique(groups)}
  result = probe.run(spy, features, labels, groups, tests, 3)
  assert result.folds == [f's{i}' for i in range(6)]
  for name, (trained, many, few) in zip(result.folds, seen, strict=True):
    assert name not in trained
    assert (many, few) == (50, 10)
  assert sum(m.sum() for m in result.matrices) == 60


# ----- the commands ---------------------------------------------------------

MODEL = ModelConfig(
  dim=16, depth=1, heads=2, num_classes=3, frames=4, image_size=16,
  head_scale=1.0, mira=MiraConfig(),
)  # fmt: skip


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A dataset of 9 people and an untrained model's weights."""
  folder = tmp_path_factory.mktemp('probe')

  def stream(split, count):
    rng = np.random.default_rng(len(split))
    levels = (np.full(8, 60), np.full(8, 190), np.linspace(190, 60, 8))
    for i in range(count):
      level = levels[i % 3][:, None, None, None]
      video = np.clip(level + rng.normal(0, 9, (8, 16, 16, 3)), 0, 255)
      yield dataset.Clip(
        clip_id=f'{split}{i}',
        frames=[decode.encode_jpeg(f) for f in video.astype(np.uint8)],
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
  model = engine.build_model(dataclasses.asdict(MODEL))
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
  assert json.loads(str(data['about']))['dataset'] == 'levels'
  # Of one clip, as the model computes them: two windows, averaged.
  made = dataset.open(place / 'data')
  clip = made.source('test')[4]
  scorer, _ = engine.load_backbone(place / 'run')
  frames = np.stack([decode.decode_jpeg(f) for f in clip.frames])
  views, _ = scorer.cut_views(frames, rate=1, views=2, fit='crop')
  from mira_jax import augment

  expected = scorer.model.apply(
    scorer._variables, augment.prepare(jnp.asarray(views))
  ).mean(0)
  np.testing.assert_allclose(
    data['features'][22], expected, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize('method', ['knn', 'linear'])
@pytest.mark.parametrize('protocol', ['split', 'loso'])
def test_probes_from_the_command_line(place, capsys, method, protocol):
  out = place / f'{method}-{protocol}'
  code = cli.main(
    ['probe', str(place / 'features.npz'), '--method', method, '--protocol',
     protocol, '--out', str(out), '--k', '1,3']
  )  # fmt: skip
  shown = capsys.readouterr().out
  assert code == ExitCode.OK
  assert 'chosen within the training clips' in shown
  told = json.loads((out / 'folds.json').read_text())
  assert len(told['folds']) == (1 if protocol == 'split' else 9)
  assert told['pooled']['clips'] == (9 if protocol == 'split' else 27)
  # Brightness shows in the features of any network.
  assert told['pooled']['war'] > 0.6
  assert {'uf1', 'uar'} <= told['pooled'].keys()
  if method == 'knn':
    assert told['sweep'].keys() == {'k=1', 'k=3'}
    assert 'k=3' in shown


@pytest.mark.parametrize(
  ('arguments', 'says'),
  [
    (['--protocol', 'folds'], 'no_folds: folds: 27 clips'),
    (['--k', '0'], 'bad_k'),
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


def test_other_files_are_no_features(place, tmp_path, capsys):
  path = tmp_path / 'other.npz'
  np.savez(path, features=np.zeros((2, 2)))
  assert cli.main(['probe', str(path)]) == ExitCode.USAGE
  assert 'it has no label' in capsys.readouterr().err
  path.write_bytes(b'nothing')
  assert cli.main(['probe', str(path)]) == ExitCode.USAGE
  assert 'mira features' in capsys.readouterr().err
  code = cli.main(
    ['features', str(place / 'data'), '--workdir', str(place / 'run'), '--out',
     str(tmp_path / 'x.npy')]
  )  # fmt: skip
  assert code == ExitCode.USAGE
  assert 'end the name in .npz' in capsys.readouterr().err
