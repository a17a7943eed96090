"""Training: from the learning rate to a run that is stopped and resumed."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import signal
import struct
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

import runs
from mira_jax import config
from mira_jax.augment.transforms import Augment
from mira_jax.data import dataset
from mira_jax.devices import sharding
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import engine
from mira_jax.mira import MiraConfig
from mira_jax.train import guard, optim
from mira_jax.train import log as runlog
from mira_jax.train import losses as objectives
from mira_jax.train import step as steps
from mira_jax.video import images
from mira_jax.weights.weights_file import load_weights, save_weights

CLASSES = ('dark', 'bright', 'fading')
MODEL = config.ModelConfig(
  dim=16,
  depth=1,
  heads=2,
  num_classes=3,
  frames=4,
  image_size=16,
  patch=8,
  head_scale=1.0,
  mira=MiraConfig(statistics='batch_ema'),
  drop_path=0.1,
)

# ----- optimiser ------------------------------------------------------------


def test_learning_rates_are_the_references():
  # reference: 3 epochs of 4 steps, the first epoch warms up.
  schedule = optim.warmup_cosine(
    peak=1.0, final=0.1, warmup_steps=4, total_steps=12
  )
  warmup = [0, 0.333333, 0.666667, 1]
  cosine = [1, 0.965746, 0.868198, 0.722208, 0.55, 0.377792, 0.231802, 0.134254]
  rates = [schedule(step) for step in range(12)]
  np.testing.assert_allclose(rates, warmup + cosine, atol=1e-6)


def test_without_warmup_the_first_rate_is_the_peak():
  schedule = optim.warmup_cosine(
    peak=2.0, final=0.0, warmup_steps=0, total_steps=4
  )
  np.testing.assert_allclose(
    [schedule(step) for step in range(4)],
    [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5],
    atol=1e-6,
  )


@pytest.mark.parametrize('scan', [False, True])
def test_only_matrices_decay(scan):
  model = engine.build_model(
    dataclasses.asdict(MODEL)
    | {'positions': 'learned', 'pool': 'cls', 'scan': scan, 'layer_scale': 0.1}
  )
  video = jnp.zeros((1, 4, 16, 16, 3))
  params = jax.eval_shape(model.init, jax.random.key(0), video)['params']
  decayed = {
    jax.tree_util.keystr(path[-1:], simple=True)
    for path, decays in jax.tree_util.tree_leaves_with_path(
      optim.decayed(params)
    )
    if decays
  }
  assert decayed == {'kernel'}


def test_adamw_steps_as_worked_out_by_hand():
  # First step of Adam moves by the learning rate; decay adds rate * wd * w.
  head = {'kernel': jnp.full((1, 1), 2.0), 'bias': jnp.full((1,), 2.0)}
  params = {'head': head}
  grads = jax.tree.map(lambda x: jnp.full_like(x, 5.0), params)
  optimizer = optim.adamw(lambda step: 0.1, weight_decay=0.5, clip_norm=1.0)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  updates = updates['head']
  np.testing.assert_allclose(updates['kernel'], -0.1 - 0.1 * 0.5 * 2, rtol=1e-5)
  np.testing.assert_allclose(updates['bias'], -0.1, rtol=1e-5)


@pytest.mark.parametrize('scan', [False, True])
def test_muon_makes_every_matrix_orthogonal(scan):
  model = engine.build_model(dataclasses.asdict(MODEL) | {'scan': scan})
  video = jnp.ones((1, 4, 16, 16, 3))
  params = model.init(jax.random.key(0), video)['params']
  grads = jax.tree.map(
    lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params
  )
  optimizer = optim.muon(lambda step: 1.0, weight_decay=0.0)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  axes = optim.matrix_axes(params)
  blocks = updates['encoder']['blocks' if scan else 'block_0']
  qkv = blocks['attn']['qkv']['kernel']
  dim = qkv.shape[-4]
  matrix = np.asarray(qkv[0] if scan else qkv).reshape(dim, -1)
  values = np.linalg.svd(matrix, compute_uv=False)
  # Five Newton-Schulz steps bring singular values near one another, and the
  # scale of AdamW's updates is a root mean square of 0.2.
  assert values.max() / values.min() < 2
  assert np.sqrt(np.mean(matrix**2)) == pytest.approx(0.2, rel=0.2)
  assert axes['head']['kernel'] is None
  assert axes['norm']['scale'] is None


# ----- one step -------------------------------------------------------------


def clips(count: int, seed: int = 0, frames: int = 4, side: int = 16):
  """Clips whose class shows in their brightness over time."""
  rng = np.random.default_rng(seed)
  label = np.arange(count, dtype=np.int32) % 3
  level = np.array([np.full(frames, 60), np.full(frames, 190)])
  level = np.concatenate([level, np.linspace(190, 60, frames)[None]])[label]
  noise = rng.normal(0, 20, (count, frames, side, side, 3))
  video = np.clip(level[:, :, None, None, None] + noise, 0, 255)
  return {
    'video': video.astype(np.uint8),
    'label': label,
    'clip': np.arange(count, dtype=np.int32),
    'mask': np.ones(count, bool),
  }


def start(model_config=MODEL, augmentation=None, lr=1e-2, **options):
  """A fresh state and its training step, as train.py makes them."""
  mesh = sharding.make_mesh(devices=jax.devices()[:4])
  model = engine.build_model(dataclasses.asdict(model_config))
  optimizer = optim.adamw(lambda step: lr)
  init = functools.partial(
    steps.init_state,
    lambda key: model.init(key, jnp.zeros((1, 4, 16, 16, 3))),
    optimizer,
  )
  key = jax.random.key(0)
  where = jax.tree.map(lambda x: x.sharding, steps.abstract(init, key, mesh))
  state = jax.jit(init, out_shardings=where)(key)
  augmentation = augmentation or Augment(flip=False)
  jitted = steps.make_train_step(
    objectives.classification(model, augmentation),
    optimizer,
    lambda step: jnp.asarray(lr),
    mesh,
    **options,
  )
  step_key = jax.device_put(jax.random.key(1), sharding.replicated(mesh))

  def step(state, batch):
    with jax.set_mesh(mesh):
      return jitted(state, sharding.put_batch(batch, mesh), step_key)

  return state, step


def test_it_learns_and_is_traced_once():
  traces = []

  def augmentation(key, video):
    traces.append(video.shape)
    return Augment(shift=1, brightness=0.1, contrast=0.1)(key, video)

  state, step = start(augmentation=augmentation)
  ema = jax.tree.leaves(state.mira)[0].copy()
  losses = []
  for i in range(40):
    state, metrics = step(state, clips(12, seed=i))
    losses.append(float(metrics['loss']))
  assert len(traces) == 1
  assert losses[0] == pytest.approx(np.log(3), abs=0.5)
  assert np.mean(losses[-5:]) < 0.3 * losses[0]
  assert metrics['learning_rate'] == jnp.float32(1e-2)
  assert state.step == 40
  assert (jax.tree.leaves(state.mira)[0] != ema).any()


def test_every_step_draws_anew_and_the_same_again():
  # With a rate of 0 only the draws differ between steps.
  state, step = start(augmentation=Augment(shift=4, brightness=0.5), lr=0.0)

  def losses(state):
    out = []
    for _ in range(3):
      state, metrics = step(state, clips(8))
      out.append(float(metrics['loss']))
    return out

  first = losses(jax.tree.map(jnp.copy, state))
  assert len(set(first)) == 3
  assert first == losses(state)


def test_masked_rows_change_nothing():
  # Statistics per clip: those of a batch would see the masked rows.
  plain = dataclasses.replace(MODEL, mira=MiraConfig(), drop_path=0.0)
  state, step = start(plain)
  batch, junk = clips(8), clips(8, seed=9)
  batch['mask'] = junk['mask'] = np.arange(8) < 4
  junk['video'][:4] = batch['video'][:4]
  junk['label'][4:] = 1 - batch['label'][4:] % 2
  copy = jax.tree.map(jnp.copy, state)
  state, a = step(state, batch)
  copy, b = step(copy, junk)
  assert a.keys() == b.keys() >= {'loss', 'accuracy', 'grad_norm'}
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


def test_cross_entropy_by_hand():
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
  label, mask = jnp.array([0, 1]), jnp.array([True, True])
  hard, soft = (objectives.soft_targets(label, 3, s) for s in (0.0, 0.3))
  loss = functools.partial(objectives.cross_entropy, logits, hard)
  np.testing.assert_allclose(
    loss(mask), -(np.log(0.5) + np.log(0.8)) / 2, rtol=1e-6
  )
  np.testing.assert_allclose(
    loss(jnp.array([True, False])), -np.log(0.5), rtol=1e-6
  )
  assert loss(jnp.array([False, False])) == 0
  # Smoothing 0.3 over 3 classes: targets 0.8, 0.1, 0.1.
  smooth = -(0.8 * np.log(0.5) + 0.2 * np.log(0.25))
  loss = objectives.cross_entropy(logits, soft, jnp.array([True, False]))
  np.testing.assert_allclose(loss, smooth, rtol=1e-6)


# ----- the engine -----------------------------------------------------------


@pytest.fixture(scope='module')
def weights_file(tmp_path_factory):
  state, _ = start()
  card = {
    'model': dataclasses.asdict(MODEL),
    'class_names': CLASSES,
    'preprocessing': {'rate': 1, 'fit': 'crop'},
  }
  path = tmp_path_factory.mktemp('weights') / engine.WEIGHTS
  return save_weights(path, state.params, state.mira, card)


def test_engine_pads_and_compiles_once(weights_file):
  scorer, card = engine.load_file(weights_file, batch_size=4)
  assert card['class_names'] == list(CLASSES)
  video = clips(6)['video']
  together = scorer.probabilities(video)
  assert together.shape == (6, 3)
  np.testing.assert_allclose(together.sum(1), 1, rtol=1e-6)


def test_engine_scores_are_the_models(weights_file):
  # Statistics per clip, so that padding cannot matter.
  single = dataclasses.replace(MODEL, mira=MiraConfig())
  variables, _ = load_weights(weights_file)
  model = engine.build_model(dataclasses.asdict(single))
  scorer = engine.Engine(model, variables, batch_size=4)
  video = clips(6)['video']
  from_mean = (video / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  logits = model.apply(variables, jnp.asarray(from_mean, jnp.float32))
  expected = jax.nn.softmax(logits)
  np.testing.assert_allclose(
    scorer.probabilities(video), expected, rtol=1e-4, atol=1e-6
  )
  probabilities, records = scorer.records(video[:2])
  np.testing.assert_allclose(probabilities, expected[:2], rtol=1e-4, atol=1e-6)
  assert len(records) == MODEL.depth
  assert records[0]['gain'].shape == (2, 2)
  assert records[0]['before'].shape == (2, 8)


def engine_of_four(weights_file):
  """An engine that scores four clips at once, on as many devices."""
  mesh = sharding.make_mesh(devices=jax.devices()[:4])
  whole, _ = engine.load_file(weights_file)
  return engine.Engine(whole.model, load_weights(weights_file)[0], 4, mesh)


def test_engine_averages_views_and_ignores_padding(weights_file):
  scorer = engine_of_four(weights_file)
  a, b = clips(4), clips(4, seed=1)
  b['mask'][2:] = False  # 6 rows are real: 3 clips in 2 views
  a['clip'][:], b['clip'][:] = [0, 0, 1, 1], [2, 2, 0, 0]
  a['label'][:], b['label'][:] = [2, 2, 0, 0], [1, 1, 0, 0]
  mean, labels, damaged = scorer.score_split([a, b], clips=3, views=2)
  first, second = (scorer.probabilities(x['video']) for x in (a, b))
  expected = [first[:2].mean(0), first[2:].mean(0), second[:2].mean(0)]
  np.testing.assert_allclose(mean, expected, rtol=1e-5)
  assert labels.tolist() == [2, 0, 1]
  assert damaged.tolist() == []


def test_engine_leaves_out_clips_that_were_not_seen_whole(weights_file):
  scorer = engine_of_four(weights_file)
  batch = clips(4)
  batch['clip'][:], batch['label'][:] = [0, 0, 1, 3], [2, 2, 0, 1]
  mean, labels, damaged = scorer.score_split([batch], clips=4, views=2)
  assert (mean.shape, labels.tolist()) == ((1, 3), [2])
  assert damaged.tolist() == [1, 2, 3]
  with pytest.raises(MiraInputError, match='damaged'):
    scorer.score_split([batch], clips=4, views=3)
  batch['clip'][:] = 0
  with pytest.raises(MiraInputError, match='view_count'):
    scorer.score_split([batch], clips=1, views=2)


@pytest.mark.parametrize('statistics', ['instance', 'batch'])
def test_the_size_of_the_batch_does_not_change_a_prediction(statistics):
  mira = MiraConfig(statistics=statistics)
  model = engine.build_model(
    dataclasses.asdict(dataclasses.replace(MODEL, mira=mira))
  )
  video = clips(4)['video']
  variables = model.init(jax.random.key(0), jnp.zeros((1, *video.shape[1:])))
  few, many = (
    engine.Engine(model, variables, size).probabilities(video)
    for size in (4, 16)
  )
  np.testing.assert_allclose(few, many, rtol=1e-5)


def test_a_card_that_says_too_little_is_named(weights_file, tmp_path):
  variables, card = load_weights(weights_file)
  params, state = variables['params'], variables['mira']
  for broken, named in (
    ({**card, 'preprocessing': {'rate': 1}}, 'preprocessing.fit'),
    ({**card, 'class_names': ['one']}, '3 classes'),
  ):
    path = save_weights(tmp_path / 'w', params, state, broken)
    with pytest.raises(MiraInputError, match=named) as caught:
      engine.load_file(path)
    assert caught.value.exit_code == ExitCode.CHECKPOINT


def test_engine_names_what_does_not_fit(weights_file, tmp_path):
  scorer, card = engine.load_file(weights_file)
  with pytest.raises(MiraInputError, match='bad_shape'):
    scorer.probabilities(np.zeros((1, 8, 16, 16, 3), np.uint8))
  with pytest.raises(MiraInputError, match='--weights takes'):
    engine.load_run(weights_file)
  for name in ('absent', '.'):
    with pytest.raises(MiraInputError, match='not_a_run'):
      engine.load_run(tmp_path / name)
  (tmp_path / 'one').mkdir()
  (tmp_path / 'one' / 'config.json').touch()
  with pytest.raises(MiraInputError, match='such as one in it'):
    engine.load_run(tmp_path)
  with pytest.raises(MiraInputError, match='not_finished'):
    engine.load_run(tmp_path / 'one')
  variables, _ = load_weights(weights_file)
  card['model']['depth'] = 2
  params, mira = variables['params'], variables['mira']
  path = save_weights(tmp_path / 'w', params, mira, card)
  with pytest.raises(MiraInputError, match=r'mira.*block_1.*norm2/scale'):
    engine.load_file(path)
  with pytest.raises(MiraInputError, match='bad_model'):
    engine.build_model({'dtype': 'float32', 'width': 3})


# ----- the log --------------------------------------------------------------


def test_log_names_the_step_whose_loss_is_not_finite(tmp_path):
  with runlog.Log(tmp_path, 0, 9, 1, max_bad_steps=0) as log:
    log.add(4, runs.log_row(4, 1.0))
    log.add(5, runs.log_row(5, np.nan, guard.NOT_FINITE, 1, 1))
    log.add(6, runs.log_row(6, np.inf, guard.NOT_FINITE, 2, 2))
    with pytest.raises(MiraInputError, match='step 5') as caught:
      log.flush()
  assert caught.value.exit_code == ExitCode.NUMERIC


@pytest.mark.parametrize('full', ['metrics.jsonl', 'tensorboard'])
def test_a_full_disk_stops_the_log_and_names_the_file(tmp_path, full):
  count = 500 if full == 'metrics.jsonl' else 0  # that are there already
  rows = (f'{{"step": 1, "a": {i}}}\n' for i in range(count))
  (tmp_path / 'metrics.jsonl').write_text(''.join(rows))

  def write_on():  # and nothing is raised, or waited for, when it is closed
    with runlog.Log(tmp_path, start=2, total=9, batch_size=1) as log:
      for step in range(3, 3000):
        log.write(step, {'a': 3.0})

  with runs.file_limit(10_000), pytest.raises(OSError, match='large') as caught:
    write_on()
  path = pathlib.Path(caught.value.filename)
  assert path.is_relative_to(tmp_path / full), path


def test_log_is_read_by_tensorboard(tmp_path):
  with runlog.Log(tmp_path, start=2, total=9, batch_size=1) as log:
    log.write(3, {'a': 3.0, 'b': 0.5})
    log.write(4, {'a': 4.0})
  (path,) = (tmp_path / 'tensorboard').iterdir()
  assert path.name.startswith('events.out.tfevents.')
  data, events = path.read_bytes(), []
  while data:  # a length, its sum, the record, its sum
    (size,) = struct.unpack_from('<Q', data)
    events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  start, values = events[1], events[2:]
  assert (start.step, start.session_log.status) == (3, 1)  # START
  read = [
    (e.step, v.tag, v.simple_value) for e in values for v in e.summary.value
  ]
  assert read == [(3, 'a', 3), (3, 'b', 0.5), (4, 'a', 4)]


def test_log_drops_rows_after_the_resumed_step(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "a": 1}\n{"step": 3, "a": 2}\n{"step": 2, "a"')
  with runlog.Log(tmp_path, start=2, total=9, batch_size=1) as log:
    log.write(3, {'a': 3.0})
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert rows == [{'step': 1, 'a': 1}, {'step': 3, 'a': 3.0}]


# ----- whole runs, as a user starts them ------------------------------------


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with a prepared dataset."""
  folder = tmp_path_factory.mktemp('runs')

  def split(count, seed):
    batch = clips(count, seed, frames=8)
    for i, (video, label) in enumerate(
      zip(batch['video'], batch['label'], strict=True)
    ):
      frames = [images.encode_jpeg(frame) for frame in video]
      yield dataset.Clip(clip_id=f'{seed}-{i}', frames=frames, label=int(label))

  dataset.write(
    folder / 'data',
    name='levels',
    class_names=CLASSES,
    # One of nine clips of every class is held out: 24 are left.
    splits={'train': lambda: split(27, 0), 'test': lambda: split(9, 1)},
    description='Clips that differ in brightness.',
  )
  return folder


