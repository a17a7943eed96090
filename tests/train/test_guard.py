"""What training does with numbers that are not finite, and with damaged clips.

Faults are real: a logarithm of 0, a root whose slope is infinite, a learning
rate of 1e30, a label that is none, frames that are no JPEG.
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
  loop,
  nan_debug,
  optim,
)
from mira_jax.train import log as runlog
from mira_jax.train import losses as objectives
from mira_jax.train import step as steps

KEY = jax.random.key(0)

# ----- the verdict ------------------------------------------------------------

judge = jax.jit(guard.judge, static_argnames='sigmas')


def judged(losses, finite=None, sigmas=6.0, state=None):
  """The guard after losses, and the verdicts on them."""
  state, verdicts = state or guard.fresh(), []
  for i, loss in enumerate(losses):
    fine = np.isfinite(loss) if finite is None else finite[i]
    loss, step = jnp.float32(loss), jnp.int32(i + 1)
    state, verdict = judge(state, loss, jnp.asarray(fine), step, sigmas=sigmas)
    verdicts.append(int(verdict))
  return state, verdicts


def test_a_spike_is_six_deviations_above_the_mean():
  # Of logarithms: mean 2, deviation 1.
  losses = jnp.exp(jnp.tile(jnp.array([1.0, 3.0]), 64))
  assert not guard.is_spike(losses, jnp.exp(7.99), 6.0)
  assert guard.is_spike(losses, jnp.exp(8.01), 6.0)
  assert guard.is_spike(losses, jnp.exp(4.01), 2.0)
  assert not guard.is_spike(losses, jnp.float32(0.0), 6.0)


@pytest.mark.parametrize('level', [1e-6, 0.7, 1.9459101, 3e4])
def test_constant_losses_are_no_spikes(level):
  # Their mean is off by rounding, and their deviation is 0 or nearly so.
  losses = jnp.full(128, level, jnp.float32)
  for factor in (1, 1.001, 1.05):
    assert not guard.is_spike(losses, jnp.float32(level * factor), 6.0)
  assert guard.is_spike(losses, jnp.float32(level * 1.07), 6.0)
  assert not guard.is_spike(jnp.zeros(128), jnp.float32(0), 6.0)


def test_no_loss_is_too_large_or_small_to_be_judged():
  losses = jnp.full(128, 1e30).at[3].set(2e38)
  assert guard.is_spike(losses, jnp.float32(3e38), 6.0)
  assert guard.is_spike(jnp.full(128, 1e-28), jnp.float32(1e-20), 6.0)


def test_hard_clips_are_no_spikes_when_most_are_learnt():
  # Losses over decades, as of clips that are nearly learnt: on a linear scale
  # 6 deviations are passed a few times in a thousand.
  rng = np.random.default_rng(0)
  losses = np.exp(rng.normal(-4, 1.3, 1500)).astype(np.float32)
  windows = np.lib.stride_tricks.sliding_window_view(losses[:-1], 128)
  limits = windows.mean(1) + 6 * windows.std(1)
  assert (losses[128:] > limits).sum() > 3
  _, verdicts = judged(losses)
  assert set(verdicts) == {guard.KEPT}


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


def test_what_is_not_finite_is_counted_and_forgotten():
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


def test_a_spike_does_not_end_a_row():
  state, _ = judged([1.0] * 128 + [np.nan, 1e6, np.nan])
  assert (state.in_a_row, state.skipped, state.spikes) == (2, 2, 1)


def test_verdicts_are_those_of_an_independent_count():
  rng = np.random.default_rng(0)
  losses = rng.normal(2, 0.1, 600).astype(np.float32)
  losses[rng.integers(0, 600, 12)] = np.nan
  losses[rng.integers(0, 600, 12)] += 5
  window, expected = collections.deque(maxlen=128), []
  for loss in losses.astype(np.float64):
    if not np.isfinite(loss):
      expected.append(guard.NOT_FINITE)
      continue
    limit = np.mean(window) + 6 * np.std(window) if window else 0
    spike = len(window) == 128 and np.log(loss) > limit
    expected.append(guard.SPIKE if spike else guard.KEPT)
    window.append(np.log(loss))
  state, verdicts = judged(losses)
  assert verdicts == expected
  counts = [expected.count(x) for x in (guard.NOT_FINITE, guard.SPIKE)]
  assert [int(state.skipped), int(state.spikes)] == counts
  assert min(counts) > 3
  np.testing.assert_allclose(
    np.sort(np.log(state.losses)), np.sort(window), rtol=1e-6
  )


def test_the_report_names_its_numbers():
  assert guard.report(guard.fresh(), jnp.int32(0)).keys() == guard.REPORTED


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


def batch_of(level=1.0, slope=1.0, rows=8):
  level = np.full(rows, level, np.float32)
  return {'level': level, 'slope': np.full(rows, slope, np.float32)}


def with_fault(name, row=5):
  """A batch with a fault in one row."""
  batch = batch_of()
  batch[name][row] = 0
  return batch


def begin(optimizer=None, mesh=None, scale=1.0, **options):
  """A state of a kernel that all axes of a mesh split, and its step."""
  mesh = mesh or sharding.make_mesh()
  optimizer = optimizer or optim.adamw(lambda count: 0.1 / (1 + count))

  def variables(key):
    kernel = scale * jax.random.normal(key, (4, 64, 64))
    return {
      'params': {'attn': {'proj': {'kernel': kernel}}},
      'mira': {'block': {'confidence': jnp.full((4,), 0.25, jnp.float32)}},
    }

  init = functools.partial(
    steps.init_state, variables, optimizer, averaged=True
  )
  target = steps.abstract(init, KEY, mesh)
  where = jax.tree.map(lambda x: x.sharding, target)
  state = jax.jit(init, out_shardings=where)(KEY)
  traces = []

  def counted(*args):
    traces.append(1)
    return faulty(*args)

  jitted = steps.make_train_step(
    counted, optimizer, lambda count: 0.1 / (1 + count), mesh,
    ema_decay=0.9, **options,
  )  # fmt: skip
  key = jax.device_put(KEY, sharding.replicated(mesh))

  def step(state, batch):
    with jax.set_mesh(mesh):
      # Eight devices on two cores: steps in flight would wait for one another.
      return jax.block_until_ready(
        jitted(state, sharding.put_batch(batch, mesh), key)
      )

  step.traces = traces
  return state, step


def held(state):
  """What a skipped update must leave as it was."""
  return jax.tree.map(
    np.asarray, (state.params, state.mira, state.opt_state, state.average)
  )


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def changed(a, b):
  return [
    bool((x != y).any())
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  ]


MESHES = {'data': {}, 'all': {'data': 2, 'fsdp': 2, 'model': 2}}


@pytest.mark.parametrize('axes', MESHES.values(), ids=MESHES.keys())
@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize(('fault', 'loss'), [('level', False), ('slope', True)])
def test_an_update_that_is_not_finite_changes_nothing(
  axes, accumulate, fault, loss
):
  mesh = sharding.make_mesh(**axes)
  # One part of a batch needs a row for every device.
  rows = 8 if accumulate == 1 or axes else 16
  scale = 0.0 if fault == 'slope' else 1.0  # the slope of a root at 0
  state, step = begin(mesh=mesh, scale=scale, accumulate=accumulate)
  batch = batch_of(rows=rows)
  if fault == 'level':
    state, _ = step(state, batch)
    batch['level'][5] = 0
  where = jax.tree.map(lambda x: x.sharding, state)
  before, number = held(state), int(state.step)
  state, row = step(state, batch)
  assert np.isfinite(row['loss']) == loss
  assert not np.isfinite(row['grad_norm'] * row['loss'])
  assert row['verdict'] == guard.NOT_FINITE
  assert_same(before, held(state))
  assert (state.step, state.guard.skipped) == (number + 1, 1)
  assert state.guard.in_a_row == row['in_a_row'] == 1
  assert all(x.is_fully_replicated for x in jax.tree.leaves(state.guard))
  assert all(
    jax.tree.leaves(
      jax.tree.map(
        lambda a, x: a.is_equivalent_to(x.sharding, x.ndim), where, state
      )
    )
  )
  if fault == 'level':  # and nothing stays behind
    state, row = step(state, batch_of(rows=rows))
    assert row['verdict'] == guard.KEPT
    assert all(changed(before, held(state)))
    assert state.guard.in_a_row == 0
  assert len(step.traces) == accumulate  # a scan of parts looks once more


def test_an_update_that_overflows_ends_the_run(tmp_path):
  # Loss and gradient are finite: the rate takes the update beyond float32.
  state, step = begin(optax.sgd(3e38))
  state, row = step(state, batch_of(level=1e6))
  assert np.isfinite([row['loss'], row['grad_norm']]).all()
  assert row['verdict'] == guard.NOT_FINITE
  assert row['last_good'] == 0
  assert state.guard.skipped == 1
  with runlog.Log(tmp_path, 0, 9, 1, max_bad_steps=10) as log:
    log.add(4, row)
    with pytest.raises(MiraInputError, match='the last good step is 0') as told:
      log.flush()
  assert told.value.path == 'the update of step 4 is not finite'
  assert log.in_a_row  # nothing is saved


def test_a_spike_is_skipped():
  state, step = begin()
  for _ in range(guard.WINDOW):
    state, row = step(state, batch_of())
  assert (row['spikes'], row['skipped'], row['last_good']) == (0, 0, 128)
  before = held(state)
  state, row = step(state, batch_of(level=1e4))
  assert row['verdict'] == guard.SPIKE
  assert_same(before, held(state))
  assert (state.guard.spikes, state.guard.in_a_row) == (1, 0)
  assert len(step.traces) == 1


def test_a_skipped_step_is_as_if_it_had_not_been():
  # With losses that draw nothing: also the learning rate stays behind.
  a, step = begin()
  b, plain = begin()
  for batch in (batch_of(), with_fault('level'), batch_of(2.0)):
    a, row = step(a, batch)
  for batch in (batch_of(), batch_of(2.0)):
    b, plain_row = plain(b, batch)
  assert_same(held(a), held(b))
  assert row['learning_rate'] == plain_row['learning_rate']
  assert (a.step, b.step) == (3, 2)


def test_the_guard_is_saved_and_a_run_goes_on_to_the_bit(tmp_path):
  state, step = begin()
  batches = [
    batch_of(1.5), with_fault('level'), batch_of(2.0), with_fault('level'),
    batch_of(0.5),
  ]  # fmt: skip
  with checkpoint.Checkpoints(tmp_path, {}) as checkpoints:
    for i, batch in enumerate(batches):
      state, _ = step(state, batch)
      if i == 1:
        checkpoints.save(2, state)
  other, step = begin()
  mesh = sharding.make_mesh()
  target = steps.abstract(lambda key: other, KEY, mesh)
  with checkpoint.Checkpoints(tmp_path, {}) as checkpoints:
    resumed = checkpoints.restore(target)
  assert (resumed.guard.skipped, resumed.guard.in_a_row) == (1, 1)
  for batch in batches[2:]:
    resumed, _ = step(resumed, batch)
  assert_same(
    jax.tree.map(np.asarray, state), jax.tree.map(np.asarray, resumed)
  )


# ----- the log ----------------------------------------------------------------


def test_a_skipped_step_stays_out_of_the_mean(tmp_path, capsys):
  with runlog.Log(tmp_path, start=0, total=9, batch_size=1) as log:
    log.add(1, runs.log_row(1, 1.0))
    log.add(2, runs.log_row(2, np.nan, guard.NOT_FINITE, 1, 1))
    log.add(3, runs.log_row(3, 2.0, skipped=1))
    log.flush()
    assert log.in_a_row == 0
    log.add(4, runs.log_row(4, np.nan, guard.NOT_FINITE, 1, 2))
    log.flush()
    assert log.in_a_row == 1
  first, second = runlog.read(tmp_path)
  assert (first['loss'], first['skipped'], first['spikes']) == (1.5, 1, 0)
  assert 'loss' not in second
  assert second['skipped'] == 2
  out = capsys.readouterr().out
  assert out.count('skipped (') == 2
  assert 'step 2: not finite, skipped (1 in a row)' in out


def test_too_many_in_a_row_end_the_run(tmp_path):
  for limit, last in ((0, 8), (2, 10)):
    with runlog.Log(tmp_path, 5, 20, 1, max_bad_steps=limit) as log:
      for i in range(1, 6):
        log.add(7 + i, runs.log_row(7 + i, np.inf, guard.NOT_FINITE, i, i))
      with pytest.raises(MiraInputError, match='not_finite') as caught:
        log.flush()
    assert caught.value.path == f'the loss of step {last} is inf'
    assert 'last good step is 7' in caught.value.hint
    assert 'newest checkpoint is of step 5' in caught.value.hint
    assert caught.value.exit_code == ExitCode.NUMERIC


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
  skipped = [row['skipped'] for row in runlog.read(tmp_path)]
  assert skipped == [0, 0, 1, 2]

  better = tiny(levels, lr=1e-3, clip_norm=1.0)
  with pytest.raises(MiraInputError, match=r'run_changed.*--force') as caught:
    loop.train(better, tmp_path)
  assert caught.value.exit_code == ExitCode.CHECKPOINT
  # What the second step left cannot be mended.
  better.optim.max_bad_steps = 0
  with pytest.raises(MiraInputError, match='remove that one'):
    loop.train(better, tmp_path, force=True)
  shutil.rmtree(tmp_path / 'checkpoints' / '2')
  loop.train(better, tmp_path, force=True)
  last = [row for row in runlog.read(tmp_path) if 'loss' in row][-1]
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


# ----- which operation it was -------------------------------------------------


@pytest.mark.usefixtures('compile_cache')
def test_debug_nans_names_the_operation_and_the_line(levels, tmp_path):
  with pytest.raises(MiraInputError, match='step 3 is nan') as caught:
    loop.train(tiny(levels, lr=1e30), tmp_path, debug_nans=True)
  hint = caught.value.hint
  assert re.fullmatch(
    r'the first nan is of dot_general, at mira_jax/(models|kernels)/\w+.py:\d+',
    hint,
  )
  assert caught.value.exit_code == ExitCode.NUMERIC


def test_the_culprit_is_found_forward_and_backward():
  zeros = jnp.zeros(3)
  assert 'a number is infinite' in nan_debug.culprit(
    lambda x: jnp.log(x).sum(), zeros
  )
  assert nan_debug.culprit(lambda x: (x / x).sum(), zeros) == (
    'the first nan is of div'
  )

  def hidden(x):  # the root's slope times 0
    return jnp.where(x > 0, jnp.sqrt(x), 0).sum()

  assert nan_debug.culprit(jax.jit(jax.grad(hidden)), zeros) == (
    'the first nan is of mul'
  )
  targets = jnp.eye(3)

  def infinite(logits):
    return objectives.cross_entropy(logits, targets, jnp.ones(3, bool))

  told = nan_debug.culprit(jax.grad(infinite), jnp.full((3, 3), -jnp.inf))
  assert re.fullmatch(
    r'.* nan is of \w+, at mira_jax/train/losses.py:\d+', told
  )


VARIANTS = {
  'blocks': {'scan': True, 'depth': 2, 'remat': 'full'},
  'streaming': {'attention': 'streaming'},
}


@pytest.mark.parametrize('model', VARIANTS.values(), ids=VARIANTS.keys())
def test_a_sound_step_is_finite_operation_by_operation(levels, model):
  # Nothing that is infinite on purpose is blamed.
  cfg = tiny(levels)
  cfg.model = dataclasses.replace(cfg.model, num_classes=3, **model)
  cfg.data.batch_size = 16
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  made = build.classifier(cfg, mesh)
  init, step, _ = build.training(cfg, made, mesh, 3, donate=False)
  state = jax.jit(init)(KEY)
  state = jax.device_put(state, sharding.shardings(state, mesh))
  rng = np.random.default_rng(0)
  batch = {
    'video': rng.integers(0, 256, (16, 4, 16, 16, 3), np.uint8),
    'label': np.arange(16, dtype=np.int32) % 3,
    'mask': np.ones(16, bool),
  }
  key = jax.device_put(KEY, sharding.replicated(mesh))
  with jax.set_mesh(mesh):
    put = sharding.put_batch(batch, mesh)
    told = nan_debug.culprit(step.__wrapped__, state, put, key)
  assert told.startswith('operation by operation nothing is nan')


# ----- bad labels, damaged clips ----------------------------------------------


@pytest.mark.parametrize('label', [-1, -2, 3])
def test_a_label_that_is_no_class_is_refused(tmp_path, label):
  path = write(tmp_path, list(runs.clips('train', 6)))
  cfg = tiny(path)
  (made,) = datasets.open_datasets(cfg.data)
  index = json.loads((made.directory / dataset.INDEX).read_text())
  index['train']['label'][4] = label
  (made.directory / dataset.INDEX).write_text(json.dumps(index))
  with pytest.raises(MiraInputError, match=r'train\[4\] train-4') as caught:
    datasets.open_parts(cfg, [made])
  assert caught.value.code == 'bad_label'
  assert f'label {label} is none of 0 to 2' in caught.value.hint
  assert caught.value.exit_code == ExitCode.DATA


def test_a_record_without_a_label_is_refused(tmp_path):
  train = list(runs.clips('train', 6))
  train[2].label = -1
  cfg = tiny(write(tmp_path, train))
  made = datasets.open_datasets(cfg.data)
  with pytest.raises(MiraInputError, match=r'bad_label.*train-2'):
    datasets.open_parts(cfg, made)


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
    (10, 2, 0.01, True),
    (10, 1, 0.0, True),  # unless none may
    (10, 9, 1.0, False),
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


def test_damaged_frames_end_training_and_evaluation(tmp_path):
  train, test = list(runs.clips('train', 24)), list(runs.clips('test', 9))
  for clip in (*train[3:5], *test[:2]):
    clip.frames = [b'no jpeg'] * 8
  cfg = tiny(write(tmp_path, train, test))
  parts = datasets.open_parts(cfg, datasets.open_datasets(cfg.data))
  mesh = sharding.make_mesh()
  with pytest.raises(MiraInputError, match='2 of 24 clips'):
    list(itertools.islice(datasets.train_batches(cfg, parts.train, 0, mesh), 3))
  cfg.data.max_damaged = 0.1
  (first, *_) = itertools.islice(
    datasets.train_batches(cfg, parts.train, 0, mesh), 3
  )
  assert first['mask'].all()


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
  score = functools.partial(datasets.score_source, scorer, parts.test, views=1)
  with pytest.raises(MiraInputError, match='2 of 9 clips'):
    score(**datasets.reading(cfg))
  cfg.data.max_damaged = 0.5
  assert score(**datasets.reading(cfg)).sum() == 7
