"""Tables as spreadsheet programs, R, pandas and hands write them."""

from __future__ import annotations

import gzip
import os
import re

import pytest

import miniatures
from mira_jax.cli import main as cli
from mira_jax.data import dataset, table_file
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.prepare import grid, prepare, tables

HEAD = 'path,label\n'


@pytest.fixture
def read(tmp_path):
  """Gives `read(content, **options)`: the listing of a table."""

  def read(content: str | bytes, **options):
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / 't.csv').write_bytes(data)
    return tables.read_table(tmp_path / 't.csv', **options)

  return read


def _labels(listing) -> list[str]:
  return [row.label for row in listing.rows]


def _table(column: str, *values: str, labels: str = 'ab') -> str:
  lines = (f'{i},{labels[i % len(labels)]},{v}\n' for i, v in enumerate(values))
  return f'path,label,{column}\n' + ''.join(lines)


def _of_labels(*labels: str) -> str:
  return HEAD + ''.join(f'{i},{label}\n' for i, label in enumerate(labels))


# Encodings.


@pytest.mark.parametrize(
  ('encoding', 'shown'),
  [('utf-8-sig', 'utf-8'), ('utf-16', 'utf-16-le')],  # Excel's
)
def test_unicode_is_recognised(read, encoding, shown):
  word = 'glücklich 喜び радость 😀'
  listing = read(f'path\tlabel\na/é.mp4\t{word}\n'.encode(encoding))
  assert [(r.path, r.label) for r in listing.rows] == [('a/é.mp4', word)]
  assert listing.remarks == [f'{shown}, tabs; columns path, label; 1 rows']


@pytest.mark.parametrize(
  ('encoding', 'word'),
  [('cp1252', 'enttäuscht'), ('cp932', '悲しみ')],
)
def test_other_encodings_are_asked_for(read, encoding, word):
  line = f'1,{word}'
  data = f'{HEAD}0,ok\n{line}\n'.encode(encoding)
  with pytest.raises(MiraInputError, match=r'bad_encoding.*line 3') as caught:
    read(data)
  assert f'--encoding={encoding} reads {line!r}' in caught.value.hint
  assert _labels(read(data, encoding=encoding)) == ['ok', word]


def test_an_encoding_that_does_not_fit(read):
  with pytest.raises(MiraInputError, match=r'bad_encoding.*line 2 is not asc'):
    read(HEAD + '1,é\n', encoding='ascii')
  for name in ('rot13', 'a\0b', 'undefined'):
    with pytest.raises(MiraInputError, match='bad_encoding'):
      read(HEAD, encoding=name)
  for data in (b'\x80\x04\x95\0\0\0 a pickle', HEAD.encode('utf-16-le')):
    with pytest.raises(MiraInputError, match=r'bad_table.*encoding=utf-16-le'):
      read(data)


# Delimiters and headers.


@pytest.mark.parametrize(
  'content',
  [
    'Clips of the study, coded by A, B and C\npath;label\n1;a, b\n',
    'path, label, and so on\npath;label\n1;a, b\n',
    'sep=;\r\npath;label\r\n1;a, b\r\n',
    ',,\nStudy,,\n\npath,label,note\n1,"a, b",\n',
    'path|label\n1|a, b\n',
    'path\tlabel\r1\ta, b\r',
    'path,label\n="1","a, b"\n',
  ],
)
def test_the_header_says_what_the_delimiter_is(read, content):
  rows = read(content).rows
  assert [(row.path, row.label) for row in rows] == [('1', 'a, b')]


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (HEAD + '1,a\n2,b, really\n', r'line 3 has 3 cells, and its header 2'),
    ('"path" "label"\n"1" "a"\n', r'no column for the path'),
    ('path,label,Label\n1,a,b\n', r"two columns are called 'Label'"),
    ('datei;klasse\n1;a\n', r"no column for the path.*found 'datei'"),
    ('<table><tr><td>path</td></tr></table>', r'HTML or XML'),
    (HEAD + '1,' + 'a' * 200_000, r'not a CSV file: field larger'),
    (HEAD + '1,"ang\nry"\n', r'control character'),
    (HEAD + '1,a\u2028b\n', r'control character'),
  ],
)
def test_tables_that_would_be_misread(read, content, message):
  with pytest.raises(MiraInputError, match=f'bad_(table|label).*{message}'):
    read(content)


# Labels.


@pytest.mark.parametrize('word', ['NA', '#N/A', '?', ''])
def test_a_missing_label_is_no_class(read, word):
  listing = read(_of_labels(*['happy', 'sad', word] * 4))
  assert set(_labels(listing)) == {'happy', 'sad'}
  assert list(listing.dropped.values()) == [4]


