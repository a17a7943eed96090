"""Tables of face boxes: CSV and JSON in the forms that others write."""

from __future__ import annotations

import gzip
import json
import pathlib

import numpy as np
import pytest

from mira_jax.errors import MiraInputError
from mira_jax.prepare.boxes import look_up, read_boxes


def _write(path: pathlib.Path, content: str | bytes) -> pathlib.Path:
  data = content.encode() if isinstance(content, str) else content
  path.write_bytes(data)
  return path


def _plain(boxes: dict[str, np.ndarray]) -> dict[str, list]:
  return {clip: found.tolist() for clip, found in boxes.items()}


CSV = 'path,x,y,width,height\na/1.mp4,1,2,3,4\nb.mp4,5,6,7.5,8\na/1.mp4,2,2,3,4'
WANTED = {'a/1.mp4': [[1, 2, 3, 4], [2, 2, 3, 4]], 'b.mp4': [[5, 6, 7.5, 8]]}


@pytest.mark.parametrize(
  'content',
  [
    CSV.encode(),
    CSV.replace(',', '\t').replace('\n', '\r\n').encode(),
    b'\xef\xbb\xbf' + CSV.encode(),
    gzip.compress(CSV.encode(), mtime=0),
    CSV.replace('path,x,y,width,height', 'Clip,Left,TOP, w,h').encode(),
    CSV.replace('path,x,y', 'file_name,left,y').replace('a/', 'a\\').encode(),
    CSV.replace('a/1', './a//1').replace(',4', ', 4 ').encode(),
    CSV.replace('mp4,', 'mp4,"some, text",').replace('path', 'path,t').encode(),
  ],
)
def test_dialects_of_csv(tmp_path, content):
  assert _plain(read_boxes(_write(tmp_path / 't', content))) == WANTED


@pytest.mark.parametrize(
  'content',
  [
    [
      {'path': 'a/1.mp4', 'x': 1, 'y': 2, 'width': 3, 'height': 4},
      {'Clip': 'b.mp4', 'left': 5, 'top': 6, 'w': 7.5, 'h': '8', 'score': 1},
      {'filename': 'a/1.mp4', 'h': 4, 'w': 3, 'y': 2, 'x': 2},
    ],
    {'a/1.mp4': [[1, 2, 3, 4], [2, 2, 3, 4]], 'b.mp4': [5, 6, 7.5, 8]},
    {**WANTED, 'nobody.mp4': []},
  ],
)
def test_dialects_of_json(tmp_path, content):
  data = json.dumps(content, indent=1).encode()
  for same in (data, b'\xef\xbb\xbf' + data, gzip.compress(data)):
    path = _write(tmp_path / 't.json', same)
    assert _plain(read_boxes(path)) == WANTED


HEADER = 'clip,x,y,w,h\na,1,2,3,4\n'


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('', 'bad_table.*no column for the clip'),
    ('name,x,y,w,h\na,1,2,3,4\n', 'bad_table.*filename'),
    ('clip,x,y,w,h\n', 'bad_table.*no box'),
    (HEADER + ',1,2,3,4\n', 'bad_table.*line 3: it names no clip'),
    (HEADER + 'a,"' + 'x' * 200_000, 'bad_table.*not a CSV file'),
    (b'PK\x03\x04', 'bad_table.*no readable Excel'),
    (HEADER + 'b,1,2,3,\n', 'bad_box.*line 3'),
    (HEADER + '\nb,one,2,3,4\n', 'bad_box.*line 4.*one'),
    (HEADER + 'b,nan,2,3,4\n', 'bad_box.*line 3'),
    (HEADER + 'b,1,2,0,4\n', 'bad_box.*line 3.*positive'),
    ('[', 'bad_table.*line 1'),
    ('{"a": [1, 2,\n 3 4]}', 'bad_table.*line 2'),
    ('[' * 100_000, 'bad_table.*JSON'),
    ('[]', 'bad_table.*no box'),
    ('[[1, 2, 3, 4]]', 'bad_table.*entry 1'),
    ('[{"clip": "a", "x": 1, "y": 2, "w": 3}]', 'bad_table.*entry 1.*height'),
    ('[{"clip": 7, "x": 1, "y": 2, "w": 3, "h": 4}]', 'bad_table.*no clip'),
    ('{"a": [1, 2, 3]}', 'bad_box.*clip a'),
    ('{"a": [[1, 2, 3, 4], null]}', 'bad_box.*clip a'),
    ('{"a": "1234"}', 'bad_box.*clip a'),
    ('{"a": [1, 2, 3, 1' + '0' * 400 + ']}', 'bad_box.*clip a'),
  ],
)
def test_tables_that_are_refused(tmp_path, content, message):
  path = _write(tmp_path / 't', content)
  with pytest.raises(MiraInputError, match=f'(?s){message}') as caught:
    read_boxes(path)
  assert caught.value.path == str(path)


@pytest.mark.parametrize(
  ('name', 'clip_id'),
  [
    ('happy/1.mp4', 'happy/1.mp4'),
    ('happy/1', 'happy/1.mp4'),
    ('happy/1.mp4', 'happy/1'),  # a folder of its frames
    ('happy/1.AVI', 'happy/1.mp4'),
    ('1.mp4', 'happy/1.mp4'),
    ('1', 'train/happy/1.mp4'),
    ('/home/author/data/happy/1.mp4', 'happy/1.mp4'),
    ('author/S01.2', 'S01.2'),
  ],
)
def test_a_clip_is_looked_up_by_the_end_of_its_name(name, clip_id):
  boxes = {'other/2.mp4': np.zeros((1, 4)), name: np.ones((2, 4))}
  assert look_up(boxes, clip_id) is boxes[name]


@pytest.mark.parametrize(
  'clip_id', ['11.mp4', 'sad/1.mp4', 'happy/2.mp4', 'S01', 'happy']
)
def test_a_clip_without_boxes(clip_id):
  boxes = {'happy/1.mp4': np.ones((1, 4)), 'S01.2': np.ones((1, 4))}
  assert look_up(boxes, clip_id) is None


def test_a_name_that_two_rows_fit():
  boxes = {'happy/1.mp4': np.zeros((1, 4)), 'happy/1.avi': np.ones((1, 4))}
  assert look_up(boxes, 'happy/1.avi') is boxes['happy/1.avi']
  with pytest.raises(MiraInputError, match=r'ambiguous: happy/1: .*1\.avi'):
    look_up(boxes, 'happy/1')
