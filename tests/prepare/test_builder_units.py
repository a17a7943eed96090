"""Videos with action units in every frame: DISFA, BP4D."""

from __future__ import annotations

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

import downloads as small
import miniatures
from downloads import error_of, list_clips, prepare_small, rows_of
from mira_jax.cli import main as cli
from mira_jax.data import dataset, pool, records
from mira_jax.prepare.builders import BUILDERS, units
from mira_jax.video.images import encode_png


@pytest.fixture(scope='module')
def downloads(tmp_path_factory) -> pathlib.Path:
  """Miniatures, each in a folder of its name; read only."""
  root = tmp_path_factory.mktemp('downloads')
  return small.make(root, 'disfa', 'bp4d')


@pytest.fixture
def copy(downloads, tmp_path):
  """Gives `copy(name)`: a miniature of one's own."""
  return lambda name: shutil.copytree(downloads / name, tmp_path / name)


def _clips(prepared: dataset.PreparedDataset) -> dict[str, dataset.Clip]:
  sources = [prepared.source(split) for split in prepared.splits]
  return {clip.clip_id: clip for source in sources for clip in source}


def test_segments_reach_from_label_to_label():
  labels = dict.fromkeys([*range(5, 45), *range(60, 75)], ())
  assert list(units.segments(labels, 16)) == [
    (5, 20),
    (21, 36),
    (37, 44),  # frames without a label are left out at the ends
    (60, 68),
    (69, 74),
  ]
  # A rest of less than a quarter joins the part before.
  assert list(units.segments(dict.fromkeys(range(67), ()), 64)) == [(0, 66)]
  assert list(units.segments(dict.fromkeys(range(80), ()), 64)) == [
    (0, 63),
    (64, 79),
  ]


# DISFA.


def test_disfa_has_the_intensities_of_each_frame(downloads, tmp_path):
  report, prepared = prepare_small(
    'disfa', downloads / 'disfa', tmp_path, crop='none'
  )
  names = tuple(f'AU{k}' for k in (1, 2, 4, 6, 9, 12, 25, 26))
  assert (prepared.action_units, prepared.positive_from) == (names, 2)
  clips = _clips(prepared)
  assert {*clips} == {
    'LeftVideoSN001_comp#0-9',
    'LeftVideoSN002_comp#0-9',
    'LeftVideoSN010_comp#0-10',  # a label more than frames
  }
  for clip in clips.values():
    assert len(clip) == miniatures.FRAMES
    assert (clip.fps, clip.subject) == (20.0, clip.clip_id[9:14])
    expected = [
      [(f + k) % 6 for k in (1, 2, 4, 6, 9, 12, 25, 26)] for f in range(1, 11)
    ]
    assert clip.intensities.tolist() == expected
  # Of ten frames with (f + 1) % 6 from 2 on: f = 1..4, 7..10.
  assert report.action_units['AU1'] == (24, 30)
  assert 'action units: AU1 80.0%' in str(report)
  assert not any('only class' in text for text in report.warnings)


def test_disfa_of_the_other_camera_with_all_units(downloads, tmp_path):
  root = downloads / 'disfa'
  rows = rows_of('disfa', root, camera='right', units='12')
  (row,) = rows.values()
  assert row.path.endswith('Video_RightCamera/RightVideoSN001_comp.avi')
  assert row.intensities[0] == tuple((1 + k) % 6 for k in units._DISFA)
  chosen = {'camera': 'right', 'units': '12'}
  _, prepared = prepare_small(
    'disfa', root, tmp_path, choices=chosen, crop='none'
  )
  assert prepared.name == 'disfa_12_right'
  assert len(prepared.action_units) == 12


@pytest.mark.parametrize(
  ('text', 'shown'),
  [
    ('1,6', 'line 1: .6. is no whole number from 0 to 5'),
    ('1;2', 'line 1: .1;2. is no whole number'),
    ('1,2\nx', 'line 2: .x. is no whole number'),
  ],
)
def test_a_bad_line_of_disfa_is_named(copy, text, shown):
  root = copy('disfa')
  file = root / 'ActionUnit_Labels/SN002/SN002_au4.txt'
  file.write_text(text)
  error = error_of(list_clips, 'disfa', root)
  assert error.code == 'bad_table'
  assert 'SN002_au4.txt' in error.path
  assert re.search(shown, error.hint)


