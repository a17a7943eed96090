"""Faces in `mira prepare`: cut out, or reported where there are none."""

from __future__ import annotations

import json
import types

import cv2
import numpy as np
import pytest

import miniatures
import yunet_file
from downloads import error_of
from mira_jax.cli import main as cli
from mira_jax.data import dataset, records
from mira_jax.prepare import prepare
from mira_jax.video import face_crop


def _tree(tmp_path, suffix: str = '.jpg'):
  """A clip with a drawn face, and one with shapes."""
  root, name = tmp_path / 'root', f'{{}}{suffix}'.format
  miniatures.images(root / 'a/face', miniatures.face(0), name)
  shapes = np.full_like(miniatures.face(0), 90)
  shapes[:, 20:40, 30:80] = (250, 10, 90)
  miniatures.images(root / 'a/shapes', shapes, name)
  return root


def _prepare(root, out, **options):
  settings = {'workers': 0, 'test_fraction': 0} | options
  return prepare.prepare_folder(root, out, **settings)


@pytest.mark.parametrize('suffix', ['.jpg', '.bmp'])
def test_clips_that_show_no_face_are_flagged_and_kept(tmp_path, suffix):
  root = _tree(tmp_path, suffix)
  report = _prepare(root, tmp_path / 'out', check_faces=True)
  assert (report.flags, report.no_face) == ({'no_face': 1}, ['a/shapes'])
  assert '1 clips show no face that is found: a/shapes; ' in str(report)
  saved = json.loads((tmp_path / 'out' / prepare.REPORT_NAME).read_text())
  assert saved['no_face'] == ['a/shapes']
  assert dataset.open(tmp_path / 'out').splits == {'train': 2}
  assert _prepare(root, tmp_path / 'unchecked').flags == {}


def test_a_missing_detector_is_no_fault_of_the_clips(tmp_path, monkeypatch):
  monkeypatch.setattr(cv2, 'data', types.SimpleNamespace())
  face_crop._cascade.cache_clear()
  root, out = _tree(tmp_path), tmp_path / 'out'
  error = error_of(_prepare, root, out, check_faces=True)
  assert error.code == 'no_cascade'
  assert len(_prepare(root, out).failures) == 0


def test_the_command_checks_folders_unless_told_otherwise(tmp_path, capsys):
  root = str(_tree(tmp_path))
  for out, more in (('a', []), ('b', ['--no-check-faces'])):
    flags = [f'--root={root}', f'--out={tmp_path / out}', '--workers=0', *more]
    assert cli.main(['prepare', 'folder', *flags]) == 0
    assert ('show no face' in capsys.readouterr().out) == (not more)


def test_yunet_cuts_out_what_its_model_finds(tmp_path):
  model = yunet_file.write(tmp_path / 'yunet.onnx')
  frames = np.full((8, 320, 640, 3), 40, np.uint8)
  miniatures.images(tmp_path / 'root/a/none', frames, '{}.png'.format)
  frames[:, 64:96, 96:128] = 255
  miniatures.images(tmp_path / 'root/a/white', frames, '{}.png'.format)
  options = {'face_model': model, 'workers': 1, 'format': 'png'}
  report = _prepare(tmp_path / 'root', tmp_path / 'out', **options)
  assert [(f.path, f.code) for f in report.failures] == [('a/none', 'no_face')]
  assert report.crop == 'yunet'
  made = dataset.open(tmp_path / 'out')
  assert len(made.metadata['face_model']) == 64  # its SHA-256
  frame = records.read_frames(made.source('train')[0], [3])[3]
  np.testing.assert_array_equal(frame, frames[3, 38:121, 70:153])
  checked = {'check_faces': True, 'crop': 'none', 'face_model': model}
  report = _prepare(tmp_path / 'root', tmp_path / 'checked', **checked)
  assert report.no_face == ['a/none']


@pytest.mark.parametrize(
  ('options', 'code', 'hint'),
  [
    ({'crop': 'yunet'}, 'bad_crop', '--face-model FILE'),
    ({'crop': 'haar', 'face_model': 'x'}, 'bad_crop', '--crop=yunet'),
    ({'face_model': 'x'}, 'not_found', 'opencv_zoo'),
    ({'crop': 'face'}, 'bad_crop', 'none, center, haar, yunet, boxes'),
    ({'crop': 'boxes'}, 'bad_crop', '--boxes'),
  ],
)
def test_a_crop_that_cannot_be_is_one_error(tmp_path, options, code, hint):
  root = _tree(tmp_path)
  error = error_of(_prepare, root, tmp_path / 'out', **options)
  assert (error.code, hint in error.hint) == (code, True)
  assert not (tmp_path / 'out').exists()
