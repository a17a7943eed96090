"""Flat anti-aliased polygons over time, projected on a head that moves.

Everything is a polygon [F, N, 2] in the unit frame of `identity`, for all
F frames at once: numpy computes the geometry of a whole clip, and OpenCV fills
each polygon once per frame.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import cv2
import numpy as np

from mira_jax.synthetic.identity import Identity

_SHIFT = 5  # OpenCV's fixed point: 1/32 pixel
SIDES = (-1.0, 1.0)  # signs of x; the columns of the action units
INK = np.array((38.0, 26.0, 26.0))
SPAN = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 17))  # denser at both ends


class Pose(NamedTuple):
  """Pose of the head, each [F]; angles in radians, shifts in half frames."""

  x: np.ndarray
  y: np.ndarray
  roll: np.ndarray
  yaw: np.ndarray
  pitch: np.ndarray
  scale: np.ndarray


class Picture:
  """The polygons of one clip of a face, from back to front."""

  def __init__(self, face: Identity, au: Mapping[int, np.ndarray], frames: int):
    self.face = face
    # Intensity [F, 2] of each FACS action unit (Ekman & Friesen 1978) on the
    # two sides of the picture.
    self.au = au
    self._frames = frames
    self._points: list[np.ndarray] = []
    self._lifts: list[float] = []
    self._colours: list[list[list[float] | None]] = []

  def sides(self) -> Iterator[tuple[float, dict[int, np.ndarray]]]:
    """For each side the sign of x and the action units, [F] each."""
    for column, side in enumerate(SIDES):
      yield side, {k: v[:, column] for k, v in self.au.items()}

  def fill(self, points, colour, *, lift: float = 0.0, seen=None) -> None:
    """Adds a polygon.

    Args:
      points: [F or 1, N, 2].
      colour: RGB [3] or [F, 3].
      lift: its height above the skin, for the parallax.
      seen: bool [F], the frames that have it; None for all.
    """
    colours = np.broadcast_to(colour, (self._frames, 3)).tolist()
    if seen is not None:
      colours = [c if s else None for c, s in zip(colours, seen, strict=True)]
    self._points.append(points)
    self._colours.append(colours)
    self._lifts.append(lift)

  def stroke(self, line, width, colour, *, lift: float = 0.0) -> None:
    """Adds a brush stroke, see `stroke`."""
    self.fill(stroke(line, width), colour, lift=lift)

  def render(self, pose: Pose, background: np.ndarray, size: int) -> np.ndarray:
    """Rasterises every frame: uint8 [F, size, size, 3], RGB.

    Args:
      pose: of the head.
      background: uint8 [canvas, canvas, 3] at `canvas_size(size)`.
      size: pixels per side of the result.
    """
    counts = [points.shape[1] for points in self._points]
    edges = np.cumsum(counts)
    points = np.empty((self._frames, edges[-1], 2))
    for polygon, count, edge in zip(self._points, counts, edges, strict=True):
      points[:, edge - count : edge] = polygon
    points = _project(points, np.repeat(self._lifts, counts), self.face, pose)
    pixels = (points + 1) * (len(background) / 2) - 0.5
    pixels = np.round(pixels * 2**_SHIFT).astype(np.int32)
    polygons = np.split(pixels, edges[:-1], axis=1)
    frames = np.empty((self._frames, size, size, 3), np.uint8)
    for i, frame in enumerate(frames):
      canvas = background.copy()
      for polygon, colours in zip(polygons, self._colours, strict=True):
        if colour := colours[i]:
          cv2.fillPoly(canvas, [polygon[i]], colour, cv2.LINE_AA, _SHIFT)
      cv2.resize(canvas, (size, size), frame, 0, 0, cv2.INTER_AREA)
    return frames


def canvas_size(size: int) -> int:
  """Pixels per side of the canvas that is averaged down to `size`.

  OpenCV's smooth edges are half a pixel too wide, which shows in small ones.
  """
  return size * (3 if size <= 96 else 2)


def _project(points, lift, face: Identity, pose: Pose) -> np.ndarray:
  """Turns points [F, N, 2] with the head.

  A point on the face lies on an ellipsoid above the picture plane, so a small
  yaw moves it by yaw * z; hair, ears and shoulders lie in the plane (z = 0).
  """
  radius = np.array((face.head_width, face.head_height))
  r2 = np.sum((points / radius) ** 2, axis=-1)
  z = 0.45 * np.sqrt(np.maximum(0, 1 - r2)) + lift
  x = points[..., 0] + z * pose.yaw[:, None]
  y = points[..., 1] + z * pose.pitch[:, None]
  cos = (np.cos(pose.roll) * pose.scale)[:, None]
  sin = (np.sin(pose.roll) * pose.scale)[:, None]
  # The head rolls about the neck, y = 0.9, not about the nose.
  y = y - 0.9
  x_turned = cos * x - sin * y + pose.x[:, None]
  y_turned = sin * x + cos * y + 0.9 + pose.y[:, None]
  return np.stack([x_turned, y_turned], axis=-1)


def mix(a, b, share) -> np.ndarray:
  """Colour between a [3] (share 0) and b [3] (share 1); share may be [F]."""
  share = np.asarray(share)[..., None]
  return (1 - share) * np.asarray(a) + share * np.asarray(b)


def xy(x, y) -> np.ndarray:
  """Points [F or 1, N, 2] from x and y, each a number, [N] or [F, N]."""
  return np.stack(np.broadcast_arrays(*np.atleast_2d(x, y)), axis=-1)


@functools.cache
def _bernstein(degree: int, samples: int) -> list[np.ndarray]:
  """Weights [samples] of each control of a Bezier curve."""
  t = np.linspace(0, 1, samples)
  return [
    math.comb(degree, i) * t**i * (1 - t) ** (degree - i)
    for i in range(degree + 1)
  ]


def path(*controls) -> np.ndarray:
  """Bezier curve [F or 1, 12, 2]; a control is (x, y), numbers or [F]."""
  weights = _bernstein(len(controls) - 1, 12)
  x, y = (
    sum(np.multiply.outer(c, w) for c, w in zip(axis, weights, strict=True))
    for axis in zip(*controls, strict=True)
  )
  return xy(x, y)


def stroke(centre, width) -> np.ndarray:
  """Outline [F, 2N, 2] of a brush stroke along centre [F, N, 2].

  `width` is half of the brush's along the stroke, a number, [N] or [F, N].
  """
  along = np.empty_like(centre)
  along[:, 1:-1] = centre[:, 2:] - centre[:, :-2]
  along[:, 0] = centre[:, 1] - centre[:, 0]
  along[:, -1] = centre[:, -1] - centre[:, -2]
  length = np.sqrt(along[..., 0] ** 2 + along[..., 1] ** 2) + 1e-9
  scale = np.atleast_2d(width) / length
  offset = xy(-scale * along[..., 1], scale * along[..., 0])
  return between(centre + offset, centre - offset)


def between(upper, lower) -> np.ndarray:
  """Polygon [F, 2N, 2] between two curves [F, N, 2]."""
  upper, lower = np.broadcast_arrays(upper, lower)
  return np.concatenate([upper, lower[:, ::-1]], axis=1)


def ellipse(x, y, rx, ry, samples: int = 20, power: float = 2.0) -> np.ndarray:
  """Ellipse (power 2) or rounded box (4); every number may be [F]."""
  cos, sin = _circle(samples, power)
  x, y, rx, ry = (np.asarray(v)[..., None] for v in (x, y, rx, ry))
  return xy(x + rx * cos, y + ry * sin)


@functools.cache
def _circle(samples: int, power: float) -> tuple[np.ndarray, np.ndarray]:
  """Coordinates of the unit circle, or of its rounded square."""
  angle = np.linspace(0, 2 * np.pi, samples, endpoint=False)
  cos, sin = np.cos(angle), np.sin(angle)
  cos = np.sign(cos) * np.abs(cos) ** (2 / power)
  sin = np.sign(sin) * np.abs(sin) ** (2 / power)
  return cos, sin


@functools.cache
def taper(samples: int = 12) -> np.ndarray:
  """Profile of a stroke that is thin at both ends, [samples]."""
  return np.sin(np.linspace(0, np.pi, samples)) ** 0.7
