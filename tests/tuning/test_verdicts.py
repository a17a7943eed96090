"""Kernels that are wrong, or hang, on the machine at hand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from mira_jax.devices import hardware
from mira_jax.kernels import dispatch
from mira_jax.tuning import child, verdicts
from mira_jax.tuning.verdicts import Verdict

# Three implementations on the CPU of whatever process imports it.
KERNELS = """
import jax
from mira_jax.kernels import dispatch, streaming
from mira_jax.tuning import checks

right = streaming.operations(streaming.Tiling())

def wrong(*x, **options):  # its values are right
  return jax.lax.stop_gradient(right.biased(*x, **options))

def hanging(*x, **options):
  y = wrong(*x, **options)
  return jax.lax.while_loop(lambda y: y.sum() < 1e9, jax.numpy.sin, y)

for name, biased in ('wrong', wrong), ('hanging', hanging), ('right', None):
  own = right._replace(biased=biased) if biased else right
  dispatch.IMPLEMENTATIONS[name] = dispatch.Implementation(
    lambda _, own=own: own, lambda _: None
  )
dispatch.KERNELS['cpu'] = 'wrong', 'hanging', 'right'
checks.CASES = (((1, 24, 2, 16), 3, ('flashlite',)),)
checks.LIMITS = {'float32': 1e-4}
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """With a GPU, by what the system says, and its own cache."""
  gpu = tmp_path / 'proc/driver/nvidia/gpus/0/information'
  gpu.parent.mkdir(parents=True)
  gpu.write_text('Model: \t\t NVIDIA H200\nIRQ: 1\n')
  (gpu.parents[2] / 'version').write_text('NVRM version: 580.1\nGCC\n')
  (tmp_path / 'sitecustomize.py').write_text(KERNELS)
  monkeypatch.setattr(hardware, '_PROC', tmp_path / 'proc')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=':')
  monkeypatch.setattr(dispatch, '_known', dispatch.Known())
  return tmp_path


def test_wrong_and_hanging_kernels_are_not_used(machine, monkeypatch, capsys):
  with monkeypatch.context() as patch:
    for name in ('IMPLEMENTATIONS', 'KERNELS'):
      patch.setattr(dispatch, name, dict(getattr(dispatch, name)))
    patch.setattr('mira_jax.tuning.checks.CASES', ())
    patch.setattr('mira_jax.tuning.checks.LIMITS', {})
    exec(KERNELS, {})
    start = time.monotonic()
    verdict = verdicts.examine(limit=15)
    assert 15 < time.monotonic() - start < 200
    assert verdict.passed == ('right',)
    assert 'differs from the reference' in verdict.failed['wrong']
    assert 'no answer within 15 s' in verdict.failed['hanging']

    said = capsys.readouterr().err
    assert 'hanging is not used on cpu: its check failed: no answer' in said
    assert '--attention=hanging forces it' in said
    # It is kept: no child starts.
    patch.setattr(child.Child, '_start', None)
    assert verdicts.examine() == verdict

    assert 'checks' not in capsys.readouterr().err
    verdicts.adopt(verdict)
    asked = dispatch.Request(
      (1, 64, 2, 64), 'float32', 'exact', dispatch.target()
    )
    choice = dispatch.choose(asked)
    assert choice.name == 'right'
    assert 'wrong cannot: its check failed: ValueError: flash' in choice.why
    assert 'hanging cannot: its check failed: no answer within' in choice.why
    verdicts.adopt(Verdict(), forced='wrong')
    assert dispatch.resolve(None, asked).name == 'wrong'
    assert dispatch.resolve('reference', asked).name == 'reference'


def test_a_verdict_belongs_to_device_driver_and_versions(machine, monkeypatch):
  found = []
  monkeypatch.setattr(
    verdicts, '_check_all', lambda *_: found.append(1) or Verdict('x', ('y',))
  )
  version = machine / 'proc/driver/nvidia/version'
  for text, count in ('580.1', 1), ('580.1', 1), ('580.2', 2):
    version.write_text(text)
    assert verdicts.examine().passed
    assert len(found) == count
  monkeypatch.setattr(verdicts.records, 'version', lambda: 'another')
  verdicts.examine()
  assert len(found) == 3
  assert verdicts.examine('cpu') == Verdict()  # kernels are not for it


@pytest.mark.parametrize(
  'text', ['', '[1]', 'null', '{"device": "x"}', '[' * 9**5]
)
def test_a_damaged_verdict_is_made_anew(machine, monkeypatch, text):
  monkeypatch.setattr(verdicts, '_check_all', lambda *_: Verdict('x', ('y',)))
  verdicts.examine()
  (path,) = verdicts.folder().glob('check-*.json')
  good = path.read_text()
  path.write_text(text)
  assert verdicts.examine() == Verdict('x', ('y',))
  assert path.read_text() == good


def test_kernels_are_checked_where_no_verdict_can_be_kept(
  machine, monkeypatch, capsys
):
  monkeypatch.setattr(verdicts, '_check_all', lambda *_: Verdict('x', ('y',)))
  monkeypatch.setenv('XDG_CACHE_HOME', '/dev/null')
  assert verdicts.examine().passed == ('y',)
  assert 'cannot be kept: not_written' in capsys.readouterr().err


def test_hosts_take_one_verdict(tmp_path):
  """What failed on one is used on none; else they would wait for ever."""
  program = """
import sys, jax
from mira_jax.kernels import dispatch
from mira_jax.tuning import verdicts
i, port = map(int, sys.argv[1:])
jax.distributed.initialize(f'127.0.0.1:{port}', 2, i)
verdicts.adopt(verdicts.Verdict('x', ('a',), {'b' * (i + 1): f'failed on {i}'}))
print(sorted(dispatch.known().failed.items()))
"""
  with socket.socket() as server:
    server.bind(('127.0.0.1', 0))
    port = server.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', program, str(i), str(port)],
      env={**os.environ, 'XDG_CACHE_HOME': str(tmp_path)},
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  ends = [process.communicate(timeout=120)[0] for process in processes]
  printed = {text.splitlines()[-1] for text in ends}
  assert printed == {"[('b', 'failed on 0'), ('bb', 'failed on 1')]"}
