"""Runs of `mira predict`, and faces for it."""

from __future__ import annotations

from mira_jax.cli import main as cli
from mira_jax.errors import ExitCode
from mira_jax.synthetic import faces


def predict(capsys, *args, fails=False):
  """Output and errors of a run without pictures."""
  code = cli.main(['predict', *map(str, args), '--no-picture'])
  out, err = capsys.readouterr()
  assert code == (ExitCode.USAGE if fails else ExitCode.OK), err
  return out, err


def face(index, size=64, count=16):
  """A synthetic clip, uint8 [count, size, size, 3]."""
  options = {'size': size, 'num_frames': count, 'difficulty': 'macro'}
  return faces.draw_clip(index, split='test', seed=0, **options).frames
