"""Images in memory and in folders: JPEG, PNG and BMP to RGB arrays.

An image's size is read from its header before it is decoded: a file of a few
kilobytes can hold billions of pixels.
"""

from __future__ import annotations

import errno
import os
import pathlib
import struct
from collections.abc import Sequence

import cv2
import numpy as np

from mira_jax.errors import MiraInputError
from mira_jax.video import container, frame_order

SUFFIXES = container.PICTURES
MAX_IMAGE_BYTES = 128 << 20  # of a file; its pixels take half as much
_JPEG_TAIL = 4096  # bytes, behind which cameras put nothing but notes


def read_image(file: pathlib.Path) -> np.ndarray | None:
  """RGB pixels of a file; None where there is none or it is cut off."""
  data = read_bytes(file)
  return None if data is None else whole_image(data, name=file)


def read_bytes(file: pathlib.Path) -> bytes | None:
  """The bytes of an image; None where the file cannot be read.

  Raises MiraInputError where it has too many bytes ('too_large'), or this
  process too many open files ('not_readable').
  """
  try:
    with open(file, 'rb') as opened:
      data = opened.read(MAX_IMAGE_BYTES + 1)
  except OSError as error:
    if error.errno in (errno.EMFILE, errno.ENFILE):  # no fault of the image
      raise MiraInputError('not_readable', file, str(error.strerror)) from error
    return None
  if len(data) > MAX_IMAGE_BYTES:
    hint = f'an image has at most {MAX_IMAGE_BYTES >> 20} MiB'
    raise MiraInputError('too_large', file, hint)
  return data


def whole_image(
  data: bytes,
  *,
  reduced: bool = False,
  name: str | os.PathLike[str] = '<frame>',
) -> np.ndarray | None:
  """RGB pixels of an image; None where there is none or it is cut off.

  OpenCV silently fills a JPEG that is cut off with gray. With `reduced`, an
  eighth of the rows and columns is decoded, to find damage. Raises
  MiraInputError('too_large').
  """
  if data.startswith(b'\xff\xd8') and b'\xff\xd9' not in data[-_JPEG_TAIL:]:
    return None
  return _decoded(data, name, reduced)


def decode_jpeg(data: bytes) -> np.ndarray:
  """The uint8 [H, W, 3] RGB frame of JPEG or PNG bytes.

  Raises MiraInputError: 'damaged', or 'too_large' for too many pixels.
  """
  image = _decoded(data, '<frame>')
  if image is None:
    hint = 'its bytes cannot be decoded'
    raise MiraInputError('damaged', '<frame>', hint)
  return image


def kind_of(data: bytes) -> str:
  """'jpeg', 'png' or 'bmp', by the first bytes of an image."""
  if data.startswith(b'\xff\xd8'):
    return 'jpeg'
  return 'bmp' if data.startswith(b'BM') else 'png'


def encode_png(frame: np.ndarray) -> bytes:
  """PNG bytes of a uint8 [H, W, 3] RGB frame, which keep every pixel."""
  bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
  return cv2.imencode('.png', bgr)[1].tobytes()


def encode_jpeg(frame: np.ndarray, quality: int = 95) -> bytes:
  """JPEG bytes of a uint8 [H, W, 3] RGB frame."""
  bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
  options = (cv2.IMWRITE_JPEG_QUALITY, quality)
  return cv2.imencode('.jpg', bgr, options)[1].tobytes()


def _decoded(
  data: bytes, name: str | os.PathLike[str], reduced: bool = False
) -> np.ndarray | None:
  size = image_size(data)
  if size is None:
    return None
  if size[0] * size[1] > container.MAX_PIXELS:
    hint = f'scale it down, it has {size[1]}x{size[0]} pixels'
    raise MiraInputError('too_large', name, hint)
  how = cv2.IMREAD_REDUCED_COLOR_8 if reduced else cv2.IMREAD_COLOR
  try:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), how)
  except cv2.error:
    return None
  return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_size(data: bytes) -> tuple[int, int] | None:
  """Height and width in the header of an image, as it is stored.

  None for what is no JPEG, PNG or BMP, and for a side of zero pixels.
  """
  size = None
  if data.startswith(b'\xff\xd8'):
    size = _jpeg_size(data)
  elif data.startswith(b'\x89PNG\r\n\x1a\n'):
    size = int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
  elif data.startswith(b'BM'):
    how = '<HH' if data[14:15] == b'\x0c' else '<ii'  # the first version
    width, height = struct.unpack_from(how, data.ljust(26, b'\0'), 18)
    size = abs(height), width
  return size if size and min(size) > 0 else None


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
  """Height and width of a JPEG file; None for others.

  None, too, for a file with a note of its orientation (Exif): OpenCV turns it.
  """
  if not data.startswith(b'\xff\xd8') or b'Exif\0\0' in data[:64]:
    return None
  return image_size(data)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
  """Of the first frame header, found as libjpeg does."""
  at = 2
  while (at := data.find(b'\xff', at)) >= 0 and at + 9 < len(data):
    marker = data[at + 1]
    if marker in (0x00, 0xFF, 0x01) or 0xD0 <= marker <= 0xD8:
      at += 1  # filling, or a marker without a length
    elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      height = int.from_bytes(data[at + 5 : at + 7])
      return height, int.from_bytes(data[at + 7 : at + 9])
    elif marker in (0xD9, 0xDA):  # the end, or pixels
      return None
    else:
      at += 2 + int.from_bytes(data[at + 2 : at + 4])
  return None


def frame_files(path: str | os.PathLike[str]) -> list[pathlib.Path]:
  """The non-empty images of a folder in the order of time, see `frame_order`.

  Of images that differ in nothing but the suffix, such as 1.jpg and 1.png, the
  first in SUFFIXES is taken.

  Raises:
    MiraInputError: there is no such folder ('not_found'), or it cannot be
      listed ('not_readable').
  """
  try:
    with os.scandir(path) as entries:
      names = [e.name for e in entries if _is_frame(e)]
  except (FileNotFoundError, NotADirectoryError) as error:
    hint = 'there is no such folder'
    raise MiraInputError('not_found', path, hint) from error
  except OSError as error:
    raise MiraInputError('not_readable', path, str(error.strerror)) from error
  names.sort(key=lambda n: (SUFFIXES.index(_suffix(n)), n), reverse=True)
  one = {os.path.splitext(name)[0]: name for name in names}
  names = frame_order.in_time(sorted(one.values()))[0]
  return [pathlib.Path(path, name) for name in names]


def some_frame_files(path: str | os.PathLike[str]) -> list[pathlib.Path]:
  """As `frame_files`; a folder without images is 'empty'."""
  if files := frame_files(path):
    return files
  raise MiraInputError('empty', path, 'it has no jpg, png or bmp file')


def _suffix(name: str) -> str:
  return os.path.splitext(name)[1].lower()


def _is_frame(entry: os.DirEntry[str]) -> bool:
  is_image = _suffix(entry.name) in SUFFIXES and entry.name[0] != '.'
  return is_image and entry.is_file() and entry.stat().st_size > 0


def frame_numbers(files: Sequence[pathlib.Path]) -> np.ndarray:
  """Frame numbers int64 [n] of file names as in annotations, else from 0."""
  numbers = frame_order.in_time([file.name for file in files])[1]
  return np.arange(len(files)) if numbers is None else numbers


def unreadable(path: str | os.PathLike[str], tried: int) -> MiraInputError:
  """The error of a folder of which no image can be read."""
  hint = f'none of {tried} images is readable'
  return MiraInputError('damaged', path, hint)