def test_disfa_units_without_a_file_or_a_line(copy):
  root = copy('disfa')
  folder = root / 'ActionUnit_Labels/SN001'
  lines = (folder / 'SN001_au4.txt').read_text().splitlines()
  (folder / 'SN001_au4.txt').write_text('\n'.join(lines[3:]))
  row = rows_of('disfa', root)['LeftVideoSN001_comp#0-9']
  assert [values[2] for values in row.intensities][:4] == [-1, -1, -1, 2]
  (folder / 'SN001_au12.txt').unlink()
  assert error_of(list_clips, 'disfa', root).code == 'not_found'
  shutil.rmtree(folder)
  for file in (root / 'ActionUnit_Labels/SN002').iterdir():
    file.write_text('')
  listing = list_clips('disfa', root)
  assert listing.dropped == {'no labels of action units': 2}


# BP4D.


def test_bp4d_has_the_occurrences_of_coded_frames(downloads, tmp_path):
  report, prepared = prepare_small(
    'bp4d', downloads / 'bp4d', tmp_path, crop='none'
  )
  assert (len(prepared.action_units), prepared.positive_from) == (12, 1)
  clips = _clips(prepared)
  assert len(clips) == 6
  clip = clips['F001_T8#999-1008']
  assert (clip.subject, clip.fps, len(clip)) == ('F001', 25.0, 10)
  # The images before and after the coded ones are left out.
  folder = downloads / 'bp4d/BP4D-training/F001/T8'
  assert clip.frames[0] == (folder / '999.jpg').read_bytes()
  for clip in clips.values():
    for i, row in enumerate(clip.intensities):
      assert row.tolist() == [
        -1 if (clip.subject, k) == ('F001', 6) else int((999 + i + k) % 3 == 0)
        for k in units._BP4D
      ]
  # In 999 to 1008 (f + 6) % 3 is 0 four times; four clips of six are coded.
  assert report.action_units['AU6'] == (16, 40)
  both = pool.of_dataset(prepared, list(prepared.splits))
  assert {*both.recording.tolist()} == {
    f'bp4d/{s}_T{t}' for s in ('F001', 'F002', 'M001') for t in (1, 8)
  }


def test_bp4d_as_other_copies_have_it(copy):
  root = copy('bp4d')
  expected = rows_of('bp4d', root)
  (root / 'AUCoding/AU_OCC').rename(root / 'AUCoding/AUCoding')
  (root / 'BP4D-training').rename(root / '2D+3D')
  moved = rows_of('bp4d', root)
  assert {k: r.intensities for k, r in moved.items()} == {
    k: r.intensities for k, r in expected.items()
  }
  table = root / 'AUCoding/AUCoding/M001_T8.csv'
  whole = table.read_text()
  table.unlink()
  assert list_clips('bp4d', root).dropped == {'no codes of action units': 1}
  table.write_text(whole.replace(',24,', ',25,', 1))
  assert 'no column for AU24' in error_of(list_clips, 'bp4d', root).hint
  table.write_text(whole[:-20])
  assert 'it is cut off' in error_of(list_clips, 'bp4d', root).hint
  table.write_text(whole.replace('\n999,0,', '\n999,3,'))
  assert 'the code 3' in error_of(list_clips, 'bp4d', root).hint


# Long videos.


