"""Annotation tables in Excel files."""

from __future__ import annotations

import datetime
import pathlib
import zipfile

import openpyxl
import pytest

from mira_jax.errors import MiraInputError
from mira_jax.prepare import tables

STORED = pathlib.Path(__file__).parents[1] / 'stored'


def _labels(listing) -> list[str]:
  return [row.label for row in listing.rows]


@pytest.fixture
def book(tmp_path):
  """Gives `book({title: rows}, **options)`: the listing of a workbook."""

  def book(sheets, edit=lambda book: None, **options):
    made = openpyxl.Workbook()
    made.remove(made.active)
    for title, rows in sheets.items():
      sheet = made.create_sheet(title)
      for row in rows:
        sheet.append(row)
    edit(made)
    made.save(tmp_path / 't.xlsx')
    return tables.read_table(tmp_path / 't.xlsx', **options)

  return book


ROWS = [['path', 'label'], ['1', 'a'], ['2', 'b']]


def test_the_sheet_that_has_the_columns_is_read(book):
  listing = book({'README': [['about']], 'clips': ROWS})
  assert _labels(listing) == ['a', 'b']
  assert listing.remarks == ["sheet 'clips'; columns path, label; 2 rows"]

  def hide(made):
    made['old'].sheet_state = 'hidden'

  assert len(book({'old': ROWS, 'new': ROWS[:2]}, hide).rows) == 1


def test_several_sheets_that_fit_are_refused(book):
  with pytest.raises(MiraInputError, match=r"hide all of 'train', 'test' but"):
    book({'train': ROWS, 'test': ROWS[:2]})


def test_what_excel_changes_is_refused(book):
  long = 123456789012345678
  for cell in (datetime.datetime(2024, 3, 4), datetime.time(3, 4), long):
    with pytest.raises(
      MiraInputError, match=r"bad_table.*line 2, col.*'label'"
    ):
      book({'a': [['path', 'label', 'note'], ['1', cell, None]]})
    assert book({'a': [['path', 'label', 'note'], ['1', 'a', cell]]}).rows


def test_formulas_must_have_been_computed(book):
  rows = [['path', 'label', 'note'], ['1', '="a"', None], ['2', 'b', '=1+1']]
  with pytest.raises(MiraInputError, match=r'line 2.*formula without its valu'):
    book({'a': rows})
  assert len(book({'a': [rows[0], rows[2]]}).rows) == 1


def test_what_libreoffice_writes():
  listing = tables.read_table(STORED / 'clips.xlsx')
  assert [(r.path, r.label, r.fold, r.subject) for r in listing.rows] == [
    ('a/1.mp4', 'happy', 1, '001'),  # a formula
    ('a/2.mp4', 'sad', 2, '002'),
    ('005', 'glücklich', 1, '003'),  # 5, shown with three digits
  ]
  assert listing.dropped == {'no label (#N/A)': 1, 'marked as not valid': 1}


def test_one_cell_far_out_takes_no_time(book):
  def far(made):
    made['a']['XFD1048576'] = 'x'

  listing = book({'a': ROWS}, far)
  assert _labels(listing) == ['a', 'b']
  assert listing.dropped == {'no label': 1}


def test_a_row_that_would_fill_the_memory(book, tmp_path):
  book({'a': ROWS})
  with (
    zipfile.ZipFile(tmp_path / 't.xlsx') as made,
    zipfile.ZipFile(tmp_path / 'b.xlsx', 'w', zipfile.ZIP_DEFLATED) as bomb,
  ):
    for name in made.namelist():
      data = made.read(name)
      if name.endswith('sheet1.xml'):
        data = data.replace(b'</row>', b'<c/>' * (2 << 20) + b'</row>', 1)
      bomb.writestr(name, data)
    bomb.writestr('xl/media/image1.png', b'\x89PNG' + bytes(6 << 20))
  with pytest.raises(MiraInputError, match=r'bad_table.*sheet1.*over 4 MiB'):
    tables.read_table(tmp_path / 'b.xlsx')


def test_other_spreadsheets_are_said_to_be_others(tmp_path):
  for content in (b'', 'EncryptedPackage'.encode('utf-16-le')):
    (tmp_path / 't.xls').write_bytes(b'\xd0\xcf\x11\xe0' + content)
    with pytest.raises(MiraInputError, match=r'bad_table.*has a password'):
      tables.read_table(tmp_path / 't.xls')
  with zipfile.ZipFile(tmp_path / 't.ods', 'w') as file:
    file.writestr('mimetype', 'application/vnd.oasis.opendocument.spreadsheet')
  with pytest.raises(MiraInputError, match=r'bad_table.*save it as .xlsx'):
    tables.read_table(tmp_path / 't.ods')
