"""Stored clips, and runs of `mira prepare` that are interrupted."""

from __future__ import annotations

import fcntl
import os
import pathlib
import signal
import time

import cv2
import numpy as np
import pytest

import miniatures
import runs
from downloads import error_of
from mira_jax.data import dataset, records
from mira_jax.errors import ExitCode
from mira_jax.prepare import prepare, store, verify
from mira_jax.prepare.journal import Journal
from mira_jax.video import decode, geometry, images


def _clip(folder: pathlib.Path, number: int = 0, suffix: str = '.jpg') -> None:
  miniatures.images(folder, miniatures.face(number), f'{{}}{suffix}'.format)


def _tree(root: pathlib.Path, count: int = 4, suffix: str = '.jpg'):
  for i in range(count):
    _clip(root / 'ab'[i % 2] / str(i), i % 7, suffix)
  return root


def _report(root, out, **options):
  settings = {'workers': 0, 'test_fraction': 0} | options
  return prepare.prepare_folder(root, out, **settings)


def _prepare(root, out, **options) -> list[dataset.Clip]:
  _report(root, out, **options)
  return list(dataset.open(out).source('train'))


# Frames.


def test_jpeg_files_that_need_no_change_are_kept_as_they_are(tmp_path):
  root = _tree(tmp_path / 'root')
  clips = _prepare(root, tmp_path / 'out')
  for clip in clips:
    files = images.frame_files(root / clip.clip_id)
    assert clip.frames == [file.read_bytes() for file in files]
  small = _prepare(root, tmp_path / 'small', size=32)
  assert images.decode_jpeg(small[0].frames[0]).shape == (32, 32, 3)


def _small(root: pathlib.Path, suffix: str, size: int = 48) -> pathlib.Path:
  frames = miniatures.face(0, size)
  miniatures.images(root / 'a/1', frames, f'{{}}{suffix}'.format)
  return root


def _frames(clip: dataset.Clip) -> np.ndarray:
  found = records.read_frames(clip, range(len(clip)))
  return np.stack([found[i] for i in range(len(clip))])


@pytest.mark.parametrize('suffix', ['.png', '.bmp'])
def test_small_lossless_frames_stay_lossless(tmp_path, suffix):
  root = _small(tmp_path / 'root', suffix)
  report = _report(root, tmp_path / 'out')
  form = {'.png': 'png, kept', '.bmp': 'bmp -> png'}[suffix]
  assert f'frames: 10 a clip; {form} (1 clips)' in str(report).split('\n')
  (clip,) = dataset.open(tmp_path / 'out').source('train')
  np.testing.assert_array_equal(_frames(clip), miniatures.face(0, 48))
  if suffix == '.png':
    files = images.frame_files(root / clip.clip_id)
    assert clip.frames == [file.read_bytes() for file in files]
  assert verify.verify(dataset.open(tmp_path / 'out'), 0).problems == []
  (clip,) = _prepare(root, tmp_path / 'half', size=24)
  expected = [geometry.resize(f, 24) for f in miniatures.face(0, 48)]
  np.testing.assert_array_equal(_frames(clip), expected)
  (clip,) = _prepare(root, tmp_path / 'crop', crop='center')
  np.testing.assert_array_equal(_frames(clip), miniatures.face(0, 48))


@pytest.mark.parametrize(
  ('suffix', 'size', 'options', 'form'),
  [
    ('.png', 192, {}, 'png -> jpeg, quality 95'),
    ('.png', 48, {'format': 'jpeg', 'quality': 80}, 'png -> jpeg, quality 80'),
    ('.png', 192, {'format': 'png'}, 'png, kept'),
    ('.jpg', 48, {'format': 'png'}, 'jpeg, kept'),
    ('.jpg', 48, {'size': 24}, 'jpeg -> jpeg, quality 95'),
  ],
)
def test_the_form_of_frames_is_chosen_and_shown(
  tmp_path, suffix, size, options, form
):
  root = _small(tmp_path / 'root', suffix, size)
  report = _report(root, tmp_path / 'out', **options)
  assert report.frames == {form: 1}
  (clip,) = dataset.open(tmp_path / 'out').source('train')
  stored = 'png' if form == 'png, kept' else 'jpeg'
  assert {images.kind_of(data) for data in clip.frames} == {stored}


def test_forms_are_counted_where_clips_differ(tmp_path):
  root = _small(tmp_path / 'root', '.png')
  miniatures.video(root / 'a/2.mp4', miniatures.face(1, 48)[:4])
  lines = str(_report(root, tmp_path / 'out')).split('\n')
  expected = 'frames: 4 to 10 a clip, median 7; png, kept (1 clips); '
  assert f'{expected}video -> jpeg, quality 95 (1 clips)' in lines
  assert error_of(_report, root, tmp_path, format='webp').code == 'bad_value'