@pytest.mark.parametrize('word', ['none', '-1'])
def test_a_word_that_may_be_a_class_is_asked_for(read, word):
  table = _of_labels('NA', *['pain', 'joy'] * 4, word)
  with pytest.raises(MiraInputError, match=r'unclear_label') as caught:
    read(table)
  missing = ','.join(sorted(['NA', word]))
  assert caught.value.hint == (
    f'{word!r} may be a class or missing: use --missing={missing} if it is '
    'missing, --missing=NA if it is a class'
  )
  assert len(read(table, missing=['NA', word.upper()]).rows) == 8
  assert len(read(table, missing=['NA']).rows) == 9


# Other columns.


def test_truth_values_as_programs_write_them(read):
  values = ['1.0', '0.0', 'TRUE', 'false', 'Yes', 'n', '', 'None']
  listing = read(_table('valid', *values))
  assert [row.path for row in listing.rows] == ['0', '2', '4']
  assert listing.dropped == {
    'marked as not valid': 3,
    'not marked as valid or not': 2,
  }
  with pytest.raises(MiraInputError, match=r"line 2: valid is 'wahr'"):
    read(_table('valid', 'WAHR'))


def test_words_of_splits(read):
  listing = read(_table('split', 'Training', 'test', 'dev', 'probe', ''))
  assert [row.split for row in listing.rows] == ['train', 'test', 'val']
  assert listing.dropped == {"another split ('probe')": 1, 'no split': 1}
  assert len(read(_table('split', '', 'NA')).rows) == 2
  with pytest.raises(MiraInputError, match=r"found '0' 2, '1' 1"):
    read(_table('split', '0', '0', '1'))
  many = read(_table('split', 'test', *map(str, range(50)))).dropped
  assert len(many) == 4
  assert many['another split (others)'] == 47


def test_numbers_as_programs_write_them(read):
  values = ['1', '2.0', '1e1', '3E+00', '"4,0"', '5', '', 'NA', '/', '-1']
  folds = [row.fold for row in read(_table('fold', *values)).rows]
  assert folds == [1, 2, 10, 3, 4, 5, -1, -1, -1, -1]


@pytest.mark.parametrize(
  ('column', 'cell'),
  [
    ('fold', '1.5'),
    ('onset', '"1,000"'),
    ('apex', 'x' * 5000),
    ('fps', '-25'),
    ('subject', 's\x0b1'),
  ],
)
def test_a_cell_that_cannot_be_is_named(read, column, cell):
  with pytest.raises(MiraInputError, match=r'bad_table.*line 3') as caught:
    read(_table(column, '', cell))
  assert column in caught.value.hint
  assert len(caught.value.hint) < 200


def test_a_table_of_action_units_needs_no_label(read):
  listing = read(
    'path,AU01,au 2,AU12,note\n'
    'a.mp4,0,1.0,"2,5",x\nb.mp4,9,,-1,x\nc.mp4,5,NA,0.4,x\n'
  )
  assert listing.action_units == ('AU1', 'AU2', 'AU12')
  assert [row.intensities for row in listing.rows] == [
    ((0, 1, 3),),  # halves are rounded up
    ((-1, -1, -1),),
    ((5, -1, 0),),
  ]
  assert {row.label for row in listing.rows} == {'face'}
  assert 'columns path, AU1=AU01, AU2, AU12;' in listing.remarks[0]
  both = read('path,label,AU4\na.mp4,happy,3\nb.mp4,,3\n')
  assert [(r.label, r.intensities) for r in both.rows] == [('happy', ((3,),))]
  assert both.dropped == {'no label': 1}


# As OpenFace 2 writes them (RecorderCSV), of a sequence, with a column of paths
# before; it has AU28_c alone.
_R = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
_C = (*_R[:-1], 28, 45)


def test_what_openface_says_is_shown_counts(read):
  head = 'filename, frame, face_id, timestamp, confidence, success'
  head += ''.join(f', AU{k:02d}_r' for k in _R)
  head += ''.join(f', AU{k:02d}_c' for k in _C)
  line = 'a.mp4, 1, 0, 0.000, 0.98, 1' + ', 1.73' * 17 + ', 1.00, 0.00' * 9
  listing = read(f'{head}\n{line}\n')
  assert listing.action_units == tuple(f'AU{k}' for k in _C)
  assert listing.rows[0].intensities == ((1, 0) * 9,)
  only = read(f'{head.partition(", AU01_c")[0]}\n{line[: -6 * 18]}\n')
  assert only.action_units == tuple(f'AU{k}' for k in _R)
  assert only.rows[0].intensities == ((2,) * 17,)
  with pytest.raises(MiraInputError, match='no column for the path'):
    read(f'{head.removeprefix("filename, ")}\n{line[7:]}\n')


