"""Preparing folders and tables, with their mistakes."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import unicodedata

import cv2
import numpy as np
import pytest

import miniatures
from downloads import error_of
from mira_jax.data import dataset, protocol
from mira_jax.data.listing import Row
from mira_jax.errors import ExitCode
from mira_jax.prepare import prepare, tables
from mira_jax.prepare.report import Report
from mira_jax.video import images

SAMPLES = pathlib.Path(os.environ.get('MIRA_SAMPLES', 'samples'))
needs_samples = pytest.mark.skipif(
  not SAMPLES.is_dir(), reason='MIRA_SAMPLES names no folder of samples'
)


def _frames(folder: pathlib.Path, count: int = 3, first: int = 1) -> None:
  """A clip of frames whose gray value is their number times two."""
  folder.mkdir(parents=True)
  for i in range(first, first + count):
    image = np.full((20, 30, 3), 2 * i % 256, np.uint8)
    cv2.imwrite(str(folder / f'img_{i}.png'), image)


def _tree(root: pathlib.Path, *clips: str) -> pathlib.Path:
  for clip in clips:
    _frames(root / clip)
  return root


def _prepare(root, out, **options) -> Report:
  return prepare.prepare_folder(root, out, **{'workers': 0} | options)


def _table(path: pathlib.Path, text: str) -> pathlib.Path:
  path.write_text(text)
  return path


@pytest.fixture
def run(tmp_path):
  """Gives `run(table)`: prepares the rows, all as training clips."""

  def run(text: str, **options) -> Report:
    table = _table(tmp_path / 't.csv', text)
    options = {'table': table, 'test_fraction': 0} | options
    return _prepare(tmp_path / 'root', tmp_path / 'out', **options)

  return run


def _clips(out: pathlib.Path, split: str = 'train') -> list[dataset.Clip]:
  return list(dataset.open(out).source(split))


def _ids(out: pathlib.Path, split: str = 'train') -> list[str]:
  return [clip.clip_id for clip in _clips(out, split)]


# Folders.


def test_classes_are_folders_and_a_fifth_is_held_out(tmp_path):
  names = [f'{c}/{i}' for c in ('happy', 'sad') for i in range(10)]
  root = _tree(tmp_path / 'My Clips 1', *names)
  report = _prepare(root, tmp_path / 'out')
  opened = dataset.open(tmp_path / 'out')
  assert opened.name == 'my_clips_1'
  assert opened.class_names == ('happy', 'sad')
  assert report.counts == {
    'train': {'happy': 8, 'sad': 8},
    'test': {'happy': 2, 'sad': 2},
  }
  assert report.split_rule == '0.2 of each class held out, seed 0'
  assert report.failures == report.warnings == []
  ids = _ids(tmp_path / 'out') + _ids(tmp_path / 'out', 'test')
  assert {*ids} == {*names}
  for clip in opened.source('test'):
    assert opened.class_names[clip.label] == clip.clip_id.split('/')[0]
  for out, options in (('b', {'workers': 1}), ('c', {'seed': 1})):
    _prepare(root, tmp_path / out, **options)
  assert _clips(tmp_path / 'out') == _clips(tmp_path / 'b')
  assert _ids(tmp_path / 'out', 'test') != _ids(tmp_path / 'c', 'test')


def test_split_folders_are_kept(tmp_path):
  clips = ('Train/a/1', 'Train/b/1', 'validation/a/1', 'test/b/1')
  report = _prepare(_tree(tmp_path / 'root', *clips), tmp_path / 'out')
  assert report.split_rule == 'as given'
  assert report.counts == {
    'train': {'a': 1, 'b': 1},
    'val': {'a': 1, 'b': 0},
    'test': {'a': 0, 'b': 1},
  }
  assert report.warnings == ['val has no clip of b', 'test has no clip of a']
  assert _ids(tmp_path / 'out', 'test') == ['test/b/1']


def test_damaged_clips_are_listed_and_left_out(tmp_path):
  root = _tree(tmp_path / 'root', *(f'{c}/{i}' for c in 'ab' for i in range(5)))
  (root / 'a' / 'text.mp4').write_text('no video')
  (root / 'a' / 'empty.mp4').touch()
  (root / 'a' / 'linked').symlink_to(tmp_path, target_is_directory=True)
  (root / 'a' / 'passwd.mp4').symlink_to('/etc/passwd')
  (root / 'a' / 'self.mp4').symlink_to('self.mp4')
  (root / 'a' / 'gone.mp4').symlink_to('nowhere.mp4')
  (root / 'b' / 'loose.png').write_bytes(b'x')
  (root / 'notes.txt').write_text('x')
  report = _prepare(root, tmp_path / 'out')
  assert {f.path: f.code for f in report.failures} == {
    'a/text.mp4': 'not_video',
    'a/empty.mp4': 'empty',
    'a/linked': 'outside_root',
    'a/passwd.mp4': 'outside_root',
    'a/self.mp4': 'not_found',
    'a/gone.mp4': 'not_found',
  }
  assert report.dropped == {
    'pictures right in a class folder, not in a folder per clip: b': 1,
    'of another kind: .txt': 1,
  }
  assert report.warnings == ['6 of 16 clips were left out']
  saved = json.loads((tmp_path / 'out' / prepare.REPORT_NAME).read_text())
  assert saved['failures'][0]['code'] == 'outside_root'
  assert saved['counts'] == report.counts
  assert 'left out: 1 not_video' in str(report)


def test_a_root_without_clips(tmp_path):
  (tmp_path / 'root' / 'papers').mkdir(parents=True)
  (tmp_path / 'root' / 'a.pdf').touch()
  error = error_of(_prepare, tmp_path / 'root', tmp_path / 'out')
  assert (error.code, error.exit_code) == ('no_clips', ExitCode.DATA)
  assert 'ROOT/CLASS/CLIP.mp4' in error.hint
  assert "['a.pdf', 'papers/']" in error.hint
  (tmp_path / 'root' / 'papers' / '1.mp4').write_text('x')
  error = error_of(_prepare, tmp_path / 'root', tmp_path / 'out')
  assert 'papers/1.mp4 (not_video)' in error.hint
  assert (
    error_of(_prepare, tmp_path / 'x', tmp_path / 'out').code == 'not_found'
  )


# Tables.


def test_tables_that_cannot_be_used(tmp_path, run):
  (tmp_path / 'root').mkdir()
  error = error_of(run, 'path,label\na,NA\n')
  assert (error.code, error.exit_code) == ('no_clips', ExitCode.DATA)
  assert "{'no label (NA)': 1}" in error.hint
  error = error_of(run, 'path,label\n' + ''.join(f'{n},x\n' for n in range(5)))
  assert '0 (not_found), 1 (not_found), 2 (not_found) and 2 more' in error.hint
  assert 'a table has their paths relative to --root' in error.hint


def test_a_table_finds_its_clips_wherever_they_are_now(tmp_path, run):
  _tree(tmp_path / 'root', 'clips/7', 'clips/8')
  report = run(
    'path,label\n./their/disk/clips/7/,a\nC:\\clips\\8,b\nclips/9,a\n'
  )
  assert _ids(tmp_path / 'out') == ['clips/7', 'clips/8']
  assert [(f.path, f.code) for f in report.failures] == [
    ('clips/9', 'not_found')
  ]
  assert [len(digest) for digest in report.tables.values()] == [64]
  assert 'there is no test split' in report.warnings


def test_options_that_cannot_be(tmp_path):
  root = _tree(tmp_path / 'root', 'a/1')
  for options, code in (
    ({'quality': 101}, 'value'),
    ({'crop': 'boxes'}, 'crop'),
  ):
    error = error_of(_prepare, root, tmp_path / 'out', **options)
    assert (error.code, error.exit_code) == (f'bad_{code}', ExitCode.USAGE)


def test_long_clips_keep_evenly_spaced_frames_and_their_marks(tmp_path, run):
  _frames(tmp_path / 'root' / '006_1', count=101, first=100)
  run(
    'Filename,3_class,Subject,fps,Onset Frame,Apex Frame,Offset Frame,'
    'Action Units\n006_1,negative,6,25,102,151,/,4+7\n',
    max_frames=11,
  )
  (clip,) = _clips(tmp_path / 'out')
  grays = [int(images.decode_jpeg(f)[9, 9, 0]) for f in clip.frames]
  np.testing.assert_allclose(grays, np.arange(200, 401, 20) % 256, atol=2)
  assert (clip.onset, clip.apex, clip.offset) == (0, 5, -1)
  assert (clip.fps, clip.subject, clip.action_units) == (2.5, '6', '4+7')


def test_a_clip_in_two_splits_or_with_two_labels_stops_everything(
  tmp_path, run
):
  _tree(tmp_path / 'root', 'a/1', 'a/2')
  head = 'path,label,split\n'
  leak = error_of(run, f'{head}a/1,x,train\na/2,x,train\n./a/1/,x,test\n')
  assert (leak.code, leak.exit_code) == ('leak', ExitCode.DATA)
  assert 'lines 2 and 4' in leak.hint
  assert error_of(run, f'{head}a/1,x,train\na/1,y,train\n').code == 'bad_label'
  report = run(f'{head}a/1,x,train\na/1,x,train\na/2,x,test\n')
  assert report.dropped == {'listed twice': 1}


def _counts(rows: list[Row], field: str) -> dict[str, int]:
  return dict(collections.Counter(getattr(row, field) for row in rows))


@needs_samples
@pytest.mark.parametrize(
  ('name', 'listed', 'field', 'counts'),
  [
    ('DFEW', 16_372, 'split', {'train': 9356, 'test': 2341}),
    ('SAMM', 0, 'label', {'negative': 118, 'positive': 26, 'surprise': 15}),
    ('MMEW', 0, 'label', {'surprise': 89, 'disgust': 72, 'others': 66,
                          'happiness': 36, 'fear': 16, 'sadness': 13,
                          'anger': 8}),
  ],
)  # fmt: skip
def test_tables_of_the_field(name, listed, field, counts):
  path = next((SAMPLES / 'annotations').glob(f'{name}*'))
  listing = tables.read_table(path)
  assert _counts(listing.rows, field) == counts
  if listed:
    assert len(listing.rows) + sum(listing.dropped.values()) == listed
  subjects = {'SAMM': 29, 'MMEW': 30}.get(name, 1)
  assert len(_counts(listing.rows, 'subject')) == subjects
  if name == 'SAMM':
    first = listing.rows[0]
    assert first.path == './datasets/SAMM/SAMM/006/006_1_2/'
    assert (first.onset, first.apex, first.offset) == (5562, 5588, 5632)


# Splits.


@pytest.mark.parametrize(
  ('change', 'unknown'),
  [
    (lambda i, name: 'NA' if i in (7, 11) else name, 2),
    (lambda i, name: (f'S{name}', f's{int(name)} ', name)[i % 3], 0),
  ],
)
def test_known_subjects_stay_on_one_side(tmp_path, run, change, unknown):
  for i in range(12):
    _frames(tmp_path / 'root' / str(i), count=1)
  rows = [
    f'{i},{"ab"[i % 2]},{change(i, f"{i // 3 + 1:02}")}' for i in range(12)
  ]
  text = '\n'.join(['path,label,subject', *rows])
  report = run(text, test_fraction=0.3)
  opened = dataset.open(tmp_path / 'out')
  sides = [{*opened.index(s).subject.tolist()} - {''} for s in opened.splits]
  assert not sides[0] & sides[1]
  assert len(sides[0] | sides[1]) == 4
  assert report.found['subjects'].startswith('4, from column subject')
  assert report.found['folds'] == 'none named'
  warned = [text for text in report.warnings if 'without a subject' in text]
  named = [text.partition(';')[0] for text in warned]
  assert named == ['without a subject: 2 of 12 clips'] * bool(unknown)


def test_guessed_subjects_are_listed(tmp_path):
  names = [f'{c}/S{i:03}_{c}' for c in ('happy', 'sad') for i in range(2, 9)]
  report = _prepare(_tree(tmp_path / 'root', *names), tmp_path / 'out')
  assert (
    'subjects: 7, guessed from the names of folders and files: S002, S003, '
    'S004, S005, S006 and 2 more'
  ) in str(report)
  report = _prepare(_tree(tmp_path / 'none', 'a/1', 'b/2'), tmp_path / 'other')
  assert 'subjects: none found: a person may be in training' in str(report)
  assert 'column `subject` of a --table' in str(report)


def test_subjects_on_both_sides_of_a_named_split_are_named(tmp_path, run):
  _tree(tmp_path / 'root', *'1234')
  text = 'path,label,split,subject,fold\n1,a,train,7,1\n2,b,train,8,2\n'
  report = run(f'{text}3,a,test,07,1\n4,b,test,9,1\n')
  assert 'subjects in more than one split: 07' in report.warnings
  assert not [text for text in report.warnings if 'one fold' in text]
  assert report.found == {
    'classes': '2, from column label',
    'splits': '2, from column split',
    'subjects': '3, from column subject',
    'folds': '2, from column fold',
  }
  assert 'subjects: 3, from' in str(report)


def test_the_first_fold_of_a_table_is_the_test_split(tmp_path, run):
  _tree(tmp_path / 'root', *'123456')
  rows = [f'{i},{"ab"[i % 2]},{i % 3 + 4}' for i in range(1, 6)]
  report = run('\n'.join(['path,label,fold', *rows, '6,a,']))
  opened = dataset.open(tmp_path / 'out')
  assert opened.index('test').clip_id.tolist() == ['3']
  assert opened.index('train').fold.tolist() == [5, 6, 5, 6, -1]
  assert report.split_rule == 'fold 4 is the test split; every fold is stored'
  split = protocol.parts([opened], protocol.Rules(val_fraction=0))
  assert split.test.clip_id.tolist() == ['3']


def test_names_that_look_the_same_are_found(tmp_path, run):
  names = [unicodedata.normalize('NFD', name) for name in ('José', 'Zoë')]
  _tree(tmp_path / 'root', *(f'{n}/CLIP' for n in names), 'A', 'a')
  report = run('path,label\nx/José/clip,a\nZoë\\Clip,b\nA,a\na,b\nÁ,b\n')
  ids = [*(f'{n}/CLIP' for n in names), 'A', 'a']
  assert _ids(tmp_path / 'out') == ids
  assert [(f.path, f.code) for f in report.failures] == [('Á', 'not_found')]


def test_segments_of_one_file_are_clips_of_their_own(tmp_path, run):
  _frames(tmp_path / 'root' / 'long', count=40, first=1)
  _frames(tmp_path / 'root' / 'one', count=9, first=1)
  black = np.zeros((20, 32, 32, 3), np.uint8)
  miniatures.video(tmp_path / 'root' / 'v.mp4', black)
  report = run("""path,label,onset,apex,offset
