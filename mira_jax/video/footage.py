"""A decoded clip, whose frames are held in memory where they fit."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from mira_jax.errors import MiraInputError
from mira_jax.video import geometry

MAX_DECODED_BYTES = 4 << 30  # of all frames of a clip at once
HELD_BYTES = 256 << 20  # of a clip; the frames of longer ones are read again
FLAT = 2.0  # grey levels; the noise of a sensor in the dark
_PROBED = 64  # one of so many frames of a long clip is tested for `FLAT`

Path = str | os.PathLike[str]


@dataclasses.dataclass(kw_only=True)
class Video:
  """A clip that was decoded to its end.

  Its length is in ticks of a constant rate: one for each frame, but where the
  rate of a file is variable, see `timing.Pace`.

  Attributes:
    count: frames F that it has.
    size: height and width of all of them.
    fps: ticks per second; 0 when unknown.
    flags: oddities: 'partial' (broken in the middle, or unreadable frames),
      'short:P%' (P per cent of a file of which a part is missing), 'times' (see
      `timing.Pace`), 'static' (one frame), 'low_signal' (frames of one colour,
      such as black).
    shown: see `timing.Pace`.
    faces: bool [S], whether each second shows a face; None if none was sought.
    path: of the file or folder, for errors.
    held: uint8 [F, H, W, 3]; None for more than HELD_BYTES.
    numbers: int64 [F], how annotations number the frames of a folder, see
      `images.frame_numbers`; None of a file, whose frames count from 0.
    again: reads the frames of rising indices; for clips that are not held.
  """

  count: int
  size: tuple[int, int]
  fps: float
  flags: tuple[str, ...] = ()
  shown: np.ndarray | None = None
  faces: np.ndarray | None = None
  path: Path = '<video>'
  held: np.ndarray | None = None
  numbers: np.ndarray | None = None
  again: Callable[[np.ndarray], Iterator[np.ndarray]] = lambda _: iter(())

  def __len__(self) -> int:
    """Number of ticks."""
    return self.count if self.shown is None else len(self.shown)

  @property
  def frames(self) -> np.ndarray:
    """All frames: uint8 [F, H, W, 3], RGB, upright; held from then on.

    Raises MiraInputError('too_long') where they take too much memory; see
    `take`.
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
    """The frames of rising ticks int [n], uint8 [H, W, 3], one by one.

    Raises MiraInputError('damaged') where a clip that is not held has changed.
    """
    wanted = self.of_ticks(ticks)
    if self.held is not None:
      yield from (self.held[i] for i in wanted)
      return
    unique, repeats = np.unique(wanted, return_counts=True)
    for frame, times in zip(self.again(unique), repeats, strict=True):
      yield from (frame for _ in range(times))

  def of_ticks(self, ticks: np.ndarray) -> np.ndarray:
    """The indices of the frames that ticks show."""
    return np.asarray(ticks) if self.shown is None else self.shown[ticks]

  def at(self, fps: float) -> Video:
    """The same frames at a constant rate, whatever their times are."""
    if self.shown is None and fps == self.fps:
      return self
    return dataclasses.replace(self, fps=fps, shown=None, faces=None)


def take(clip: np.ndarray | Video, ticks: np.ndarray) -> Iterator[np.ndarray]:
  """As `Video.take`, also of an array of frames [F, H, W, 3]."""
  if isinstance(clip, Video):
    return clip.take(ticks)
  return (clip[i] for i in ticks)


def resize_windows(
  frames: np.ndarray | Video, indices: np.ndarray, size: int, fit: str
) -> np.ndarray:
  """Square frames of V windows: uint8 [V, T, size, size, 3].

  `indices` int [V, T] are of frames or ticks; repeated ones are resized once.
  `size` and `fit` are those of `geometry.resize`.
  """
  unique = np.unique(indices)
  square = {
    i: geometry.resize(frame, size, fit)
    for i, frame in zip(unique.tolist(), take(frames, unique), strict=True)
  }
  return np.array([[square[i] for i in row] for row in indices.tolist()])


def hold(
  frames: Iterable[Callable[[], np.ndarray]],
) -> tuple[int, tuple[int, int], np.ndarray | None, bool]:
  """Reads a clip, and holds its frames as long as they fit.

  Each function gives a frame, and is called only where it is needed. Returns
  `count`, `size` and `held` of a `Video`, and whether the clip `is_flat`.
  """
  kept: list[np.ndarray] | None = []
  count, size, total, flat = 0, (0, 0), 0, True
  for count, convert in enumerate(frames, 1):
    if kept is None:
      if flat and count % _PROBED == 0:
        flat = is_flat([convert()])
      continue
    kept.append(convert())
    total += kept[-1].nbytes
    size = kept[0].shape[:2]
    if total > min(HELD_BYTES, MAX_DECODED_BYTES):
      flat, kept = is_flat(kept), None
  held = stack(kept) if kept else None
  flat = flat if held is None else is_flat(held)
  return count, size, held, flat


def check_bytes(count: int, path: Path) -> None:
  """Raises MiraInputError('too_long') for too many bytes of frames."""
  if count > MAX_DECODED_BYTES:
    limit = f'{MAX_DECODED_BYTES / 2**30:g} GiB'
    hint = f'cut it, or shrink its frames: all of them take over {limit}'
    raise MiraInputError('too_long', path, hint)


def is_flat(frames: Sequence[np.ndarray] | np.ndarray) -> bool:
  """Whether frames show nothing: one colour each, but for noise."""
  some = [frames[i] for i in spaced(len(frames), 8)]
  return all(x[::4, ::4].std(axis=(0, 1)).max() < FLAT for x in some)


def spaced(count: int, cap: int) -> np.ndarray:
  """Indices of at most `cap` of `count` frames, evenly spaced, ends kept."""
  kept = min(count, cap)
  return np.round(np.linspace(0, count - 1, kept)).astype(np.int64)


def stack(frames: Sequence[np.ndarray]) -> np.ndarray:
  """One array; a frame of another size is brought to the first one's."""
  size = frames[0].shape[:2]
  return np.stack([geometry.fit_to(frame, size) for frame in frames])
