"""Draws one procedural face over time as flat anti-aliased polygons.

Everything is a polygon [F, N, 2] in the unit frame of `faces_identity`, for all
F frames at once: numpy does the geometry of a whole clip in one go, and OpenCV
fills each polygon once per frame. Action units (FACS, Ekman & Friesen 1978)
come as intensities [F, 2], one column per side of the picture.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import cv2
import numpy as np

from mira_jax.synthetic.identity import Identity

_SHIFT = 5  # OpenCV's fixed point: 1/32 pixel
SIDES = ((0, -1.0), (1, 1.0))  # column of the action units, sign of x
INK = np.array((38.0, 26.0, 26.0))
SPAN = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 17))  # denser at both ends

Units = Mapping[int, np.ndarray]


@dataclasses.dataclass(kw_only=True)
class Pose:
  """Where the head is, each [F]; angles in radians, shifts in half frames."""

  x: np.ndarray
  y: np.ndarray
  roll: np.ndarray
  yaw: np.ndarray
  pitch: np.ndarray
  scale: np.ndarray


class Picture:
  """The polygons of one clip, from back to front."""

  def __init__(self, num_frames: int):
    self.num_frames = num_frames
    self.points: list[np.ndarray] = []
    self.lifts: list[float] = []
    self.colours: list[list[list[float] | None]] = []

  def fill(self, points, colour, *, lift: float = 0.0, seen=None) -> None:
    """Adds a polygon.

    Args:
      points: [F or 1, N, 2].
      colour: RGB [3] or [F, 3].
      lift: how far it stands out of the skin, for the parallax.
      seen: bool [F], where to draw it; None for everywhere.
    """
    colours = np.broadcast_to(colour, (self.num_frames, 3)).tolist()
    if seen is not None:
      colours = [c if s else None for c, s in zip(colours, seen, strict=True)]
    self.points.append(points)
    self.colours.append(colours)
    self.lifts.append(lift)

  def render(self, face: Identity, pose: Pose, background, size: int):
    """Rasterises every frame.

    Args:
      face: whose head the points are projected on.
      pose: of the head, [F] each.
      background: uint8 [canvas, canvas, 3] at `canvas_size(size)`.
      size: pixels per side of the result.

    Returns:
      uint8 [F, size, size, 3], RGB.
    """
    polygons = self._pixels(face, pose, len(background))
    frames = np.empty((self.num_frames, size, size, 3), np.uint8)
    for i in range(self.num_frames):
      canvas = background.copy()
      for polygon, colours in zip(polygons, self.colours, strict=True):
        if colours[i]:
          cv2.fillPoly(canvas, [polygon[i]], colours[i], cv2.LINE_AA, _SHIFT)
      cv2.resize(canvas, (size, size), frames[i], 0, 0, cv2.INTER_AREA)
    return frames

  def _pixels(self, face: Identity, pose: Pose, canvas: int):
    """Every polygon [F, N, 2] in OpenCV's fixed-point pixels."""
    counts = [points.shape[1] for points in self.points]
    edges = np.cumsum(counts)
    points = np.empty((self.num_frames, edges[-1], 2))
    for polygon, count, edge in zip(self.points, counts, edges, strict=True):
      points[:, edge - count : edge] = polygon
    points = project(points, np.repeat(self.lifts, counts), face, pose)
    pixels = (points + 1) * (canvas / 2) - 0.5
    pixels = np.round(pixels * 2**_SHIFT).astype(np.int32)
    return np.split(pixels, edges[:-1], axis=1)


def canvas_size(size: int) -> int:
  """Pixels per side that a picture is drawn at before it is averaged down.

  OpenCV's smooth edges are half a pixel too wide, which shows in small ones.
  """
  return size * (3 if size <= 96 else 2)


def project(points, lift, face: Identity, pose: Pose) -> np.ndarray:
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
  """Points [F or 1, N, 2] from x and y, each [N] or [F, N]."""
  x, y = np.atleast_2d(x, y)
  points = np.empty((max(len(x), len(y)), max(x.shape[1], y.shape[1]), 2))
  points[..., 0], points[..., 1] = x, y
  return points


@functools.cache
def _bernstein(degree: int, samples: int) -> np.ndarray:
  """Weights [degree + 1, samples] of a Bezier curve's controls."""
  t = np.linspace(0, 1, samples)
  k = range(degree + 1)
  return np.stack(
    [math.comb(degree, i) * t**i * (1 - t) ** (degree - i) for i in k]
  )


def path(*controls, samples: int = 12) -> np.ndarray:
  """Bezier curve [F or 1, samples, 2]; a control is (x, y), numbers or [F]."""
  weights = _bernstein(len(controls) - 1, samples)
  x = sum(
    np.multiply.outer(c[0], w) for c, w in zip(controls, weights, strict=True)
  )
  y = sum(
    np.multiply.outer(c[1], w) for c, w in zip(controls, weights, strict=True)
  )
  return xy(x, y)


def stroke(centre, width) -> np.ndarray:
  """Outline [F, 2N, 2] of a brush stroke along centre [F, N, 2].

  Args:
    width: half of the brush's width along the stroke, [N] or [F, N].
  """
  along = np.empty_like(centre)
  along[:, 1:-1] = centre[:, 2:] - centre[:, :-2]
  along[:, 0] = centre[:, 1] - centre[:, 0]
  along[:, -1] = centre[:, -1] - centre[:, -2]
  length = np.sqrt(along[..., 0] ** 2 + along[..., 1] ** 2) + 1e-9
  scale = np.atleast_2d(width) / length
  offset = xy(-scale * along[..., 1], scale * along[..., 0])
  return np.concatenate([centre + offset, (centre - offset)[:, ::-1]], axis=1)


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
