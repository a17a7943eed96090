"""Video files and folders of frames to RGB arrays.

Container metadata is not trusted: frames are counted, measured and timed while
decoding, and their number and memory have limits.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from mira_jax.errors import MiraInputError
from mira_jax.video import container, footage, geometry, images, timing, upright

MAX_FRAMES = 1_000_000  # of a clip: nine hours at 30 a second
MIN_FRAMES = 4  # that a file broken in the middle must still give

Path = str | os.PathLike[str]


def read_clip(
  path: Path,
  *,
  short_side: int | None = None,
  square: geometry.Square | None = None,
) -> footage.Video:
  """Reads a video file, or the images of a folder, to the end.

  A file that breaks in the middle gives the frames before. Of a folder, empty
  and unreadable images are skipped; the latter set the flag 'partial'.

  Args:
    path: a file of one of `container.SUFFIXES`, an animated GIF, or a folder,
      see `images.frame_files`.
    short_side: shrink frames while decoding until the shorter side has this
      many pixels; frames are never enlarged.
    square: the part of every upright frame to keep, cut before it is shrunk.

  Raises:
    MiraInputError: as `container.open_video` or `images.some_frame_files`, and
      with code too_long, too_large, too_small (also of the `square`)
      or damaged.
  """
  source = _open(path, short_side, square)
  count, size, held, flat = footage.hold(source)
  return footage.Video(
    count=count,
    size=size,
    fps=source.pace.fps,
    flags=source.flags + ('low_signal',) * flat,
    shown=source.pace.shown,
    path=path,
    held=held,
    numbers=source.numbers,
    again=lambda wanted: (
      geometry.fit_to(frame, size) for frame in source.again(wanted)
    ),
  )


def of_frames(
  name: str, frames: Sequence[np.ndarray], fps: float
) -> footage.Video:
  """A clip of frames in memory: uint8 [H, W, 3], RGB, in order, at least one.

  `fps` is 0 when unknown; `name` is for errors. Raises
  MiraInputError('too_long').
  """
  footage.check_bytes(2 * sum(frame.nbytes for frame in frames), name)
  held = footage.stack(frames)
  return footage.Video(
    count=len(held),
    size=held.shape[1:3],
    fps=fps,
    flags=_flags(len(held)) + ('low_signal',) * footage.is_flat(held),
    path=name,
    held=held,
  )


def count_frames(path: Path) -> tuple[int, float, tuple[str, ...]]:
  """Decodes a video file and keeps nothing; raises as `read_clip`.

  Returns:
    The number of its frames; frames per second; and the flags of a
    `footage.Video`, with 'variable' where the rate is the mean of one that is
    not constant.
  """
  source = _File(path)
  count, fps, flags = sum(1 for _ in source), source.pace.fps, source.flags
  if source.pace.shown is not None:
    fps, flags = count / source.pace.seconds, (*flags, 'variable')
  return count, fps, flags


def glance(
  path: Path, count: int, short_side: int | None
) -> tuple[np.ndarray, int, int]:
  """A few evenly spaced frames of a video file or a folder of frames.

  A video is decoded to its end, since its header may promise any number of
  frames, but at most `2 * count` frames are held. Of a folder, no other images
  than these are read. Raises as `read_clip`.

  Returns:
    uint8 [n, H, W, 3] in order, 1 <= n <= count, and the width and height in
    pixels of the clip's upright frames before they are shrunk.
  """
  source = _open(path, short_side)
  if isinstance(source, _Folder):
    picked = footage.spaced(len(source.files), count)
    source.files = [source.files[i] for i in picked]
  kept, stride = [], 1
  for i, convert in enumerate(source):
    if i % stride == 0 and len(kept) == 2 * count:
      kept, stride = kept[::2], 2 * stride
    if i % stride == 0:
      kept.append(convert())
  picked = [kept[i] for i in footage.spaced(len(kept), count)]
  width, height = source.whole
  return footage.stack(picked), width, height


def look(
  path: Path, wanted: Sequence[int], short_side: int
) -> Iterator[np.ndarray]:
  """Whole frames of rising, unique indices: uint8 [H, W, 3], RGB.

  Indices are those of `read_clip`, and no other frames are converted.
  """
  missing = iter(wanted)
  index = next(missing, None)
  for i, convert in enumerate(_open(path, short_side)):
    if i == index:
      yield convert()
      index = next(missing, None)
    if index is None:
      return


def pick(
  file: Path | BinaryIO,
  wanted: Iterable[int],
  *,
  name: Path,
  short_side: int | None = None,
  square: geometry.Square | None = None,
) -> Iterator[np.ndarray]:
  """The frames of rising indices of a video file: uint8 [H, W, 3], RGB.

  They are decoded from the first on: encoders put key frames seconds apart, so
  that a seek would save little. `name` is for errors.

  Raises:
    MiraInputError: there are too few frames ('damaged').
  """
  with container.open_video(file) as (video, stream):
    aspect = upright.pixel_aspect(stream)
    frames = enumerate(_decoded(video, stream, name, []))
    converter = VideoReformatter()
    i, frame = -1, None
    for index in wanted:
      while i < index:
        i, frame = next(frames, (index, None))
      if frame is None:
        hint = f'its video has fewer than {index + 1} frames'
        raise MiraInputError('damaged', name, hint)
      yield upright.to_rgb(frame, name, short_side, square, aspect, converter)


@dataclasses.dataclass
class _Source:
  """Iterates once over a clip, giving a function for each frame's pixels.

  After the last frame `pace` and `flags` are those of the clip, `whole` is the
  width and height of its frames before they are cut and shrunk, `numbers` are
  those of a `footage.Video`, and `again(wanted)` gives the frames of rising
  indices.
  """

  path: Path
  short_side: int | None = None
  square: geometry.Square | None = None
  pace = timing.Pace(fps=0.0)
  flags: tuple[str, ...] = ()
  numbers: np.ndarray | None = None
  whole = (0, 0)


class _File(_Source):
  """A video file."""

  def __iter__(self) -> Iterator[Callable[[], np.ndarray]]:
    times, last, broken, path = [], 0.0, [], self.path
    with container.open_video(path) as (video, stream):
      header = float(stream.average_rate or 0)
      width, height = stream.width, stream.height
      promised = container.promised_seconds(video, stream, path)
      aspect, converter = upright.pixel_aspect(stream), VideoReformatter()
      square, short_side = self.square, self.short_side
      for frame in _decoded(video, stream, path, broken):
        if not times:
          self.whole = upright.upright_size(frame, aspect)
        yield functools.partial(
          upright.to_rgb, frame, path, short_side, square, aspect, converter
        )
        times.append(np.nan if frame.time is None else frame.time)
        last = float((frame.duration or 0) * (frame.time_base or 0))
    if not times and width * height > container.MAX_PIXELS:
      hint = f'scale it down, it has {width}x{height} pixels'
      raise MiraInputError('too_large', path, hint)
    if len(times) < (MIN_FRAMES if broken else 1):
      hint = f'only {len(times)} frames can be decoded'
      raise MiraInputError('damaged', path, hint)
    self.pace = timing.pace(np.array(times), last, header)
    end = np.nan_to_num(times[-1]) + last  # the duration in Matroska
    share = max(self.pace.seconds, end) / promised if promised else 1.0
    self.flags = _flags(len(times), bool(broken), share) + self.pace.flags

  def again(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
    size = {'short_side': self.short_side, 'square': self.square}
    return pick(self.path, wanted, name=self.path, **size)


class _Folder(_Source):
  """A folder of images; `files` are those that can be read, after the last."""

  @functools.cached_property
  def files(self) -> list[pathlib.Path]:
    files = images.some_frame_files(self.path)
    _check_length(len(files), self.path)
    return files

  def __iter__(self) -> Iterator[Callable[[], np.ndarray]]:
    good = []
    for i, file in enumerate(self.files):
      image = images.read_image(file)
      if image is not None:
        if not good:
          self.whole = image.shape[1], image.shape[0]
        good.append(i)
        yield functools.partial(self._cut, image)
    if not good:
      raise images.unreadable(self.path, len(self.files))
    self.flags = _flags(len(good), len(good) < len(self.files))
    self.numbers = images.frame_numbers(self.files)[good]
    self.files = [self.files[i] for i in good]

  def _cut(self, image: np.ndarray) -> np.ndarray:
    return geometry.cut(image, self.path, self.short_side, self.square)

  def again(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
    for file in (self.files[i] for i in wanted):
      image = images.read_image(file)
      if image is None:
        raise MiraInputError('damaged', file, 'it changed while it was read')
      yield self._cut(image)


def _open(path: Path, *size: Any) -> _File | _Folder:
  return (_Folder if os.path.isdir(path) else _File)(path, *size)


def _decoded(
  video: InputContainer,
  stream: av.VideoStream,
  path: Path,
  broken: list[str],
) -> Iterator[av.VideoFrame]:
  """Frames up to an error, which is added to `broken`."""
  try:
    for i, frame in enumerate(video.decode(stream)):
      geometry.check_side(frame.width, frame.height, path)
      _check_length(i + 1, path)
      yield frame
  except FFmpegError as error:
    broken.append(str(error))


def _flags(
  count: int, broken: bool = False, share: float = 1.0
) -> tuple[str, ...]:
  short = (f'short:{round(100 * share)}%',) if share < 0.9 else ()
  return ('partial',) * broken + short + ('static',) * (count == 1)


def _check_length(count: int, path: Path) -> None:
  if count > MAX_FRAMES:
    hint = f'cut it: more than {MAX_FRAMES} frames'
    raise MiraInputError('too_long', path, hint)
