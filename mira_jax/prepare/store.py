"""From a clip on disk to the record that a prepared dataset keeps of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mira_jax.data import records
from mira_jax.data.records import Clip
from mira_jax.errors import MiraInputError
from mira_jax.prepare.report import FORM
from mira_jax.prepare.resolve import Failure, Found
from mira_jax.video import (
  decode,
  face_crop,
  footage,
  geometry,
  images,
  timing,
)

MAX_SECONDS = 300  # of work on one clip,
_SECONDS_PER_MIB = 1.0  # and for the bytes of long ones
MAX_STORED_BYTES = 1 << 30  # of a video file that is kept as it is
FORMATS = ('auto', 'jpeg', 'png')
# Pixels of a frame that stays lossless where its source is. Up to there PNG
# takes 1 (gray) to 4 times the bytes of JPEG, and is decoded in 1.4 to 1.8
# times the time (0.1 ms at 48 pixels); at 224 pixels it is 5 and 4 times.
SMALL_FRAME = 96 * 96
_KEPT = ', kept'
_GLANCES = 8  # frames for face detection
_GLANCE_SIDE = 480
_CHECKED = 4  # frames in which a face is sought where none is cropped


@dataclasses.dataclass(kw_only=True, frozen=True)
class Storage:
  """How clips are stored."""

  size: int = 224  # pixels of the shorter side; smaller frames stay as they are
  # A longer clip keeps so many, evenly spaced from its first to its last, and
  # its frame rate is lowered to match.
  max_frames: int = 96
  quality: int = 95  # of the JPEG frames, 1 to 100
  # Of the frames: 'png', 'jpeg', or 'auto' for PNG where the source is lossless
  # and they are small. JPEG files that need no change stay as they are.
  format: str = 'auto'
  crop: str = 'none'  # one of `face_crop.RULES`
  # For the rule 'boxes', see `boxes.read_boxes`.
  boxes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  # Of YuNet, for the rule 'yunet' and for `check_faces`, and its SHA-256.
  face_model: str = ''
  face_model_sha256: str = ''
  check_faces: bool = False  # flag clips that show none with 'no_face'
  as_video: bool = False  # keep the video file; nothing of the above applies

  def kind(self, source: str, size: tuple[int, ...]) -> str:
    """'png' or 'jpeg', for frames [H, W] of a 'jpeg', 'png', 'bmp', 'video'."""
    if self.format != 'auto':
      return self.format
    lossless = source in ('png', 'bmp') and size[0] * size[1] <= SMALL_FRAME
    return 'png' if lossless else 'jpeg'

  def encode(self, frame: np.ndarray, kind: str) -> bytes:
    """The bytes of a frame uint8 [H, W, 3] as such a `kind`."""
    if kind == 'png':
      return images.encode_png(frame)
    return images.encode_jpeg(frame, self.quality)

  def form(self, source: str, kind: str) -> str:
    """What became of frames, as a flag: 'frames:png -> jpeg, quality 95'."""
    quality = f', quality {self.quality}' if kind == 'jpeg' else ''
    return f'{FORM}:{source} -> {kind}{quality}'


@dataclasses.dataclass(kw_only=True)
class Stored:
  """A clip that can be used."""

  clip: Clip  # without its frames where these are `files`, see `complete`
  flags: tuple[str, ...] = ()  # oddities, see `footage.Video`, and the form
  files: tuple[str, ...] = ()  # names in the folder of the clip, in order

  def complete(self, path: pathlib.Path) -> Clip:
    """The clip with all its bytes; `path` is its place on disk.

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
    mebibytes = clip.path.stat().st_size / 2**20
    seconds = MAX_SECONDS + _SECONDS_PER_MIB * mebibytes
    with time_limit(seconds, clip.clip_id):
      return _store(clip, labels, storage)
  except MiraInputError as error:
    return Failure(path=clip.clip_id, code=error.code, hint=error.hint)
  except Exception as error:  # a decoder's own, on unforeseen bytes
    hint = f'{type(error).__name__}: {error}'[:200]
    return Failure(path=clip.clip_id, code='unreadable', hint=hint)


