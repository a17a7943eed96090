"""Tables of face boxes, in the forms that others write."""

from __future__ import annotations

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
    CSV.replace('path,x,y,width,height', 'Clip,Left,TOP, w,h').encode(),
    CSV.replace('path,x,y', 'file_name,left,y').replace('a/', 'a\\').encode(),
    CSV.replace('a/1', './a//1').replace(',4', ', 4 ').encode(),
  ],
)
def test_usual_tables(tmp_path, content):
  assert _plain(read_boxes(_write(tmp_path / 't', content))) == WANTED


HEADER = 'clip,x,y,w,h\na,1,2,3,4\n'


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('{"a": [1, 2, 3, 4]}', 'bad_table.*no column for the clip'),
    ('name,x,y,w,h\na,1,2,3,4\n', 'bad_table.*filename'),
    ('clip,x,y,w,h\n', 'bad_table.*no box'),
    (HEADER + ',1,2,3,4\n', 'bad_table.*line 3: it names no clip'),
    (HEADER + 'b,1,2,3,\n', 'bad_box.*line 3'),
    (HEADER + '\nb,one,2,3,4\n', 'bad_box.*line 4.*one'),
    (HEADER + 'b,1,2,0,4\n', 'bad_box.*line 3.*positive'),
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
    ('happy/1', 'happy/1.mp4'),
    ('happy/1.mp4', 'happy/1'),  # a folder of its frames
    ('happy/1.AVI', 'happy/1.mp4'),
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
