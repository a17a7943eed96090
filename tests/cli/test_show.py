"""`mira show`: as many frames as a clip has."""

from __future__ import annotations

import numpy as np

import miniatures
from mira_jax.cli import main as cli
from mira_jax.prepare import prepare


def test_frames_are_drawn_once_each(tmp_path, capsys):
  for name, count in (('a/1', 3), ('a/2', 1), ('b/3', 3)):
    frames = miniatures.face(0, 48)[:count]
    miniatures.images(tmp_path / 'root' / name, frames, '{}.png'.format)
  root, out = tmp_path / 'root', tmp_path / 'out'
  prepare.prepare_folder(root, out, workers=0, test_fraction=0)
  sheet = tmp_path / 'sheet.png'
  assert cli.main(['show', str(out), f'--out={sheet}']) == 0
  assert 'train 3' in capsys.readouterr().out
  arrays = np.load(tmp_path / 'sheet.npz')
  edge = 1
  widths = [arrays[f'clip_{i:03d}'].shape[1] for i in range(3)]
  assert widths == [3 * 48 + 2 * edge, 48, 3 * 48 + 2 * edge]
  assert sheet.stat().st_size > 5_000