def test_frames_that_are_cut_off_or_of_another_size(tmp_path):
  """OpenCV would fill a cut one with gray and not say so."""
  root = _tree(tmp_path / 'root', 2)
  cut = root / 'a/0/5.jpg'
  cut.write_bytes(cut.read_bytes()[:-200])
  large = cv2.resize(miniatures.face(3)[0], (150, 120))
  (root / 'a/0/4.jpg').write_bytes(images.encode_jpeg(large))
  report = _report(root, tmp_path / 'out')
  assert report.flags == {'partial': 1}
  clip = dataset.open(tmp_path / 'out').source('train')[0]
  assert len(clip) == miniatures.FRAMES - 1
  shapes = {images.decode_jpeg(frame).shape for frame in clip.frames}
  assert shapes == {(96, 96, 3)}  # that of the first


# Crops.


def test_faces_are_cropped_and_clips_without_one_are_left_out(tmp_path):
  root = tmp_path / 'root'
  miniatures.images(root / 'a/face', miniatures.scene(0))
  miniatures.images(root / 'a/black', 0 * miniatures.scene(0))
  report = _report(root, tmp_path / 'out', crop='haar')
  assert [(f.path, f.code) for f in report.failures] == [('a/black', 'no_face')]
  clip = dataset.open(tmp_path / 'out').source('train')[0]
  height, width, _ = images.decode_jpeg(clip.frames[0]).shape
  assert 80 <= height == width <= 180


def test_a_table_of_boxes_says_where_faces_are(tmp_path):
  root = tmp_path / 'root'
  for name in ('1', '2', '3'):
    miniatures.images(root / 'a' / name, miniatures.scene(0), '{}.png'.format)
  table = tmp_path / 'boxes.csv'
  table.write_text('clip,x,y,w,h\n./a\\1,150,40,128,128\na/2,900,0,5,5\n')
  report = _report(root, tmp_path / 'out', boxes=table)
  assert {f.path: f.code for f in report.failures} == {
    'a/2': 'no_face',
    'a/3': 'no_face',
  }
  frame = images.decode_jpeg(
    dataset.open(tmp_path / 'out').source('train')[0].frames[0]
  )
  assert np.abs(frame.astype(int) - miniatures.face(0, 128)[0]).mean() < 3


# Time.


def test_a_decoder_that_never_ends_is_stopped(tmp_path, monkeypatch):
  def for_ever(*args, **kwargs):
    while True:
      time.sleep(0.01)

  miniatures.video(tmp_path / 'root/a/1.mp4', miniatures.face(0))
  _clip(tmp_path / 'root/a/2')
  monkeypatch.setattr(store, 'MAX_SECONDS', 0.2)
  monkeypatch.setattr(decode, 'read_clip', for_ever)
  report = _report(tmp_path / 'root', tmp_path / 'out')
  assert [(f.path, f.code) for f in report.failures] == [
    ('a/1.mp4', 'too_slow')
  ]
  assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


# The journal.


def _journal(path, key='key', *entries: bytes) -> list[bytes]:
  """Appends entries to a journal; gives all that it then has."""
  with Journal(path, key) as journal:
    for data in entries:
      journal.append(data)
    return [journal[i] for i in range(len(journal))]


def test_a_journal_is_read_again(tmp_path):
  _journal(tmp_path / 'j', 'key', b'one', b'')
  assert _journal(tmp_path / 'j', 'key', b'3') == [b'one', b'', b'3']
  with Journal(tmp_path / 'j', 'key') as journal:
    assert [journal.is_empty(i) for i in range(3)] == [False, True, False]
  assert _journal(tmp_path / 'j', 'other') == []  # of other work
  with Journal(tmp_path / 'j', 'key') as journal:
    journal.remove()
  assert not (tmp_path / 'j').exists()


@pytest.mark.parametrize('cut', [1, 10])
def test_a_torn_or_damaged_entry_is_cut_off(tmp_path, cut):
  _journal(tmp_path / 'j', 'key', b'first', b'second')
  data = (tmp_path / 'j').read_bytes()
  damaged = data[:-cut] + bytes([data[-cut] ^ 1]) + data[1 - cut :]
  for left in (data[:-cut], damaged[: len(data)]):
    (tmp_path / 'j').write_bytes(left)
    assert _journal(tmp_path / 'j', 'key') == [b'first']
    assert _journal(tmp_path / 'j', 'key', b'again') == [b'first', b'again']
    assert _journal(tmp_path / 'j') == [b'first', b'again']


