"""Subjects: one name for a person, however tables and folders spell it."""

from __future__ import annotations

import unicodedata

import pytest

from mira_jax.data import people, trees
from mira_jax.errors import MiraInputError


def test_a_subject_in_several_spellings_is_one():
  for same in (
    ('1', '01', '001', '1.0', ' 1 '),
    ('S01', 's01', 'S01 ', 's1', 'S-1', 'sub01', 'Subject 1', '1'),
    ('José', unicodedata.normalize('NFD', 'José')),
    ('p1\0', 'P01'),
    ('Ann Lee', 'ann  lee', 'ANN\xa0LEE'),
  ):
    names = people.one_spelling([*same, 'Bob', same[0]])
    assert {*names[: len(same)]} == {names[-1]}
    assert names[-2] == 'Bob'
    assert people.one_spelling(names) == names
  kept = people.one_spelling(['1', '01', '01', '2', '02'])
  assert kept == ['01', '01', '01', '02', '02']  # the most frequent


def test_other_subjects_stay_others():
  for others in (('1', '10'), ('S1', 'P1'), ('1', 'S1', 'P1'), ('ann', 'anne')):
    assert len({*people.one_spelling(others)}) == len(others)
  marks = ['NA', 'nan', '-', '?', '', ' ', 'N/A', 'None', 'unknown', '-1']
  assert people.one_spelling([*marks, '3']) == [''] * len(marks) + ['3']


@pytest.mark.parametrize('name', ['Actor_0{}', 'fold_{}'])
def test_folders_of_subjects_are_no_classes(tmp_path, name):
  for i in (1, 2):
    folder = tmp_path / 'deep' / name.format(i) / 'happy'
    folder.mkdir(parents=True)
    (folder / 'x.mp4').touch()
    flat = tmp_path / 'flat' / name.format(i)
    flat.mkdir(parents=True)
    (flat / 'x.mp4').touch()
  with pytest.raises(MiraInputError, match=r'unclear_tree.*like a subject'):
    trees.scan_folder(tmp_path / 'deep')
  rows = trees.scan_folder(tmp_path / 'flat').rows
  assert [row.label for row in rows] == [name.format(i) for i in (1, 2)]
  assert [row.subject for row in rows] == ['', '']


def test_paths_show_subjects_where_nearly_all_do():
  paths = [f'S{i:02d}-{i}/x.mp4' for i in range(20)]
  assert people.of_paths([*paths, 'other.mp4']) == [
    *(f'S{i:02d}' for i in range(20)),
    '',
  ]
  assert people.of_paths([*paths[:3], 'other.mp4']) == [''] * 4
  numbered = [f'happy/P{i:02d}_{j}/001.png' for i in (1, 2) for j in (1, 2)]
  assert people.of_paths(numbered) == ['P01', 'P01', 'P02', 'P02']
  sessions = [f'sub-0{i}/happy/s{j}.mp4' for i in (1, 2) for j in (1, 2)]
  assert people.of_paths(sessions) == ['sub-01', 'sub-01', 'sub-02', 'sub-02']


def test_an_unknown_side_is_none():
  found = people.on_several_sides('aabbcc', [0, None, 0, 1, None, None])
  assert found == ['b']