FLAGS = (
  '--config=configs/quickstart.py',
  '--config.model.dim=16',
  '--config.model.depth=1',
  '--config.model.heads=2',
  '--config.model.frames=4',
  '--config.model.image_size=16',
  '--config.model.drop_path=0.1',
  '--config.model.mira.statistics=batch_ema',
  '--config.data.batch_size=8',
  '--config.data.threads=2',
  '--config.train.epochs=60',  # 3 steps each
  '--config.train.eval_every=0',
  '--config.train.log_every=1',
)


def train(place, name, *arguments):
  flags = [
    *FLAGS,
    f'--config.data.dataset={place / "data"}',
    f'--workdir={place / name}',
    *arguments,
  ]
  return runs.command(place / 'cache', 'train.py', *flags, devices=2)


@pytest.fixture(scope='module')
def run(place):
  """The folder of a run that nobody disturbed."""
  done = runs.finish(train(place, 'whole'))
  assert done.returncode == 0, done.stderr
  return place / 'whole'


def test_a_run_leaves_everything_behind(run):
  names = {path.name for path in run.iterdir()}
  assert names == {
    '.lock', 'checkpoints', 'config.json', 'curves.npz', 'curves.png',
    'eval_history.jsonl', 'metrics.jsonl', 'outcome.json', 'tensorboard',
    'weights-last.safetensors', 'weights.safetensors',
  }  # fmt: skip
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  losses = [row['loss'] for row in rows if 'loss' in row]
  assert len(losses) == 180
  assert np.mean(losses[-9:]) < 0.5 * losses[0]
  assert rows[-1]['step'] == 180
  assert rows[-1]['test_war'] > 0.9
  assert (run / 'checkpoints' / '180').is_dir()
  _, card = load_weights(run / 'weights.safetensors')
  assert card['class_names'] == list(CLASSES)
  assert card['model']['num_classes'] == 3


