"""The bench of a GPU's first hour, dry: on a CPU, with tiny shapes."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from bench import card
from bench.card_parts import counters

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_a_dry_run_comes_through_every_part(tmp_path):
  out = tmp_path / 'card'
  command = [sys.executable, str(ROOT / 'bench' / 'card.py'), f'--out={out}']
  done = subprocess.run(
    [*command, '--interpret', '--budget=900'],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  found = json.loads((out / 'card.json').read_text())
  assert done.returncode == 0, done.stdout
  assert done.stdout.endswith((out / 'card.md').read_text())
  parts = {part['part']: part['status'] for part in found['parts']}
  assert parts == {part.name: 'done' for part in card.PARTS}
  assert {row['part'] for row in found['rows']} == set(parts)
  assert {row['status'] for row in found['rows']} == {'ok', 'missing'}
  missing = {x['part'] for x in found['rows'] if x['status'] == 'missing'}
  assert missing <= {'card', 'peers', 'ncu'}


@pytest.mark.slow
def test_what_hangs_or_crashes_costs_itself_alone(tmp_path, capsys):
  parts = [
    card.Part('card', limit=6, expected=1),
    card.Part('smoke', limit=2, expected=1),
    card.Part('repeat', limit=6, expected=1),
    card.Part('ours', limit=6, expected=1000),
  ]
  faults = ['crash:versions', 'hang:attend 1x104x1x16']
  code = card.run(tmp_path, 300, parts, interpret=True, faults=faults)
  assert code == 1
  found = json.loads((tmp_path / 'card.json').read_text())
  statuses = [(x['part'], x['status']) for x in found['parts']]
  assert statuses == [
    ('card', 'done'),
    ('smoke', 'killed'),
    ('repeat', 'done'),
    ('ours', 'not started'),
  ]
  rows = [(x['part'], x['name'], x['status']) for x in found['rows']]
  assert rows[1:] == [  # without nvidia-smi's
    ('card', 'versions', 'crashed'),
    ('card', 'copy', 'ok'),
    ('card', 'product', 'ok'),
    ('smoke', 'attend 1x104x1x16', 'hung'),
    ('repeat', 'attend, decoder', 'skipped'),
    ('repeat', 'attend_backward, bias too, decoder', 'ok'),
  ]
  assert 'attend 1x104x1x16 | hung' in capsys.readouterr().out


def test_a_budget_too_small_for_its_parts_fails(tmp_path):
  assert card.run(tmp_path, 1, card.PARTS, interpret=True) == 1
  found = json.loads((tmp_path / 'card.json').read_text())
  assert {x['status'] for x in found['parts']} == {'not started'}


def test_counters_of_a_kernel_are_one_row():
  """The CSV of Nsight Compute, after its own lines."""
  text = """==PROF== Connected to process 1
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","1","mira_attend","gpu__time_duration.sum","ns","480,000"
"0","1","mira_attend","dram__bytes_read.sum","byte","154,000,000"
"1","1","mira_dq","gpu__time_duration.sum","ns","n/a"
"""
  assert counters.counters(text) == [
    {
      'kernel': 'mira_attend',
      'gpu__time_duration.sum ns': 480000,
      'dram__bytes_read.sum byte': 154000000,
    },
    {'kernel': 'mira_dq', 'gpu__time_duration.sum ns': 'n/a'},
  ]
