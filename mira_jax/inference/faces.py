"""The largest face of a clip, cut out, and the seconds that do not show it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from mira_jax.errors import MiraInputError
from mira_jax.video import decode, face_crop, footage, geometry

SHORT_SIDE = 480  # pixels of a frame that faces are searched in
_GLANCES = 8  # frames that a clip's face is searched in
_LOOKS = 3  # frames of a second


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crop:
  """How the largest face of a clip is cut out: one square for all frames.

  Attributes:
    model: a model file of YuNet, see `face_crop.find`; '' for Haar.
    by_second: whether to look for the face in every second.
  """

  model: str = ''
  by_second: bool = False

  def read(
    self, path: footage.Path, short_side: int | None, fps: float | None
  ) -> footage.Video:
    """A clip in a file or a folder; arguments as of `find_clips.read`.

    Raises:
      MiraInputError: no face is found ('no_face'), or see `decode.read_clip`.
    """
    frames, _, _ = decode.glance(path, _GLANCES, None)
    square = self._square(frames, path)
    clip = decode.read_clip(path, short_side=short_side, square=square)
    clip = clip.at(fps) if fps else clip
    if self.by_second and clip.fps:
      _, wanted = _looks(clip)
      seen = decode.look(path, np.unique(wanted).tolist(), SHORT_SIDE)
      self._add_seconds(clip, seen, square)
    return clip

  def of_recording(
    self, clip: footage.Video, short_side: int | None
  ) -> footage.Video:
    """As `read`, of a clip whose frames are in memory."""
    glances = clip.frames[footage.spaced(clip.count, _GLANCES)]
    square = self._square(glances, clip.path)
    frames = [
      geometry.cut(x, clip.path, short_side, square) for x in clip.frames
    ]
    cut = decode.of_frames(str(clip.path), frames, clip.fps)
    if self.by_second:
      _, wanted = _looks(clip)
      self._add_seconds(cut, clip.take(np.unique(wanted)), square)
    return cut

  def _square(self, frames: np.ndarray, path: footage.Path) -> geometry.Square:
    if square := face_crop.find(frames, self.model):
      return square
    hint = 'no face is found in it; without --crop-face it is used whole'
    raise MiraInputError('no_face', path, hint)

  def _add_seconds(
    self,
    clip: footage.Video,
    frames: Iterable[np.ndarray],
    square: geometry.Square,
  ) -> None:
    """Sets `faces` of a clip, by the unique frames of its `_looks`."""
    second, wanted = _looks(clip)
    shown = np.array([self._shows(frame, square) for frame in frames])
    hits = shown[np.unique(wanted, return_inverse=True)[1]]
    clip.faces = np.bincount(second, weights=hits) > 0
    if not clip.faces.any():
      hint = (
        'no second of it shows a face; without --crop-face it is used whole'
      )
      raise MiraInputError('no_face', clip.path, hint)

  def _shows(self, frame: np.ndarray, square: geometry.Square) -> bool:
    """Whether the centre of a face is in the square of the clip."""
    height, width = frame.shape[:2]
    return any(
      0 <= (x + w / 2) / width - square.left <= square.width
      and 0 <= (y + h / 2) / height - square.top <= square.height
      for x, y, w, h in face_crop.boxes(frame, self.model)
    )


def _looks(clip: footage.Video) -> tuple[np.ndarray, np.ndarray]:
  """Seconds int [n], and for each a frame that is looked at."""
  looks = np.arange(math.ceil(len(clip) / clip.fps) * _LOOKS)
  ticks = ((looks + 0.5) / _LOOKS * clip.fps).astype(int)
  ticks = np.minimum(ticks, len(clip) - 1)
  return looks // _LOOKS, clip.of_ticks(ticks)
