"""Video files, folders of frames and JPEG bytes to RGB arrays.

A header is not believed: frames are counted and measured as they come, and
their number, length and memory have limits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence

import av
import cv2
import numpy as np

from mira_jax.data import container
from mira_jax.data.records import Clip
from mira_jax.errors import MiraInputError

MAX_SECONDS = 600
MAX_FRAMES = 20_000
MAX_DECODED_BYTES = 2 << 30
MIN_FRAMES = 4  # that a file broken in the middle must still give
MIN_SIDE = 8
FLAT = 2.0  # grey levels; the noise of a sensor in the dark

_JPEG_TAIL = 4096  # bytes, behind which cameras put nothing but notes
FRAME_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp')


@dataclasses.dataclass(kw_only=True)
class Video:
  """A decoded clip.

  Attributes:
    frames: uint8 [F, H, W, 3], RGB, upright.
    fps: frames per second; 0 when unknown.
    flags: what was odd: 'partial' (broken in the middle, or frames that cannot
      be read), 'short:P%' (P per cent of what the header promises), 'static'
      (one frame), 'low_signal' (frames of one colour, such as black).
  """

  frames: np.ndarray
  fps: float
  flags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square:
  """A part of a frame that is square in pixels.

  All four are shares, in 0..1, of the frame's width (`left`, `width`) or of
  its height (`top`, `height`), so that it holds at every resolution.
  """

  left: float
  top: float
  width: float
  height: float


def apply(frame: np.ndarray, square: Square) -> np.ndarray:
  """Cuts a square out of a frame.

  Args:
    frame: [H, W, 3].
    square: rounded to whole pixels and kept inside the frame.

  Returns:
    [S, S, 3] with S >= 1; a copy, so that the frame itself can be freed.
  """
  height, width = frame.shape[:2]
  side = round(min(square.width * width, square.height * height))
  side = min(max(1, side), width, height)
  left = min(max(0, round(square.left * width)), width - side)
  top = min(max(0, round(square.top * height)), height - side)
  return frame[top : top + side, left : left + side].copy()


def read_clip(
  path: str | os.PathLike[str],
  *,
  short_side: int | None = None,
  square: Square | None = None,
  allow_gif: bool = False,
) -> Video:
  """Reads a video file or a folder of frames, whichever `path` is."""
  cut = {'short_side': short_side, 'square': square}
  if os.path.isdir(path):
    return read_frames_folder(path, **cut)
  return read_video(path, **cut, allow_gif=allow_gif)


def read_video(
  path: str | os.PathLike[str],
  *,
  short_side: int | None = None,
  square: Square | None = None,
  allow_gif: bool = False,
) -> Video:
  """Decodes every frame of a file's first video stream.

  Args:
    path: a mp4, mov, mkv, webm, avi, flv or mpegts file.
    short_side: shrink frames while decoding until the shorter side has this
      many pixels; frames are never enlarged.
    square: the part of every upright frame to keep, cut before it is shrunk.
    allow_gif: read an animated GIF, too.

  Returns:
    Its frames in order. A file that breaks in the middle gives those before.

  Raises:
    MiraInputError: as `container.open_video`, and with code too_long,
      too_large, too_small (also for what `square` leaves) or damaged.
  """
  frames = _Frames(path)

  def visit(frame: av.VideoFrame, _: int) -> None:
    frames.add(_to_rgb(frame, path, short_side, square))

  fps, flags = _walk(path, visit, allow_gif)
  return _video(_stack(frames.kept), fps, flags)


def read_frames(clip: Clip, indices: Iterable[int]) -> dict[int, np.ndarray]:
  """Some frames of a prepared clip, by their indices: uint8 [H, W, 3], RGB.

  Raises:
    MiraInputError: a frame cannot be decoded ('damaged').
  """
  wanted = set(indices)
  if clip.frames:
    return {i: decode_jpeg(clip.frames[i]) for i in wanted}
  # From the first frame on: encoders put key frames seconds apart, so that a
  # seek saves little of a clip that is a few seconds long.
  found, last = {}, max(wanted)
  with (
    container.open_video(io.BytesIO(clip.video)) as (video, stream),
    contextlib.suppress(av.error.FFmpegError),
  ):
    for i, frame in enumerate(video.decode(stream)):
      if i in wanted:
        found[i] = _to_rgb(frame, clip.clip_id, None, None)
      if i == last:
        return found
  raise MiraInputError(
    'damaged', clip.clip_id, f'its video has fewer than {last + 1} frames'
  )


@dataclasses.dataclass(kw_only=True, frozen=True)
class Count:
  """What decoding a video file to its end shows; see `Video`."""

  count: int
  fps: float
  flags: tuple[str, ...] = ()


def count_frames(path: str | os.PathLike[str]) -> Count:
  """Decodes a video file and keeps nothing. Raises as `read_video`."""
  count = 0

  def visit(frame: av.VideoFrame, index: int) -> None:
    nonlocal count
    del frame
    count = index + 1

  fps, flags = _walk(path, visit)
  return Count(count=count, fps=fps, flags=flags)


def read_frames_folder(
  path: str | os.PathLike[str],
  *,
  short_side: int | None = None,
  square: Square | None = None,
) -> Video:
  """Reads the images of a folder in the order of their last number.

  Empty files are passed over; unreadable ones too, with the flag 'partial'.
  `short_side` and `square` are those of `read_video`.

  Raises:
    MiraInputError: with code not_found, empty, too_long, too_small or damaged.
  """
  files = _some_frame_files(path)
  frames = _Frames(path)
  for file in files:
    image = _read_image(file)
    if image is not None:
      frames.add(_cut(image, path, short_side, square))
  if not frames.kept:
    raise _unreadable(path, len(files))
  flags = _flags(len(frames.kept), len(frames.kept) < len(files), 0.0)
  return _video(_stack(frames.kept), 0.0, flags)


def of_frames(name: str, frames: Iterable[np.ndarray], fps: float) -> Video:
  """A clip of frames that come from elsewhere than a file, at least one.

  Args:
    name: of where they come from, for errors.
    frames: uint8 [H, W, 3], RGB, in order.
    fps: frames per second; 0 when unknown.

  Raises:
    MiraInputError: with code too_long or too_small.
  """
  kept = _Frames(name)
  for frame in frames:
    kept.add(_cut(frame, name, None, None))
  return _video(_stack(kept.kept), fps, _flags(len(kept.kept), False, 0.0))


def glance(
  path: str | os.PathLike[str], count: int, short_side: int | None
) -> tuple[np.ndarray, int, int]:
  """A few evenly spaced frames of a video file or a folder of frames.

  A video is decoded to its end, since its header may promise any number of
  frames, but at most `2 * count` frames are held. Of a folder, no other images
  than these are read.

  Args:
    path: as of `read_clip`.
    count: of frames to give at most.
    short_side: as of `read_clip`.

  Returns:
    uint8 [n, H, W, 3] in order, 1 <= n <= count, and the width and height in
    pixels of the clip's upright frames before they are shrunk.

  Raises:
    MiraInputError: as `read_clip`.
  """
  look = _glance_folder if os.path.isdir(path) else _glance_video
  frames, width, height = look(path, count, short_side)
  return _stack(frames), width, height


def _glance_video(
  path: str | os.PathLike[str], count: int, short_side: int | None
) -> tuple[list[np.ndarray], int, int]:
  kept, size, stride = [], (0, 0), 1

  def visit(frame: av.VideoFrame, index: int) -> None:
    nonlocal kept, size, stride
    if index == 0:
      size = frame.width, frame.height
      size = size[::-1] if _turns(frame) % 2 else size
    if index % stride == 0 and len(kept) == 2 * count:
      kept, stride = kept[::2], 2 * stride
    if index % stride == 0:
      kept.append(_to_rgb(frame, path, short_side, None))

  _walk(path, visit)
  return [kept[i] for i in spaced(len(kept), count)], *size


def _glance_folder(
  path: str | os.PathLike[str], count: int, short_side: int | None
) -> tuple[list[np.ndarray], int, int]:
  files = _some_frame_files(path)
  _check_length(len(files), 0, path)
  picked = [files[i] for i in spaced(len(files), count)]
  frames, size = [], (0, 0)
  for image in map(_read_image, picked):
    if image is not None:
      size = size if frames else (image.shape[1], image.shape[0])
      frames.append(_cut(image, path, short_side, None))
  if not frames:
    raise _unreadable(path, len(picked))
  return frames, *size


class _Frames:
  """The frames of a clip while it is read, within the limits of length."""

  def __init__(self, path: str | os.PathLike[str]):
    self.kept: list[np.ndarray] = []
    self._path = path
    self._bytes = 0

  def add(self, frame: np.ndarray) -> None:
    self.kept.append(frame)
    self._bytes += frame.nbytes
    _check_length(len(self.kept), self._bytes, self._path)


def _read_image(file: pathlib.Path) -> np.ndarray | None:
  try:
    return whole_image(file.read_bytes())
  except OSError:
    return None


def whole_image(data: bytes, *, reduced: bool = False) -> np.ndarray | None:
  """RGB pixels of an image; None for what is none, is cut off or too large.

  OpenCV fills a JPEG that is cut off with gray and says nothing.

  Args:
    data: of the file.
    reduced: give an eighth of the rows and columns, for a look.
  """
  is_jpeg = data.startswith(b'\xff\xd8')
  if not data or (is_jpeg and b'\xff\xd9' not in data[-_JPEG_TAIL:]):
    return None
  try:
    how = cv2.IMREAD_REDUCED_COLOR_8 if reduced else cv2.IMREAD_COLOR
    image = cv2.imdecode(np.frombuffer(data, np.uint8), how)
  except cv2.error:
    return None
  return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _some_frame_files(path: str | os.PathLike[str]) -> list[pathlib.Path]:
  files = frame_files(path)
  if not files:
    raise MiraInputError(
      'empty', path, 'the folder has no jpg, png or bmp file'
    )
  return files


def _unreadable(path: str | os.PathLike[str], tried: int) -> MiraInputError:
  hint = f'none of {tried} images is readable'
  return MiraInputError('damaged', path, hint)


def spaced(count: int, cap: int) -> np.ndarray:
  """Indices of at most `cap` of `count` frames, evenly spaced, ends kept."""
  kept = min(count, cap)
  return np.round(np.linspace(0, count - 1, kept)).astype(np.int64)


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
  numbers = re.findall(r'\d+', os.path.splitext(os.path.basename(name))[0])
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


def resize_windows(
  frames: np.ndarray, indices: np.ndarray, size: int, fit: str
) -> np.ndarray:
  """Some frames of a clip, made square; one that comes again is resized once.

  Args:
    frames: uint8 [F, H, W, 3].
    indices: int [V, T], of the frames of V windows.
    size: as of `resize`.
    fit: as of `resize`.

  Returns:
    uint8 [V, T, size, size, 3].
  """
  square = {i: resize(frames[i], size, fit) for i in np.unique(indices)}
  return np.array([[square[i] for i in row] for row in indices])


def shrink(frame: np.ndarray, short_side: int | None) -> np.ndarray:
  """The frame with a shorter side of at most `short_side`, same aspect."""
  height, width = frame.shape[:2]
  return _scale(frame, *_shrunk(width, height, short_side))


def fit_to(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """A frame [H, W, 3] brought to a height and width."""
  return _scale(frame, size[1], size[0])


def shrunk(size: tuple[int, int], short_side: int) -> tuple[int, int]:
  """The height and width that `shrink` gives a frame of this size."""
  return _shrunk(size[1], size[0], short_side)[::-1]


def jpeg_size(data: bytes) -> tuple[int, int] | None:
  """Height and width of a JPEG file; None for what is no plain one.

  Plain is what OpenCV shows as it is stored: files with a note of their
  orientation (Exif) are turned.
  """
  if not data.startswith(b'\xff\xd8') or b'Exif\0\0' in data[:64]:
    return None
  at = 2
  while data[at : at + 1] == b'\xff' and at + 9 < len(data):
    marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      height = int.from_bytes(data[at + 5 : at + 7])
      width = int.from_bytes(data[at + 7 : at + 9])
      return (height, width) if height and width else None
    at += 2 + length
  return None


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


def _walk(
  path: str | os.PathLike[str],
  visit: Callable[[av.VideoFrame, int], None],
  allow_gif: bool = False,
) -> tuple[float, tuple[str, ...]]:
  """Gives `visit` every frame and its index; the clip's fps and flags."""
  with container.open_video(path, allow_gif) as (video, stream):
    seconds = (video.duration or 0) / av.time_base
    if seconds > MAX_SECONDS:
      raise MiraInputError('too_long', path, f'cut it: {seconds:.0f} s')
    fps, width, height = _fps(stream), stream.width, stream.height
    count, broken = _visit_all(video, stream, path, visit)
  if not count and width * height > container.MAX_PIXELS:
    hint = f'scale it down, it has {width}x{height} pixels'
    raise MiraInputError('too_large', path, hint)
  if count < (MIN_FRAMES if broken else 1):
    hint = f'only {count} frames can be decoded'
    raise MiraInputError('damaged', path, hint)
  return fps, _flags(count, broken, seconds * fps)


