"""Files that older versions wrote resume, score, predict and read.

Each folder beside this file is named after a version; write.py made it.
"""

from __future__ import annotations

import copy
import pathlib
import shutil

import numpy as np
import pytest

from mira_jax import config
from mira_jax.data import dataset, pool, records
from mira_jax.errors import MiraInputError
from mira_jax.inference import exported, load
from mira_jax.train import log as runlog
from mira_jax.train import loop, run_folder, snapshot

VERSIONS = sorted(pathlib.Path(__file__).parent.glob('*/run'))
TOTAL = 8  # steps of the stored run, which was stopped after the third


@pytest.fixture(params=VERSIONS, ids=lambda path: path.parent.name)
def stored(request, tmp_path, monkeypatch):
  """A copy of the files of a version, with its paths."""
  folder = shutil.copytree(request.param.parent, tmp_path / 'stored')
  monkeypatch.chdir(folder)
  return folder


def test_a_run_resumes(stored):
  cfg = run_folder.read_config(pathlib.Path('run'))
  loop.train(cfg, pathlib.Path('run'))
  rows = runlog.read(stored / 'run')
  steps = [row['step'] for row in rows if 'loss' in row]
  assert steps == list(range(1, TOTAL + 1))
  assert (stored / 'run' / 'weights.safetensors').is_file()


def test_a_run_keeps_its_folds_and_validation_clips(stored):
  run, default = pathlib.Path('run'), config.DataConfig()
  cfg = run_folder.read_config(run)
  assert (cfg.data.fold_rule, cfg.data.fold_seed) == ('even', cfg.seed)
  # The same flags, as this version reads them.
  cfg.data.fold_rule, cfg.data.fold_seed = default.fold_rule, default.fold_seed
  asked = copy.deepcopy(cfg)
  asked.data.fold_seed = 1
  with pytest.raises(MiraInputError, match=r"data\.fold_rule 'even', not"):
    loop.train(asked, run)
  loop.train(cfg, run)
  assert run_folder.read_config(run).data.fold_rule == 'even'
  asked.data.fold_seed = 0
  loop.train(asked, run)  # it is finished


def test_a_checkpoint_is_scored(stored):
  scorer, metadata = snapshot.load(stored / 'run', 'newest')
  assert (metadata['step'], metadata['class_names']) == (3, ['dark', 'bright'])
  video = np.load('expected.npz')['video']
  assert np.isfinite(scorer.probabilities(video)).all()


def test_weights_and_an_export_predict_what_they_did(stored):
  expected = np.load('expected.npz')
  scorer, metadata = load.load_engine('weights.safetensors')
  assert metadata['class_names'] == ['dark', 'bright']
  program = exported.load('export')
  for one in (scorer, program):
    found = one.probabilities(expected['video'])
    np.testing.assert_allclose(found, expected['probabilities'], atol=1e-5)
  assert exported.verify(stored / 'export') < 1e-5


def test_a_prepared_dataset_is_read(stored):
  made = dataset.open('prepared')
  assert made.splits == {'train': 24, 'test': 6}
  assert made.class_names == ('dark', 'bright')
  source = made.source('train')
  clips = [source[i] for i in range(len(source))]
  assert [clip.label for clip in clips] == [i % 2 for i in range(24)]
  assert [clip.fold for clip in clips] == [i % 3 for i in range(24)]
  assert {len(clip.frames) for clip in clips} == {6}
  assert all(clip.subject for clip in clips)
  assert made.action_units == ()
  assert {clip.intensities.shape for clip in clips} == {(0, 0)}
  lengths = pool.of_dataset(made, ['train']).num_frames
  assert {*lengths.tolist()} <= {0, 6}  # 0.1.0 did not index them


def test_lossless_frames_are_read(stored):
  made = dataset.open('prepared_png')
  assert pool.of_dataset(made, ['train']).num_frames.tolist() == [6] * 6
  rng = np.random.default_rng(0)
  for i, clip in enumerate(made.source('train')):
    noise = rng.normal((70, 180)[i % 2], 20, (6, 16, 16, 3))
    frames = records.read_frames(clip, range(6))
    expected = np.clip(noise, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal([frames[j] for j in range(6)], expected)
