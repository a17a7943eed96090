"""From a clip on disk to what a prepared dataset keeps of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mira_jax.data import crop, decode, records
from mira_jax.data.locate import Failure, Found
from mira_jax.data.records import Clip
from mira_jax.errors import MiraInputError

MAX_SECONDS = 300  # of work on one clip
_GLANCES = 8  # frames that a face is looked for in
_GLANCE_SIDE = 480


@dataclasses.dataclass(kw_only=True, frozen=True)
class Storage:
  """How clips are stored.

  Attributes:
    size: pixels of a frame's shorter side; smaller frames stay as they are.
    cap: most frames of a clip; others keep so many, evenly spaced.
    quality: of the JPEG frames, 1 to 100.
    crop: one of `crop.RULES`.
    boxes: for the rule 'boxes', what `crop.read_boxes` gives.
    as_video: keep the bytes of the video file; nothing of the above applies.
  """

  size: int = 224
  cap: int = 96
  quality: int = 95
  crop: str = 'none'
  boxes: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  as_video: bool = False


@dataclasses.dataclass(kw_only=True)
class Stored:
  """A clip that can be used.

  Attributes:
    clip: without its frames where these are files as they are; see `complete`.
    flags: what was odd, see `decode.Video`.
    files: names of such files in the folder of the clip, in order.
  """

  clip: Clip
  flags: tuple[str, ...] = ()
  files: tuple[str, ...] = ()

  def complete(self, path: pathlib.Path) -> Clip:
    """The clip with all its bytes; `path` is where it lies on disk.

    Files that need no change are read here again: that is less work than to
    send them from process to process, and to write them twice.
    """
    if self.files:
      frames = [(path / name).read_bytes() for name in self.files]
      return dataclasses.replace(self.clip, frames=frames)
    if self.clip.video_frames:
      return dataclasses.replace(self.clip, video=path.read_bytes())
    return self.clip

  def to_bytes(self, serialize: Callable[[Clip], bytes]) -> bytes:
    """For `from_bytes`, with `records.serializer`'s function."""
    head = json.dumps([self.flags, self.files]).encode()
    return head + b'\n' + serialize(self.clip)

  @classmethod
  def from_bytes(cls, data: bytes) -> Stored:
    """The inverse of `to_bytes`."""
    head, _, record = data.partition(b'\n')
    flags, files = map(tuple, json.loads(head))
    return cls(clip=records.parse(record), flags=flags, files=files)


def store(
  clip: Found, *, labels: Mapping[str, int], storage: Storage
) -> Stored | Failure:
  """Runs in a worker: the clip, or why it cannot be used."""
  try:
    with time_limit(MAX_SECONDS, clip.clip_id):
      return _store(clip, labels, storage)
  except MiraInputError as error:
    return Failure(path=clip.clip_id, code=error.code, hint=error.hint)
  except Exception as error:  # a decoder's own, on bytes nobody thought of
    hint = f'{type(error).__name__}: {error}'[:200]
    return Failure(path=clip.clip_id, code='unreadable', hint=hint)


