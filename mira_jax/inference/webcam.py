"""A few seconds of a camera, in memory only."""

from __future__ import annotations

import sys
import time

import cv2

from mira_jax.errors import MiraInputError
from mira_jax.video import decode, footage, geometry, yunet

MAX_SECONDS = 600  # of a recording, which is held in memory
_RATE = 30.0  # frames per second of a camera without a rate of its own


def record(
  index: int, seconds: float, *, short_side: int | None = None
) -> footage.Video:
  """Records the camera `index`, and reports on standard error that it is on.

  Frames are shrunk as by `decode.read_clip`.

  Raises:
    MiraInputError: so long a clip is not read ('too_long'), or see `read`.
  """
  if seconds > MAX_SECONDS:
    raise MiraInputError('too_long', f'{seconds} s', f'take {MAX_SECONDS} s')
  with yunet.quiet():
    capture = cv2.VideoCapture(index)
    try:
      if capture.isOpened():
        text = f'camera {index} is on for {seconds} s'
        print(text, file=sys.stderr, flush=True)
      return read(capture, f'webcam {index}', seconds, short_side=short_side)
    finally:
      capture.release()


def read(
  capture: cv2.VideoCapture,
  name: str,
  seconds: float,
  *,
  short_side: int | None = None,
) -> footage.Video:
  """The next seconds of an open camera, or of a video file, as a clip.

  They are counted in frames of its nominal rate; a camera that gives fewer, as
  in the dark, is read until the time is over.

  Raises:
    MiraInputError: it gives no frame ('no_camera'), or see `decode.of_frames`,
      before much is recorded.
  """
  rate = capture.get(cv2.CAP_PROP_FPS)
  rate = rate if 1 <= rate <= 500 else _RATE
  frames, start, count = [], 0.0, max(1, round(seconds * rate))
  for _ in range(count):
    there, frame = capture.read()
    if not there:
      break
    start = start or time.monotonic()  # a camera takes its time to begin
    # Shrunk as they come: seconds of a large camera are a gigabyte.
    rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    frames.append(geometry.cut(rgb, name, short_side))
    footage.check_bytes(2 * count * frames[0].nbytes, name)
    past = time.monotonic() - start
    if past > seconds:
      rate = min(rate, len(frames) / past)
      break
  if not frames:
    hint = 'it gives no pictures; name another with --webcam=INDEX'
    raise MiraInputError('no_camera', name, hint)
  return decode.of_frames(name, frames, rate)
