"""Preparing folders and tables, with what goes wrong in them."""

from __future__ import annotations

import collections
import gzip
import json
import os
import pathlib
import unicodedata

import cv2
import numpy as np
import pytest

import miniatures
from mira_jax.data import dataset, holdout, protocol
from mira_jax.data.listing import Row
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.prepare import prepare, tables
from mira_jax.prepare.report import Report
from mira_jax.video import decode

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


def _ten_per_class(root: pathlib.Path) -> pathlib.Path:
  return _tree(root, *(f'{c}/{i}' for c in ('happy', 'sad') for i in range(10)))


def _prepare(root, out, **options) -> Report:
  return prepare.prepare_folder(root, out, workers=0, **options)


def _table(path: pathlib.Path, text: str, encoding: str = 'utf-8'):
  path.write_bytes(text.encode(encoding))
  return path


def _error(call, *args, **options) -> MiraInputError:
  with pytest.raises(MiraInputError) as caught:
    call(*args, **options)
  return caught.value


def _ids(out: pathlib.Path, split: str) -> list[str]:
  return [clip.clip_id for clip in dataset.open(out).source(split)]


# Folders.


def test_classes_are_folders_and_a_fifth_is_held_out(tmp_path):
  root = _ten_per_class(tmp_path / 'My Clips 1')
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
  ids = _ids(tmp_path / 'out', 'train') + _ids(tmp_path / 'out', 'test')
  assert sorted(ids) == sorted(
    f'{c}/{i}' for c in opened.class_names for i in range(10)
  )
  for clip in opened.source('test'):
    assert opened.class_names[clip.label] == clip.clip_id.split('/')[0]
    assert decode.decode_jpeg(clip.frames[2]).shape == (20, 30, 3)


def test_the_choice_depends_on_the_seed_alone(tmp_path):
  root = _ten_per_class(tmp_path / 'root')
  for out, seed in (('a', 0), ('b', 0), ('c', 1)):
    _prepare(root, tmp_path / out, seed=seed)
  held_out = [_ids(tmp_path / out, 'test') for out in 'abc']
  assert held_out[0] == held_out[1] != held_out[2]


def test_processes_give_the_same_dataset(tmp_path):
  root = _ten_per_class(tmp_path / 'root')
  _prepare(root, tmp_path / 'a')
  prepare.prepare_folder(root, tmp_path / 'b', workers=2)
  sources = [dataset.open(tmp_path / out).source('train') for out in 'ab']
  assert list(sources[0]) == list(sources[1])


def test_split_folders_are_kept(tmp_path):
  root = _tree(
    tmp_path / 'root', 'Train/a/1', 'Train/b/1', 'validation/a/1', 'test/b/1'
  )
  report = _prepare(root, tmp_path / 'out')
  assert report.split_rule == 'as given'
  assert report.counts == {
    'train': {'a': 1, 'b': 1},
    'val': {'a': 1, 'b': 0},
    'test': {'a': 0, 'b': 1},
  }
  assert report.warnings == ['val has no clip of b', 'test has no clip of a']
  assert _ids(tmp_path / 'out', 'test') == ['test/b/1']


def test_damaged_clips_are_listed_and_left_out(tmp_path):
  root = _ten_per_class(tmp_path / 'root')
  (root / 'sad' / 'text.mp4').write_text('no video')
  (root / 'sad' / 'empty.mp4').touch()
  (root / 'sad' / 'linked').symlink_to(tmp_path, target_is_directory=True)
  (root / 'sad' / 'passwd.mp4').symlink_to('/etc/passwd')
  (root / 'happy' / 'loose.png').write_bytes(b'x')
  (root / 'notes.txt').write_text('x')
  report = _prepare(root, tmp_path / 'out')
  assert {f.path: f.code for f in report.failures} == {
    'sad/text.mp4': 'not_video',
    'sad/empty.mp4': 'empty',
    'sad/linked': 'outside_root',
    'sad/passwd.mp4': 'outside_root',
  }
  assert report.dropped == {
    'images outside a clip folder': 1,
    'of another kind: .txt': 1,
  }
  assert report.warnings == ['4 of 24 clips were left out']
  saved = json.loads((tmp_path / 'out' / prepare.REPORT_NAME).read_text())
  assert saved['failures'][0]['code'] == 'outside_root'
  assert saved['counts'] == report.counts
  assert 'left out: 1 not_video' in str(report)


