"""Video files, folders of frames and JPEG bytes to RGB arrays.

A header is not believed: frames are counted and measured as they come, and
their number, length and memory have limits.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re

import av
import cv2
import numpy as np

from mira_jax.data import container
from mira_jax.errors import MiraInputError

MAX_SECONDS = 600
MAX_FRAMES = 20_000
MAX_DECODED_BYTES = 2 << 30
MIN_FRAMES = 4  # that a file broken in the middle must still give
MIN_SIDE = 8

FRAME_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp')


@dataclasses.dataclass(kw_only=True)
class Video:
  """A decoded clip.

  Attributes:
    frames: uint8 [F, H, W, 3], RGB, upright.
    fps: frames per second; 0 when unknown.
    flags: what was odd: 'partial' (broken in the middle, or frames that cannot
      be read), 'short:P%' (P per cent of what the header promises), 'static'
      (one frame).
  """

  frames: np.ndarray
  fps: float
  flags: tuple[str, ...] = ()


def read_clip(
  path: str | os.PathLike[str], *, short_side: int | None = None
) -> Video:
  """Reads a video file or a folder of frames, whichever `path` is."""
  if os.path.isdir(path):
    return read_frames_folder(path, short_side=short_side)
  return read_video(path, short_side=short_side)


def read_video(
  path: str | os.PathLike[str], *, short_side: int | None = None
) -> Video:
  """Decodes every frame of a file's first video stream.

  Args:
    path: a mp4, mov, mkv, webm, avi, flv or mpegts file.
    short_side: shrink frames while decoding until the shorter side has this
      many pixels; frames are never enlarged.

  Returns:
    Its frames in order. A file that breaks in the middle gives those before.

  Raises:
    MiraInputError: as `container.open_video`, and with code too_long,
      too_large, too_small or damaged.
  """
  with container.open_video(path) as (video, stream):
    seconds = (video.duration or 0) / av.time_base
    if seconds > MAX_SECONDS:
      raise MiraInputError('too_long', path, f'cut it: {seconds:.0f} s')
    fps, width, height = _fps(stream), stream.width, stream.height
    frames, broken = _decode(video, stream, path, short_side)
  if not frames and width * height > container.MAX_PIXELS:
    hint = f'scale it down, it has {width}x{height} pixels'
    raise MiraInputError('too_large', path, hint)
  if len(frames) < (MIN_FRAMES if broken else 1):
    hint = f'only {len(frames)} frames can be decoded'
    raise MiraInputError('damaged', path, hint)
  flags = _flags(len(frames), broken, seconds * fps)
  return Video(frames=_stack(frames), fps=fps, flags=flags)


def read_frames_folder(
  path: str | os.PathLike[str], *, short_side: int | None = None
) -> Video:
  """Reads the images of a folder in the order of their last number.

  Empty files are passed over; unreadable ones too, with the flag 'partial'.

  Raises:
    MiraInputError: with code not_found, empty, too_long, too_small or damaged.
  """
  files = frame_files(path)
  if not files:
    raise MiraInputError(
      'empty', path, 'the folder has no jpg, png or bmp file'
    )
  frames, total = [], 0
  for file in files:
    image = _read_image(file)
    if image is not None:
      _check_side(image.shape[1], image.shape[0], path)
      frames.append(shrink(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), short_side))
      total += frames[-1].nbytes
      _check_length(len(frames), total, path)
  if not frames:
    raise MiraInputError(
      'damaged', path, f'none of its {len(files)} images is readable'
    )
  flags = _flags(len(frames), len(frames) < len(files), 0.0)
  return Video(frames=_stack(frames), fps=0.0, flags=flags)


def _read_image(file: pathlib.Path) -> np.ndarray | None:
  """BGR pixels; None for what is no image, or too large for OpenCV."""
  try:
    return cv2.imread(os.fspath(file), cv2.IMREAD_COLOR)
  except cv2.error:
    return None


def frame_files(path: str | os.PathLike[str]) -> list[pathlib.Path]:
  """The non-empty images of a folder, in the order of their last number."""
  try:
    with os.scandir(path) as entries:
      names = [e.name for e in entries if _is_frame(e)]
  except OSError as error:
    raise MiraInputError(
      'not_found', path, 'there is no such folder'
    ) from error
  names.sort(key=lambda name: (last_number(name), name))
  return [pathlib.Path(path, name) for name in names]


def last_number(name: str) -> int:
  """The last number of a file's name, as 144 of '00001_00144.jpg'; or -1."""
  numbers = re.findall(r'\d+', pathlib.PurePath(name).stem)
  return int(numbers[-1]) if numbers else -1


