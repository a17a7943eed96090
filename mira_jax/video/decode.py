"""Video files and folders of frames to RGB arrays.

A header is not believed: frames are counted, measured and timed as they come,
and their number and memory have limits.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import av
import numpy as np

from mira_jax.errors import MiraInputError
from mira_jax.video import container, footage, geometry, images, timing, upright
from mira_jax.video.footage import Video as Video
from mira_jax.video.footage import is_flat as is_flat
from mira_jax.video.footage import resize_windows as resize_windows
from mira_jax.video.footage import spaced as spaced
from mira_jax.video.footage import take as take
from mira_jax.video.geometry import Square as Square
from mira_jax.video.geometry import apply as apply
from mira_jax.video.geometry import resize as resize
from mira_jax.video.geometry import shrink as shrink
from mira_jax.video.images import decode_jpeg as decode_jpeg
from mira_jax.video.images import encode_jpeg as encode_jpeg
from mira_jax.video.images import frame_files as frame_files
from mira_jax.video.images import whole_image as whole_image

FRAME_SUFFIXES = images.SUFFIXES
MAX_FRAMES = 1_000_000  # of a clip: nine hours at 30 a second
MIN_FRAMES = 4  # that a file broken in the middle must still give


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
  """Decodes every frame of a file's main video stream.

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
  frames = footage.Holder(path)

  def rgb(frame: av.VideoFrame, aspect: float) -> np.ndarray:
    return upright.to_rgb(frame, path, short_side, square, aspect)

  def visit(frame: av.VideoFrame, _: int, aspect: float) -> None:
    frames.add(lambda: rgb(frame, aspect))

  def again(wanted: np.ndarray) -> Iterator[np.ndarray]:
    with container.open_video(path, allow_gif) as (video, stream):
      aspect = upright.pixel_aspect(stream)
      for frame in _some(video, stream, path, wanted):
        yield geometry.fit_to(rgb(frame, aspect), frames.size)

  pace, flags = _walk(path, visit, allow_gif)
  return frames.video(pace, flags, again)


def read_frames_folder(
  path: str | os.PathLike[str],
  *,
  short_side: int | None = None,
  square: Square | None = None,
) -> Video:
  """Reads the images of a folder in the order of `images.frame_files`.

  Empty files are passed over; unreadable ones too, with the flag 'partial'.
  `short_side` and `square` are those of `read_video`.

  Raises:
    MiraInputError: with code not_found, not_readable, empty, too_long,
      too_large, too_small or damaged.
  """
  files = images.some_frame_files(path)
  _check_length(len(files), path)
  frames, good = footage.Holder(path), []

  def rgb(image: np.ndarray) -> np.ndarray:
    return geometry.cut(image, path, short_side, square)

  def again(wanted: np.ndarray) -> Iterator[np.ndarray]:
    for i in wanted:
      image = images.read_image(good[i])
      if image is None:
        raise MiraInputError('damaged', good[i], 'it changed while it was read')
      yield geometry.fit_to(rgb(image), frames.size)

  for file in files:
    image = images.read_image(file)
    if image is not None:
      frames.add(lambda image=image: rgb(image))
      good.append(file)
  if not good:
    raise images.unreadable(path, len(files))
  flags = _flags(len(good), len(good) < len(files))
  return frames.video(timing.Pace(fps=0.0), flags, again)


def of_frames(name: str, frames: Iterable[np.ndarray], fps: float) -> Video:
  """A clip of frames that come from elsewhere than a file, at least one.

  Args:
    name: of where they come from, for errors.
    frames: uint8 [H, W, 3], RGB, in order.
    fps: frames per second; 0 when unknown.

  Raises:
    MiraInputError: with code too_long or too_small.
  """
  kept = footage.Holder(name, must=True)
  for frame in frames:
    kept.add(lambda frame=frame: geometry.cut(frame, name, None, None))
  return kept.video(timing.Pace(fps=fps), _flags(kept.count, False))


@dataclasses.dataclass(kw_only=True, frozen=True)
class Count:
  """What decoding a video file to its end shows; see `Video`."""

  count: int
  fps: float
  flags: tuple[str, ...] = ()


def count_frames(
  path: str | os.PathLike[str], *, allow_gif: bool = False
) -> Count:
  """Decodes a video file and keeps nothing. Raises as `read_video`.

  The flag 'variable' says that its frames have no constant rate; `fps` is then
  their mean.
  """
  count = 0

  def visit(_: av.VideoFrame, index: int, aspect: float) -> None:
    nonlocal count
    del aspect
    count = index + 1

  pace, flags = _walk(path, visit, allow_gif)
  if pace.shown is None:
    return Count(count=count, fps=pace.fps, flags=flags)
  fps = count / pace.seconds
  return Count(count=count, fps=fps, flags=(*flags, 'variable'))


def read_some(
  file: io.BytesIO, name: str, indices: Sequence[int]
) -> dict[int, np.ndarray]:
  """Some frames of a video in memory, by sorted index: uint8 [H, W, 3], RGB.

  Raises:
    MiraInputError: a frame cannot be decoded ('damaged').
  """
  # From the first frame on: encoders put key frames seconds apart, so that a
  # seek saves little of a clip that is a few seconds long.
  with container.open_video(file) as (video, stream):
    rows = _some(video, stream, name, indices)
    aspect = upright.pixel_aspect(stream)
    return {
      i: upright.to_rgb(frame, name, None, None, aspect)
      for i, frame in zip(indices, rows, strict=True)
    }


