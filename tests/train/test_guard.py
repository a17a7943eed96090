"""Training with numbers that are not finite, and with spikes of the loss.

Faults are real: a logarithm of 0, a root whose slope is infinite, parameters
that turn NaN.
"""

from __future__ import annotations

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import runs
from mira_jax.devices import sharding
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.train import build, guard, log, loop, optim
from mira_jax.train import step as steps
from mira_jax.weights.weights_file import LAST, load_weights

pytestmark = pytest.mark.usefixtures('compile_cache')
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
  # The mean of constant losses is off by rounding, their deviation nearly 0.
  values = jnp.full(128, 1.9459101, jnp.float32)
  assert not guard.is_spike(values, values[0] * 1.05, 6.0)
  assert guard.is_spike(values, values[0] * 1.07, 6.0)


def test_nothing_is_a_spike_before_the_window_is_full():
  assert judged([1.0] * 127 + [1e6])[1][-1] == guard.KEPT
  assert judged([1.0] * 128 + [1e6])[1][-1] == guard.SPIKE
  assert judged([1.0] * 128 + [1e6], sigmas=0.0)[1][-1] == guard.KEPT


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
  # A spike does not end a row; a higher level is accepted after some.
  state, verdicts = judged([1.0] * 128 + [nan, 5.0, nan] + [5.0] * 9)
  assert (state.in_a_row, state.skipped, state.spikes) == (0, 2, 4)
  assert verdicts[-6:] == [kept] * 6


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
    assert 'a spike, loss 3, skipped' in policy.check(
      7, row_of(7, guard.SPIKE, loss=3.0)
    )
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


# ----- whole runs -------------------------------------------------------------


def test_a_run_that_ended_resumes_from_its_last_good_step(
  data, whole, tmp_path, monkeypatch
):
  def ruined(*args, **options):
    made = training(*args, **options)

    def step(state, batch, key):
      with jax.transfer_guard('allow'):
        if state.step == 2:
          nan = jax.tree.map(lambda x: x * jnp.nan, state.params)
          state = dataclasses.replace(state, params=nan)
      return made.step(state, batch, key)

    return made._replace(step=step)

  training = build.training
  with monkeypatch.context() as patch:
    patch.setattr(build, 'training', ruined)
    with pytest.raises(MiraInputError, match='step 3 is nan') as caught:
      loop.train(runs.tiny(data, train={'save_every': 1}), tmp_path)
  assert caught.value.exit_code == ExitCode.NUMERIC
  assert 'last good step is 2' in caught.value.hint
  assert 'newest checkpoint is of step 2' in caught.value.hint
  saved = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert saved == [1, 2]  # not one of a state under suspicion
  assert [row['skipped'] for row in log.read(tmp_path)] == [0, 0]
  loop.train(runs.tiny(data), tmp_path)
  a, b = (load_weights(x / LAST)[0] for x in (tmp_path, whole))
  assert_same(a, b)