def test_long_clips_keep_evenly_spaced_frames(tmp_path):
  _frames(tmp_path / 'root' / 'a' / '1', count=101, first=0)
  table = _table(tmp_path / 'root' / 't.csv', 'path,label,fps\na/1,a,25\n')
  _prepare(tmp_path / 'root', tmp_path / 'out', table=table, max_frames=11)
  clip = dataset.open(tmp_path / 'out').source('train')[0]
  grays = [int(decode.decode_jpeg(f)[9, 9, 0]) for f in clip.frames]
  np.testing.assert_allclose(grays, np.arange(0, 202, 20), atol=2)
  assert clip.fps == 2.5


def test_spacing_keeps_the_ends():
  assert decode.spaced(5, 5).tolist() == [0, 1, 2, 3, 4]
  assert decode.spaced(3, 96).tolist() == [0, 1, 2]
  assert decode.spaced(107, 96)[[0, -1]].tolist() == [0, 106]
  assert decode.spaced(9, 1).tolist() == [0]


def test_frames_are_shrunk_to_the_size(tmp_path):
  root = _tree(tmp_path / 'root', 'a/1')
  _prepare(root, tmp_path / 'out', size=10)
  clip = dataset.open(tmp_path / 'out').source('train')[0]
  assert decode.decode_jpeg(clip.frames[0]).shape == (10, 15, 3)


def test_no_clip_at_all(tmp_path):
  (tmp_path / 'root' / 'papers').mkdir(parents=True)
  (tmp_path / 'root' / 'a.pdf').touch()
  error = _error(_prepare, tmp_path / 'root', tmp_path / 'out')
  assert (error.code, error.exit_code) == ('no_clips', ExitCode.DATA)
  assert 'ROOT/CLASS/CLIP.mp4' in error.hint
  assert "['a.pdf', 'papers/']" in error.hint


def test_a_root_that_is_no_folder(tmp_path):
  table = _table(tmp_path / 't.csv', 'path,label\na.mp4,x\n')
  for more in ({}, {'table': table}):
    error = _error(_prepare, tmp_path / 'x', tmp_path / 'out', **more)
    assert (error.code, error.hint) == ('not_found', 'there is no such folder')
    error = _error(_prepare, table, tmp_path / 'out', **more)
    assert error.code == 'not_found'
    assert error.hint.startswith('it is a file')


def test_a_table_whose_clips_are_elsewhere(tmp_path):
  (tmp_path / 'root').mkdir()
  rows = ''.join(f'{n}.mp4,x\n' for n in range(5))
  table = _table(tmp_path / 't.csv', f'path,label\n{rows}')
  error = _error(_prepare, tmp_path / 'root', tmp_path / 'o', table=table)
  assert '0.mp4 (not_found), 1.mp4' in error.hint
  assert 'and 2 more; a table has their paths relative to --root' in error.hint


def test_nothing_but_damage(tmp_path):
  (tmp_path / 'root' / 'a').mkdir(parents=True)
  (tmp_path / 'root' / 'a' / '1.mp4').write_text('x')
  error = _error(_prepare, tmp_path / 'root', tmp_path / 'out')
  assert (error.code, error.exit_code) == ('no_clips', ExitCode.DATA)
  assert 'a/1.mp4 (not_video)' in error.hint


# Tables.


