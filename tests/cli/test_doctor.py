"""`mira doctor`, completion, and the list of commands."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from mira_jax import files
from mira_jax.cli import main
from mira_jax.cli.main import COMMANDS
from mira_jax.errors import ExitCode


def test_a_healthy_machine(capsys):
  assert main.main(['doctor', '--json', '--attention=reference']) == 0
  found = json.loads(capsys.readouterr().out)
  assert found['problems'] == []
  assert re.match(r'\d+\.\d+', found['versions']['jax'])
  assert found['codecs']['h264'] == 'read'
  assert any('exact' in name for name in found['attention'])
  assert main.main(['doctor', '--attention=reference']) == 0
  assert 'no problem found' in capsys.readouterr().out


def test_a_cache_without_room_is_a_problem(capsys, monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr('mira_jax.cli.doctor._LEAST', 1 << 60)
  assert main.main(['doctor', '--attention=reference']) == ExitCode.USAGE
  out = capsys.readouterr().out
  assert f'problem: little room in {files.cache()}' in out


def test_every_command_is_in_a_group(capsys):
  with pytest.raises(SystemExit, match='0'):
    main.main(['--help'])
  lines = capsys.readouterr().out.splitlines()
  named = {line.split()[0] for line in lines if line.startswith('  ')}
  assert {*COMMANDS} <= named


def test_a_completion_script_has_all_commands_and_flags(capsys):
  assert main.main(['completion', 'bash']) == ExitCode.OK
  script = capsys.readouterr().out
  subprocess.run(['bash', '-n'], input=script, text=True, check=True)
  for word in (*COMMANDS, '--crop-face', '--publish-safe'):
    assert word in script
