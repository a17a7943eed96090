"""Frames of a folder come in the order of time, whatever their names hold."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest

from mira_jax.video import decode, frame_order, images

_RANDOM = random.Random(0)
_GAPS = sorted(_RANDOM.sample(range(300), 30))


def _stamp(milliseconds: int) -> str:
  seconds, rest = divmod(58_500 + milliseconds, 1000)
  return f'20240101_12{seconds // 60:02}{seconds % 60:02}_{rest:03}'


# A name for each i; whether the number of a frame is i.
NAMES = {
  'score': (lambda i: f'f_{i:04}_{_RANDOM.uniform(0.9, 1):.3f}.png', True),
  'score first': (lambda i: f'{_RANDOM.uniform(0.9, 1):.3f}_f{i}.png', True),
  'box': (lambda i: f'{i:04}_x{_RANDOM.randrange(60)}_y40.png', True),
  'hash': (lambda i: f'{i:04}_{_RANDOM.getrandbits(32):08x}.png', True),
  'hash first': (lambda i: f'{_RANDOM.getrandbits(32):08x}_{i}.png', True),
  'face': (lambda i: f'frame{i}_face0.png', True),
  'subject': (lambda i: f'img{i}_S05.png', True),
  'two suffixes': (lambda i: f'{i}.mp4.png', True),
  'version': (lambda i: f'v1.2.{i:03}.png', True),
  'shot': (lambda i: f'shot1.{i:03}.png', True),
  'overflow': (lambda i: f'{i + 980:03}.jpg', False),
  'gaps': (lambda i: f'{_GAPS[i]}_face0.jpg', False),
  'gaps, score first': (
    lambda i: f'{_RANDOM.choice((0.8, 0.9))}_{_GAPS[i]}.jpg',
    False,
  ),
  'gaps, hash': (
    lambda i: f'{_GAPS[i]}_{_RANDOM.getrandbits(64):016x}.jpg',
    False,
  ),
  'below zero': (lambda i: f't{i - 9}_l.jpg', False),
  'seconds': (lambda i: f'{i / 8:.3f}.png', False),
  'printed seconds': (lambda i: f't{i / 8}.png', False),
  'stamps': (lambda i: f'{_stamp(40 * i)}.jpg', False),
  'stamps of 14 Hz': (lambda i: f'{_stamp(70 * i)}.jpg', False),
  'two runs': (lambda i: f'run{i // 15}_{i % 15}.jpg', False),
  'tracks': (lambda i: f'face{i < 12:d}_{i:04}.jpg', True),
  'frames per minute': (lambda i: f'{9 + i // 20}h{i % 20 * 3:02}.jpg', False),
}


@pytest.mark.parametrize('kind', NAMES)
def test_names_in_the_order_of_time(kind):
  name, is_number = NAMES[kind]
  names = [name(i) for i in range(30)]
  mixed = _RANDOM.sample(names, 30)
  found, numbers = frame_order.in_time(mixed)
  assert found == names
  if is_number:
    assert numbers.tolist() == list(range(30))


@pytest.mark.parametrize('name', ['{}.jpg', 's1_{}.png', '{}_img.bmp'])
def test_marks_are_in_the_order_of_time(name):
  names = [name.format(mark) for mark in ('onset', 'apex', 'offset')]
  assert frame_order.in_time(sorted(names)) == (names, None)


def test_numbers_are_those_that_a_table_gives():
  names = [f'006_1_2_{i:05}.jpg' for i in (5561, 5562, 5564)]
  assert frame_order.in_time(names)[1].tolist() == [5561, 5562, 5564]
  assert frame_order.in_time(['00001_00144.jpg'])[1].tolist() == [144]
  assert frame_order.in_time(['a.jpg', 'b.jpg'])[1] is None
  assert frame_order.in_time([]) == ([], None)


def test_one_frame_of_two_suffixes_is_taken_once(tmp_path):
  for i in range(12):
    for suffix in ('jpg', 'png'):
      image = np.full((32, 32, 3), 15 * i, np.uint8)
      cv2.imwrite(str(tmp_path / f'{i}.{suffix}'), image)
  files = images.frame_files(tmp_path)
  assert [file.name for file in files] == [f'{i}.jpg' for i in range(12)]
  assert images.frame_numbers(files).tolist() == list(range(12))
  frames = decode.read_clip(tmp_path).frames
  assert (frames[:, 0, 0, 0] // 15).tolist() == list(range(12))
