"""The reference's own numbers, through this package."""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np
import pytest

import oracle
from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.kernels import dispatch, vjp
from mira_jax.kernels.tpu import blocks, passes
from mira_jax.parity import golden

DIRECTORY = pathlib.Path(__file__).parents[1] / 'golden'
CASES = golden.read_cases(DIRECTORY)
SMALL = 'attention_flashlite_instance_train'

# Directories with more golden cases, where they are at hand.
OTHERS = [
  (directory, case)
  for directory in os.environ.get('MIRA_GOLDEN', '').split(os.pathsep)
  if directory
  for case in golden.read_cases(directory)
  if case not in CASES
]


def name_of(case):
  return case['name']


def check(directory, case, dtype, attention='reference'):
  """Runs a case and returns its comparisons, all passed."""
  checks = golden.run_case(directory, case, dtype, attention)
  assert not [check for check in checks if not check.passed]
  return checks


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float64', 'float32'])
@pytest.mark.parametrize('case', CASES, ids=name_of)
def test_case_passes(case, dtype):
  names = {check.quantity for check in check(DIRECTORY, case, dtype)}
  assert any('grad' in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('attention', 'dtype', 'model'),
  [
    ('streaming', 'float64', 'train_pretrain_exact'),
    ('pallas_tpu', 'float32', 'finetune_flashlite_batch_ema'),
  ],
)
def test_cases_pass_through_kernels(monkeypatch, attention, dtype, model):
  interpreted = dispatch.Implementation(
    lambda _: vjp.operations(passes.PASSES), lambda _: None
  )
  monkeypatch.setattr(blocks, 'INTERPRET', True)
  monkeypatch.setitem(dispatch.IMPLEMENTATIONS, 'pallas_tpu', interpreted)
  seen = set()
  for case in CASES:
    trains = case['kind'] == 'attention' and case['training']
    if trains or case['name'] == model:
      seen.add((case['kind'], case['mode'], case['stats_mode']))
      checks = check(DIRECTORY, case, dtype, attention)
      assert any('grad' in check.quantity for check in checks)
  for mode in ('exact', 'flashlite'):
    for statistics in ('instance', 'batch', 'batch_ema'):
      assert ('attention', mode, statistics) in seen


@pytest.mark.slow
@pytest.mark.skipif(not OTHERS, reason='MIRA_GOLDEN names no directory')
@pytest.mark.parametrize(
  ('directory', 'case'), OTHERS, ids=[name_of(case) for _, case in OTHERS]
)
def test_other_cases_pass(directory, case):
  assert check(directory, case, 'float64')


def one_case(folder, change):
  """A directory with one small case, one of its arrays changed."""
  case = next(case for case in CASES if case['name'] == SMALL)
  (folder / 'cases.json').write_text(json.dumps([case]))
  with np.load(DIRECTORY / f'{SMALL}.npz') as arrays:
    arrays = dict(arrays)
  np.savez(folder / f'{SMALL}.npz', **arrays | change(arrays))
  return case


def nudged(arrays):
  return {'step0/y': arrays['step0/y'] * (1 + 1e-8)}


def test_a_nudge_of_1e_8_fails_that_quantity_alone(tmp_path):
  case = one_case(tmp_path, nudged)
  failed = [c for c in golden.run_case(tmp_path, case) if not c.passed]
  assert [c.quantity for c in failed] == ['step0/y']
  assert failed[0].relative == pytest.approx(1e-8, rel=1e-3)


@pytest.mark.parametrize(
  ('wrong', 'name'),
  [
    (np.full((1, 4), np.nan), 'step0/ema'),
    (np.ones((1, 5)), 'step0/ema: (1, 4), not (1, 5)'),
  ],
)
def test_nan_and_other_shapes_fail(tmp_path, wrong, name):
  case = one_case(tmp_path, lambda arrays: {'step0/ema': wrong})
  failed = [c for c in golden.run_case(tmp_path, case) if not c.passed]
  assert [c.quantity for c in failed] == [name]


def test_a_result_that_nothing_computes_is_an_error(tmp_path):
  case = one_case(tmp_path, lambda arrays: {'step0/stat/new': np.ones(3)})
  with pytest.raises(MiraInputError, match='step0/stat/new'):
    golden.run_case(tmp_path, case)


def command(*arguments):
  return cli.main(['compare', 'golden', *map(str, arguments)])


def test_the_command_counts_passes_and_failures(tmp_path, capsys):
  assert command(DIRECTORY, '--brief', f'--case={SMALL}') == ExitCode.OK
  assert '0 fail' in capsys.readouterr().out
  one_case(tmp_path, nudged)
  assert command(tmp_path) == ExitCode.FAILED == 1
  out = capsys.readouterr().out
  assert '1 fail' in out
  assert 'FAIL' in out


def test_errors_name_what_is_missing_or_broken(tmp_path, capsys):
  def fails(text, *flags):
    assert command(tmp_path, *flags) == ExitCode.USAGE
    assert text in capsys.readouterr().err

  fails('cases.json')
  one_case(tmp_path, nudged)
  fails(SMALL, '--case', 'nothing')
  (tmp_path / f'{SMALL}.npz').write_bytes(b'broken')
  fails(f'{SMALL}.npz')
  (tmp_path / 'cases.json').write_text('[]')
  fails('it lists no case')


@pytest.mark.parametrize('mode', ['exact', 'flashlite'])
def test_case_with_one_token_per_frame_passes(tmp_path, mode):
  case = next(
    case for case in CASES if case['name'] == f'attention_{mode}_instance_train'
  )
  case = case | {'frames': 24, 'tokens_per_frame': 1, 'name': 'single'}
  source = DIRECTORY / f'attention_{mode}_instance_train.npz'
  with np.load(source) as arrays:
    inputs = ('param/', 'step0/x', 'step0/cotangent')
    arrays = {n: x for n, x in arrays.items() if n.startswith(inputs)}
  state = {n.removeprefix('param/'): x.astype(float) for n, x in arrays.items()}
  x = arrays['step0/x'].astype(float)
  batch, length, width = x.shape
  bias = np.concatenate([state['q_bias'], 0 * state['q_bias'], state['v_bias']])
  qkv = x @ state['qkv.weight'].T + bias
  heads = qkv.reshape(batch, length, 3, case['heads'], -1)
  result = oracle.attention(
    *heads.transpose(2, 0, 3, 1, 4),
    frames=24,
    mode=mode,
    statistics='instance',
    train=True,
    average=np.full(24, 1 / 24),
    hyper=oracle.Hyper(),
  )
  y = result.y.swapaxes(1, 2).reshape(batch, length, width)
  arrays['step0/y'] = y @ state['proj.weight'].T + state['proj.bias']
  for name, array in zip(
    ['c', 'H', 'f', 'pi', 'alpha'], result[1:6], strict=True
  ):
    arrays[f'step0/stat/{name}'] = array
  np.savez(tmp_path / 'single.npz', **arrays)
  assert len(check(tmp_path, case, 'float64')) == 6