def encode_jpeg(frame: np.ndarray, quality: int = 95) -> bytes:
  """JPEG bytes of a uint8 [H, W, 3] RGB frame."""
  bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
  options = (cv2.IMWRITE_JPEG_QUALITY, quality)
  return cv2.imencode('.jpg', bgr, options)[1].tobytes()


def decode_jpeg(data: bytes) -> np.ndarray:
  """The uint8 [H, W, 3] RGB frame of JPEG bytes."""
  buffer = np.frombuffer(data, np.uint8)
  image = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if data else None
  if image is None:
    raise MiraInputError(
      'damaged', '<frame>', 'its JPEG bytes cannot be decoded'
    )
  return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def resize(frame: np.ndarray, size: int, fit: str = 'squash') -> np.ndarray:
  """A frame [H, W, 3] as [size, size, 3].

  Args:
    frame: uint8.
    size: side of the result in pixels.
    fit: 'squash' keeps the whole frame and not its aspect; 'crop' keeps the
      aspect and cuts the longer side down to its centre.
  """
  height, width = frame.shape[:2]
  if fit == 'crop':
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    frame = frame[top : top + side, left : left + side]
  elif fit != 'squash':
    raise ValueError(f"fit is {fit!r}: use 'squash' or 'crop'")
  return _scale(frame, size, size)


def shrink(frame: np.ndarray, short_side: int | None) -> np.ndarray:
  """The frame with a shorter side of at most `short_side`, same aspect."""
  height, width = frame.shape[:2]
  return _scale(frame, *_shrunk(width, height, short_side))


def _scale(frame: np.ndarray, width: int, height: int) -> np.ndarray:
  if frame.shape[:2] == (height, width):
    return frame
  # The mean over a pixel's area avoids aliasing, but only when shrinking.
  shrinks = width <= frame.shape[1] and height <= frame.shape[0]
  method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  return cv2.resize(frame, (width, height), interpolation=method)


def _shrunk(width: int, height: int, short_side: int | None) -> tuple[int, int]:
  scale = min(1.0, (short_side or min(width, height)) / min(width, height))
  return max(1, round(width * scale)), max(1, round(height * scale))


def _decode(
  video: av.container.InputContainer,
  stream: av.VideoStream,
  path: str | os.PathLike[str],
  short_side: int | None,
) -> tuple[list[np.ndarray], bool]:
  """Frames up to the end or the first error, and whether there was one."""
  frames, total = [], 0
  try:
    for frame in video.decode(stream):
      frames.append(_to_rgb(frame, path, short_side))
      total += frames[-1].nbytes
      _check_length(len(frames), total, path)
  except av.error.FFmpegError:
    return frames, True
  return frames, False


def _to_rgb(
  frame: av.VideoFrame, path: str | os.PathLike[str], short_side: int | None
) -> np.ndarray:
  _check_side(frame.width, frame.height, path)
  width, height = _shrunk(frame.width, frame.height, short_side)
  rgb = frame.reformat(width, height, 'rgb24', interpolation='AREA')
  # `rotation` is counter-clockwise degrees; so is np.rot90.
  return np.rot90(rgb.to_ndarray(), round(frame.rotation / 90) % 4)


def _fps(stream: av.VideoStream) -> float:
  """The mean frame rate; 0 where a header says nothing credible."""
  fps = float(stream.average_rate or 0)
  return fps if 1 <= fps <= 500 else 0.0


def _flags(count: int, broken: bool, promised: float) -> tuple[str, ...]:
  flags = ['partial'] if broken else []
  if count < 0.9 * promised:
    flags.append(f'short:{round(100 * count / promised)}%')
  if count == 1:
    flags.append('static')
  return tuple(flags)


def _stack(frames: list[np.ndarray]) -> np.ndarray:
  """One array; a frame of another size is brought to the first one's."""
  height, width = frames[0].shape[:2]
  return np.stack([_scale(frame, width, height) for frame in frames])


def _check_side(width: int, height: int, path: str | os.PathLike[str]) -> None:
  if min(width, height) < MIN_SIDE:
    raise MiraInputError(
      'too_small', path, f'frames have {width}x{height} pixels'
    )


def _check_length(
  count: int, total_bytes: int, path: str | os.PathLike[str]
) -> None:
  if count > MAX_FRAMES or total_bytes > MAX_DECODED_BYTES:
    raise MiraInputError(
      'too_long', path, f'cut it: more than {count - 1} frames'
    )


def _is_frame(entry: os.DirEntry[str]) -> bool:
  name = entry.name.lower()
  is_image = name.endswith(FRAME_SUFFIXES) and not name.startswith('.')
  return is_image and entry.is_file() and entry.stat().st_size > 0
