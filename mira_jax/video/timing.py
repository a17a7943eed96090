"""Frame times: a constant rate, or the frame that each tick of one shows."""

from __future__ import annotations

import dataclasses

import numpy as np

MAX_FPS = 500
MAX_TICKS = 1_000_000
_LOOSE = 0.9  # frames between the earliest and the latest, at a constant rate
_LONGEST_STEP = 600  # seconds from frame to frame, but of a time lapse


@dataclasses.dataclass(kw_only=True, frozen=True)
class Pace:
  """The timing of a clip's frames.

  A variable rate is turned into ticks of a constant one, that of its faster
  parts, and every tick shows the frame that a player would.

  Attributes:
    fps: ticks per second; 0 when unknown.
    shown: int64 [N], the frame that each tick shows; None where tick i shows
      frame i.
    seconds: length of the clip; 0 when unknown.
    flags: ('times',) where times are missing or contradict each other, and
      frames are taken by index.
  """

  fps: float
  shown: np.ndarray | None = None
  seconds: float = 0.0
  flags: tuple[str, ...] = ()


def pace(times: np.ndarray, last: float, header: float) -> Pace:
  """The pace of frames from their times.

  Args:
    times: float64 [F] seconds, F >= 1; NaN for a frame without a time.
    last: seconds that the last frame is shown; 0 when unknown.
    header: mean rate in the file's header, 0 without one. It is taken where
      times fit it.
  """
  header, count = credible(header), len(times)
  steps = np.diff(times)
  if count == 1 or not _make_sense(steps):
    length = count / header if header else 0.0
    flags = ('times',) * (count > 1)
    return Pace(fps=header, seconds=length, flags=flags)
  times = times - times[0]
  mean = float((count - 1) / times[-1])
  for fps in (header, mean):
    if fps and np.ptp(times * fps - np.arange(count)) < _LOOSE:
      return Pace(fps=credible(fps), seconds=float(count / fps))
  usual = float(np.median(steps[steps > 0]))
  last = last if 0 < last <= max(_LONGEST_STEP, usual) else usual
  length = float(times[-1] + last)
  fps = _faster(steps) or credible(mean)
  if length * fps > MAX_TICKS:
    fps = credible(mean)
  if not fps:
    return Pace(fps=0.0, seconds=length)
  middles = (np.arange(max(1, round(length * fps))) + 0.5) / fps
  shown = np.searchsorted(times, middles, side='right') - 1
  return Pace(fps=fps, shown=shown, seconds=length)


def credible(fps: float) -> float:
  """A possible rate as it is, else 0; also for what is no number."""
  return float(fps) if 0 < fps <= MAX_FPS else 0.0


def _make_sense(steps: np.ndarray) -> bool:
  """Whether times never go back, are not all one, and have no absurd gap."""
  if not np.isfinite(steps).all() or steps.min() < 0 or steps.max() == 0:
    return False
  usual = np.median(steps[steps > 0])
  return bool(steps.max() <= max(_LONGEST_STEP, 10 * usual))


def _faster(steps: np.ndarray) -> float:
  """The rate of the faster parts, which has a frame for every frame there."""
  fast = np.quantile(steps[steps > 0], 0.25)
  near = steps[(steps > 0.75 * fast) & (steps < 1.25 * fast)]
  return credible(1 / float(near.mean()))
