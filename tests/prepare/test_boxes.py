"""Tables of face boxes, in the forms that others write."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from mira_jax.errors import MiraInputError
from mira_jax.prepare.boxes import read_boxes


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