def _visit_all(
  video: av.container.InputContainer,
  stream: av.VideoStream,
  path: str | os.PathLike[str],
  visit: Callable[[av.VideoFrame, int], None],
) -> tuple[int, bool]:
  """How many frames came, and whether an error ended them."""
  count = 0
  try:
    for frame in video.decode(stream):
      check_side(frame.width, frame.height, path)
      visit(frame, count)
      count += 1
      _check_length(count, 0, path)
  except av.error.FFmpegError:
    return count, True
  return count, False


def _to_rgb(
  frame: av.VideoFrame,
  path: str | os.PathLike[str],
  short_side: int | None,
  square: Square | None,
) -> np.ndarray:
  width, height = frame.width, frame.height
  if square is None:  # shrunk while it is converted, which is less work
    width, height = _shrunk(width, height, short_side)
  rgb = frame.reformat(width, height, 'rgb24', interpolation='AREA')
  upright = np.rot90(rgb.to_ndarray(), _turns(frame))
  return _cut(upright, path, short_side, square) if square else upright


def _turns(frame: av.VideoFrame) -> int:
  """Quarter turns that make a frame upright, counter-clockwise."""
  return round(frame.rotation / 90) % 4


def _cut(
  frame: np.ndarray,
  path: str | os.PathLike[str],
  short_side: int | None,
  square: Square | None,
) -> np.ndarray:
  if square is not None:
    frame = apply(frame, square)
  check_side(frame.shape[1], frame.shape[0], path)
  return shrink(frame, short_side)


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


def _video(frames: np.ndarray, fps: float, flags: tuple[str, ...]) -> Video:
  if is_flat(frames):
    flags = (*flags, 'low_signal')
  return Video(frames=frames, fps=fps, flags=flags)


def is_flat(frames: Sequence[np.ndarray]) -> bool:
  """Whether frames show nothing: one colour each, but for noise."""
  some = [frames[i] for i in spaced(len(frames), 8)]
  return all(x[::4, ::4].std(axis=(0, 1)).max() < FLAT for x in some)


def _stack(frames: list[np.ndarray]) -> np.ndarray:
  """One array; a frame of another size is brought to the first one's."""
  height, width = frames[0].shape[:2]
  return np.stack([_scale(frame, width, height) for frame in frames])


def check_side(width: int, height: int, path: str | os.PathLike[str]) -> None:
  """Raises MiraInputError('too_small') for frames that show nothing."""
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
