"""Whole trainings beside PyTorch's, and `mira compare torch --train N`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode
from mira_jax.parity import torch_compare, torch_peers, torch_training
from small_peers import SMALL, clips, save, spread

torch = pytest.importorskip('torch')
pytest.importorskip('mira_jax.parity.torch_mira')

EXACT, FLASHLITE = {'mode': 'exact'}, {'mode': 'flashlite'}
TINY: dict[str, Any] = SMALL | {
  'dim': 24,
  'depth': 2,
  'heads': 2,
  'image_size': 16,
}
VIVIT = {'gelu': 'tanh', 'pool': 'cls', 'positions': 'learned'}


@pytest.mark.parametrize(
  ('changes', 'dtype'),
  [
    ({}, 'float64'),
    (VIVIT, 'float64'),
    ({'mira': FLASHLITE, 'drop_path': 0.5}, 'float64'),
    ({'mira': EXACT | {'statistics': 'batch_ema'}}, 'float64'),
    ({'mira': EXACT}, 'float32'),
  ],
  ids=str,
)
def test_trainings_agree(changes, dtype):
  fields = TINY | changes
  variables = spread(fields)
  peer = torch_peers.peer(fields, variables)
  start = {n: x.clone() for n, x in peer.module.state_dict().items()}
  found = torch_training.compare(
    fields, variables, peer, clips(fields, 6), 4, dtype=dtype
  )
  assert found.failures() == []
  apart = [x for step in found.steps for x in step.relative.values()]
  apart += [row.distance for row in found.rows]
  # Bounds are far from what is reached: a change of either side shows.
  assert 0 < max(apart) < (1e-13 if dtype == 'float64' else 2e-5)
  assert found.steps[0].learning_rate == 0  # warm-up
  assert all(step.grad_norm > 1 for step in found.steps)  # clipping cuts
  names = ['embed', 'block 1', 'block 2', 'head']
  mira = ["MiRA's averages"] if 'mira' in changes else []
  averages = [f'average of {name}' for name in names]
  assert [row.name for row in found.rows] == [*names, *mira, *averages]
  after = peer.module.state_dict()
  assert all(torch.equal(x, after[n]) for n, x in start.items())


def test_a_wrong_optimiser_is_caught():
  fields: dict[str, Any] = TINY | {'mira': FLASHLITE}
  variables = spread(fields)
  peer = torch_peers.peer(fields, variables)
  settings, depth = torch_training.settings_of(4), fields['depth']
  video = torch_compare.normalise(clips(fields, 6), 'float64')
  batches = torch_training.batches_of(video, fields['num_classes'], 4)
  mine = torch_training.ours(fields, variables, batches, settings, 'float64')

  def failures(wrong, batches=batches):
    other = dataclasses.replace(settings, **wrong)
    trained = torch_training.theirs(peer, batches, other, depth, 'float64')
    agreement = torch_training.agreement(
      peer, mine, trained, settings, depth, 'float64'
    )
    return agreement.failures()

  assert failures({}) == []
  # A setting, the first step that shows it (its rate, or the one after it).
  for wrong, first in (
    ({'lr': 1.001e-3}, 'learning rate of step 2'),
    ({'final_lr': 2e-6}, 'learning rate of step 3'),
    ({'warmup_epochs': 2}, 'learning rate of step 3'),
    ({'weight_decay': 0.051}, 'loss of step 3'),
    ({'b1': 0.91}, 'loss of step 3'),
    ({'b2': 0.998}, 'loss of step 3'),
    ({'clip_norm': 0.9}, 'loss of step 3'),
    ({'layer_decay': 0.76}, 'loss of step 3'),
    ({'ema_decay': 0.91}, 'average of embed afterwards'),
  ):
    assert failures(wrong)[0].startswith(first), wrong
  swapped = [batches[1], *batches[1:]]
  assert failures({}, swapped)[0].startswith('loss of step 1')


# ----- the command ------------------------------------------------------------


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """A weights file with MiRA of which trainings compile fast."""
  return save(TINY | {'mira': EXACT}, tmp_path_factory.mktemp('tiny'))


def test_the_command_trains(tiny, capsys):
  arguments = ['compare', 'torch', f'--weights={tiny}', '--train=2']
  assert cli.main(arguments) == ExitCode.OK
  out = capsys.readouterr().out
  for text in (
    '2 steps of AdamW, ',
    'learning rate 0.001 after 0 steps',
    'layer decay 0.75',
    '4 of 8 windows in each',
    'torch_mira (exact), float64',
    'average of head',
    'float64 steps and parameters within 1e-10: pass',
    'float32 steps and parameters within 1e-04: pass',
  ):
    assert text in out
  assert cli.main([*arguments, '--gradients']) == ExitCode.USAGE
  assert '--train compares the gradient norm' in capsys.readouterr().err


def test_the_command_trains_a_module_of_ones_own(tiny, tmp_path, capsys):
  (tmp_path / 'model.py').write_text(
    'from functools import partial\n'
    'from torch import nn\n'
    'from mira_jax.mira import MiraConfig\n'
    'from mira_jax.parity.torch_mira import VideoTransformer\n'
    'class Right(VideoTransformer):\n'
    '  def __init__(self, mode="exact"):\n'
    '    super().__init__(dim=24, depth=2, heads=2, frames=8, num_classes=5,\n'
    '      image_size=16, patch=8, mira=MiraConfig(mode=mode))\n'
    '    self.drop = nn.Dropout(0.5)\n'  # nothing is dropped
    '  def forward(self, video): return self.drop(super().forward(video))\n'
    'wrong = partial(Right, "flashlite")\n'
    'class Broken(Right):\n'
    '  def forward(self, video): return video[:, 5]\n'
    'class Tokens(Right):\n'
    '  def forward(self, video): return video\n'
    'class Frozen(Right):\n'
    '  def forward(self, video): return super().forward(video).detach()\n'
  )
  arguments = ['compare', 'torch', f'--weights={tiny}', '--views=1']
  arguments += ['--dtype=float64', '--train=2', '--json']
  module = f'--module={tmp_path}/model.py'
  assert cli.main([*arguments, f'{module}:Right']) == ExitCode.OK
  (found,) = json.loads(capsys.readouterr().out)
  assert found['failures'] == []
  assert found['settings']['weight_decay'] == 0.05
  assert [step['step'] for step in found['steps']] == [1, 2]
  arguments.remove('--json')
  assert cli.main([*arguments, f'{module}:wrong']) == ExitCode.FAILED
  assert '1e-10: FAIL, loss of step 1: ' in capsys.readouterr().out
  for name, why in (
    ('Broken', 'IndexError'),
    ('Tokens', 'not logits'),
    ('Frozen', 'no gradient'),
  ):
    assert cli.main([*arguments, f'{module}:{name}']) == ExitCode.USAGE
    error = capsys.readouterr().err
    assert f'bad_module: {name}' in error
    assert why in error
    assert error.count('\n') == 1