@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
@pytest.mark.parametrize('newline', ['\n', '\r\n'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_tables_of_any_dialect(tmp_path, delimiter, newline, encoding):
  rows = [['File Path', 'Emotion', 'Split'], ['惊.mp4', 'happy', 'train']]
  text = newline.join(delimiter.join(row) for row in rows)
  listing = tables.read_table(_table(tmp_path / 't.csv', text, encoding))
  assert listing.rows == [
    Row(path='惊.mp4', label='happy', split='train', line=2)
  ]


def test_rows_that_are_not_wanted_are_counted(tmp_path):
  text = """path,label,split,is_valid
1,a,train,True
2,a,Validation,true
3,b,TEST,1.0
4,a,train,False
5,,train,True
6,NA,train,True
7,#N/A,train,True
8,a,5-fold_check_train,True
9,a,,True
10,a,train,
,a,train,True
"""
  listing = tables.read_table(_table(tmp_path / 't.csv', text))
  assert [(r.path, r.split) for r in listing.rows] == [
    ('1', 'train'),
    ('2', 'val'),
    ('3', 'test'),
  ]
  assert listing.dropped == {
    'marked as not valid': 1,
    'not marked as valid or not': 1,
    'no label': 1,
    'no label (NA)': 1,
    'no label (#N/A)': 1,
    "another split ('5-fold_check_train')": 1,
    'no split': 1,
    'no path': 1,
  }


def test_tables_that_cannot_be_used(tmp_path):
  def code(data: bytes) -> str:
    (tmp_path / 't').write_bytes(data)
    return _error(tables.read_table, tmp_path / 't').code

  assert _error(tables.read_table, tmp_path / 'absent').code == 'not_found'
  assert code(b'') == 'bad_table'
  assert code(b'name,label\na,b\n') == 'bad_table'
  assert code(b'path,score\na,b\n') == 'bad_table'
  assert code(b'PK\x03\x04 a sheet') == 'bad_table'
  assert code(gzip.compress(b'path,label\n')[:-9]) == 'bad_table'
  assert code(b'path,label\n1,Happy\n2,happy\n') == 'bad_label'
  assert code(b'path,label\n"' + b'x' * 200_000) == 'bad_table'


def test_a_table_finds_its_clips_wherever_they_are_now(tmp_path):
  _tree(tmp_path / 'root', 'clips/7', 'clips/8')
  text = 'path,label\n./their/disk/clips/7/,a\nC:\\clips\\8,b\nclips/9,a\n'
  table = _table(tmp_path / 't.csv', text)
  report = _prepare(
    tmp_path / 'root', tmp_path / 'out', table=table, test_fraction=0
  )
  assert _ids(tmp_path / 'out', 'train') == ['clips/7', 'clips/8']
  assert [(f.path, f.code) for f in report.failures] == [
    ('clips/9', 'not_found')
  ]
  assert [len(x) for x in report.tables.values()] == [64]
  assert 'there is no test split' in report.warnings


def test_an_excel_table_with_text_above_its_header(tmp_path):
  _tree(tmp_path / 'root', 'clips/7', 'clips/8')
  rows = [['Notes'], [], ['Filename', 'Emotion', 'Apex Frame'],
          ['clips/7', 'a', 2.0], ['clips/8', 'b', None]]  # fmt: skip
  miniatures.sheet(tmp_path / 't.xlsx', rows)
  _prepare(
    tmp_path / 'root',
    tmp_path / 'out',
    table=tmp_path / 't.xlsx',
    test_fraction=0,
  )
  clips = list(dataset.open(tmp_path / 'out').source('train'))
  assert [clip.apex for clip in clips] == [1, -1]


def test_quality_is_a_percentage(tmp_path):
  root = _tree(tmp_path / 'root', 'a/1')
  error = _error(_prepare, root, tmp_path / 'out', quality=101)
  assert (error.code, error.path) == ('bad_value', 'quality=101')


def test_a_table_without_a_wanted_row(tmp_path):
  table = _table(tmp_path / 't.csv', 'path,label\na,NA\n')
  error = _error(_prepare, tmp_path, tmp_path / 'out', table=table)
  assert (error.code, error.exit_code) == ('no_clips', ExitCode.DATA)
  assert "{'no label (NA)': 1}" in error.hint


def test_marks_become_positions_in_the_clip(tmp_path):
  _frames(tmp_path / 'root' / '006_1', count=21, first=100)
  text = (
    'Filename,3_class,Subject,Onset Frame,Apex Frame,Offset Frame,Action Units'
    '\n006_1,negative,6,102,110,/,4+7\n'
  )
  table = _table(tmp_path / 't.csv', text)
  _prepare(tmp_path / 'root', tmp_path / 'out', table=table, max_frames=11)
  clip = dataset.open(tmp_path / 'out').source('train')[0]
  assert (clip.onset, clip.apex, clip.offset) == (1, 5, -1)
  assert (clip.subject, clip.action_units) == ('6', '4+7')


def test_a_clip_in_two_splits_or_with_two_labels_stops_everything(tmp_path):
  _tree(tmp_path / 'root', 'a/1', 'a/2')

  def run(rows: str) -> Report:
    table = _table(tmp_path / 't.csv', 'path,label,split\n' + rows)
    return _prepare(tmp_path / 'root', tmp_path / 'out', table=table)

  leak = _error(run, 'a/1,x,train\na/2,x,train\n./a/1/,x,test\n')
  assert (leak.code, leak.exit_code) == ('leak', ExitCode.DATA)
  assert 'lines 2 and 4' in leak.hint
  assert _error(run, 'a/1,x,train\na/1,y,train\n').code == 'bad_label'
  report = run('a/1,x,train\na/1,x,train\na/2,x,test\n')
  assert report.dropped == {'listed twice': 1}


def _samples(name: str) -> tables.Listing:
  return tables.read_table(next((SAMPLES / 'annotations').glob(f'{name}*')))


def _counts(rows: list[Row], field: str) -> dict[str, int]:
  return dict(collections.Counter(getattr(row, field) for row in rows))


@needs_samples
def test_dfew_table():
  listing = _samples('DFEW')
  assert len(listing.rows) + sum(listing.dropped.values()) == 16_372
  assert _counts(listing.rows, 'split') == {'train': 9356, 'test': 2341}
  test = [row for row in listing.rows if row.split == 'test']
  assert _counts(test, 'label') == {
    'Disgust': 29,
    'Sad': 379,
    'Neutral': 534,
    'Surprise': 294,
    'Angry': 435,
    'Happy': 489,
    'Fear': 181,
  }


@needs_samples
def test_mafw_table():
  listing = _samples('MAFW')
  assert len(listing.rows) + sum(listing.dropped.values()) == 10_045
  assert _counts(listing.rows, 'split') == {'train': 7333, 'test': 1838}
  assert len(listing.class_names) == 11


@needs_samples
def test_samm_table():
  listing = _samples('SAMM')
  assert _counts(listing.rows, 'label') == {
    'negative': 118,
    'positive': 26,
    'surprise': 15,
  }
  assert len(_counts(listing.rows, 'subject')) == 29
  first = listing.rows[0]
  assert first.path == './datasets/SAMM/SAMM/006/006_1_2/'
  assert (first.onset, first.apex, first.offset) == (5562, 5588, 5632)


@needs_samples
def test_mmew_table():
  listing = _samples('MMEW')
  assert _counts(listing.rows, 'label') == {
    'surprise': 89,
    'disgust': 72,
    'others': 66,
    'happiness': 36,
    'fear': 16,
    'sadness': 13,
    'anger': 8,
  }
  assert len(_counts(listing.rows, 'subject')) == 30


@needs_samples
def test_sample_clips_are_prepared(tmp_path):
  text = (
    'path,label\nclips/talking_face_224px_25fps.mp4,talk\n'
    'frames_jpg,jpg\nframes_png,png\n'
  )
  table = _table(tmp_path / 't.csv', text)
  report = _prepare(SAMPLES, tmp_path / 'out', table=table, test_fraction=0)
  clips = list(dataset.open(tmp_path / 'out').source('train'))
  assert [len(clip.frames) for clip in clips] == [96, 3, 3]
  assert clips[0].fps == pytest.approx(25 * 95 / 106)
  assert report.counts['train'] == {'jpg': 1, 'png': 1, 'talk': 1}


# Splits.


def _rows(**fields) -> list[Row]:
  keys = fields.keys()
  return [
    Row(path=str(i), **{'label': 'a'} | dict(zip(keys, values, strict=True)))
    for i, values in enumerate(zip(*fields.values(), strict=True))
  ]


def test_no_subject_is_in_both_splits():
  subjects = [f's{i % 7}' for i in range(70)]
  names, rule = holdout.assign(_rows(subject=subjects), 0.3, seed=0)
  sides = {
    split: {s for s, n in zip(subjects, names, strict=True) if n == split}
    for split in ('train', 'test')
  }
  assert not sides['train'] & sides['test']
  assert names.count('test') == 20  # two subjects of ten; 21 were asked for
  assert rule == '0.3 held out by subject, seed 0'


def test_every_class_gives_its_share_but_never_all_of_it():
  names, _ = holdout.assign(
    _rows(label='a' * 10 + 'b' * 5 + 'cc' + 'd'), 0.2, 0
  )
  assert names[:10].count('test') == 2
  assert names[10:15].count('test') == 1
  assert names[15:17].count('test') == 1
  assert names[17] == 'train'


def test_a_given_test_split_is_kept():
  names, rule = holdout.assign(_rows(split=['train', '', 'test']), 0.5, 0)
  assert names == ['train', 'train', 'test']
  assert rule == 'as given'


def test_the_share_must_leave_something():
  assert (
    _error(holdout.assign, _rows(label='ab'), 1.0, 0).code == 'bad_fraction'
  )


def test_subjects_come_from_paths_only_when_all_show_one(tmp_path):
  text = 'path,label\nS01/S01-02-003,a\nsub2/EP02_01f,b\n{},a\n'
  for last, subjects in (
    ('Actor_03/x.mp4', ['S01', 'sub2', 'Actor_03']),
    ('other.mp4', ['', '', '']),
  ):
    table = _table(tmp_path / 't.csv', text.format(last))
    rows = tables.read_table(table).rows
    assert [row.subject for row in rows] == subjects


def _people(out: pathlib.Path) -> dict[str, set[str]]:
  opened = dataset.open(out)
  return {s: {*opened.index(s).subject.tolist()} - {''} for s in opened.splits}


@pytest.mark.parametrize(
  ('change', 'unknown'),
  [
    (lambda i, name: '' if i == 7 else name, 1),
    (lambda i, name: 'NA' if i in (7, 19) else name, 2),
    (lambda i, name: str(int(name)) if i % 2 else name, 0),
    (lambda i, name: (f'S{name}', f's{int(name)} ', name)[i % 3], 0),
  ],
  ids=['missing', 'marks', 'zeros', 'words'],
)
def test_known_people_stay_on_one_side(tmp_path, change, unknown):
  for i in range(24):
    _frames(tmp_path / 'root' / str(i), count=1)
  rows = [
    f'{i},{"ab"[i % 2]},{change(i, f"{i // 4 + 1:02}")}' for i in range(24)
  ]
  table = _table(tmp_path / 't.csv', '\n'.join(['path,label,subject', *rows]))
  report = _prepare(tmp_path / 'root', tmp_path / 'out', table=table)
  sides = _people(tmp_path / 'out')
  assert not sides['train'] & sides['test']
  assert len(sides['train'] | sides['test']) == 6
  assert report.found['subjects'].startswith('6, from column subject')
  assert report.found['folds'] == 'none named'
  said = [text for text in report.warnings if 'have no subject' in text]
  assert len(said) == bool(unknown)
  if unknown:
    assert said[0].startswith(f'{unknown} of 24 clips')


def test_people_on_both_sides_of_a_named_split_are_named(tmp_path):
  _tree(tmp_path / 'root', *'1234')
  text = 'path,label,split,subject,fold\n1,a,train,7,1\n2,b,train,8,2\n'
  text += '3,a,test,07,1\n4,b,test,9,1\n'
  table = _table(tmp_path / 't.csv', text)
  report = _prepare(tmp_path / 'root', tmp_path / 'out', table=table)
  assert 'subjects in more than one split: 07' in report.warnings
  assert not [text for text in report.warnings if 'one fold' in text]
  assert report.found == {
    'classes': '2, from column label',
    'splits': '2, from column split',
    'subjects': "3, from column subject ('7' is '07')",
    'folds': '2, from column fold',
  }
  assert 'subjects: 3, from' in str(report)


def test_names_that_look_the_same_are_found(tmp_path):
  names = [unicodedata.normalize('NFD', name) for name in ('José', 'Zoë')]
  _tree(tmp_path / 'root', *(f'{n}/CLIP' for n in names), 'A', 'a')
  text = 'path,label\nx/José/clip,a\nZoë\\Clip,b\nA,a\na,b\nÁ,b\n'
  table = _table(tmp_path / 't.csv', text)
  report = _prepare(
    tmp_path / 'root', tmp_path / 'out', table=table, test_fraction=0
  )
  ids = _ids(tmp_path / 'out', 'train')
  assert ids == [*(f'{n}/CLIP' for n in names), 'A', 'a']
  assert [(f.path, f.code) for f in report.failures] == [('Á', 'not_found')]


def test_segments_of_one_file_are_clips_of_their_own(tmp_path):
  _frames(tmp_path / 'root' / 'long', count=40, first=1)
  _frames(tmp_path / 'root' / 'one', count=9, first=1)
  miniatures.video(
    tmp_path / 'root' / 'v.mp4', np.zeros((20, 32, 32, 3), np.uint8)
  )
  text = """path,label,onset,apex,offset
long,a,1,3,10
long,b,21,24,30
long,b,21,24,30
v.mp4,a,0,,4
v.mp4,b,10,,19
v.mp4,b,90,,99
one,a,2,3,4
"""
  table = _table(tmp_path / 't.csv', text)
  report = _prepare(
    tmp_path / 'root', tmp_path / 'out', table=table, test_fraction=0
  )
  clips = {c.clip_id: c for c in dataset.open(tmp_path / 'out').source('train')}
  assert {name: len(clip) for name, clip in clips.items()} == {
    'long#1-10': 10,
    'long#21-30': 10,
    'v.mp4#0-4': 5,
    'v.mp4#10-19': 10,
    'one': 9,  # the only row of it: marks, no cut
  }
  second = clips['long#21-30']
  assert (second.onset, second.apex, second.offset) == (0, 3, 9)
  assert int(decode.decode_jpeg(second.frames[0])[9, 9, 0]) == pytest.approx(
    42, abs=2
  )
  assert report.dropped == {'listed twice': 1}
  assert [(f.path, f.code) for f in report.failures] == [
    ('v.mp4#90-99', 'empty')
  ]


def test_segments_of_a_recording_are_held_out_together(tmp_path):
  text = 'path,label,onset,offset\n'
  for name in ('r0', 'r1', 'r2', 'r3', 'r4', 'r5'):
    _frames(tmp_path / 'root' / name, count=12, first=1)
    for i in range(1, 12, 3):  # the same file, written in two ways
      text += f'{"./" * (i % 2)}{name},{"ab"[i % 2]},{i},{i + 2}\n'
  table = _table(tmp_path / 't.csv', text)
  report = _prepare(
    tmp_path / 'root', tmp_path / 'out', table=table, test_fraction=0.34
  )
  assert 'by recording' in report.split_rule
  found = protocol.parts(
    [dataset.open(tmp_path / 'out')], val_fraction=0.25, seed=1
  )
  sides = [
    {part[i].clip_id.partition('#')[0] for i in range(len(part))}
    for part in (found.train, found.val, found.test)
  ]
  assert [len(side) for side in sides] == [3, 1, 2]
  assert len(set.union(*sides)) == 6
  assert 'by recording' in found.rule


def test_segments_that_share_frames_are_in_one_split(tmp_path):
  _frames(tmp_path / 'root' / 'long', count=40)

  def run(rows: str) -> Report:
    table = _table(tmp_path / 't.csv', 'path,label,onset,offset,split\n' + rows)
    return _prepare(tmp_path / 'root', tmp_path / 'out', table=table)

  rows = 'long,a,1,30,train\nlong,a,2,5,train\nlong,b,{},40,test\n'
  assert _error(run, rows.format(20)).code == 'leak'
  assert run(rows.format(31)).counts['test'] == {'a': 0, 'b': 1}
  error = _error(run, 'long,a,1,9,train\nlong,b,30,20,test\n')
  assert error.code == 'bad_table'
  assert 'line 3: offset 20' in error.hint


def test_rows_of_shadow_files_are_passed_over(tmp_path):
  root = _tree(tmp_path / 'root', '1', '2')
  shadow = root / '__MACOSX' / '._1.mp4'
  shadow.parent.mkdir()
  shadow.write_bytes(b'x')
  text = 'path,label\n1,a\n2,b\n__MACOSX/._1.mp4,c\n'
  table = _table(tmp_path / 't.csv', text)
  report = _prepare(root, tmp_path / 'out', table=table)
  assert report.class_names == ['a', 'b']
  assert report.dropped == {'of the system, such as __MACOSX': 1}
