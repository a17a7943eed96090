"""Training with numbers that are not finite, and with damaged clips.

Faults are real: a logarithm of 0, a root whose slope is infinite, a learning
rate of 1e30, a label that is no class, frames that are no JPEG.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import runs
from mira_jax import config
from mira_jax.data import dataset, pipeline
from mira_jax.devices import sharding
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import engine
from mira_jax.mira import MiraConfig
from mira_jax.train import (
  build,
  checkpoint,
  datasets,
  guard,
  log,
  loop,
  losses,
  nan_debug,
  optim,
)
from mira_jax.train import step as steps

KEY = jax.random.key(0)

# ----- the verdict ------------------------------------------------------------

judge = jax.jit(guard.judge, static_argnames='sigmas')


def judged(losses, finite=None, sigmas=6.0):
  """The guard after losses, and the verdicts on them."""
  state, verdicts = guard.fresh(), []
  for i, loss in enumerate(losses):
    fine = np.isfinite(loss) if finite is None else finite[i]
    loss, step = jnp.float32(loss), jnp.int32(i + 1)
    state, verdict = judge(state, loss, jnp.asarray(fine), step, sigmas=sigmas)
    verdicts.append(int(verdict))
  return state, verdicts


def test_a_spike_is_six_deviations_above_the_mean():
  # Of logarithms: mean 2, deviation 1.
  values = jnp.exp(jnp.tile(jnp.array([1.0, 3.0]), 64))
  assert not guard.is_spike(values, jnp.exp(7.99), 6.0)
  assert guard.is_spike(values, jnp.exp(8.01), 6.0)
  assert guard.is_spike(values, jnp.exp(4.01), 2.0)
  assert not guard.is_spike(values, jnp.float32(0.0), 6.0)
  # No loss is too large or small to be judged.
  values = jnp.full(128, 1e30).at[3].set(2e38)
  assert guard.is_spike(values, jnp.float32(3e38), 6.0)
  assert guard.is_spike(jnp.full(128, 1e-28), jnp.float32(1e-20), 6.0)


@pytest.mark.parametrize('level', [1e-6, 1.9459101, 3e4])
def test_constant_losses_are_no_spikes(level):
  # Their mean is off by rounding, and their deviation is 0 or nearly so.
  values = jnp.full(128, level, jnp.float32)
  for factor in (1, 1.05):
    assert not guard.is_spike(values, jnp.float32(level * factor), 6.0)
  assert guard.is_spike(values, jnp.float32(level * 1.07), 6.0)
  assert not guard.is_spike(jnp.zeros(128), jnp.float32(0), 6.0)


def test_hard_clips_are_no_spikes_when_most_are_learnt():
  # Losses over decades, as of clips that are nearly learnt: on a linear scale
  # 6 deviations are passed a few times in a thousand.
  rng = np.random.default_rng(0)
  values = np.exp(rng.normal(-4, 1.3, 1500)).astype(np.float32)
  windows = np.lib.stride_tricks.sliding_window_view(values[:-1], 128)
  limits = windows.mean(1) + 6 * windows.std(1)
  assert (values[128:] > limits).sum() > 3
  assert set(judged(values)[1]) == {guard.KEPT}


def test_nothing_is_a_spike_before_the_window_is_full():
  assert judged([1.0] * 127 + [1e6])[1][-1] == guard.KEPT
  state, verdicts = judged([1.0] * 128 + [1e6])
  assert verdicts[-1] == guard.SPIKE
  assert (state.spikes, state.skipped, state.last_good) == (1, 0, 128)
  assert judged([1.0] * 128 + [1e6], sigmas=0.0)[1][-1] == guard.KEPT


def test_a_new_level_of_the_loss_is_soon_accepted():
  # Of 128 logarithms, k are log 5 and the others 0: mean + 6 deviations passes
  # log 5 when 1 = k / 128 + 6 sqrt(k (128 - k)) / 128, which is k = 3.7.
  _, verdicts = judged([1.0] * 128 + [5.0] * 200)
  assert verdicts[128:] == [guard.SPIKE] * 4 + [guard.KEPT] * 196


def test_a_step_that_is_not_finite_is_counted_and_forgotten():
  nan, inf = np.nan, np.inf
  state, verdicts = judged([1.0, nan, inf, 2.0, nan, -inf, nan])
  bad, kept = guard.NOT_FINITE, guard.KEPT
  assert verdicts == [kept, bad, bad, kept, bad, bad, bad]
  assert (state.seen, state.skipped, state.in_a_row) == (2, 5, 3)
  assert state.last_good == 4
  np.testing.assert_array_equal(state.losses[:3], [1, 2, 0])
  # A finite loss of an update that is not finite is remembered.
  state, verdicts = judged([3.0], finite=[False])
  assert verdicts == [bad]
  assert (state.seen, state.in_a_row) == (1, 1)
  # A spike does not end a row.
  state, _ = judged([1.0] * 128 + [np.nan, 1e6, np.nan])
  assert (state.in_a_row, state.skipped, state.spikes) == (2, 2, 1)


def test_verdicts_are_those_of_an_independent_count():
  rng = np.random.default_rng(0)
  values = rng.normal(2, 0.1, 600).astype(np.float32)
  values[rng.integers(0, 600, 12)] = np.nan
  values[rng.integers(0, 600, 12)] += 5
  window, expected = collections.deque(maxlen=128), []
  for loss in values.astype(np.float64):
    if not np.isfinite(loss):
      expected.append(guard.NOT_FINITE)
      continue
    limit = np.mean(window) + 6 * np.std(window) if window else 0
    spike = len(window) == 128 and np.log(loss) > limit
    expected.append(guard.SPIKE if spike else guard.KEPT)
    window.append(np.log(loss))
  state, verdicts = judged(values)
  assert verdicts == expected
  counts = [expected.count(x) for x in (guard.NOT_FINITE, guard.SPIKE)]
  assert [int(state.skipped), int(state.spikes)] == counts
  assert min(counts) > 3
  np.testing.assert_allclose(
    np.sort(np.log(state.losses)), np.sort(window), rtol=1e-6
  )


# ----- the policy -------------------------------------------------------------


def row_of(step, verdict=guard.KEPT, in_a_row=0, loss=1.0):
  row = runs.log_row(step, loss, verdict, in_a_row, in_a_row)
  return jax.device_get(row)


def test_the_policy_ends_a_run_and_refuses_to_save():
  for limit, last in ((0, 8), (2, 10)):
    policy = guard.Policy(limit, start=5)
    assert policy.check(7, row_of(7)) == ''
    assert policy.may_save
    for i in range(1, limit + 1):
      row = row_of(7 + i, guard.NOT_FINITE, i, np.inf)
      text = policy.check(7 + i, row)
      assert text == f'step {7 + i}: not finite, skipped ({i} in a row)'
      assert not policy.may_save
    row = row_of(last, guard.NOT_FINITE, limit + 1, np.inf)
    with pytest.raises(MiraInputError, match='not_finite') as caught:
      policy.check(last, row)
    assert not policy.may_save
    assert caught.value.path == f'the loss of step {last} is inf'
    assert 'last good step is 7' in caught.value.hint
    assert 'newest checkpoint is of step 5; lower' in caught.value.hint
    assert caught.value.exit_code == ExitCode.NUMERIC
  # The state that it resumed from may be the cause.
  with pytest.raises(MiraInputError, match='step 7; remove that one'):
    guard.Policy(0, start=7).check(8, row)
  with pytest.raises(MiraInputError, match='no checkpoint yet'):
    guard.Policy(0, start=0).check(8, row)


def test_a_spike_does_not_keep_a_state_from_being_saved():
  policy = guard.Policy(9, start=0)
  text = policy.check(3, row_of(3, guard.SPIKE, loss=3.0))
  assert 'a spike, loss 3, skipped' in text
  assert policy.may_save
  policy.check(4, row_of(4, guard.NOT_FINITE, 1))
  policy.check(5, row_of(5))
  assert policy.may_save


def test_the_log_only_writes_what_the_policy_says(tmp_path, capsys):
  """A skipped step stays out of the mean, and ends nothing by itself."""
  policy = guard.Policy(9, start=0)
  with log.Log(tmp_path, start=0, total=9, batch_size=1) as rows:
    rows.add(1, runs.log_row(1, 1.0))
    rows.add(2, runs.log_row(2, np.nan, guard.NOT_FINITE, 1, 1))
    rows.add(3, runs.log_row(3, 2.0, skipped=1))
    rows.judge(policy)
    assert policy.may_save
    rows.flush()
    rows.add(4, runs.log_row(4, np.nan, guard.NOT_FINITE, 1, 2))
    rows.judge(policy)
    assert not policy.may_save
    rows.flush()
    rows.add(5, runs.log_row(5, np.nan, guard.NOT_FINITE, 99, 99))
    with pytest.raises(MiraInputError, match='not_finite'):
      rows.judge(policy)
  first, second = log.read(tmp_path)
  assert (first['loss'], first['skipped'], first['spikes']) == (1.5, 1, 0)
  assert 'loss' not in second
  assert second['skipped'] == 2
  out = capsys.readouterr().out
  assert out.count('skipped (') == 2
  assert 'step 2: not finite, skipped (1 in a row)' in out


# ----- the step ---------------------------------------------------------------


def faulty(params, mira, batch, key):
  """A loss that is NaN, or has an infinite slope, where the batch says so."""
  del key
  weight = params['attn']['proj']['kernel']
  level = batch['level']
  # level 0: the loss is not finite. slope 0: only its gradient is not.
  logs = jnp.log(level).mean()
  root = jnp.sqrt(jnp.square(weight).sum() * batch['slope']).mean()
  loss = jnp.square(weight - level.mean()).mean() + logs + root
  ema = {'block': {'confidence': 0.9 * mira['block']['confidence'] + logs}}
  return loss, ({}, ema)


def batch_of(level=1.0, rows=16):
  level = np.full(rows, level, np.float32)
  return {'level': level, 'slope': np.ones(rows, np.float32)}


def with_fault(name):
  """A batch with a fault in one row."""
  batch = batch_of()
  batch[name][5] = 0
  return batch


class Trainer:
  """A step, compiled once, of a kernel that all axes of a mesh split."""

  def __init__(self, optimizer=None, axes=None, **options):
    self.mesh = sharding.make_mesh(**(axes or {}))
    self.optimizer = optimizer or optim.adamw(lambda count: 0.1 / (1 + count))
    self.traces = 0
    self._step = steps.make_train_step(
      self._counted, self.optimizer, lambda count: 0.1 / (1 + count), self.mesh,
      ema_decay=0.9, **options,
    )  # fmt: skip
    self._key = jax.device_put(KEY, sharding.replicated(self.mesh))

  def _counted(self, *args):
    self.traces += 1
    return faulty(*args)

  def begin(self, scale=1.0):
    def variables(key):
      kernel = scale * jax.random.normal(key, (4, 64, 64))
      return {
        'params': {'attn': {'proj': {'kernel': kernel}}},
        'mira': {'block': {'confidence': jnp.full((4,), 0.25, jnp.float32)}},
      }

    state = steps.init_state(variables, self.optimizer, KEY, averaged=True)
    return jax.device_put(state, sharding.shardings(state, self.mesh))

  def step(self, state, batch):
    with jax.set_mesh(self.mesh):
      put = sharding.put_batch(batch, self.mesh)
      # Eight devices on two cores: steps in flight would wait for one another.
      return jax.block_until_ready(self._step(state, put, self._key))


@pytest.fixture(scope='module')
def trainer():
  return Trainer()


def held(state):
  """The parts of a state that a skipped update must leave as they are."""
  return jax.tree.map(
    np.asarray, (state.params, state.mira, state.opt_state, state.average)
  )


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  ('axes', 'accumulate'),
  [({}, 2), ({'data': 2, 'fsdp': 2, 'model': 2}, 1)],
  ids=str,
)
def test_an_update_that_is_not_finite_changes_nothing(axes, accumulate):
  trainer = Trainer(axes=axes, accumulate=accumulate)
  for fault in ('level', 'slope'):
    # The slope of a root is infinite at 0.
    state = trainer.begin(scale=0.0 if fault == 'slope' else 1.0)
    if fault == 'level':
      state, _ = trainer.step(state, batch_of())
    where = jax.tree.map(lambda x: x.sharding, state)
    before, number = held(state), int(state.step)
    broken = with_fault('level') if fault == 'level' else batch_of()
    state, row = trainer.step(state, broken)
    assert np.isfinite(row['loss']) == (fault == 'slope')
    assert not np.isfinite(row['grad_norm'] * row['loss'])
    assert row['verdict'] == guard.NOT_FINITE
    assert_same(before, held(state))
    assert (state.step, state.guard.skipped) == (number + 1, 1)
    assert state.guard.in_a_row == row['in_a_row'] == 1
    assert all(x.is_fully_replicated for x in jax.tree.leaves(state.guard))
    same = jax.tree.map(
      lambda a, x: a.is_equivalent_to(x.sharding, x.ndim), where, state
    )
    assert all(jax.tree.leaves(same))
    if fault == 'level':  # and nothing stays behind
      state, row = trainer.step(state, batch_of())
      assert row['verdict'] == guard.KEPT
      moved = jax.tree.map(lambda a, b: (a != b).any(), before, held(state))
      assert all(jax.tree.leaves(moved))
      assert state.guard.in_a_row == 0
  assert trainer.traces == accumulate  # a scan of parts traces once more


def test_an_update_that_overflows_ends_the_run():
  # Loss and gradient are finite: the rate takes the update beyond float32.
  trainer = Trainer(optax.sgd(3e38))
  state, row = trainer.step(trainer.begin(), batch_of(level=1e6))
  assert np.isfinite([row['loss'], row['grad_norm']]).all()
  assert row['verdict'] == guard.NOT_FINITE
  assert (row['last_good'], state.guard.skipped) == (0, 1)
  with pytest.raises(MiraInputError, match='the last good step is 0') as caught:
    guard.Policy(10, start=0).check(4, jax.device_get(row))
  assert caught.value.path == 'the update of step 4 is not finite'


def test_a_spike_is_skipped(trainer):
  state = trainer.begin()
  for _ in range(guard.WINDOW):
    state, row = trainer.step(state, batch_of())
  assert (row['spikes'], row['skipped'], row['last_good']) == (0, 0, 128)
  before = held(state)
  state, row = trainer.step(state, batch_of(level=1e4))
  assert row['verdict'] == guard.SPIKE
  assert_same(before, held(state))
  assert (state.guard.spikes, state.guard.in_a_row) == (1, 0)


def test_a_skipped_step_is_as_if_it_had_not_been(trainer):
  # With losses that draw nothing: also the learning rate stays behind.
  a, b = trainer.begin(), trainer.begin()
  for batch in (batch_of(), with_fault('level'), batch_of(2.0)):
    a, row = trainer.step(a, batch)
  for batch in (batch_of(), batch_of(2.0)):
    b, plain_row = trainer.step(b, batch)
  assert_same(held(a), held(b))
  assert row['learning_rate'] == plain_row['learning_rate']
  assert (a.step, b.step) == (3, 2)


def test_the_guard_is_saved_and_a_run_resumes_to_the_bit(trainer, tmp_path):
  state = trainer.begin()
  target = sharding.abstract(state, trainer.mesh)
  batches = [batch_of(1.5), with_fault('level'), batch_of(2.0), batch_of(0.5)]
  with checkpoint.Checkpoints(tmp_path, {}) as checkpoints:
    for i, batch in enumerate(batches):
      state, _ = trainer.step(state, batch)
      if i == 1:
        checkpoints.save(2, state)
  with checkpoint.Checkpoints(tmp_path, {}) as checkpoints:
    resumed = checkpoints.restore(target)
  assert (resumed.guard.skipped, resumed.guard.in_a_row) == (1, 1)
  for batch in batches[2:]:
    resumed, _ = trainer.step(resumed, batch)
  assert_same(jax.device_get(state), jax.device_get(resumed))


# ----- whole runs -------------------------------------------------------------


def write(folder, train, test=()):
  dataset.write(
    folder,
    name='levels',
    class_names=('dark', 'bright', 'fading'),
    splits={
      'train': lambda: train,
      'test': lambda: test or runs.clips('test', 9),
    },
    description='Clips that differ in brightness.',
  )
  return str(folder)


@pytest.fixture(scope='module')
def levels(tmp_path_factory):
  return write(tmp_path_factory.mktemp('levels'), list(runs.clips('train', 24)))


def tiny(path, **optimizer):
  """A run of three epochs of three steps."""
  return config.Config(
    model=config.ModelConfig(
      dim=16,
      depth=1,
      heads=2,
      frames=4,
      image_size=16,
      patch=8,
      mira=MiraConfig(),
    ),
    data=config.DataConfig(
      dataset=path, rate=1, batch_size=8, threads=2, val_fraction=0.0
    ),
    optim=config.OptimConfig(**optimizer),
    train=config.TrainConfig(epochs=3, log_every=1, save_every=1, eval_every=0),
  )


@pytest.mark.usefixtures('compile_cache')
def test_a_run_that_ended_goes_on_with_a_lower_rate(levels, tmp_path):
  # The first step of a warm-up has rate 0; the second one ruins everything.
  broken = tiny(levels, lr=1e30, max_bad_steps=2)
  with pytest.raises(MiraInputError, match='step 5 is nan') as caught:
    loop.train(broken, tmp_path)
  assert caught.value.exit_code == ExitCode.NUMERIC
  assert 'last good step is 2' in caught.value.hint
  assert 'newest checkpoint is of step 2' in caught.value.hint
  saved = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert saved == [1, 2]  # not one of a state under suspicion
  skipped = [row['skipped'] for row in log.read(tmp_path)]
  assert skipped == [0, 0, 1, 2]

  better = tiny(levels, lr=1e-3, clip_norm=1.0)
  with pytest.raises(MiraInputError, match=r'run_changed.*--force') as caught:
    loop.train(better, tmp_path)
  assert caught.value.exit_code == ExitCode.CHECKPOINT
  # The second step left a state that cannot be mended.
  shutil.rmtree(tmp_path / 'checkpoints' / '2')
  loop.train(better, tmp_path, force=True)
  last = [row for row in log.read(tmp_path) if 'loss' in row][-1]
  assert (last['step'], last['skipped']) == (9, 0)
  assert np.isfinite(last['loss'])


def test_force_tells_what_differs_and_refuses_other_shapes(tmp_path, caplog):
  def state(size):
    params = {'head': {'kernel': jnp.ones((size, 3))}}
    return steps.init_state(lambda _: {'params': params}, optax.sgd(1.0), KEY)

  def restore(size, identity):
    mesh = sharding.make_mesh()
    target = steps.abstract(lambda key: state(size), KEY, mesh)
    with checkpoint.Checkpoints(tmp_path, identity) as checkpoints:
      return checkpoints.restore(target, force=True)

  with checkpoint.Checkpoints(tmp_path, {'lr': 1.0, 'seed': 3}) as checkpoints:
    checkpoints.save(1, state(4))
  assert restore(4, {'lr': 0.5, 'seed': 3}).step == 0
  assert 'started with lr 1.0, not 0.5' in caplog.text
  assert 'seed' not in caplog.text
  with pytest.raises(MiraInputError, match='run_changed') as caught:
    restore(5, {'lr': 1.0, 'seed': 3})
  assert caught.value.exit_code == ExitCode.CHECKPOINT


# ----- NaN debugging ----------------------------------------------------------


@pytest.mark.usefixtures('compile_cache')
def test_debug_nans_names_the_operation_and_the_line(levels, tmp_path):
  cfg = tiny(levels, lr=1e30)
  cfg.model.mira = None
  with pytest.raises(MiraInputError, match='step 3 is nan') as caught:
    loop.train(cfg, tmp_path, debug_nans=True)
  hint = caught.value.hint
  assert re.fullmatch(
    r'the first nan is of dot_general, at mira_jax/(models|kernels)/\w+.py:\d+',
    hint,
  )
  assert caught.value.exit_code == ExitCode.NUMERIC


def test_the_operation_is_found_forward_and_backward():
  zeros = jnp.zeros(3)
  infinite = nan_debug.find(lambda x: jnp.log(x).sum(), zeros)
  assert 'a number is infinite' in infinite
  assert nan_debug.find(lambda x: (x / x).sum(), zeros) == (
    'the first nan is of div'
  )

  def hidden(x):  # the root's slope times 0
    return jnp.where(x > 0, jnp.sqrt(x), 0).sum()

  found = nan_debug.find(jax.jit(jax.grad(hidden)), zeros)
  assert found == 'the first nan is of mul'

  def entropy(logits):
    return losses.cross_entropy(logits, jnp.eye(3), jnp.ones(3, bool))

  found = nan_debug.find(jax.grad(entropy), jnp.full((3, 3), -jnp.inf))
  assert re.fullmatch(
    r'.* nan is of \w+, at mira_jax/train/losses.py:\d+', found
  )


def test_a_sound_gradient_is_finite_operation_by_operation(levels):
  # Numbers that are infinite on purpose are no cause.
  cfg = tiny(levels)
  cfg.model = dataclasses.replace(
    cfg.model, num_classes=3, attention='streaming', remat='full'
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  made = build.classifier(cfg, mesh)
  variables = jax.jit(made.init)(KEY)
  batch = {
    'video': np.full((2, 4, 16, 16, 3), 99, np.uint8),
    'label': np.arange(2, dtype=np.int32),
    'mask': np.ones(2, bool),
  }
  with jax.set_mesh(mesh):
    gradient = jax.grad(made.objective, has_aux=True)
    found = nan_debug.find(gradient, variables['params'], {}, batch, KEY)
  assert found.startswith('operation by operation nothing is nan')


# ----- bad labels, damaged clips ----------------------------------------------


def test_a_label_that_is_no_class_is_refused(tmp_path):
  path = write(tmp_path, list(runs.clips('train', 6)))
  cfg = tiny(path)
  (made,) = datasets.open_datasets(cfg.data)
  index = json.loads((made.directory / dataset.INDEX).read_text())
  index['train']['label'][4] = 3
  (made.directory / dataset.INDEX).write_text(json.dumps(index))
  with pytest.raises(MiraInputError, match='label 3 is none of 0') as caught:
    datasets.open_parts(cfg, [made])
  assert caught.value.code == 'damaged'
  assert caught.value.exit_code == ExitCode.DATA


class Damaged(list):
  """A source of which some clips cannot be read."""

  bad = ()

  def __getitem__(self, index):
    if index in self.bad:
      raise MiraInputError('damaged', f'clip {index}', 'prepare it again')
    return super().__getitem__(index)


@pytest.mark.parametrize('way', ['train', 'eval'])
@pytest.mark.parametrize(
  ('clip_count', 'bad', 'share', 'fails'),
  [
    (200, 2, 0.01, False),
    (200, 3, 0.01, True),
    (10, 1, 0.01, False),  # one may always be
    (10, 1, 0.0, True),  # unless none may
  ],
)
def test_only_a_share_of_clips_may_be_damaged(
  way, clip_count, bad, share, fails
):
  (one,) = runs.clips('test', 1)
  source = Damaged([one] * clip_count)
  source.bad = range(0, 2 * bad, 2) if bad < clip_count // 2 else range(bad)
  read = functools.partial(
    pipeline.eval_batches if way == 'eval' else pipeline.train_batches,
    source, frames=2, rate=1, size=16, batch_size=10, threads=4,
    max_damaged=share,
  )  # fmt: skip
  batches = read() if way == 'eval' else read(seed=0)
  batches = itertools.islice(batches, clip_count // 10)
  if not fails:
    assert len(list(batches)) == clip_count // 10
    return
  with pytest.raises(MiraInputError, match='too_many_damaged') as caught:
    list(batches)
  assert caught.value.exit_code == ExitCode.DATA
  assert f'{bad} of {clip_count} clips' in caught.value.hint


def test_evaluation_counts_damaged_clips(tmp_path):
  test = list(runs.clips('test', 9))
  for clip in test[:2]:
    clip.frames = [b'no jpeg'] * 8
  cfg = tiny(write(tmp_path, list(runs.clips('train', 6)), test))
  cfg.model.num_classes = 3
  parts = datasets.open_parts(cfg, datasets.open_datasets(cfg.data))
  mesh = sharding.make_mesh()
  made = build.classifier(cfg, mesh)
  scorer = engine.Engine(made.model, jax.jit(made.init)(KEY), 8, mesh)
  with pytest.raises(MiraInputError, match='2 of 9 clips'):
    datasets.score_source(scorer, parts.test, cfg, views=1)
  cfg.data.max_damaged = 0.5
  assert datasets.score_source(scorer, parts.test, cfg, views=1).sum() == 7
