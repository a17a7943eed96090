"""A process for calls that may hang or crash."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from mira_jax.tuning.child import Child, ChildError


def fail(how, marker=''):
  """What a child of the tests is asked to do."""
  if how == 'raise':
    raise KeyError('a key')
  if how == 'crash':
    os.write(2, b'the compiler died\n')
    os.abort()
  if how == 'hang':
    os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', marker)
    time.sleep(1000)
  print('to the standard output')
  return os.getpid()


def call(child, how, limit=60.0, **options):
  return child.call(f'{__name__}:fail', limit, how=how, **options)


@pytest.fixture
def child(monkeypatch):
  folder = os.path.dirname(__file__)
  monkeypatch.setenv('PYTHONPATH', folder, prepend=os.pathsep)
  with Child() as child:
    yield child


def test_errors_and_crashes_are_reasons(child):
  first = call(child, 'return')
  with pytest.raises(ChildError, match=r"^KeyError: 'a key'$"):
    call(child, 'raise')
  assert call(child, 'return') == first
  with pytest.raises(ChildError, match='its process ended: the compiler died'):
    call(child, 'crash')
  assert call(child, 'return') != first


def test_a_call_that_hangs_is_stopped_with_what_it_started(child):
  call(child, 'return')
  marker = f'1{os.getpid()}'
  with pytest.raises(ChildError, match='no answer within 1 s'):
    call(child, 'hang', limit=1, marker=marker)
  assert not os.system(f'! pgrep -f "sleep {marker}$"')
  assert call(child, 'return')


def test_it_does_not_import_from_the_current_folder(
  tmp_path, monkeypatch, child
):
  (tmp_path / 'random.py').write_text('raise SystemExit("shadowed")')
  monkeypatch.chdir(tmp_path)
  assert call(child, 'return')


def test_a_call_ends_with_the_process_that_made_it():
  folder = os.path.dirname(__file__)
  program = (
    'from mira_jax.tuning.child import Child; child = Child()\n'
    f'print(child.call("{__name__}:fail", 60, how="return"), flush=True)\n'
    f'child.call("{__name__}:fail", 600, how="hang", marker="1")'
  )
  caller = subprocess.Popen(
    [sys.executable, '-c', program],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join([folder, *sys.path])},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert caller.stdout
  find = ['ps', '-o', 'stat=', '-p', caller.stdout.readline().strip()]
  assert not _ended(find)
  caller.kill()
  caller.wait()
  until = time.monotonic() + 20
  while not _ended(find):
    assert time.monotonic() < until
    time.sleep(0.1)


def _ended(find):
  state = subprocess.run(find, stdout=subprocess.PIPE, text=True).stdout
  return state.strip()[:1] in ('', 'Z')