long,a,1,3,10
long,b,21,24,30
long,b,21,24,30
v.mp4,a,0,,4
v.mp4,b,10,,19
v.mp4,b,90,,99
one,a,2,3,4
""")
  clips = {clip.clip_id: clip for clip in _clips(tmp_path / 'out')}
  assert {name: len(clip) for name, clip in clips.items()} == {
    'long#1-10': 10,
    'long#21-30': 10,
    'v.mp4#0-4': 5,
    'v.mp4#10-19': 10,
    'one': 9,  # the only row of it: marks, no cut
  }
  second = clips['long#21-30']
  assert (second.onset, second.apex, second.offset) == (0, 3, 9)
  gray = int(images.decode_jpeg(second.frames[0])[9, 9, 0])
  assert gray == pytest.approx(42, abs=2)
  assert report.dropped == {'listed twice': 1}
  failures = [(f.path, f.code) for f in report.failures]
  assert failures == [('v.mp4#90-99', 'empty')]


def test_segments_of_a_recording_are_held_out_together(tmp_path, run):
  text = 'path,label,onset,offset\n'
  for name in ('r0', 'r1', 'r2', 'r3', 'r4', 'r5'):
    _frames(tmp_path / 'root' / name, count=12, first=1)
    for i in range(1, 12, 3):  # the same file, written in two ways
      text += f'{"./" * (i % 2)}{name},{"ab"[i % 2]},{i},{i + 2}\n'
  report = run(text, test_fraction=0.34)
  assert 'by recording' in report.split_rule
  opened = dataset.open(tmp_path / 'out')
  found = protocol.parts(
    [opened], protocol.Rules(val_fraction=0.25, fold_seed=1)
  )
  sides = [
    {part[i].clip_id.partition('#')[0] for i in range(len(part))}
    for part in (found.train, found.val, found.test)
  ]
  assert [len(side) for side in sides] == [3, 1, 2]
  assert len(set.union(*sides)) == 6
  assert 'by recording' in found.rule


def test_segments_that_share_frames_are_in_one_split(tmp_path, run):
  _frames(tmp_path / 'root' / 'long', count=40)
  head = 'path,label,onset,offset,split\n'
  rows = f'{head}long,a,1,30,train\nlong,a,2,5,train\nlong,b,{{}},40,test\n'
  assert error_of(run, rows.format(20)).code == 'leak'
  assert run(rows.format(31)).counts['test'] == {'a': 0, 'b': 1}
  error = error_of(run, f'{head}long,a,1,9,train\nlong,b,30,20,test\n')
  assert error.code == 'bad_table'
  assert 'line 3: offset 20' in error.hint
