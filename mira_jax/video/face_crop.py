"""The face of a clip: one square per clip, cut out of all its frames.

A square per frame would follow the face, and so take out the head's motion
and put in the detector's jitter; one per clip leaves motion as it is.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from mira_jax.errors import MiraInputError
from mira_jax.video import yunet
from mira_jax.video.geometry import Square

RULES = ('none', 'center', 'haar', 'yunet', 'boxes')
# OpenCV's boxes cut into the forehead, and into the chin of a head that moves.
MARGIN = 1.3
# The share of the frames a face must be found in. A false alarm rarely comes
# back at the same place, and a face that turns away often is still seen in
# some frames.
MIN_FOUND = 0.25

# Of the frontal cascades, this one had the fewest false alarms.
_CASCADE = 'haarcascade_frontalface_alt2.xml'
_WORKING_SIDE = 320  # pixels of the shorter side for the detector
_SMALLEST_FACE = 0.1  # of the shorter side


def center(width: int, height: int) -> Square:
  """The largest centred square of a frame of so many pixels."""
  side = min(width, height)
  left, top = (width - side) // 2, (height - side) // 2
  return _shares(left, top, side, width, height)


def check() -> None:
  """Raises MiraInputError('no_cascade') where OpenCV has no cascades."""
  _cascade(threading.get_ident())


def find(frames: np.ndarray, model: str = '') -> Square | None:
  """Finds the face of a clip.

  Faces at nearly the same place in several frames are one person's. The person
  with the largest area over all frames wins.

  Args:
    frames: uint8 [F, H, W, 3], RGB; some eight, spread over the clip.
    model: a model file, see `yunet`; '' for OpenCV's Haar cascade.

  Returns:
    The median of that person's boxes, with a margin of `MARGIN`, moved into
    the frame. None when no face is found in `MIN_FOUND` of the frames.

  Raises:
    MiraInputError: this OpenCV has no cascades ('no_cascade'), or see
      `yunet.check`.
  """
  needed = max(1, math.ceil(MIN_FOUND * len(frames)))
  found = (boxes(frame, model) for frame in frames)
  tracks = [t for t in _tracks(found) if len(t) >= needed]
  if not tracks:
    return None
  best = max(tracks, key=lambda t: sum(box[2] * box[3] for box in t))
  height, width = frames.shape[1:3]
  return _around(np.array(best), MARGIN, width, height)


def from_boxes(boxes: np.ndarray, width: int, height: int) -> Square | None:
  """A square around the median of boxes, without a margin.

  It is as large as the longer side, moved into the frame and shrunk to it; None
  when the median box lies outside the frame.

  Boxes are float [n, 4], n >= 1; left, top, width and height, in pixels as
  those of the frame.
  """
  x, y, w, h = _median(boxes)
  if x >= width or y >= height or x + w <= 0 or y + h <= 0:
    return None
  return _around(boxes, 1.0, width, height)


def _shares(
  left: float, top: float, side: float, width: int, height: int
) -> Square:
  x, y = left / width, top / height
  return Square(left=x, top=y, width=side / width, height=side / height)


def _median(boxes: np.ndarray) -> tuple[float, float, float, float]:
  """The box of median centre and median size; left, top, width, height."""
  x, y = np.median(boxes[:, :2] + boxes[:, 2:] / 2, axis=0).tolist()
  w, h = np.median(boxes[:, 2:], axis=0).tolist()
  return x - w / 2, y - h / 2, w, h


def _around(
  boxes: np.ndarray, margin: float, width: int, height: int
) -> Square:
  x, y, w, h = _median(boxes)
  side = min(margin * max(w, h), width, height)
  left = min(max(0.0, x + (w - side) / 2), width - side)
  top = min(max(0.0, y + (h - side) / 2), height - side)
  return _shares(left, top, side, width, height)


@functools.cache
def _cascade(thread: int) -> cv2.CascadeClassifier:
  """The detector of a thread: it is not thread-safe, and slow to load."""
  del thread
  folder = getattr(getattr(cv2, 'data', None), 'haarcascades', '')
  cascade = cv2.CascadeClassifier(folder + _CASCADE)
  if cascade.empty():
    hint = "reinstall it: pip install 'opencv-python-headless>=4.12,<5'"
    raise MiraInputError('no_cascade', f'cv2 {cv2.__version__}', hint)
  return cascade


def is_shown(frames: Sequence[np.ndarray], model: str = '') -> bool:
  """Whether any frame uint8 [H, W, 3] shows a face; `model` as of `find`.

  Half the resolution finds most faces, at a third of the time.
  """
  sides = (_WORKING_SIDE // 2, _WORKING_SIDE)
  return any(boxes(frame, model, side) for side in sides for frame in frames)


def boxes(
  frame: np.ndarray, model: str = '', side: int = _WORKING_SIDE
) -> list[np.ndarray]:
  """Faces of a frame uint8 [H, W, 3], the largest first.

  They are sought in the frame with a shorter `side` of so many pixels.

  Returns:
    Left, top, width and height of each, in pixels of the frame; `model` as of
    `find`.
  """
  height, width = frame.shape[:2]
  # The second bound is for strips, which would become huge.
  scale = min(side / min(width, height), 4 * side / max(width, height))
  size = max(1, round(scale * width)), max(1, round(scale * height))
  method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
  if model:
    frame = cv2.resize(frame, size, interpolation=method)
    found = yunet.faces(frame, model)
  else:
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    gray = cv2.resize(gray, size, interpolation=method)
    smallest = (round(_SMALLEST_FACE * side),) * 2
    found = _cascade(threading.get_ident()).detectMultiScale(
      gray, scaleFactor=1.1, minNeighbors=3, minSize=smallest
    )
  # OpenCV's threads report in any order.
  largest = sorted((-w, x, y, h) for x, y, w, h in np.array(found).tolist())
  return [np.array((x, y, -w, h)) / scale for w, x, y, h in largest]


def _tracks(frames: Iterable[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
  """Groups the boxes of consecutive frames by person."""
  tracks: list[list[np.ndarray]] = []
  for boxes in frames:
    free = list(tracks)  # a face is in a frame only once
    for box in boxes:
      near = [_distance(track[-1], box) for track in free]
      if near and min(near) < 1:
        free.pop(int(np.argmin(near))).append(box)
      else:
        tracks.append([box])
  return tracks


def _distance(a: np.ndarray, b: np.ndarray) -> float:
  """Between two centres, in sides; infinite for faces of unlike size."""
  small, large = sorted((a[2], b[2]))
  if large > 2 * small:
    return math.inf
  gap = a[:2] + a[2:] / 2 - b[:2] - b[2:] / 2
  return float(np.hypot(*gap)) / large
