"""Every dataset, from miniatures of what their providers deliver."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import shutil

import pytest

import downloads as small
import miniatures
from downloads import error_of, list_clips, prepare_small, rows_of
from mira_jax import files
from mira_jax.cli import main as cli
from mira_jax.data import dataset, records
from mira_jax.errors import ExitCode
from mira_jax.prepare import store
from mira_jax.prepare.builders import BUILDERS
from mira_jax.video import decode

NAMES = list(BUILDERS)


@pytest.fixture(scope='module')
def downloads(tmp_path_factory) -> pathlib.Path:
  """All miniatures, each in a folder of its name; read only."""
  return small.make(tmp_path_factory.mktemp('downloads'), *miniatures.DATASETS)


@pytest.fixture
def copy(downloads, tmp_path):
  """Gives `copy(name)`: a miniature of one's own."""
  return lambda name: shutil.copytree(downloads / name, tmp_path / name)


# All of them.


# Frames of whole scenes, out of which faces are cut.
SCENES = {*NAMES} - {'dfew', 'ferv39k', 'mmew', 'voxceleb2'}


@pytest.mark.parametrize('name', NAMES)
def test_a_download_is_prepared_and_verified(
  name, downloads, tmp_path, capsys, monkeypatch
):
  out = tmp_path / 'out'
  arguments = ['--root', str(downloads / name), '--out', str(out)]
  # Finding faces takes long; only the scenes of SAMM are searched here.
  monkeypatch.setattr(store, '_GLANCES', 1)
  arguments += ['--crop=none'] * (name not in ('samm', 'voxceleb2'))
  assert cli.main(['prepare', name, *arguments, '--workers=0']) == ExitCode.OK
  assert 'left out' not in capsys.readouterr().out
  assert cli.main(['verify', str(out), '--workers=0']) == ExitCode.OK
  assert 'no problem found' in capsys.readouterr().out
  prepared = dataset.open(out)
  count = int((downloads / f'{name}.count').read_text())
  assert sum(prepared.splits.values()) == count
  assert prepared.class_names == tuple(BUILDERS[name].class_names)
  clip = prepared.source('train')[0]
  assert len(clip) == miniatures.FRAMES
  height, width, _ = records.read_frames(clip, [0])[0].shape
  assert height == width
  assert prepared.metadata['crop'] == ('haar' if name == 'samm' else 'none')


@pytest.mark.parametrize('name', NAMES)
def test_clips_are_found_below_the_folder_above(name, downloads, tmp_path):
  (tmp_path / name.upper()).symlink_to(downloads / name)
  listing = list_clips(name, tmp_path)
  count = int((downloads / f'{name}.count').read_text())
  assert len({row.clip_id for row in listing.rows} - {''}) == count
  assert listing.crop == ('haar' if name in SCENES else 'none')


@pytest.mark.parametrize('name', ['dfew', 'samm', 'ravdess'])
def test_a_wrong_folder_gives_the_expected_tree(name, tmp_path, capsys):
  with pytest.raises(SystemExit):
    cli.main(['prepare', name, '--help'])
  assert BUILDERS[name].layout in capsys.readouterr().out
  (tmp_path / 'root' / 'holiday').mkdir(parents=True)
  arguments = ['--root', str(tmp_path / 'root'), '--out', str(tmp_path / 'o')]
  assert cli.main(['prepare', name, *arguments]) == ExitCode.USAGE
  shown = capsys.readouterr().err
  assert 'wrong_root' in shown
  assert 'holiday/' in shown
  assert BUILDERS[name].layout in shown
  assert not (tmp_path / 'o').exists()


# Counts.


def test_published_counts_and_digests_of_lists(
  downloads, tmp_path, monkeypatch
):
  counts = {'all': 16, 'subjects': 0, 'Happy': 2, 'train': 12, 'test/Fear': 1}
  counts |= {'fold 5': 3, 'fold 5 train': 12}
  spec = dataclasses.replace(BUILDERS['dfew'], counts=counts)
  monkeypatch.setitem(BUILDERS, 'dfew', spec)
  root = downloads / 'dfew'
  report, _ = prepare_small('dfew', root, tmp_path)
  assert report.published['all'] == (15, 16)
  assert 'not the published counts: all 15 of 16' in report.warnings
  assert 'published counts: 6 of 7 agree' in str(report)
  assert len(report.tables) == 10
  name, digest = next(iter(report.tables.items()))
  assert digest == files.sha256(next(root.rglob(name)))


# CREMA-D and RAVDESS.


def test_crema_d_actors_and_folds(downloads):
  rows = rows_of('crema_d', downloads / 'crema_d')
  assert '1076_MTI_SAD_XX' not in rows
  folds = {row.subject: row.fold for row in rows.values()}
  assert folds == {'1001': 1, '1019': 2, '1037': 3, '1055': 4, '1076': 5}
  assert rows['1019_MTI_HAP_XX'].label == 'happiness'


def test_ravdess_keeps_each_performance_once(downloads):
  rows = rows_of('ravdess', downloads / 'ravdess')
  assert all(name.startswith('01-01-') for name in rows)
  assert rows['01-01-02-01-01-01-05'].label == 'calm'
  assert {(row.subject, row.fold) for row in rows.values()} == {
    ('01', 1),
    ('05', 2),
  }


