"""What validation decides: weights, an early end, a refit; also under kills."""

from __future__ import annotations

import json
import shutil

import pytest

import runs
from mira_jax.devices import sharding
from mira_jax.errors import MiraInputError
from mira_jax.evaluation import results
from mira_jax.train import log, loop, optim, selection, task
from mira_jax.weights import weights_file
from stopped_runs import Killed, assert_same, train_until

pytestmark = pytest.mark.usefixtures('compile_cache')


@pytest.mark.parametrize(
  ('scores', 'patience', 'over'),
  [
    ([], 1, False),
    ([0.5], 1, False),
    ([0.5, 0.6], 1, False),
    ([0.5, 0.5], 1, True),  # as good is no improvement
    ([0.5, 0.6, 0.5], 2, False),
    ([0.5, 0.4, 0.5], 2, True),
    ([0.5, 0.4, 0.3, 0.2], 0, False),
  ],
)
def test_a_run_stalls_after_validations_without_improvement(
  scores, patience, over
):
  steps = {10 * i: score for i, score in enumerate(scores, 1)}
  backwards = dict(reversed(steps.items()))
  assert selection.stalled(backwards, patience) is over


@pytest.mark.parametrize('field', ['patience', 'refit'])
def test_without_validation_clips_there_is_nothing_to_choose_by(
  data, tmp_path, field
):
  cfg = runs.tiny(data, data={'val_fraction': 0.0}, train={field: 1})
  cfg.train.refit = bool(cfg.train.refit)
  with pytest.raises(MiraInputError, match=f'config.train.{field}') as caught:
    loop.train(cfg, tmp_path)
  assert 'config.data.val_fraction=0.1' in caught.value.hint
  cfg.train.eval_every = 0
  with pytest.raises(MiraInputError, match='one validation') as caught:
    loop.train(cfg, tmp_path)
  assert caught.value.path == f'config.train.{field}'


# ----- few validation clips ---------------------------------------------------


def test_few_validation_clips_leave_the_last_weights(
  data, tmp_path, capsys, monkeypatch
):
  """Validation says that an earlier step is best; its clips are 2."""
  best_first(monkeypatch)
  few = {'min_val_clips': 50}
  loop.train(runs.tiny(data, eval=few), tmp_path)
  why = 'last weights: 2 validation clips are too few to choose by'
  assert json.loads((tmp_path / 'outcome.json').read_text())['weights'] == (
    f'{why} (config.eval.min_val_clips)'
  )
  assert why in capsys.readouterr().out
  assert results.read(tmp_path)[0].name == results.LAST
  assert weights_step(tmp_path) == 12
  loop.train(runs.tiny(data), tmp_path)  # chooses all the same
  assert weights_step(tmp_path) == 6
  loop.train(runs.tiny(data, eval=few), tmp_path)  # as an older version did
  assert weights_step(tmp_path) == 6
  assert results.read(tmp_path)[0].name == results.CHOSEN


def best_first(monkeypatch, worse=0.5):
  """Every validation is worse than the one before."""
  validate = task.Classification.validate

  def falling(self, step, state, log):
    validate(self, step, state, log)
    return worse**step

  monkeypatch.setattr(task.Classification, 'validate', falling)


def weights_step(folder):
  return weights_file.load_weights(folder / weights_file.WEIGHTS)[1]['step']


# ----- an early end -----------------------------------------------------------


def patient(data, **groups):
  return runs.tiny(data, train={'patience': 1, 'eval_every': 1}, **groups)


@pytest.fixture(scope='module')
def short(data, tmp_path_factory, caching):
  """A run that validation ended after 6 of 12 steps: it learns nothing."""
  folder = tmp_path_factory.mktemp('short')
  with caching():
    loop.train(stuck(data), folder)
  return folder


def stuck(data):
  return patient(data, optim={'lr': 0.0, 'final_lr': 0.0})


def test_a_run_ends_when_validation_is_no_longer_better(short, data, capsys):
  steps = [row['step'] for row in log.read(short) if 'loss' in row]
  assert steps == [1, 2, 3, 4, 5, 6]
  assert [row.step for row in results.read(short)][1] == 6  # the last
  loop.train(stuck(data), short)  # nothing is left to do
  shown = capsys.readouterr().out
  assert 'the last 1 validations were no better' in shown
  assert 'step 7/' not in shown
  assert [row['step'] for row in log.read(short) if 'loss' in row] == steps