# Runs that are stopped.


def test_clips_that_failed_are_tried_again(tmp_path, monkeypatch):
  root = _tree(tmp_path / 'root')
  whole = (root / 'a/0/1.jpg').read_bytes()
  for file in (root / 'a/0').iterdir():
    file.write_bytes(b'')
  write = dataset.write
  monkeypatch.setattr(dataset, 'write', _stops_at_the_end)
  with pytest.raises(KeyboardInterrupt):
    _prepare(root, tmp_path / 'out')
  monkeypatch.setattr(dataset, 'write', write)
  (root / 'a/0/1.jpg').write_bytes(whole)
  assert len(_prepare(root, tmp_path / 'out')) == 4


def _stops_at_the_end(out, splits, **_):
  for clips in splits.values():
    list(clips())
  raise KeyboardInterrupt


def test_two_at_once_are_refused(tmp_path):
  root = _tree(tmp_path / 'root')
  (tmp_path / 'out').mkdir()
  with (tmp_path / 'out' / '.prepare.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    error = error_of(_prepare, root, tmp_path / 'out')
  assert (error.code, error.exit_code) == ('locked', ExitCode.DATA)


def test_a_full_disk_is_an_error_and_a_second_run_resumes(tmp_path):
  root = _tree(tmp_path / 'root', 40, '.png')
  with runs.file_limit(300_000):
    error = error_of(_prepare, root, tmp_path / 'out', format='jpeg')
  assert (error.code, error.exit_code) == ('not_written', ExitCode.NOT_WRITTEN)
  assert error_of(dataset.open, tmp_path / 'out').code == 'not_a_dataset'
  report = _report(root, tmp_path / 'out', format='jpeg')
  assert 0 < report.resumed < 40
  assert f'{report.resumed} clips were finished before' in str(report)
  clips = list(dataset.open(tmp_path / 'out').source('train'))
  assert clips == _prepare(root, tmp_path / 'undisturbed', format='jpeg')
  assert not (tmp_path / 'out' / '.journal').exists()


def test_a_dataset_that_is_there_is_refused_before_any_work(tmp_path):
  root = _tree(tmp_path / 'root')
  _prepare(root, tmp_path / 'out')
  for file in (root / 'a/0').iterdir():
    os.truncate(file, 0)
  assert error_of(_prepare, root, tmp_path / 'out').code == 'exists'
  assert not (tmp_path / 'out' / '.journal').exists()


# Verification.


def test_every_kind_of_damage_is_found(tmp_path):
  whole = _prepare(_tree(tmp_path / 'root', 2), tmp_path / 'first')[0]

  def clip(**changes) -> dataset.Clip:
    fields = {f: getattr(whole, f) for f in whole.__dataclass_fields__}
    return dataset.Clip(**fields | changes)

  frames = whole.frames
  small = images.encode_jpeg(miniatures.face(0, 32)[0])
  clips = [
    clip(clip_id='ok'),
    clip(clip_id='cut', frames=[frames[0][:-99], *frames[1:]]),
    clip(clip_id='sizes', frames=[*frames[1:], small]),
    clip(clip_id='none', frames=[]),
    clip(clip_id='mark', apex=10),
    clip(clip_id='video', frames=[], video=b'\0' * 99, video_frames=3),
    clip(clip_id='twice'),
    clip(clip_id='twice'),
  ]
  dataset.write(
    tmp_path / 'out',
    name='toy',
    class_names=['a', 'b'],
    splits={'train': lambda: clips},
    description='',
  )
  prepared = dataset.open(tmp_path / 'out')
  assert verify.verify(prepared, 0).problems == [
    'train[1] cut: frames [0] are damaged, 1 in all',
    'train[2] sizes: its frames have 2 sizes',
    'train[3] none: it has no frames',
    'train[4] mark: apex 10 of 10 frames',
    'train[5] video: no video format fits it; copy it again',
    'twice is stored 2 times, in train',
  ]
  records = next(prepared.directory.glob('*.array_record*'))
  data = bytearray(records.read_bytes())
  data[5000] ^= 0xFF
  records.write_bytes(data)
  assert 'prepare it again' in verify.verify(prepared, 0).problems[0]
  index = prepared.directory / dataset.INDEX
  index.write_text(index.read_text().replace('"mark"', '"park"'))
  texts = ' '.join(verify.verify(prepared, 0).problems)
  assert 'mark: apex 10 of 10 frames' in texts
  assert 'the index differs' in texts