@contextlib.contextmanager
def time_limit(seconds: float, name: str) -> Iterator[None]:
  """Raises MiraInputError('too_slow') in work that takes longer.

  Files with false headers can keep a decoder busy for ever. Alarms reach the
  main thread alone; other threads have no limit.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def stop(*_: object) -> None:
    hint = f'decoding it took more than {seconds:g} s'
    raise MiraInputError('too_slow', name, hint)

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


class _Frames(NamedTuple):
  """The frames of a clip that are kept."""

  frames: list[bytes]  # PNG or JPEG; none where they are `files`
  numbers: np.ndarray  # of each frame as a table would number it, int [n]
  fps: float  # after the others were left out
  flags: tuple[str, ...]  # see `Stored`
  files: tuple[str, ...] = ()  # names of files that are kept as they are


def _store(clip: Found, labels: Mapping[str, int], storage: Storage) -> Stored:
  row = clip.row
  record = Clip(
    clip_id=clip.clip_id,
    label=labels[row.label],
    subject=row.subject,
    source_id=row.source_id,
    action_units=row.action_units,
    fold=row.fold,
  )
  if row.intensities:
    record.intensities = np.array(row.intensities, np.int8)
  if storage.as_video:
    return _as_video(clip.path, record)
  square = _square(clip, storage)
  if square is None and clip.path.is_dir():
    kept = _of_folder(clip, storage)
  else:
    kept = _of_video(clip, storage, square)
  record.frames, record.fps = kept.frames, kept.fps
  if row.segment and row.intensities:
    record.intensities = record.intensities[kept.numbers - row.segment[0]]
  flags = kept.flags
  if storage.check_faces and not _shows_face(clip.path, kept, storage):
    flags = ('no_face', *flags)
  for mark in ('onset', 'apex', 'offset'):
    setattr(record, mark, _nearest(kept.numbers, getattr(row, mark)))
  return Stored(clip=record, flags=flags, files=kept.files)


def _shows_face(path: pathlib.Path, kept: _Frames, storage: Storage) -> bool:
  """Whether a few of the frames that are kept show a face."""
  stored = kept.frames or [path / name for name in kept.files]
  frames = []
  for i in footage.spaced(len(stored), _CHECKED).tolist():
    data = stored[i]
    data = data if isinstance(data, bytes) else data.read_bytes()
    frames.append(images.decode_jpeg(data))
  return face_crop.is_shown(frames, storage.face_model)


def _as_video(path: pathlib.Path, record: Clip) -> Stored:
  """The bytes of a file, whose frames are taken by index when it is read."""
  if path.stat().st_size > MAX_STORED_BYTES:
    hint = f'a stored video has at most {MAX_STORED_BYTES >> 20} MiB; cut it'
    raise MiraInputError('too_large', path, hint)
  count, fps, flags = decode.count_frames(path)
  record.fps, record.video_frames = fps, count
  return Stored(clip=record, flags=flags)


def _of_video(
  clip: Found, storage: Storage, square: geometry.Square | None
) -> _Frames:
  """Decoded frames, of a video or of a folder that is cropped."""
  read = _read_once if clip.segment else decode.read_clip
  video = read(clip.path, short_side=storage.size, square=square)
  numbers = np.arange(video.count) if video.numbers is None else video.numbers
  numbers = numbers[video.of_ticks(np.arange(len(video)))]
  inside = _inside(clip, numbers)
  kept = inside[footage.spaced(len(inside), storage.max_frames)]
  source = 'video'
  if clip.path.is_dir():
    source = images.kind_of(images.some_frame_files(clip.path)[0].read_bytes())
  kind = storage.kind(source, video.size)
  frames = [storage.encode(frame, kind) for frame in video.take(kept)]
  fps = _thinned(video.fps or clip.row.fps, len(kept), len(inside))
  flags = (*video.flags, storage.form(source, kind))
  return _Frames(frames, numbers[kept], fps, flags)


def _read_once(path: pathlib.Path, **size: Any) -> footage.Video:
  """As `decode.read_clip`; for segments, which come one after the other."""
  return _last_read(path, path.stat().st_mtime_ns, **size)


@functools.lru_cache(maxsize=1)
def _last_read(path: pathlib.Path, time: int, **size: Any) -> footage.Video:
  del time  # a file that changed is another
  return decode.read_clip(path, **size)


def _of_folder(clip: Found, storage: Storage) -> _Frames:
  """Frames of a folder of images, which need no crop."""
  path, files = clip.path, images.some_frame_files(clip.path)
  files = [files[i] for i in _inside(clip, images.frame_numbers(files))]
  wanted = footage.spaced(len(files), storage.max_frames).tolist()
  size, frames, pixels, kept, forms = (), [], [], [], set()
  for i in wanted:
    if not (data := images.read_bytes(files[i])):
      continue
    own = images.plain_jpeg_size(data)
    # An eighth of a JPEG's pixels shows damage, at half the time.
    image = images.whole_image(data, reduced=bool(own), name=files[i])
    if image is None:
      continue
    own = own or image.shape[:2]
    if not size:
      size = geometry.shrunk(own, storage.size)
      geometry.check_side(size[1], size[0], path)
    kept.append(i)
    pixels.append(image)
    data, form = _fitted(data, image, own, size, storage)
    frames.append(data)
    forms.add(form)
  if not kept:
    raise images.unreadable(path, len(files))
  flags = ('partial',) * (len(kept) < len(wanted))
  flags += ('static',) * (len(kept) == 1)
  flags += ('low_signal',) * footage.is_flat(pixels) + (*sorted(forms),)
  numbers = images.frame_numbers(files)[kept]
  fps = _thinned(clip.row.fps, len(kept), len(files))
  as_is = all(form.endswith(_KEPT) for form in forms)
  names = tuple(files[i].name for i in kept if as_is)
  return _Frames([] if as_is else frames, numbers, fps, flags, names)


def _fitted(
  data: bytes,
  image: np.ndarray,
  own: tuple[int, ...],
  size: tuple[int, int],
  storage: Storage,
) -> tuple[bytes, str]:
  """The bytes of a frame of a `size`, and what became of them.

  `data` are those of a file of the size `own`, and `image` its pixels, or an
  eighth of them.
  """
  source = images.kind_of(data)
  kind = storage.kind(source, size)
  # Coding a JPEG again would lose quality and three quarters of the speed.
  if own == size and source in (kind, 'jpeg'):
    return data, f'{FORM}:{source}{_KEPT}'
  whole = image if image.shape[:2] == own else images.decode_jpeg(data)
  fitted = geometry.fit_to(whole, size)
  return storage.encode(fitted, kind), storage.form(source, kind)


def _thinned(fps: float, kept: int, total: int) -> float:
  """The frame rate of `kept` of `total` frames, with the same ends."""
  return timing.credible(fps) * max(kept - 1, 1) / max(total - 1, 1)


def _square(clip: Found, storage: Storage) -> geometry.Square | None:
  """The crop of all frames; None for the whole frame."""
  if storage.crop == 'none':
    return None
  look = _last_glance if clip.segment else _glance
  frames, width, height = look(clip.path, clip.path.stat().st_mtime_ns)
  hint, square = 'no face was found', None
  if storage.crop == 'center':
    square = face_crop.center(width, height)
  elif storage.crop in ('haar', 'yunet'):
    square = face_crop.find(frames, storage.face_model)
  else:
    hint = 'the table of boxes has none in its frames'
    name = clip.clip_id.rpartition('#')[0] if clip.segment else clip.clip_id
    if name in storage.boxes:
      square = face_crop.from_boxes(storage.boxes[name], width, height)
  if square is None:
    raise MiraInputError('no_face', clip.clip_id, hint)
  return square


def _glance(path: pathlib.Path, time: int) -> tuple[np.ndarray, int, int]:
  del time  # a file that changed is another
  return decode.glance(path, _GLANCES, _GLANCE_SIDE)


_last_glance = functools.lru_cache(maxsize=1)(_glance)  # as `_last_read`


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


def _nearest(numbers: np.ndarray, wanted: int) -> int:
  """Index of the frame closest to a number; -1 when it is not in the clip."""
  inside = numbers[0] <= wanted <= numbers[-1]
  return int(np.abs(numbers - wanted).argmin()) if inside else -1
