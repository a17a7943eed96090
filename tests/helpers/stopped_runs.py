"""Runs that are stopped or killed, and what must be the same afterwards."""

from __future__ import annotations

import io
import os
import signal

import jax
import numpy as np
import pytest

from mira_jax.errors import ExitCode
from mira_jax.train import checkpoint_reader, log, loop
from mira_jax.weights import weights_file


def rows(folder):
  """The rows of a log without their times."""
  return [
    {n: x for n, x in row.items() if n not in log.CLOCK}
    for row in log.read(folder)
  ]


def assert_same_weights(folder, other):
  for name in (weights_file.WEIGHTS, weights_file.LAST):
    (a, first), (b, second) = (
      weights_file.load_weights(path / name) for path in (folder, other)
    )
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert first == second


def assert_same(folder, other):
  """That two runs left the same behind, bit by bit."""
  assert_same_weights(folder, other)
  assert rows(folder) == rows(other)
  for name in ('eval_history.jsonl', 'outcome.json'):
    assert (folder / name).read_text() == (other / name).read_text()


class StopAfter(io.StringIO):
  """A standard output that sends SIGTERM when a line begins so."""

  def __init__(self, line: str):
    super().__init__()
    self._line = line

  def write(self, text: str) -> int:
    if text.startswith(self._line):
      self._line = 'never again'
      os.kill(os.getpid(), signal.SIGTERM)
    return super().write(text)


def train_until(monkeypatch, cfg, folder, step, *, total='', part=''):
  """Sends SIGTERM after a step, of the training in a `part` of the folder."""
  with monkeypatch.context() as patch:
    patch.setattr('sys.stdout', StopAfter(f'step {step}/{total}'))
    with pytest.raises(SystemExit) as stopped:
      loop.train(cfg, folder)
  assert stopped.value.code == ExitCode.PREEMPTED
  saved = checkpoint_reader.steps(folder / part / 'checkpoints')
  assert saved[-1] == step


class Killed(BaseException):
  """Ends a run as SIGKILL does: nothing of it is written afterwards."""
