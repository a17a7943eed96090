"""From a clip on disk to what a prepared dataset keeps of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mira_jax.data import records
from mira_jax.data.records import Clip
from mira_jax.errors import MiraInputError
from mira_jax.prepare import boxes as face_boxes
from mira_jax.prepare.resolve import Failure, Found
from mira_jax.video import decode, geometry, images, timing
from mira_jax.video import face_crop as crop

MAX_SECONDS = 300  # of work on one clip,
_SECONDS_PER_MIB = 1.0  # and for the bytes of long ones
MAX_STORED_BYTES = 1 << 30  # of a video file that is kept as it is
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
    boxes: for the rule 'boxes', what `boxes.read_boxes` gives.
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
    with time_limit(_allowed_seconds(clip.path), clip.clip_id):
      return _store(clip, labels, storage)
  except MiraInputError as error:
    return Failure(path=clip.clip_id, code=error.code, hint=error.hint)
  except Exception as error:  # a decoder's own, on bytes nobody thought of
    hint = f'{type(error).__name__}: {error}'[:200]
    return Failure(path=clip.clip_id, code='unreadable', hint=hint)


def _allowed_seconds(path: pathlib.Path) -> float:
  return MAX_SECONDS + _SECONDS_PER_MIB * _bytes(path) / 2**20


def _bytes(path: pathlib.Path) -> int:
  """Of a file; 0 for what is none, which is told when it is read."""
  with contextlib.suppress(OSError, ValueError):
    return path.stat().st_size if path.is_file() else 0
  return 0


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
    return _as_video(clip.path, fields)
  square, files = _square(clip, storage), ()
  if square is None and clip.path.is_dir():
    frames, files, numbers, share, flags = _of_folder(clip, storage)
    fps = clip.row.fps
  else:
    video = decode.read_clip(
      clip.path,
      short_side=storage.size,
      square=square,
      allow_gif=_is_gif(clip.path),
    )
    numbers = _frame_numbers(clip.path, video.count)
    numbers = numbers[video.of_ticks(np.arange(len(video)))]
    inside, flags = _inside(clip, numbers), video.flags
    kept = inside[decode.spaced(len(inside), storage.cap)]
    quality = storage.quality
    frames = [decode.encode_jpeg(f, quality) for f in video.take(kept)]
    numbers, share = numbers[kept], _share(len(kept), len(inside))
    fps = video.fps or clip.row.fps
  return Stored(
    clip=Clip(
      **fields,
      frames=frames,
      fps=timing.credible(fps) * share,
      onset=_nearest(numbers, clip.row.onset),
      apex=_nearest(numbers, clip.row.apex),
      offset=_nearest(numbers, clip.row.offset),
    ),
    flags=flags,
    files=files,
  )


def _as_video(path: pathlib.Path, fields: Mapping[str, Any]) -> Stored:
  """The bytes of a file, whose frames are taken by index when it is read."""
  if _bytes(path) > MAX_STORED_BYTES:
    hint = f'a stored video has at most {MAX_STORED_BYTES >> 20} MiB; cut it'
    raise MiraInputError('too_large', path, hint)
  found = decode.count_frames(path, allow_gif=_is_gif(path))
  video = Clip(**fields, fps=found.fps, video_frames=found.count)
  return Stored(clip=video, flags=found.flags)


def _is_gif(path: pathlib.Path) -> bool:
  """GIFs are listed only where they are wanted."""
  return path.suffix.lower() == '.gif'


def _share(kept: int, total: int) -> float:
  """By which `kept` of `total` frames, ends kept, lower the frame rate."""
  return max(kept - 1, 1) / max(total - 1, 1)


@dataclasses.dataclass(kw_only=True, frozen=True)
class _Image:
  """An image of a folder: its bytes, pixels (perhaps fewer), and size."""

  path: pathlib.Path
  data: bytes
  pixels: np.ndarray
  size: tuple[int, int]  # height and width


def _read(path: pathlib.Path) -> _Image | None:
  """None for what cannot be read or is cut off."""
  data = images.read_bytes(path)
  size = data and images.plain_jpeg_size(data)
  # An eighth of a JPEG's pixels shows damage, at half the time.
  pixels = data and images.whole_image(data, reduced=bool(size), name=path)
  if pixels is None or not data:
    return None
  return _Image(
    path=path, data=data, pixels=pixels, size=size or pixels.shape[:2]
  )


def _of_folder(
  clip: Found, storage: Storage
) -> tuple[list[bytes], tuple[str, ...], np.ndarray, float, tuple[str, ...]]:
  """Frames or their files, their numbers, `_share`, and flags.

  A JPEG file that needs no change is kept as it is: coding it again would lose
  quality and three quarters of the speed.
  """
  path, files = clip.path, images.some_frame_files(clip.path)
  files = [files[i] for i in _inside(clip, images.frame_numbers(files))]
  wanted = decode.spaced(len(files), storage.cap)
  read = {i: image for i in wanted.tolist() if (image := _read(files[i]))}
  if not read:
    raise images.unreadable(path, len(files))
  found = [*read.values()]
  size = geometry.shrunk(found[0].size, storage.size)
  geometry.check_side(size[1], size[0], path)
  frames = [_jpeg(image, size, storage) for image in found]
  files_kept = ()
  if all(frame is x.data for frame, x in zip(frames, found, strict=True)):
    frames, files_kept = [], tuple(image.path.name for image in found)
  flags = ('partial',) * (len(found) < len(wanted))
  flags += ('static',) * (len(found) == 1)
  flags += ('low_signal',) * decode.is_flat([x.pixels for x in found])
  numbers = images.frame_numbers(files)[[*read]]
  return frames, files_kept, numbers, _share(len(found), len(files)), flags


def _jpeg(image: _Image, size: tuple[int, int], storage: Storage) -> bytes:
  if image.size == size and image.data.startswith(b'\xff\xd8'):
    return image.data
  pixels = image.pixels
  if pixels.shape[:2] != image.size:
    pixels = decode.decode_jpeg(image.data)
  return decode.encode_jpeg(geometry.fit_to(pixels, size), storage.quality)


def _square(clip: Found, storage: Storage) -> crop.Square | None:
  """What is cut out of all frames; None for all of them."""
  if storage.crop == 'none':
    return None
  frames, width, height = decode.glance(
    clip.path, _GLANCES, _GLANCE_SIDE, allow_gif=_is_gif(clip.path)
  )
  if storage.crop == 'center':
    return crop.center(width, height)
  if storage.crop == 'haar':
    if square := crop.haar(frames):
      return square
    raise MiraInputError('no_face', clip.clip_id, 'no face was found')
  name = clip.clip_id.rpartition('#')[0] if clip.segment else clip.clip_id
  boxes = face_boxes.look_up(storage.boxes, name)
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
    numbers = images.frame_numbers(decode.frame_files(path))
    if len(numbers) == count:
      return numbers
  return np.arange(count)


def _inside(clip: Found, numbers: np.ndarray) -> np.ndarray:
  """Indices of the frames that are the clip's, see `Found.segment`."""
  if clip.segment is None:
    return np.arange(len(numbers))
  first, last = clip.segment
  inside = np.flatnonzero((numbers >= first) & (numbers <= last))
  if not len(inside):
    hint = f'there is no frame {first} to {last} of {len(numbers)}'
    raise MiraInputError('empty', clip.clip_id, hint)
  return inside


def _nearest(numbers: Sequence[int], wanted: int) -> int:
  """Index of the frame closest to a number; -1 when it is not in the clip."""
  if not numbers[0] <= wanted <= numbers[-1]:
    return -1
  return int(np.abs(np.asarray(numbers) - wanted).argmin())