@pytest.mark.parametrize('crop', ['none', 'center'])
def test_a_long_video_is_cut_and_thinned_with_its_labels(tmp_path, crop):
  """The brightness of frame f is f, and so says its label, in two digits.

  An image that cannot be read shifts no label, with a crop or without.
  """
  root = tmp_path / 'bp4d'
  frames = [np.full((24, 24, 3), f, np.uint8) for f in range(150)]
  folder = root / 'BP4D-training/F001/T1'
  folder.mkdir(parents=True)
  for f, frame in enumerate(frames):
    (folder / f'{f}.png').write_bytes(encode_png(frame))
  (folder / '5.png').write_bytes(b'\x89PNG\r\n\x1a\n damaged')
  numbers = units._BP4D
  lines = [','.join(map(str, (0, *numbers)))]
  lines += [
    ','.join(map(str, (f, *(f >> k & 1 for k in range(len(numbers))))))
    for f in range(10, 145)
  ]
  table = root / 'AUCoding/AU_OCC/F001_T1.csv'
  miniatures.text(table, '\n'.join(lines))
  _, prepared = prepare_small(
    'bp4d', root, tmp_path / 'out', crop=crop, max_frames=20
  )
  clips = _clips(prepared)
  assert {*clips} == {'F001_T1#10-73', 'F001_T1#74-144'}
  for clip in clips.values():
    assert len(clip) == len(clip.intensities) == 20
    pixels = records.read_frames(clip, range(20))
    shown = [int(pixels[i].mean()) for i in range(20)]
    told = (clip.intensities << np.arange(len(numbers), dtype=np.int64)).sum(1)
    assert shown == told.tolist()
    first, last = (int(x) for x in clip.clip_id.split('#')[1].split('-'))
    assert (shown[0], shown[-1]) == (first, last)


def test_segments_of_one_video_have_their_own_frames_and_labels(tmp_path):
  root = tmp_path / 'disfa'
  frames = np.full((60, 48, 48, 3), 40, np.uint8)
  frames += 3 * np.arange(60, dtype=np.uint8)[:, None, None, None]
  frames[:, ::2] += 20  # so that it is not flat
  for person in (1, 2):  # the second one is darker
    subject = f'SN{person:03d}'
    file = root / f'Videos_LeftCamera/LeftVideo{subject}_comp.avi'
    miniatures.video(file, frames - 8 * np.uint8(person), 20)
    for unit in units._DISFA:
      lines = ''.join(f'{f},{(f - 1) // 10}\n' for f in range(1, 61))
      place = f'ActionUnit_Labels/{subject}/{subject}_au{unit}.txt'
      miniatures.text(root / place, lines)
  choices = {'segment': '32'}
  _, prepared = prepare_small(
    'disfa', root, tmp_path / 'out', crop='none', choices=choices
  )
  for clip in _clips(prepared).values():
    first, last = (int(x) for x in clip.clip_id.split('#')[1].split('-'))
    assert (first, last) in ((0, 31), (32, 59))
    numbers = np.arange(first, last + 1)
    assert clip.intensities[:, 0].tolist() == (numbers // 10).tolist()
    pixels = records.read_frames(clip, range(len(clip)))
    shown = np.array([pixels[i].mean() for i in range(len(clip))])
    expected = 50 + 3 * numbers - 8 * int(clip.subject[-1])
    assert np.abs(shown - expected).max() < 3


def test_units_are_told_by_the_commands(downloads, tmp_path, capsys):
  out = tmp_path / 'data' / 'disfa'
  arguments = ['--root', str(downloads / 'disfa'), '--out', str(out)]
  arguments += ['--crop=none', '--workers=0', '--segment=32']
  assert cli.main(['prepare', 'disfa', *arguments]) == 0
  told = json.loads((out / 'PREPARE_REPORT.json').read_text())
  assert told['action_units']['AU1'] == [24, 30]
  capsys.readouterr()
  sheet = str(tmp_path / 'sheet.png')
  assert cli.main(['show', str(out), '--out', sheet]) == 0
  shown = ' '.join(capsys.readouterr().out.split())
  assert 'action units, shown from intensity 2 on: AU1 80.0%' in shown
  assert cli.main(['datasets', '--data-dir', str(tmp_path / 'data')]) == 0
  shown = ' '.join(capsys.readouterr().out.split())
  assert '8 action units' in shown
  assert BUILDERS['disfa'].ask in shown