@pytest.mark.parametrize('cell', ['6', '-2', 'yes', '5.5', '10%'])
def test_an_intensity_that_cannot_be_is_named(read, cell):
  with pytest.raises(MiraInputError) as caught:
    read(f'path,AU4\na.mp4,{cell}\n')
  assert caught.value.code == 'bad_table'
  assert f'line 2: AU4 is {cell!r}' in caught.value.hint


def test_a_folder_with_a_table_of_units_is_prepared(tmp_path):
  for name in 'abc':
    miniatures.images(tmp_path / 'root' / name, miniatures.face(0, 32)[:3])
  table = tmp_path / 'units.csv'
  table.write_text('path,subject,AU4,AU6\na,1,3,9\nb,2,0,1\nc,3,1,1\n')
  options = {'table': table, 'workers': 0, 'positive_from': 2}
  report = prepare.prepare_folder(tmp_path / 'root', tmp_path / 'o', **options)
  made = dataset.open(tmp_path / 'o')
  assert (made.action_units, made.positive_from) == (('AU4', 'AU6'), 2)
  clips = [c for split in made.splits for c in made.source(split)]
  rows = {clip.clip_id: clip.intensities.tolist() for clip in clips}
  assert rows == {'a': [[3, -1]], 'b': [[0, 1]], 'c': [[1, 1]]}
  assert report.action_units == {'AU4': (3, 9), 'AU6': (0, 6)}
  options['positive_from'] = 6
  with pytest.raises(MiraInputError, match='bad_value: positive_from=6'):
    prepare.prepare_folder(tmp_path / 'root', tmp_path / 'p', **options)


def test_unknown_subjects_are_not_one_person(read):
  listing = read(_table('Speaker ID', 'S1', 'NA', 'None', '?', 'unknown', '-1'))
  assert [row.subject for row in listing.rows] == ['S1', '', '', '', '', '']


# Hostile files.


def test_only_regular_files_are_read(tmp_path):
  os.mkfifo(tmp_path / 'pipe.csv')
  (tmp_path / 'endless.csv').symlink_to('/dev/zero')
  for name in ('pipe.csv', 'endless.csv', '.'):
    with pytest.raises(MiraInputError, match='not_regular_file'):
      tables.read_table(tmp_path / name)
  with pytest.raises(MiraInputError, match='not_found'):
    tables.read_table(tmp_path / 'a\0b')


def test_bombs_are_not_unpacked(tmp_path, monkeypatch):
  monkeypatch.setattr(table_file, 'MAX_BYTES', 1 << 20)
  path = tmp_path / 'bomb.csv.gz'
  path.write_bytes(gzip.compress(bytes(2 << 20)))
  with pytest.raises(MiraInputError, match=r'bad_table.*more than 1 MiB'):
    tables.read_table(path)
  monkeypatch.setattr(grid, 'MAX_CELLS', 100)
  path.write_text(HEAD + '1,a\n' * 60)
  with pytest.raises(MiraInputError, match=r'bad_table.*100 cells'):
    tables.read_table(path)
  monkeypatch.setattr(table_file, 'MAX_BYTES', 4 << 20)
  path.write_text(HEAD + ',' * (2 << 20))
  with pytest.raises(MiraInputError, match=r'bad_table.*a line has more than'):
    tables.read_table(path)


# The command.


def test_the_flags_reach_the_table(tmp_path, capsys):
  for i in range(4):
    miniatures.images(tmp_path / f'root/{i}', miniatures.face(i))
  table = tmp_path / 't.csv'
  table.write_bytes(
    'path;label\n0;froh\n1;ärger\n2;froh\n3;x\n'.encode('cp1252')
  )

  def run(*flags: str) -> tuple[int, str]:
    where = [f'--root={tmp_path}/root', f'--out={tmp_path}/out']
    where += ['--workers=0', f'--table={table}']
    code = cli.main(['prepare', 'folder', *where, *flags])
    return code, ''.join(capsys.readouterr())

  code, shown = run()
  assert code == ExitCode.USAGE
  assert re.search(r"bad_encoding.*--encoding=cp1252 reads '1;ärger'", shown)
  code, shown = run('--encoding=cp1252', '--missing=x,y')
  assert code == ExitCode.OK
  assert 'table: cp1252, semicolons; columns path, label; 4 rows' in shown
  assert 'passed over: 1 no label (x)' in shown
  report = (tmp_path / 'out' / prepare.REPORT_NAME).read_text()
  assert 'cp1252, semicolons' in report