def test_names_that_come_again_in_another_split(downloads):
  rows = rows_of('afew', downloads / 'afew')
  assert rows['train/Sad/0006'].path != rows['test/Sad/0006'].path
  assert 'Val_AFEW' in rows['test/Sad/0006'].path
  splits = collections.Counter(
    row.split for row in rows_of('caer', downloads / 'caer').values()
  )
  assert splits == {'train': 7, 'val': 7, 'test': 7}


# Micro-expressions.


def test_casme2_marks_follow_the_file_names(downloads, tmp_path):
  rows = rows_of('casme2', downloads / 'casme2')
  row = rows['sub01/EP03_01f']
  assert (row.onset, row.apex, row.offset) == (41, 45, 49)
  assert (row.subject, row.fps, row.action_units) == ('sub01', 200, '4+L12')
  assert rows['sub02/EP02_01f'].apex == -1  # '/' in the sheet
  options = {'choices': {'frames': 'cropped'}}
  _, prepared = prepare_small(
    'casme2', downloads / 'casme2', tmp_path, **options
  )
  assert prepared.name == 'casme2_cropped'
  clip = prepared.source('train')[1]
  assert (clip.onset, clip.apex, clip.offset) == (0, 4, 8)
  assert clip.fps == 200


def test_samm_subjects_have_three_digits_and_mistakes_are_warnings(downloads):
  listing = list_clips('samm', downloads / 'samm')
  assert {row.subject for row in listing.rows} == {'006', '007', '011'}
  rows = {row.clip_id: row for row in listing.rows}
  assert (rows['006_4_2'].onset, rows['006_4_2'].offset) == (5592, -1)
  assert rows['006_1_2'].apex == 5567
  assert listing.warnings[0] == (
    'line 17 of the sheet: offset 5587 lies before onset 5592'
  )


def test_mmew_by_subject_as_its_readme_says(copy):
  root = copy('mmew')
  expected = {k: r.label for k, r in rows_of('mmew', root).items()}
  micro = root / 'MMEW_Final/Micro_Expression'
  for clip in list(micro.glob('*/*')):
    place = micro / clip.name.split('-')[0] / clip.parent.name / clip.name
    place.parent.mkdir(parents=True, exist_ok=True)
    clip.rename(place)
  rows = rows_of('mmew', root)
  assert {k: r.label for k, r in rows.items()} == expected
  assert rows['S30-01-001'].subject == 'S30'


def test_smic_cameras(downloads):
  rows = rows_of('smic', downloads / 'smic')
  assert rows['s20_sur_01'].label == 'surprise'
  assert rows['s20_sur_01'].subject == 's20'
  cropped = list_clips('smic', downloads / 'smic', frames='cropped')
  assert cropped.crop == 'none'
  shown = error_of(list_clips, 'smic', downloads / 'smic', camera='VIS')
  assert shown.code == 'wrong_root'


@pytest.mark.parametrize(
  ('name', 'file', 'line', 'shown'),
  [
    ('dfew', 'train*/set_1.csv', '1700,8', "14 has the class '8'"),
    ('ferv39k', 'test_All.csv', 'Crime/Angry/0001 Bored', 'Bored'),
    ('ck_plus', 'S005/001/*_emotion.txt', '9.0', "1 has the class '9.0'"),
    ('ravdess', '01-01-05*-01.mp4', '', "class '09'"),
  ],
)
def test_a_class_that_a_dataset_does_not_have(copy, name, file, line, shown):
  root = copy(name)
  path = next(root.rglob(file))
  if name == 'ravdess':
    path.rename(path.with_name(path.name.replace('01-01-05', '01-01-09')))
  else:
    before = '' if name == 'ck_plus' else path.read_text() + '\n'
    path.write_text(before + line)
  error = error_of(list_clips, name, root)
  assert (error.code, error.exit_code) == ('bad_label', ExitCode.DATA)
  assert shown in error.hint


# CK+ and VoxCeleb2.


def test_ck_plus_peaks_and_units(downloads):
  rows = rows_of('ck_plus', downloads / 'ck_plus')
  row = rows['S005/001']
  assert (row.label, row.subject) == ('contempt', 'S005')
  assert (row.onset, row.apex) == (1, miniatures.FRAMES)
  assert row.action_units == '1+12'
  assert list_clips('ck_plus', downloads / 'ck_plus').dropped == {
    'no emotion label': 4
  }


def test_voxceleb2_stays_mp4(copy, tmp_path):
  root = copy('voxceleb2')
  speaker = root / 'dev/mp4/id00012/21Uxsk56VDQ'
  (speaker / '00003.mp4').write_bytes(b'\0' * 500)
  report, prepared = prepare_small('voxceleb2', root, tmp_path / 'out')
  assert [f.code for f in report.failures] == ['not_video']
  clip = prepared.source('train')[0]
  assert clip.video == (speaker / '00001.mp4').read_bytes()
  assert (clip.frames, len(clip)) == ([], miniatures.FRAMES)
  assert clip.source_id == 'id00012/21Uxsk56VDQ'
  whole = decode.read_clip(speaker / '00001.mp4').frames
  assert (records.read_frames(clip, [7])[7] == whole[7]).all()


# What is known of them.


def test_the_list_of_datasets(downloads, tmp_path, capsys):
  prepare_small('dfew', downloads / 'dfew', tmp_path / 'data' / 'dfew')
  assert cli.main(['datasets', '--data-dir', str(tmp_path / 'data')]) == 0
  shown = capsys.readouterr().out
  for name, builder in BUILDERS.items():
    assert name in shown
    assert builder.ask in shown
  assert 'train 12, test 3' in shown.replace('\n', ' ')