@contextlib.contextmanager
def time_limit(seconds: float, name: str) -> Iterator[None]:
  """Raises MiraInputError('too_slow') in what takes longer.

  Files whose headers lie can keep a decoder busy for ever. Alarms reach the
  main thread alone; elsewhere there is no limit.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def stop(signal_number, frame):
    del signal_number, frame
    hint = f'decoding it took more than {seconds:g} s'
    raise MiraInputError('too_slow', name, hint)

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _store(clip: Found, labels: Mapping[str, int], storage: Storage) -> Stored:
  fields = {
    'clip_id': clip.clip_id,
    'label': labels[clip.row.label],
    'subject': clip.row.subject,
    'source_id': clip.row.source_id,
    'action_units': clip.row.action_units,
    'fold': clip.row.fold,
  }
  if storage.as_video:
    found = decode.count_frames(clip.path)
    video = Clip(**fields, fps=found.fps, video_frames=found.count)
    return Stored(clip=video, flags=found.flags)
  square, files = _square(clip, storage), ()
  if square is None and clip.path.is_dir():
    frames, files, numbers, total, flags = _of_folder(clip.path, storage)
    fps = clip.row.fps
  else:
    video = decode.read_clip(clip.path, short_side=storage.size, square=square)
    total, flags = len(video.frames), video.flags
    kept = decode.spaced(total, storage.cap)
    quality = storage.quality
    frames = [decode.encode_jpeg(video.frames[i], quality) for i in kept]
    numbers = _frame_numbers(clip.path, total)[kept]
    fps = video.fps or clip.row.fps
  return Stored(
    clip=Clip(
      **fields,
      frames=frames,
      fps=fps * max(len(numbers) - 1, 1) / max(total - 1, 1),
      onset=_nearest(numbers, clip.row.onset),
      apex=_nearest(numbers, clip.row.apex),
      offset=_nearest(numbers, clip.row.offset),
    ),
    flags=flags,
    files=files,
  )


@dataclasses.dataclass(kw_only=True, frozen=True)
class _Image:
  """An image of a folder: its bytes, pixels (perhaps fewer), and size."""

  path: pathlib.Path
  data: bytes
  pixels: np.ndarray
  size: tuple[int, int]  # height and width


def _read(path: pathlib.Path) -> _Image | None:
  """None for what cannot be read or is cut off."""
  try:
    data = path.read_bytes()
  except OSError:
    return None
  size = decode.jpeg_size(data)
  if size:  # an eighth of the pixels shows damage, at half the time
    pixels = decode.whole_image(data, reduced=True)
  else:
    pixels = decode.whole_image(data)
    size = None if pixels is None else pixels.shape[:2]
  if pixels is None:
    return None
  return _Image(path=path, data=data, pixels=pixels, size=size)


def _of_folder(
  path: pathlib.Path, storage: Storage
) -> tuple[list[bytes], tuple[str, ...], np.ndarray, int, tuple[str, ...]]:
  """Frames or their files, their numbers, how many there are, and flags.

  A JPEG file that needs no change is kept as it is: coding it again would lose
  quality and three quarters of the speed.
  """
  files = decode.frame_files(path)
  if not files:
    hint = 'the folder has no jpg, png or bmp file'
    raise MiraInputError('empty', path, hint)
  wanted = [files[i] for i in decode.spaced(len(files), storage.cap)]
  images = [image for image in map(_read, wanted) if image]
  if not images:
    hint = f'none of its {len(files)} images is readable'
    raise MiraInputError('damaged', path, hint)
  size = decode.shrunk(images[0].size, storage.size)
  decode.check_side(*size, path)
  frames = [_jpeg(image, size, storage) for image in images]
  files_kept = ()
  if all(frame is x.data for frame, x in zip(frames, images, strict=True)):
    frames, files_kept = [], tuple(image.path.name for image in images)
  flags = ('partial',) * (len(images) < len(wanted))
  flags += ('static',) * (len(images) == 1)
  flags += ('low_signal',) * decode.is_flat([x.pixels for x in images])
  numbers = [decode.last_number(image.path.name) for image in images]
  if min(numbers) < 0:
    numbers = [files.index(image.path) for image in images]
  return frames, files_kept, np.array(numbers), len(files), flags


def _jpeg(image: _Image, size: tuple[int, int], storage: Storage) -> bytes:
  if image.size == size and image.data.startswith(b'\xff\xd8'):
    return image.data
  pixels = image.pixels
  if pixels.shape[:2] != image.size:
    pixels = decode.decode_jpeg(image.data)
  return decode.encode_jpeg(decode.fit_to(pixels, size), storage.quality)


def _square(clip: Found, storage: Storage) -> crop.Square | None:
  """What is cut out of all frames; None for all of them."""
  if storage.crop == 'none':
    return None
  frames, width, height = decode.glance(clip.path, _GLANCES, _GLANCE_SIDE)
  if storage.crop == 'center':
    return crop.center(width, height)
  if storage.crop == 'haar':
    if square := crop.haar(frames):
      return square
    raise MiraInputError('no_face', clip.clip_id, 'no face was found')
  boxes = crop.look_up(storage.boxes, clip.clip_id)
  square = None
  if boxes is not None:
    square = crop.from_boxes(boxes, width, height)
  if square is None:
    hint = 'the table of boxes has none in its frames'
    raise MiraInputError('no_face', clip.clip_id, hint)
  return square


def _frame_numbers(path: pathlib.Path, count: int) -> np.ndarray:
  """How a table would number the frames: by file name, else from 0."""
  if path.is_dir():
    numbers = [decode.last_number(f.name) for f in decode.frame_files(path)]
    if len(numbers) == count and min(numbers) >= 0:
      return np.array(numbers)
  return np.arange(count)


def _nearest(numbers: Sequence[int], wanted: int) -> int:
  """Index of the frame closest to a number; -1 when it is not in the clip."""
  if not numbers[0] <= wanted <= numbers[-1]:
    return -1
  return int(np.abs(np.asarray(numbers) - wanted).argmin())