def glance(
  path: str | os.PathLike[str],
  count: int,
  short_side: int | None,
  *,
  allow_gif: bool = False,
) -> tuple[np.ndarray, int, int]:
  """A few evenly spaced frames of a video file or a folder of frames.

  A video is decoded to its end, since its header may promise any number of
  frames, but at most `2 * count` frames are held. Of a folder, no other images
  than these are read.

  Args:
    path: as of `read_clip`.
    count: of frames to give at most.
    short_side: as of `read_clip`.
    allow_gif: as of `read_clip`.

  Returns:
    uint8 [n, H, W, 3] in order, 1 <= n <= count, and the width and height in
    pixels of the clip's upright frames, as they are shown, before they are
    shrunk.

  Raises:
    MiraInputError: as `read_clip`.
  """
  if os.path.isdir(path):
    frames, width, height = _glance_folder(path, count, short_side)
  else:
    frames, width, height = _glance_video(path, count, short_side, allow_gif)
  return footage.stack(frames), width, height


def _glance_video(
  path: str | os.PathLike[str],
  count: int,
  short_side: int | None,
  allow_gif: bool,
) -> tuple[list[np.ndarray], int, int]:
  kept, size, stride = [], (0, 0), 1

  def visit(frame: av.VideoFrame, index: int, aspect: float) -> None:
    nonlocal kept, size, stride
    if index == 0:
      size = upright.upright_size(frame, aspect)
    if index % stride == 0 and len(kept) == 2 * count:
      kept, stride = kept[::2], 2 * stride
    if index % stride == 0:
      kept.append(upright.to_rgb(frame, path, short_side, None, aspect))

  _walk(path, visit, allow_gif)
  return [kept[i] for i in spaced(len(kept), count)], *size


def _glance_folder(
  path: str | os.PathLike[str], count: int, short_side: int | None
) -> tuple[list[np.ndarray], int, int]:
  files = images.some_frame_files(path)
  _check_length(len(files), path)
  picked = [files[i] for i in spaced(len(files), count)]
  frames, size = [], (0, 0)
  for image in map(images.read_image, picked):
    if image is not None:
      size = size if frames else (image.shape[1], image.shape[0])
      frames.append(geometry.cut(image, path, short_side, None))
  if not frames:
    raise images.unreadable(path, len(picked))
  return frames, *size


def _walk(
  path: str | os.PathLike[str],
  visit: Callable[[av.VideoFrame, int, float], None],
  allow_gif: bool = False,
) -> tuple[timing.Pace, tuple[str, ...]]:
  """Gives `visit` every frame, its index and the aspect of its pixels."""
  times, last, broken = [], None, []
  with container.open_video(path, allow_gif) as (video, stream):
    header, size = float(stream.average_rate or 0), stream.width * stream.height
    promised = container.promised_seconds(video, stream, path)
    aspect = upright.pixel_aspect(stream)
    for i, frame in enumerate(_decoded(video, stream, path, broken)):
      visit(frame, i, aspect)
      times.append(np.nan if frame.time is None else frame.time)
      last = float((frame.duration or 0) * (frame.time_base or 0))
    shape = f'{stream.width}x{stream.height}'
  if not times and size > container.MAX_PIXELS:
    hint = f'scale it down, it has {shape} pixels'
    raise MiraInputError('too_large', path, hint)
  if len(times) < (MIN_FRAMES if broken else 1):
    hint = f'only {len(times)} frames can be decoded'
    raise MiraInputError('damaged', path, hint)
  pace = timing.pace(np.array(times), last, header)
  end = np.nan_to_num(times[-1]) + last  # what Matroska promises
  share = max(pace.seconds, end) / promised if promised else 1.0
  return pace, (*_flags(len(times), bool(broken), share), *pace.flags)


def _decoded(
  video: av.container.InputContainer,
  stream: av.VideoStream,
  path: str | os.PathLike[str],
  broken: list[str],
) -> Iterator[av.VideoFrame]:
  """Frames up to an error, which is added to `broken`."""
  try:
    for i, frame in enumerate(video.decode(stream)):
      geometry.check_side(frame.width, frame.height, path)
      _check_length(i + 1, path)
      yield frame
  except av.error.FFmpegError as error:
    broken.append(str(error))


def _some(
  video: av.container.InputContainer,
  stream: av.VideoStream,
  path: str | os.PathLike[str],
  wanted: Sequence[int],
) -> Iterator[av.VideoFrame]:
  """The frames of rising indices; MiraInputError('damaged') without one."""
  indices, i = iter(wanted), -1
  frames = enumerate(_decoded(video, stream, path, []))
  for index in indices:
    while i < index:
      i, frame = next(frames, (index, None))
    if frame is None:
      hint = f'its video has fewer than {wanted[-1] + 1} frames'
      raise MiraInputError('damaged', path, hint)
    yield frame


def _flags(count: int, broken: bool, share: float = 1.0) -> tuple[str, ...]:
  flags = ['partial'] if broken else []
  if share < 0.9:
    flags.append(f'short:{round(100 * share)}%')
  if count == 1:
    flags.append('static')
  return tuple(flags)


def _check_length(count: int, path: str | os.PathLike[str]) -> None:
  if count > MAX_FRAMES:
    raise MiraInputError(
      'too_long', path, f'cut it: more than {MAX_FRAMES} frames'
    )
