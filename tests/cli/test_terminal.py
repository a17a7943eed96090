"""Shared by every command: what is printed, Ctrl-C, closed streams."""

from __future__ import annotations

import json
import os
import pathlib
import pwd
import signal
import subprocess
import sys

import pytest

from mira_jax import files, terminal
from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode, MiraInputError, plain

ROOT = pathlib.Path(__file__).parents[2]
ODD = 'gbk\udcb6 \x1b]0;x\x07\n\u202e\x9b 张 Ba$$ [red]😀\u200d'
SHOWN = r'gbk\udcb6 \x1b]0;x\x07\n\u202e\x9b 张 Ba$$ [red]😀' + '\u200d'


def test_what_a_terminal_obeys_is_escaped(capsys):
  assert plain(ODD) == SHOWN
  for kept in ('', 'ab', 'José', 'جدا', 'می\u200cخواهم', 'ａ\u3000\u202f.mp4'):
    assert plain(kept) == kept
  error = MiraInputError('not_found', ODD, f'no {ODD}')
  assert str(error) == f'not_found: {SHOWN}: no {SHOWN}'
  assert (error.path, error.hint) == (ODD, f'no {ODD}')  # exact, for JSON
  terminal.say(ODD)
  terminal.console(width=200).print(':smile: [red]a[/] [link=x]')
  assert capsys.readouterr().out == f'{SHOWN}\n:smile: [red]a[/] [link=x]\n'


@pytest.mark.parametrize('encoding', ['utf-8', 'gbk'])
def test_json_is_exact_in_every_encoding(encoding):
  row = {ODD: [ODD, 1.5, {'x': 'é\u2028'}]}
  text = terminal.as_json(row, encoding=encoding, indent=2)
  assert json.loads(text.encode(encoding)) == row
  assert all(c == '\n' or plain(c) == c for c in text)
  assert ('张' in text) == (encoding == 'utf-8')


def test_home_is_expanded_after_the_equals_sign(monkeypatch, capsys, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  given = ['--out=~/p', '--a=~/x,~/y', '--b=a~', '~/c', '--d', '~', '--e=~no/z']
  home = str(tmp_path)
  assert terminal.expand_home(given) == [
    f'--out={home}/p', f'--a={home}/x,{home}/y', *given[2:],
  ]  # fmt: skip
  monkeypatch.chdir(tmp_path)
  assert cli.main(['datasets', '--data-dir=~/data']) == ExitCode.OK
  assert list(tmp_path.iterdir()) == []


def test_a_user_without_home_has_a_cache(monkeypatch, capsys):
  def unknown(_):
    raise KeyError

  for name in ('HOME', 'XDG_CACHE_HOME'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(pwd, 'getpwuid', unknown)
  folder = files.cache()
  assert folder == files.cache()
  assert folder.stat().st_mode & 0o777 == 0o700
  assert capsys.readouterr().err.count('\n') == 1


# ----- processes --------------------------------------------------------------


def start(program: str, stdout=subprocess.PIPE) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, '-c', program], stdout=stdout, stderr=subprocess.PIPE,
    env=os.environ | {'PYTHONPATH': str(ROOT)}, text=True,
  )  # fmt: skip


_IMPORTS = """
from mira_jax import terminal
terminal.leave_on_interrupt('mira')
import time
print('now', flush=True)
time.sleep(60)
"""
_LOST = """
import sys, time
from mira_jax import terminal
import gc
def wait(*_):
  print('now', flush=True)
  time.sleep(1)
def command():
  {}
  time.sleep(60)
sys.exit(terminal.run('mira', command))
"""
_SWALLOWED = """
  try:
    wait()
  except BaseException as error:
    raise ImportError('x') from error
"""


@pytest.mark.parametrize(
  'program',
  [
    _IMPORTS,
    _LOST.format('gc.callbacks.append(wait); gc.collect()'),
    _LOST.format(_SWALLOWED.strip()),
  ],
  ids=['import', 'collector', 'swallowed'],
)
def test_one_interrupt_is_enough(program):
  process = start(program)
  assert process.stdout.readline() == 'now\n'
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=20)
  assert process.returncode == terminal.INTERRUPTED
  assert err == 'mira: interrupted\n'


def test_an_interrupt_that_was_swallowed_is_found(monkeypatch):
  def command():
    try:
      signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
      terminal.check()

  before = signal.getsignal(signal.SIGINT)
  assert terminal.run('mira', command) == terminal.INTERRUPTED
  assert signal.getsignal(signal.SIGINT) is before


_DATASETS = """
import sys
from mira_jax.cli import main as cli
sys.exit(cli.main(['datasets']))
"""


def test_a_reader_may_leave():
  end, other = os.pipe()
  os.close(end)
  process = start(_DATASETS, stdout=other)
  os.close(other)
  assert process.communicate(timeout=60)[1] == ''
  assert process.returncode == ExitCode.OK


def test_streams_may_be_closed():
  done = subprocess.run(
    ['sh', '-c', 'exec "$0" -c "$1" >&- 2>&-', sys.executable, _DATASETS],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    timeout=60,
  )
  assert (done.returncode, done.stdout, done.stderr) == (ExitCode.OK, b'', b'')


def test_a_cache_keeps_what_was_used_last(tmp_path):
  for i in range(4):
    path = tmp_path / f'{i}-cache'
    path.write_bytes(bytes(100))
    os.utime(path, (1000 + i, 1000))
  (tmp_path / 'notes').write_bytes(bytes(1000))
  files.keep_newest(tmp_path, '*-cache', 250)
  assert {x.name for x in tmp_path.iterdir()} == {'2-cache', '3-cache', 'notes'}
  files.keep_newest(tmp_path / 'missing', '*', 0)


def test_long_paths_are_cut_in_the_middle(monkeypatch):
  monkeypatch.setenv('COLUMNS', '40')
  path = '/data/' + 'x' * 90 + '/clip_0001.mp4'
  text = terminal.shortened(path)
  assert len(text) <= 40
  assert text.startswith('/data/')
  assert text.endswith('clip_0001.mp4')
  assert '…' in text
  assert terminal.shortened('short.mp4') == 'short.mp4'
