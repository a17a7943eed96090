"""Trees of folders: clips, splits, classes, subjects."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import unicodedata

import av
import numpy as np
import pytest

import miniatures
from mira_jax.cli import main as cli
from mira_jax.data import dataset, listing, trees
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import find_clips
from mira_jax.prepare import prepare
from mira_jax.prepare.builders.tree import Tree
from mira_jax.video import decode

FRAMES = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)


def _files(root: pathlib.Path, *paths: str) -> pathlib.Path:
  root.mkdir(exist_ok=True)
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(b'x')
  return root


def _tree(*splits: str, names: str = '{}/{}/1.mp4') -> list[str]:
  return [names.format(s, c) for s in splits for c in ('happy', 'sad')]


def _rows(root: pathlib.Path) -> list[listing.Row]:
  return trees.scan_folder(root).rows


def _read(root: pathlib.Path) -> set[tuple[str, str, str]]:
  return {(row.path, row.split, row.label) for row in _rows(root)}


# ----- splits and classes -----------------------------------------------------


@pytest.mark.parametrize(
  ('train', 'other', 'split'),
  [
    ('CAER_train', 'CAER_test', 'test'),
    ('01-train', '02-Eval', 'val'),
  ],
)
def test_splits_have_any_usual_name(tmp_path, train, other, split):
  root = _files(tmp_path / 'r', *_tree(train, other))
  assert _read(root) == {
    (f'{folder}/{c}/1.mp4', name, c)
    for folder, name in ((train, 'train'), (other, split))
    for c in ('happy', 'sad')
  }


def test_folders_beside_the_splits_are_counted(tmp_path):
  beside = ('extra/1.mp4', 'extra/2.mp4', '__MACOSX/train/happy/._1.mp4')
  more = ('notes.txt', 'docs/figure.png', '.git/config')
  root = _files(tmp_path / 'r', *_tree('train', 'test'), *beside, *more)
  found = trees.scan_folder(root)
  assert found.class_names == ['happy', 'sad']
  assert len(found.rows) == 4
  assert found.dropped == {
    'hidden or of the system: .git __MACOSX': 2,
    'of another kind: .txt': 1,
    'clips beside the splits: extra': 2,
    'clips outside a class folder': 1,
  }


def test_splits_may_be_below_common_folders(tmp_path):
  clips = _tree('train', 'test', names='a/b/{}/{}/1.mp4')
  found = trees.scan_folder(_files(tmp_path / 'r', *clips, 'readme.png'))
  assert {(r.split, r.label) for r in found.rows} == {
    (split, label) for split in ('train', 'test') for label in ('happy', 'sad')
  }
  assert found.sources['classes'] == 'the folders a/b/SPLIT/CLASS'


def test_splits_may_be_below_the_classes(tmp_path):
  clips = ('happy/train/1.mp4', 'happy/val/2.mp4', 'sad/train/c/0001.jpg')
  assert _read(_files(tmp_path / 'r', *clips)) == {
    ('happy/train/1.mp4', 'train', 'happy'),
    ('happy/val/2.mp4', 'val', 'happy'),
    ('sad/train/c', 'train', 'sad'),
  }


@pytest.mark.parametrize(
  'clips',
  [
    ('test/1.mp4', 'happy/1.mp4', 'sad/1.mp4'),
    ('happy/train/1.mp4', 'happy/test/1.mp4', 'sad/1.mp4'),
    tuple(_tree('a/train', 'a/test', 'b/train', 'b/test')),
  ],
)
def test_a_tree_that_is_not_clear_is_shown(tmp_path, clips):
  with pytest.raises(MiraInputError) as caught:
    trees.scan_folder(_files(tmp_path / 'r', *clips))
  assert caught.value.code == 'unclear_tree'
  assert caught.value.exit_code == ExitCode.DATA
  assert os.path.dirname(clips[0]) + '/ (1)' in caught.value.hint


@pytest.mark.parametrize(
  'clips',
  [
    ('testy/1.mp4', 'devastated/1.mp4', 'contest/1.mp4'),
    ('happy/test_1/0001.jpg', 'happy/train_1/0001.jpg', 'sad/2/0001.jpg'),
  ],
)
def test_what_only_looks_like_a_split_is_a_class_or_a_clip(tmp_path, clips):
  rows = trees.scan_folder(_files(tmp_path / 'r', *clips)).rows
  assert {row.label for row in rows} == {clip.split('/')[0] for clip in clips}
  assert {row.split for row in rows} == {''}


def test_a_table_calls_splits_by_the_same_words():
  words = {'Validation': 'val', 'eval_set': 'val', 'tr': 'train', '': ''}
  words |= {'TEST': 'test', 'test(single-labeled)': 'test', 'none': ''}
  words |= {'5-fold_check_train': '', 'train_test': ''}
  assert {word: listing.split_word(word) for word in words} == words


@pytest.mark.parametrize(
  ('pictures', 'expected'),
  [
    (
      ('happy/S01_4_0001.png', 'happy/S01_4_0002.png', 'sad/S02_1_0001.png'),
      r'happy/ holds 2 pictures and no clip: put the frames of each clip into '
      r'a folder of its own, as happy/clip1/0001\.png, .*',
    ),
    (('train/a/1.jpg', 'train/a/2.jpg', 'test/a/3.jpg'), 'test/a/clip1/0001'),
  ],
)
def test_pictures_right_in_a_class_folder_need_one_per_clip(
  tmp_path, pictures, expected
):
  with pytest.raises(MiraInputError, match=expected) as caught:
    trees.scan_folder(_files(tmp_path / 'r', *pictures))
  assert (caught.value.code, caught.value.exit_code) == (
    'no_clips', ExitCode.DATA
  )  # fmt: skip
  assert 'looks like' not in caught.value.hint


def test_frames_with_the_names_of_clips_are_sorted_by_the_hint(tmp_path):
  """The command in the error makes the tree that is asked for."""
  names = [
    f'{label}/S{person:03}_{clip:03}_{frame:08}.png'
    for label, person, clip in (
      ('happy', 10, 4),
      ('happy', 5, 1),
      ('sad', 5, 2),
    )
    for frame in (12, 13)
  ]
  root = _files(tmp_path / 'my clips', *names)
  with pytest.raises(MiraInputError) as caught:
    trees.scan_folder(root)
  text, _, command = caught.value.hint.partition(' S005_001: ')
  assert text.endswith('S005_001_00000012.png looks like a frame of clip')
  subprocess.run(command, shell=True, check=True)
  assert {(row.path, row.label, row.subject) for row in _rows(root)} == {
    ('happy/S005_001', 'happy', 'S005'),
    ('happy/S010_004', 'happy', 'S010'),
    ('sad/S005_002', 'sad', 'S005'),
  }


def test_a_class_of_loose_pictures_beside_clips_is_counted(tmp_path):
  pictures = ('sad/1.png', 'sad/2.png', 'sad/3.png')
  root = _files(tmp_path / 'r', 'happy/1.mp4', *pictures)
  found = trees.scan_folder(root)
  assert [row.path for row in found.rows] == ['happy/1.mp4']
  reason = 'pictures right in a class folder, not in a folder per clip: sad'
  assert found.dropped == {reason: 3}


def test_a_class_has_one_spelling_in_all_splits(tmp_path):
  root = _files(tmp_path / 'r', 'train/happy/1.mp4', 'test/Happy/1.mp4')
  with pytest.raises(MiraInputError, match=r'bad_label.*Happy/1\.mp4'):
    trees.scan_folder(root)
  other = unicodedata.normalize('NFD', 'Überrascht')  # looks the same, and is
  root = _files(tmp_path / 's', 'train/Überrascht/1.mp4', f'test/{other}/1.mp4')
  assert trees.scan_folder(root).class_names == ['Überrascht']


# ----- what is a clip ---------------------------------------------------------


def test_hidden_and_system_folders_hold_no_clip_at_any_depth(tmp_path):
  clips = ('a/1/0001.jpg', 'a/1/0002.jpg', 'b/2.mp4')
  hidden = (
    'a/1/.ipynb_checkpoints/0001-checkpoint.jpg',
    'a/1/@eaDir/SYNOPHOTO_THUMB_M.jpg',
    'b/._2.mp4',
    'b/Thumbs.db',
    'lost+found/4.mp4',
    '__MACOSX/a/1/._0001.jpg',
  )
  root = _files(tmp_path / 'r', *clips, *hidden)
  assert trees.walk(root).clips == ['a/1', 'b/2.mp4']
  assert [r.path for r in trees.scan_folder(root).rows] == ['a/1', 'b/2.mp4']
  found = find_clips.expand(str(root))
  assert found.clips == [str(root / 'a/1'), str(root / 'b/2.mp4')]
  assert [*found.dropped().values()] == [len(hidden)]
  assert not found.unread
  # A folder that is named is looked into, whatever it is called.
  assert trees.walk(root / 'lost+found').clips == ['4.mp4']


def test_pictures_beside_a_video_are_no_clip(tmp_path):
  root = _files(tmp_path / 'r', 'a/1.mp4', 'a/1.jpg', 'a/cover.png', 'b/1.jpg')
  found = trees.walk(root)
  assert found.clips == ['a/1.mp4', 'b']
  assert found.dropped() == {'pictures beside videos': 2}


def test_other_kinds_of_video_are_counted(tmp_path):
  found = trees.walk(_files(tmp_path / 'r', 'a/1.mp4', 'a/2.rmvb', 'b.txt'))
  assert found.dropped() == {'of another kind: .rmvb .txt': 2}
  assert found.unread
  assert not trees.walk(_files(tmp_path / 's', 'a/1.mp4', 'b.txt')).unread


def test_old_formats_are_read(tmp_path):
  with av.open(str(tmp_path / 'a.WMV'), 'w', format='asf') as file:
    stream = file.add_stream('wmv2', rate=25)
    stream.width = stream.height = 64
    for i in range(12):
      image = np.full((64, 64, 3), 20 * i, np.uint8)
      frame = av.VideoFrame.from_ndarray(image, format='rgb24')
      file.mux(stream.encode(frame))
    file.mux(stream.encode())
  assert trees.walk(tmp_path).clips == ['a.WMV']
  video = decode.read_clip(tmp_path / 'a.WMV', short_side=32)
  assert abs(len(video) - 12) <= 1


def test_a_format_that_is_not_read_says_what_to_convert_it_to(tmp_path):
  (tmp_path / 'a.rmvb').write_bytes(b'.RMF' + bytes(999))
  with pytest.raises(MiraInputError, match='convert it to mp4'):
    decode.read_clip(tmp_path / 'a.rmvb', short_side=32)


# ----- links ------------------------------------------------------------------


def test_links_to_folders_are_not_followed(tmp_path):
  root = _files(tmp_path / 'r', 'own/2.mp4', 'own/deep/3.mp4')
  (root / 'linked').symlink_to('own/deep')
  (root / 'own/up').symlink_to('..')
  (root / 'own/self').symlink_to('self')
  (root / 'file.mp4').symlink_to('own/2.mp4')
  found = trees.walk(root)
  assert found.clips == ['file.mp4', 'own/2.mp4', 'own/deep/3.mp4']
  failures = [('linked', 'outside_root'), ('own/up', 'outside_root')]
  assert [(f.path, f.code) for f in found.failures] == failures
  assert found.unread
  assert found.dropped() == {'of another kind: no suffix': 1}
  assert Tree(root, 'X/own').find('own') == root / 'own'


# ----- names ------------------------------------------------------------------


@pytest.mark.parametrize('name', [b'\xc6\xac\xb6.mp4', b'a\nb', b'\\\\x0a'])
def test_escaped_names_are_utf8_on_one_line_and_can_be_read_back(name):
  text = listing.escaped(os.fsdecode(name))
  assert text.isprintable()
  data = re.sub(
    rb'\\x([0-9a-f]{2})',
    lambda m: bytes.fromhex(m[1].decode()),
    text.encode(),
  )
  assert data == name


def test_a_clip_whose_name_is_no_utf8_is_prepared(tmp_path, capsys):
  for folder in ('a/1', 'a/2', 'b/1'):
    miniatures.images(tmp_path / 'r' / folder, FRAMES)
  root = os.fsencode(tmp_path / 'r')
  os.rename(root + b'/a/2', root + b'/a/\xb6\xce')
  os.rename(root + b'/b', root + b'/b\xff')
  (tmp_path / 'r/a/broken\udcb6.mp4').write_bytes(b'no video')
  arguments = [f'--root={tmp_path}/r', f'--out={tmp_path}/o', '--workers=0']
  code = cli.main(['prepare', 'folder', '--test-fraction=0', *arguments])
  assert code == ExitCode.OK
  opened = dataset.open(tmp_path / 'o')
  assert opened.class_names == ('a', r'b\xff')
  assert sorted(opened.index('train').clip_id) == [
    'a/1',
    r'a/\xb6\xce',
    r'b\xff/1',
  ]
  assert r'broken\\xb6' in (tmp_path / 'o' / prepare.REPORT_NAME).read_text()
  assert 'left out: 1 not_video' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['a\x1bb', 'a\u2028b'])
def test_a_class_name_that_cannot_be_stored_is_refused(tmp_path, name):
  with pytest.raises(MiraInputError, match='bad_label'):
    dataset.write(
      tmp_path, name='toy', class_names=[name], splits={}, description=''
    )
  root = _files(tmp_path / 'r', f'{name}/1.mp4')
  with pytest.raises(MiraInputError, match=r'^bad_label:[ -~]*$'):
    trees.scan_folder(root)


def test_natural_order_of_any_number_of_digits():
  names = ['a2', 'a10', '9', '10', '1' * 5000]
  ordered = sorted(reversed(names), key=listing.natural)
  assert ordered == ['9', '10', '1' * 5000, 'a2', 'a10']
