"""One run that most tests of training start from."""

from __future__ import annotations

import shutil

import pytest

import runs
from mira_jax.train import loop, run_folder


@pytest.fixture(scope='session')
def data(tmp_path_factory):
  return runs.levels(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='session')
def whole(tmp_path_factory, data, caching):
  """A finished run that nothing disturbed, to read."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  with caching():
    loop.train(runs.tiny(data), run_folder.open_workdir(str(folder)))
  return folder


@pytest.fixture
def run(whole, tmp_path):
  """A copy of it, to change."""
  return shutil.copytree(whole, tmp_path / 'run')