@pytest.mark.parametrize('step', [5, 6])  # after 6 validation waits
def test_an_early_end_is_the_same_after_a_restart(
  short, data, tmp_path, monkeypatch, step
):
  train_until(monkeypatch, stuck(data), tmp_path, step)
  loop.train(stuck(data), tmp_path)
  assert_same(short, tmp_path)


def test_killed_at_an_early_end_it_does_not_go_on(
  short, data, tmp_path, monkeypatch
):
  def killed(*_):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(task.Classification, 'finish', killed)
    with pytest.raises(Killed):
      loop.train(stuck(data), tmp_path)
  loop.train(stuck(data), tmp_path)
  assert_same(short, tmp_path)


# ----- a refit ----------------------------------------------------------------


def refit(data, **groups):
  return runs.tiny(data, train={'refit': True, 'eval_every': 1}, **groups)


@pytest.fixture(scope='module')
def refitted(data, tmp_path_factory, caching):
  folder = tmp_path_factory.mktemp('refit')
  with caching(), pytest.MonkeyPatch.context() as patch:
    best_first(patch)
    loop.train(refit(data), folder)
  return folder


def test_a_refit_trains_all_clips_for_the_chosen_steps(refitted, data):
  first = refitted / selection.FOLDER
  assert [row['step'] for row in losses(first)] == [*range(1, 13)]
  assert results.read(first)[0].name == results.CHOSEN
  assert weights_step(first) == 3
  assert [row['step'] for row in losses(refitted)] == [1, 2, 3]
  assert results.read(refitted)[0].name == results.LAST
  assert weights_step(refitted) == 3
  outcome = json.loads((refitted / 'outcome.json').read_text())
  assert outcome['weights'] == (
    'refit on all training clips: 3 steps, chosen by 2 validation clips'
  )


def losses(folder):
  return [row for row in log.read(folder) if 'loss' in row]


def test_a_refit_has_every_training_clip_and_a_schedule_of_its_own(
  refitted, data, tmp_path
):
  parts = task.make(refit(data), tmp_path, sharding.make_mesh())
  assert len(parts.source) == 27
  assert {*parts.source.recording} == {f'levels/0-{i}' for i in range(27)}
  selected = [row['learning_rate'] for row in losses(refitted / 'selection')]
  rates = [row['learning_rate'] for row in losses(refitted)]
  # The warm-up takes a quarter of each.
  for found, warm, total in ((selected, 3, 12), (rates, 1, 3)):
    schedule = optim.warmup_cosine(
      peak=1e-3, final=1e-6, warmup_steps=warm, total_steps=total
    )
    expected = [float(schedule(step)) for step in range(total)]
    assert found == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('step', 'total', 'part'),
  [(5, 12, selection.FOLDER), (12, 12, selection.FOLDER), (2, 3, '')],
)
def test_a_refit_is_the_same_after_a_restart(
  refitted, data, tmp_path, monkeypatch, step, total, part
):
  """Stopped while steps are selected, at the end of that, or in the refit."""
  best_first(monkeypatch)
  cfg = refit(data)
  train_until(monkeypatch, cfg, tmp_path, step, total=total, part=part)
  loop.train(refit(data), tmp_path)
  for name in ('', selection.FOLDER):
    assert_same(refitted / name, tmp_path / name)


def test_a_finished_selection_is_not_repeated_unless_it_changes(
  refitted, data, tmp_path, capsys
):
  folder = shutil.copytree(refitted, tmp_path / 'run')
  loop.train(refit(data), folder)
  assert 'selection of' not in capsys.readouterr().out
  assert_same(refitted, folder)
  changed = refit(data, optim={'lr': 0.5})
  with pytest.raises(MiraInputError, match=r'optim.lr 0.001, not 0.5') as error:
    loop.train(changed, folder)
  assert error.value.path == str(folder / 'selection' / 'checkpoints')


def test_too_few_validation_clips_select_no_steps(data, tmp_path, capsys):
  """They are trained on at once."""
  loop.train(refit(data, eval={'min_val_clips': 3}), tmp_path)
  assert not (tmp_path / selection.FOLDER).exists()
  assert 'train 27, test 9' in capsys.readouterr().out
  assert weights_step(tmp_path) == 12
