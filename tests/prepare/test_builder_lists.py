"""Datasets that come with lists of clips: DFEW, MAFW, FERV39k."""

from __future__ import annotations

import pathlib
import shutil

import pytest

import downloads as small
from downloads import error_of, list_clips, prepare_small, rows_of
from mira_jax.errors import ExitCode
from mira_jax.prepare.builders import BUILDERS


@pytest.fixture(scope='module')
def downloads(tmp_path_factory) -> pathlib.Path:
  """Miniatures, each in a folder of its name; read only."""
  root = tmp_path_factory.mktemp('downloads')
  return small.make(root, 'dfew', 'mafw', 'ferv39k')


@pytest.fixture
def copy(downloads, tmp_path):
  """Gives `copy(name)`: a miniature of one's own."""
  return lambda name: shutil.copytree(downloads / name, tmp_path / name)


# DFEW.


def test_dfew_folds_classes_and_sources(downloads, tmp_path):
  rows = rows_of('dfew', downloads / 'dfew')
  assert rows['01600'].label == 'Surprise'  # 1600 % 7 + 1 is code 5
  assert {row.fold for row in rows.values()} == {1, 2, 3, 4, 5}
  for clip, row in rows.items():
    assert row.fold == int(clip) % 5 + 1
    assert row.split == ('test' if row.fold == 1 else 'train')
  videos = rows_of('dfew', downloads / 'dfew', frames='original')
  assert videos['01601'].path.endswith('original/part_2/1601.mp4')
  report, prepared = prepare_small(
    'dfew', downloads / 'dfew', tmp_path, choices={'frames': '16f'}
  )
  assert prepared.name == 'dfew_16f'
  assert 'fold 1 is the test split' in str(report)
  assert report.published == {}  # the published counts are of another choice


def test_dfew_lists_as_other_copies_have_them(copy):
  """Names of lists, class names, padded ids, semicolons and a BOM."""
  root = copy('dfew')
  expected = {k: r.label for k, r in rows_of('dfew', root).items()}
  splits = next(root.rglob('EmoLabel_DataSplit'))
  for file in splits.rglob('*.csv'):
    lines = file.read_text().split()[1:]
    rows = [line.split(',') for line in lines]
    names = BUILDERS['dfew'].class_names
    text = '\n'.join(f'{int(c):05d};{names[int(k) - 1]}' for c, k in rows)
    file.write_text('\ufeffvideo_name;label\n' + text)
  assert {k: r.label for k, r in rows_of('dfew', root).items()} == expected
  (splits / 'train(single-labeled)').rename(splits / 'train(single_labeled)')
  for part in ('train(single_labeled)', 'test(single-labeled)'):
    for file in list((splits / part).iterdir()):
      file.rename(file.with_name(f'{part.split("(")[0]}_{file.name}'))
  assert {k: r.label for k, r in rows_of('dfew', root).items()} == expected


def test_a_dfew_clip_in_train_and_test_of_a_fold_is_a_leak(copy, tmp_path):
  root = copy('dfew')
  file = next(root.rglob('test(single-labeled)/set_2.csv'))
  file.write_text(file.read_text() + '\n1600,5')
  error = error_of(prepare_small, 'dfew', root, tmp_path / 'out')
  assert (error.code, error.exit_code) == ('leak', ExitCode.DATA)
  assert '01600 is in train and test of fold 2' in error.hint
  file.write_text('video_name,label\n1601,6\n01601,6')
  assert 'listed twice' in error_of(list_clips, 'dfew', root).hint
  assert not (tmp_path / 'out').exists()


def test_absent_clips_are_listed_up_to_a_share(copy, tmp_path):
  root = copy('dfew')
  frames = root / 'DFEW-part2/Clip/clip_224x224'
  shutil.rmtree(frames / '01600')
  (frames / '01601').rename(tmp_path / 'elsewhere')
  (frames / '01601').symlink_to(tmp_path / 'elsewhere')
  error = error_of(prepare_small, 'dfew', root, tmp_path / 'b')
  assert (error.code, error.exit_code) == ('too_many_missing', ExitCode.DATA)
  assert '2 of 15 listed clips are not there, first 01600, 01601' in error.hint
  report, _ = prepare_small('dfew', root, tmp_path / 'c', max_missing=0.2)
  assert {f.path: f.code for f in report.failures} == {
    '01600': 'not_found',
    '01601': 'outside_root',
  }
  assert 'left out: 1 not_found' in str(report)


# MAFW.


def test_mafw_sets_and_captions(copy):
  root = copy('mafw')
  rows = rows_of('mafw', root)
  assert rows['00003'].label == 'fear'
  assert rows['00005'].fold == 1
  listing = list_clips('mafw', root, set='compound')
  assert len(listing.rows) == 12
  assert list(listing.class_names[:11]) == list(BUILDERS['mafw'].class_names)
  assert len(listing.class_names) == 11 + 6
  assert 'anger_neutral' in listing.class_names
  for folder in root.rglob('no_caption'):
    shutil.rmtree(folder)
  assert rows_of('mafw', root) == rows  # from those with captions, in GB18030
  frames = rows_of('mafw', root, frames='frames')
  assert frames['00003'].path.endswith('frames/00003')
  lists = next(root.rglob('single/with_caption'))
  lists.rename(root / 'anno')  # the folders above vary from copy to copy
  shutil.rmtree(root / 'Train & Test Set')
  assert rows_of('mafw', root) == rows
  file = root / 'anno/set_1/test.txt'
  file.write_bytes(file.read_bytes() + b'\xff\xff\n')
  assert error_of(list_clips, 'mafw', root).code == 'bad_encoding'


# FERV39k.


def test_ferv39k_scenes_and_leaks(copy):
  root = copy('ferv39k')
  rows = rows_of('ferv39k', root)
  assert rows['Crime/Angry/0001'].source_id == 'Crime'
  assert rows['DailyLife/Sad/0013'].split == 'test'
  file = root / '4_setups/All_scenes/test_All.csv'
  file.write_text(file.read_text() + 'Crime/Angry/0001 Angry\n')
  error = error_of(list_clips, 'ferv39k', root)
  assert error.code == 'leak'
  assert 'is in train and again in test' in error.hint