def test_a_run_is_evaluated(place, run):
  done = runs.finish(
    runs.command(
      place / 'cache', 'eval.py', f'--workdir={run}', '--views=2', devices=2
    )
  )
  assert done.returncode == 0, done.stderr
  assert 'WAR' in done.stdout
  (folder,) = (run / 'eval').iterdir()
  assert folder.name.endswith('-test')
  scores = json.loads((folder / 'scores.json').read_text())
  assert scores['scores']['clips'] == 9
  assert scores['scores']['war'] > 0.9
  for name in ('confusion.csv', 'confusion.png'):
    assert (folder / name).stat().st_size > 0


def test_a_stopped_run_resumes_bitwise(place, run):
  call = train(place, 'stopped')
  with subprocess.Popen(**call, stdout=subprocess.PIPE) as process:
    for line in process.stdout:
      if line.startswith('step 20/'):
        process.send_signal(signal.SIGTERM)
        break
    process.communicate(timeout=300)
  assert process.returncode == ExitCode.PREEMPTED
  assert not (place / 'stopped' / 'weights.safetensors').exists()
  (saved,) = (int(p.name) for p in (place / 'stopped/checkpoints').iterdir())
  assert 20 <= saved < 180
  done = runs.finish(call)
  assert done.returncode == 0, done.stderr
  assert f'step {saved + 1}/180' in done.stdout
  assert f'step {saved}/180' not in done.stdout
  a, b = (
    load_weights(folder / 'weights.safetensors')[0]
    for folder in (run, place / 'stopped')
  )
  jax.tree.map(np.testing.assert_array_equal, a, b)
  lines = (place / 'stopped' / 'metrics.jsonl').read_text().splitlines()
  numbers = [json.loads(line)['step'] for line in lines]
  # The last two are the looks at the validation and the test clips.
  assert numbers == [*range(1, 181), 180, 180]


def test_another_seed_is_refused_in_one_line(place, run):
  done = runs.finish(train(place, 'whole', '--config.seed=7'))
  assert done.returncode == ExitCode.CHECKPOINT
  assert done.stderr.count('\n') == 1
  assert 'seed' in done.stderr
  assert config.from_json((run / 'config.json').read_text()).seed == 0


def test_a_loss_that_is_not_finite_ends_the_run(place):
  done = runs.finish(
    train(
      place, 'broken', '--config.optim.lr=1e30', '--config.train.log_every=7'
    )
  )
  assert done.returncode == ExitCode.NUMERIC
  assert 'train.py: not_finite: the loss of step' in done.stderr
  assert not (place / 'broken' / 'weights.safetensors').exists()
