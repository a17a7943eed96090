"""A small model and a folder of clips, for `mira predict`."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mira_jax.mira import MiraConfig
from small_models import save_model
from videos import make_video


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp('model') / 'weights.safetensors'
  return save_model(path, MiraConfig(), depth=1)


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
  """Two videos and a folder of frames, with other files between."""
  root = tmp_path_factory.mktemp('tree')
  (root / 'b' / 'deep').mkdir(parents=True)
  make_video(root / 'a.mp4')
  make_video(root / 'b' / 'c.mkv')
  (root / 'b' / 'notes.txt').write_text('no clip')
  (root / '.hidden.mp4').write_text('no clip')
  frames = root / 'b' / 'deep' / 'frames'
  frames.mkdir()
  for i in range(20):
    cv2.imwrite(str(frames / f'{i:03}.png'), np.full((48, 48, 3), 12 * i))
  return root
