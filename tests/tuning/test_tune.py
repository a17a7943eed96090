"""The fastest attention of this machine is found, kept and used."""

from __future__ import annotations

import dataclasses
import json
import time

import jax.numpy as jnp
import pytest

from kernel_interpreters import interpreted
from mira_jax.cli import main
from mira_jax.kernels import dispatch, records
from mira_jax.kernels.gpu import passes
from mira_jax.tuning import checks, tune, verdicts
from mira_jax.tuning.child import Child

FLAGS = (
  '--config.model.frames=4', '--config.model.image_size=32',
  '--config.model.patch=16', '--config.model.dim=32', '--config.model.heads=2',
  '--config.data.batch_size=4',
)  # fmt: skip


def test_a_command_measures_and_all_others_use_it(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(dispatch, '_known', dispatch.Known())
  out = tmp_path / 'times.json'
  flags = ['--device=cpu', '--budget=1', f'--out={out}', *FLAGS]
  assert main.main(['tune', 'quickstart', *flags]) == 0
  printed = capsys.readouterr().out
  assert 'forward and backward' in printed
  found = records.parse(out.read_text(), 'here')
  assert [row.training for row in found.rows] == [False, True]
  for row in found.rows:
    assert row.shape == (4, 8, 2, 16)
    assert set(row.milliseconds) == {'reference', 'streaming', 'fusible'}
  # The other commands look there; what another version measured is not used.
  verdicts.adopt(verdicts.Verdict())
  row = found.rows[1]
  asked = dispatch.Request(
    row.shape, 'float32', 'exact', dispatch.target(), True
  )
  choice = dispatch.choose(asked)
  assert choice.name == row.by_speed()[0]
  assert 'measured here' in choice.why
  path = verdicts.times_path(found.device)
  fields = json.loads(path.read_text()) | {'kernels': 'old'}
  nameless = {key: x for key, x in fields.items() if key != 'jax'}
  for other in fields, nameless:
    path.write_text(json.dumps(other))
    verdicts.adopt(verdicts.Verdict())
    assert dispatch.choose(asked).why.endswith('assumed')


class Times(Child):
  """A child whose every answer is known."""

  def __init__(self, times, wrong=()):
    super().__init__()
    self.times, self.wrong = times, wrong

  def call(self, function, limit, *, name, tunings, **_):
    key = name, *(str(sorted(x.items())) for x in tunings.values())
    if function.endswith('check'):
      if any(word in str(key) for word in self.wrong):
        raise tune.ChildError('it is wrong')
      return ['a case']
    found = next(
      (t for word, t in self.times.items() if word in str(key)), None
    )
    if found is None:
      raise tune.ChildError('it does not compile')
    return [found]


@pytest.mark.parametrize(
  ('times', 'wrong', 'best', 'tuned'),
  [
    (
      {"'clip'": 0.5, "'head'": 2, 'streaming': 2, 'reference': 1},
      (),
      0.5,
      True,
    ),
    ({"'clip'": 0.5, 'streaming': 2, 'reference': 1}, ("'clip'",), 2, False),
    ({"'clip'": 1.99, 'streaming': 2, 'reference': 1}, (), 2, False),
    ({"'clip'": 0.5, 'streaming': 4, 'reference': 1}, (), 4, False),
    ({'reference': 1}, (), None, False),
  ],
)
def test_a_tuning_must_be_right_and_faster(times, wrong, best, tuned):
  target = dispatch.Target('cpu', 'cpu')
  asked = dispatch.Request((2, 64, 4, 16), jnp.float32, 'exact', target)
  child = Times(times, wrong)
  tuner = tune.Tuner(child, time.monotonic() + 60, lambda _: None)
  row = tuner.row(asked)
  found = row.milliseconds.get('streaming')
  assert found == (best and best * 1e3)
  assert bool(row.tunings) == tuned
  assert row.by_speed()[0] == ('streaming' if tuned else 'reference')


def test_every_sweep_of_a_mode_has_candidates():
  for mode, training, names in (
    ('flashlite', False, {'attend'}),
    ('plain', True, {'attend', 'dq', 'dkv'}),
    (
      'exact',
      True,
      {'logsumexp', 'mass', 'redistribute', 'gain', 'mean'}
      | {'joint_dq', 'joint_dkv'},
    ),
  ):
    space = passes.candidates(mode, training, 64)
    assert space.keys() == names
    for name, candidates in space.items():
      assert candidates[0] == passes.tuning(name, 64)
      assert len(candidates) > 10
      assert len(set(candidates)) == len(candidates)


def test_tunings_of_gpu_kernels_are_checked_against_the_reference(monkeypatch):
  """In the interpreter of one; in another a kernel gets its keys wrong."""
  implementation = dispatch.IMPLEMENTATIONS['pallas_gpu']
  served = implementation._replace(refusal=lambda _: None)
  monkeypatch.setitem(dispatch.IMPLEMENTATIONS, 'pallas_gpu', served)
  monkeypatch.setattr(checks, 'CASES', (((1, 40, 1, 16), 4, ('flashlite',)),))
  fields = dataclasses.asdict(passes.Tuning(64, 32, 2))
  tunings = {name: fields for name in ('attend', 'dq', 'dkv')}
  with interpreted():
    assert checks.check('pallas_gpu', tunings, ['bfloat16'])
    monkeypatch.setattr(
      passes,
      '_exponent',
      lambda k, bias: passes.Vector(jnp.zeros(k.shape[:2], jnp.float32)),
    )
    fields['columns'] = 64
    with pytest.raises(ValueError, match='differs from the reference'):
      checks.check('pallas_gpu', tunings, ['bfloat16'])


def test_a_child_measures():
  target = dispatch.Target('cpu', 'cpu')
  asked = [(1, 16, 2, 8), 'float32', 'flashlite', tuple(target), True]
  tiles = {'tiles': {'numbers': 64, 'at_once': 'clip'}}
  with Child(JAX_PLATFORMS='cpu') as child:
    seconds = child.call(
      f'{tune.__name__}:measure',
      60,
      name='streaming',
      tunings=tiles,
      asked=asked,
    )
  assert len(seconds) == 5
  assert all(0 < x < 1 for x in seconds)
