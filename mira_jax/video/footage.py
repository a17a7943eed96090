"""A decoded clip, whose frames are held in memory where they fit."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from mira_jax.errors import MiraInputError
from mira_jax.video import geometry, timing

MAX_DECODED_BYTES = 4 << 30  # of all frames of a clip at once
HELD_BYTES = 256 << 20  # of a clip; the frames of longer ones are read again
FLAT = 2.0  # grey levels; the noise of a sensor in the dark
_LOOKS = 64  # one of so many frames of a long clip is looked at for `FLAT`


@dataclasses.dataclass(kw_only=True)
class Video:
  """A clip that was decoded to its end.

  Its length is in ticks of a constant rate: one for each frame, but where the
  rate of a file is variable, see `timing.Pace`.

  Attributes:
    count: frames F that it has.
    size: height and width of all of them.
    fps: ticks per second; 0 when unknown.
    flags: what was odd: 'partial' (broken in the middle, or frames that cannot
      be read), 'short:P%' (P per cent of a file of which a part is missing),
      'times' (see `timing.Pace`), 'static' (one frame), 'low_signal' (frames of
      one colour, such as black).
    shown: int64 [N], the frame that each tick shows; None where tick i shows
      frame i.
    path: where it comes from, for errors.
    held: uint8 [F, H, W, 3]; None for what takes more than HELD_BYTES.
    again: gives some frames, by rising indices; for clips that are not held.
  """

  count: int
  size: tuple[int, int]
  fps: float
  flags: tuple[str, ...] = ()
  shown: np.ndarray | None = None
  path: str | os.PathLike[str] = '<video>'
  held: np.ndarray | None = None
  again: Callable[[np.ndarray], Iterator[np.ndarray]] | None = None

  def __len__(self) -> int:
    """Number of ticks."""
    return self.count if self.shown is None else len(self.shown)

  @property
  def frames(self) -> np.ndarray:
    """All frames: uint8 [F, H, W, 3], RGB, upright; held from then on.

    Raises:
      MiraInputError: they take too much memory ('too_long'); see `take`.
    """
    if self.held is None:
      shape = (self.count, *self.size, 3)
      check_bytes(int(np.prod(shape, dtype=object)), self.path)
      whole = np.empty(shape, np.uint8)
      for i, frame in enumerate(self.again(np.arange(self.count))):
        whole[i] = frame
      self.held = whole
    return self.held

  def take(self, ticks: np.ndarray) -> Iterator[np.ndarray]:
    """The frames of some ticks, uint8 [H, W, 3], one after the other.

    Args:
      ticks: int [n], rising.

    Raises:
      MiraInputError: a clip that is not held is read again, and is not what it
        was ('damaged').
    """
    wanted = self.of_ticks(ticks)
    if self.held is not None:
      yield from (self.held[i] for i in wanted)
      return
    unique, repeats = np.unique(wanted, return_counts=True)
    for frame, times in zip(self.again(unique), repeats, strict=True):
      for _ in range(times):
        yield frame

  def of_ticks(self, ticks: np.ndarray) -> np.ndarray:
    """The indices of the frames that ticks show."""
    return np.asarray(ticks) if self.shown is None else self.shown[ticks]

  def at(self, fps: float) -> Video:
    """The same frames at a constant rate, whatever their times say."""
    return dataclasses.replace(self, fps=fps, shown=None)


def take(clip: np.ndarray | Video, ticks: np.ndarray) -> Iterator[np.ndarray]:
  """As `Video.take`, also of an array of frames [F, H, W, 3]."""
  if isinstance(clip, Video):
    return clip.take(ticks)
  return (clip[i] for i in ticks)


def resize_windows(
  frames: np.ndarray | Video, indices: np.ndarray, size: int, fit: str
) -> np.ndarray:
  """Some frames of a clip, made square; one that comes again is resized once.

  Args:
    frames: a clip, or uint8 [F, H, W, 3].
    indices: int [V, T], of the frames (or ticks) of V windows.
    size: as of `geometry.resize`.
    fit: as of `geometry.resize`.

  Returns:
    uint8 [V, T, size, size, 3].
  """
  unique = np.unique(indices)
  square = {
    i: geometry.resize(frame, size, fit)
    for i, frame in zip(unique.tolist(), take(frames, unique), strict=True)
  }
  return np.array([[square[i] for i in row] for row in indices.tolist()])


class Holder:
  """Holds the frames of a clip while it is read, as long as they fit.

  Args:
    path: of the clip.
    must: raise for frames that do not fit, which cannot be read again.

  Attributes:
    count: frames that came.
    size: height and width of the first one, to which others are brought.
  """

  def __init__(self, path: str | os.PathLike[str], must: bool = False):
    self.count, self.size = 0, (0, 0)
    self._path, self._must = path, must
    self._kept: list[np.ndarray] | None = []
    self._bytes = 0
    self._flat = True

  def add(self, convert: Callable[[], np.ndarray]) -> None:
    """Takes a frame, which is made only where it is needed."""
    self.count += 1
    if self._kept is None:
      if self._flat and self.count % _LOOKS == 0:
        self._flat = is_flat([convert()])
      return
    frame = convert()
    self.size = self.size if self._kept else frame.shape[:2]
    self._kept.append(frame)
    self._bytes += frame.nbytes
    if self._must:
      check_bytes(2 * self._bytes, self._path)  # they are copied at the end
    elif self._bytes > min(HELD_BYTES, MAX_DECODED_BYTES):
      self._flat, self._kept = is_flat(self._kept), None

  def video(
    self,
    pace: timing.Pace,
    flags: Sequence[str],
    again: Callable[[np.ndarray], Iterator[np.ndarray]] | None = None,
  ) -> Video:
    """The clip; `again` is as of `Video`."""
    held = None
    if self._kept is not None:
      held, self._kept = stack(self._kept), None
    flat = self._flat if held is None else is_flat(held)
    return Video(
      count=self.count,
      size=self.size,
      fps=pace.fps,
      flags=(*flags, *('low_signal',) * flat),
      shown=pace.shown,
      path=self._path,
      held=held,
      again=again,
    )


def check_bytes(count: int, path: str | os.PathLike[str]) -> None:
  """Raises MiraInputError('too_long') for too many bytes of frames."""
  if count > MAX_DECODED_BYTES:
    limit = f'{MAX_DECODED_BYTES / 2**30:g} GiB'
    hint = f'cut it, or shrink its frames: all of them take over {limit}'
    raise MiraInputError('too_long', path, hint)


def is_flat(frames: Sequence[np.ndarray]) -> bool:
  """Whether frames show nothing: one colour each, but for noise."""
  some = [frames[i] for i in spaced(len(frames), 8)]
  return all(x[::4, ::4].std(axis=(0, 1)).max() < FLAT for x in some)


def spaced(count: int, cap: int) -> np.ndarray:
  """Indices of at most `cap` of `count` frames, evenly spaced, ends kept."""
  kept = min(count, cap)
  return np.round(np.linspace(0, count - 1, kept)).astype(np.int64)


def stack(frames: Iterable[np.ndarray]) -> np.ndarray:
  """One array; a frame of another size is brought to the first one's."""
  frames = list(frames)
  size = frames[0].shape[:2]
  return np.stack([geometry.fit_to(frame, size) for frame in frames])
