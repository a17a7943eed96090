"""`--json`: the result of a command as one document, all else elsewhere."""

from __future__ import annotations

import json

import pytest

import runs
from mira_jax.cli import main


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('json')
  clips = list(runs.clips('train', 24))
  tests = list(runs.clips('test', 9))
  return runs.write(folder, 'levels', ('a', 'b', 'c'), train=clips, test=tests)


def result(capsys, *args):
  assert main.main([*map(str, args), '--json']) == 0
  out, err = capsys.readouterr()
  return json.loads(out), err


def test_lists(capsys):
  found, err = result(capsys, 'configs')
  assert 'quickstart' in found
  assert 'files:' in err
  found, _ = result(capsys, 'datasets')
  assert {'name', 'clips', 'classes', 'protocol', 'licence'} == {
    *found['known'][0]
  }


def test_a_dataset_and_its_baseline(capsys, folder):
  found, err = result(capsys, 'verify', folder, '--workers=0')
  assert found['clips'] == {'train': 24, 'test': 9}
  assert found['problems'] == []
  assert 'no problem found' in err
  found, err = result(capsys, 'baseline', folder)
  assert found['pooled']['clips'] == 9
  assert found['features'] == 'hog'
  assert 'linear SVM' in err


def test_a_preparation(capsys, tmp_path):
  sizes = ('--train-clips=7', '--test-clips=7', '--size=16')
  out = tmp_path / 'faces'
  found, _ = result(
    capsys, 'prepare', 'synthetic_faces', f'--out={out}', *sizes
  )
  assert found['dataset'].startswith(str(out))


def test_without_it_nothing_changes(capsys):
  assert main.main(['configs']) == 0
  out, err = capsys.readouterr()
  assert 'quickstart' in out
  assert err == ''
