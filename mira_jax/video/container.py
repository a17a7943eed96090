"""Opens an untrusted video file, and no other file.

FFmpeg guesses a file's format from its bytes. A text file named clip.mp4 may
be a playlist, and following it reads other files or the network, so formats
and protocols are restricted to those of video files.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from mira_jax.errors import MiraInputError

MAX_FILE_BYTES = 64 << 30  # hours of a camera; never read as a whole
MAX_PIXELS = 16_000_000  # of one frame
SUFFIXES = (
  *('.mp4', '.m4v', '.mov', '.qt', '.3gp', '.3g2', '.f4v'),  # one format
  *('.mkv', '.webm', '.avi', '.divx', '.flv'),
  *('.ts', '.mts', '.m2ts', '.m2t', '.mpg', '.mpeg', '.mpe', '.vob'),
  *('.wmv', '.asf', '.ogv', '.ogm'),
)
PICTURES = ('.jpg', '.jpeg', '.png', '.bmp')  # frames of folders
# Reported, not read.
OTHER_VIDEOS = (
  *('.rm', '.rmvb', '.mxf', '.dv', '.y4m', '.m1v', '.m2v', '.swf', '.nut'),
  *('.h264', '.264', '.h265', '.hevc', '.265', '.ivf', '.mjpeg', '.mjpg'),
)
OTHER_PICTURES = (
  *('.gif', '.webp', '.tif', '.tiff', '.heic', '.heif', '.avif', '.jp2'),
  *('.jxl', '.jfif', '.pgm', '.ppm', '.raw', '.dng', '.exr'),
)
# None of these opens another file.
_FORMATS = (
  'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,asf,ogg,gif'
)
_TRUNCATED = 'the file looks truncated'
_PLAYLISTS = (b'#EXTM3U', b'ffconcat', b'<?xml')
_COVERS = Disposition.attached_pic | Disposition.timed_thumbnails

Path = str | os.PathLike[str]


@contextlib.contextmanager
def open_video(
  path: Path | BinaryIO,
) -> Iterator[tuple[InputContainer, av.VideoStream]]:
  """Gives a file's container and its main video stream, see `_main`.

  An open file is not closed.

  Raises:
    MiraInputError: with code not_found, not_regular_file, not_readable, empty,
      too_large, git_lfs_pointer, format_not_allowed, not_video or
      no_video_stream.
  """
  with contextlib.ExitStack() as stack:
    if isinstance(path, str | os.PathLike):
      file = stack.enter_context(_open_file(path))
    else:
      file, path = path, '<video>'
    container = stack.enter_context(_open(file, path))
    yield container, _video_stream(container, path)


def _open_file(path: Path) -> BinaryIO:
  try:
    status = os.stat(path)
  except (OSError, ValueError) as error:
    raise MiraInputError('not_found', path, 'there is no such file') from error
  if not stat.S_ISREG(status.st_mode):  # reading a FIFO would never return
    raise MiraInputError('not_regular_file', path, 'give a video file')
  if status.st_size == 0:
    raise MiraInputError('empty', path, 'it has no bytes; copy it again')
  if status.st_size > MAX_FILE_BYTES:
    size = f'{status.st_size >> 20} MiB'
    raise MiraInputError('too_large', path, f'cut it, it has {size}')
  try:
    return open(path, 'rb')
  except OSError as error:
    raise MiraInputError('not_readable', path, str(error.strerror)) from error


def _open(file: BinaryIO, path: Path) -> InputContainer:
  head = file.read(64)
  file.seek(0)
  if head.startswith(b'version https://git-lfs'):
    hint = 'fetch the file with `git lfs pull`'
    raise MiraInputError('git_lfs_pointer', path, hint)
  if head.lstrip(b'\xef\xbb\xbf \r\n').startswith(_PLAYLISTS):
    raise MiraInputError('format_not_allowed', path, 'playlists are not read')
  options = {
    'format_whitelist': _FORMATS,
    'protocol_whitelist': 'file',
    'max_pixels': str(MAX_PIXELS),
  }
  try:
    return av.open(file, 'r', options=options, metadata_errors='replace')
  except (FFmpegError, ValueError) as error:
    cut = head[4:8] == b'ftyp' or head.startswith(b'\x1aE\xdf\xa3')
    hint = f'{_TRUNCATED if cut else "no video format fits it"}; copy it again'
    kind = os.path.splitext(path)[1].lower()
    if kind in OTHER_VIDEOS:
      hint = f'{kind} is not read; convert it to mp4 with ffmpeg'
    elif kind in PICTURES + OTHER_PICTURES:
      hint = 'a clip is a video or a folder of pictures (jpg, png, bmp)'
    raise MiraInputError('not_video', path, hint) from error


def _video_stream(container: InputContainer, path: Path) -> av.VideoStream:
  streams = [s for s in container.streams.video if not s.disposition & _COVERS]
  if not streams and container.streams.audio:
    raise MiraInputError('no_video_stream', path, 'it has sound only')
  stream = max(streams, key=_main, default=None)
  context = stream and stream.codec_context
  if stream is None or context is None:
    hint = f'{_TRUNCATED}, or its codec is unknown; copy it again'
    raise MiraInputError('not_video', path, hint)
  context.options = {'max_pixels': str(MAX_PIXELS)}
  # Clips are read in parallel, and FFmpeg's own threads have deadlocked next to
  # those of a loader (PyAV#1962).
  context.thread_type = 'NONE'
  context.thread_count = 1
  return stream


def _main(stream: av.VideoStream) -> tuple[bool, int, bool]:
  """The key of the main stream: not a still, and the largest."""
  if stream.codec_context is None:
    return False, 0, False
  size = stream.width * stream.height
  is_default = bool(stream.disposition & Disposition.default)
  return stream.frames != 1, size, is_default


def promised_seconds(
  container: InputContainer, stream: av.VideoStream, path: Path
) -> float:
  """The length in a file's header, to detect truncation; 0 if unknown.

  That of the picture, where the container has it: its own is that of the
  longest stream. Matroska has no other, and counts only where the file ends
  before its segment does.
  """
  if stream.duration and stream.time_base:
    return float(stream.duration * stream.time_base)
  seconds = (container.duration or 0) / av.time_base
  if 'matroska' in container.format.name:
    return seconds if _is_cut(path) else 0.0
  return seconds if len(container.streams) == 1 else 0.0


def _is_cut(path: Path) -> bool:
  """Whether a Matroska file ends before its segment does."""
  with open(path, 'rb') as file:
    head = file.read(4096)
    total = file.seek(0, os.SEEK_END)
  at = head.find(b'\x18\x53\x80\x67') + 4  # then the segment's size
  if at < 4 or at + 8 > len(head):
    return False
  length = 9 - head[at].bit_length()  # 1 to 8 bytes, of 7 bits each
  unknown = (1 << 7 * length) - 1  # of a recording as it goes on
  size = int.from_bytes(head[at : at + length]) & unknown
  return size != unknown and at + length + size > total
