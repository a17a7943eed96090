"""The features of a synthetic face, moved by action units.

Each function adds its polygons to the picture, back to front; `own[k]` is the
intensity [F] of action unit k on one side.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mira_jax.synthetic import head
from mira_jax.synthetic.drawing import (
  INK,
  SPAN,
  Picture,
  between,
  ellipse,
  mix,
  path,
  stroke,
  taper,
  xy,
)
from mira_jax.synthetic.identity import Identity


def draw_face(
  face: Identity,
  au: Mapping[int, np.ndarray],
  blink: np.ndarray,
  gaze: np.ndarray,
) -> Picture:
  """Draws a face over time.

  Args:
    face: its identity.
    au: of `Picture`, in [0, 1], for every unit in `faces.ACTION_UNITS`.
    blink: how far the eyes are closed, [F] in [0, 1].
    gaze: direction of the eyes, [F, 2] in eye widths.
  """
  picture = Picture(face, au, len(blink))
  head.body(picture)
  head.skin(picture)
  _wrinkles(picture)
  if face.beard:
    head.beard(picture)
  if face.moustache:
    head.moustache(picture)
  _nose(picture)
  _mouth(picture)
  for side, own in picture.sides():
    _eye(picture, own, side, blink, gaze)
  head.front_hair(picture)
  for side, own in picture.sides():
    _brow(picture, own, side)
  if face.glasses:
    head.glasses(picture)
  return picture


def _mouth(picture: Picture) -> None:
  """Lips, and teeth and tongue between them."""
  face, share = picture.face, (1 + SPAN) / 2
  a = {k: v[:, :1] * (1 - share) + v[:, 1:] * share
       for k, v in picture.au.items()}  # fmt: skip
  half = face.mouth_width * (
    1 + 0.32 * a[12] + 0.42 * a[20] - 0.3 * a[23] - 0.3 * a[26]
  )
  corner = -0.01 - 0.1 * a[12] + 0.11 * a[15] + 0.035 * a[20] + 0.05 * a[26]
  middle = 0.03 * a[12] - 0.035 * a[17] - 0.03 * a[15] - 0.02 * a[9]
  line = face.mouth_y + middle + (corner - middle) * np.abs(SPAN) ** 1.8
  open_shape = (1 - SPAN**2) ** (0.7 - 0.25 * a[20])
  up = (0.055 * a[10] + 0.02 * a[25] + 0.06 * a[26]) * open_shape
  down = (0.08 * a[25] + 0.29 * a[26]) * open_shape
  x = SPAN * half
  inner_up, inner_down = xy(x, line - up), xy(x, line + down)
  thin = np.clip(1 - 0.8 * a[23] - 0.35 * a[12] - 0.2 * a[20], 0.15, 1)
  bow = (1 - SPAN**2) * (1 - 0.3 * np.exp(-((SPAN / 0.16) ** 2)))
  top = face.lip_upper * thin * (1 + 0.5 * a[10]) * bow + 0.03 * a[10] * bow
  bottom = face.lip_lower * (thin + 0.25 * a[17]) * (1 - SPAN**2) ** 0.8
  picture.fill(between(xy(x, line - up - top), inner_up), 0.86 * face.lip)
  picture.fill(between(inner_down, xy(x, line + down + bottom)), face.lip)
  _inside_mouth(picture, inner_up, inner_down)


def _inside_mouth(picture: Picture, upper, lower) -> None:
  """The dark of the mouth, with teeth and tongue clipped to its edge."""
  picture.fill(between(upper, lower), (74, 22, 28))
  x, high, low = upper[..., 0], upper[..., 1], lower[..., 1]
  gap = low - high
  tongue = xy(x, low - np.clip(0.5 * (gap - 0.1), 0, 0.07))
  picture.fill(between(tongue[:, 3:-3], lower[:, 3:-3]), (190, 84, 88))
  teeth = xy(x, high + np.clip(gap - 0.012, 0, 0.055))
  picture.fill(between(upper[:, 2:-2], teeth[:, 2:-2]), (246, 242, 234))
  picture.stroke(upper, 0.008 * taper(upper.shape[1]), (84, 30, 34))


def _eye(picture: Picture, own, side: float, blink, gaze) -> None:
  """One eye; discs are clipped to the lids by their y."""
  face = picture.face
  cx, cy, half = side * face.eye_x, face.eye_y, face.eye_width
  wide = 1 + 0.6 * own[5] - 0.4 * own[7] - 0.25 * own[6] - 0.2 * own[9]
  height = face.eye_height * (wide - 0.12 * own[4] * own[1])
  floor = face.eye_height * (0.75 - 0.6 * np.maximum(own[6], own[7])
                             - 0.3 * own[9] + 0.1 * own[5])  # fmt: skip
  # Oblique brows (1 + 4) pull the inner end of the upper lid up.
  slant = face.eye_tilt - 0.05 * own[1] * own[4] + 0.035 * own[4] * (1 - own[1])

  def lids(t):
    """Upper and lower lid [F, N] at t in [-1, 1], outwards."""
    arch = (1 - np.clip(t, -1, 1) ** 2) ** 0.75
    tilt = cy - slant[:, None] * t
    low = tilt + floor[:, None] * arch
    high = tilt - height[:, None] * arch
    return high + blink[:, None] * (low - high) * 0.97, low

  def disc(x, y, radius, colour, samples=20):
    points = ellipse(x, y, radius, radius, samples)
    high, low = lids(side * (points[..., 0] - cx) / half)
    clipped = np.clip(points[..., 1], high, low)
    picture.fill(xy(points[..., 0], clipped), colour)

  high, low = lids(SPAN)
  x = cx + side * half * SPAN
  picture.fill(between(xy(x, high), xy(x, low)), (250, 248, 244))
  r = face.iris_radius
  at = cx + 0.3 * half * gaze[:, 0], cy - 0.008 + 0.3 * half * gaze[:, 1]
  disc(*at, r, 0.7 * face.iris)
  disc(*at, 0.82 * r, face.iris)
  disc(*at, 0.5 * r, INK)
  disc(at[0] - 0.4 * r, at[1] - 0.4 * r, 0.3 * r, (255, 255, 255), 8)
  lash = 0.014 + 0.012 * face.lashes
  profile = lash * (0.55 + 0.45 * np.linspace(0, 1, len(SPAN)))
  picture.stroke(xy(x, high), profile, INK)
  picture.stroke(xy(x, low), 0.006, 0.5 * face.skin)
  fold = high - 0.035 - 0.02 * (1 - own[5])[:, None]
  picture.stroke(xy(x, fold)[:, 2:-2], 0.007, 0.72 * face.skin)


def _brow(picture: Picture, own, side: float) -> None:
  """One brow; unit 4 gives way to unit 1 at the inner end."""
  face = picture.face
  base = face.eye_y - face.brow_height
  frown = own[4] * (1 - 0.95 * own[1])
  inner = base - 0.12 * own[1] + 0.125 * frown + 0.05 * own[9]
  arch = -0.1 * own[2] - 0.03 * own[1] * (1 - own[4]) + 0.075 * own[4] * (
    1 - own[2]) + 0.05 * own[9]  # fmt: skip
  outer = base + 0.02 - 0.1 * own[2] + 0.03 * own[4] + 0.02 * own[9]
  near = face.eye_x - 0.95 * face.brow_width - 0.03 * own[4]
  long = face.eye_x + face.brow_width - near
  line = path(
    (side * near, inner),
    (side * (near + 0.35 * long), base + arch - face.brow_arch),
    (side * (near + 0.7 * long), base + arch - 1.2 * face.brow_arch),
    (side * (face.eye_x + face.brow_width), outer - face.brow_tilt),
  )
  width = face.brow_thickness * np.linspace(1.1, 0.35, 12)
  width[0] *= 0.6
  picture.stroke(line, width, 0.72 * face.hair)


def _nose(picture: Picture) -> None:
  """Bridge, tip and wings; unit 9 pulls the wings up and apart."""
  face, w = picture.face, picture.face.nose_width
  shade = mix(face.skin, 0.5 * face.skin, 0.34)
  light = mix(face.skin, 255, 0.28)
  lift = 0.035 * (picture.au[9] + 0.4 * picture.au[10]).mean(1)
  y = face.nose_y - 0.5 * lift
  bridge = between(
    path((0.02, face.eye_y), (0.05, y - 0.15), (w, y - 0.02)),
    path((0.055, face.eye_y), (0.035, y - 0.1), (0.2 * w, y + 0.02)),
  )
  picture.fill(bridge, mix(face.skin, shade, 0.6), lift=0.06)
  tip = ellipse(-0.01, y - 0.055, 0.3 * w, 0.05)
  picture.fill(tip, mix(face.skin, light, 0.8), lift=0.12)
  for side, own in picture.sides():
    pull = own[9] + 0.4 * own[10]
    up, wide = 0.045 * pull, w * (1 + 0.25 * pull)
    wing = path(
      (side * wide * 0.9, y - 0.06 - up),
      (side * wide * 1.25, y + 0.01 - up),
      (side * wide * 0.7, y + 0.035 - up),
      (side * wide * 0.4, y + 0.01),
    )
    picture.stroke(wing, 0.014 * taper(), shade, lift=0.08)
    hole = ellipse(side * wide * 0.5, y + 0.015 - 0.5 * up, 0.32 * w, 0.018)
    picture.fill(hole, 0.45 * face.skin, lift=0.1)
  under = path((-0.4 * w, y + 0.02), (0, y + 0.06), (0.4 * w, y + 0.02))
  picture.stroke(under, 0.012 * taper(), shade, lift=0.12)


def _wrinkles(picture: Picture) -> None:
  """Creases that the muscles fold into the skin."""
  face, au = picture.face, picture.au
  top = face.eye_y - face.brow_height
  low = 0.03 * au[2].mean(1)
  for y in (top - 0.1 * 1, top - 0.1 * 2):
    brow = (-0.24, y + 0.01), (0, y - 0.03 - low), (0.24, y + 0.01)
    _crease(picture, 0.8 * au[1].mean(1), *brow)
  for side, own in picture.sides():
    _side_wrinkles(picture, own, side)
  y = face.mouth_y + 0.2
  chin = (-0.13, y + 0.03), (0, y - 0.045), (0.13, y + 0.03)
  _crease(picture, au[17].mean(1), *chin, width=0.016)


def _side_wrinkles(picture: Picture, own, side: float) -> None:
  """Creases of one side."""

  def crease(strength, *points, width=0.011):
    points = [(side * x, y) for x, y in points]
    _crease(picture, strength, *points, width=width)

  face = picture.face
  eye, nose, mouth = face.eye_y, face.nose_y, face.mouth_y
  outer, corner = face.eye_x + face.eye_width, face.mouth_width
  crease(own[4], (0.035, eye - 0.2), (0.05, eye - 0.1), (0.04, eye - 0.04))
  fold = np.maximum(own[12], np.maximum(own[10], own[9]))
  wing, reach = face.nose_width + 0.03, corner * (1.15 + 0.3 * own[12])
  crease(
    fold, (wing, nose - 0.04), (reach + 0.04, nose + 0.06),
    (reach + 0.02, mouth - 0.08 * own[12]), width=0.012,
  )  # fmt: skip
  crease(own[15], (corner, mouth + 0.1), (corner + 0.02, mouth + 0.15),
         (corner - 0.03, mouth + 0.2))  # fmt: skip
  for k in (0, 1):
    y = eye - 0.09 + 0.09 * k
    crease(own[9], (0.0, y - 0.01), (0.04, y), (0.085, y + 0.045), width=0.013)
    y = eye + 0.01 + 0.05 * k
    feet = (outer + 0.015, y), (outer + 0.05, y), (outer + 0.08, y + 0.05 * k)
    crease(0.7 * own[6], *feet)
  crease(
    0.8 * np.maximum(own[6], own[7]), (face.eye_x - 0.12, eye + 0.1),
    (face.eye_x, eye + 0.155), (outer, eye + 0.09),
  )  # fmt: skip


def _crease(picture: Picture, strength, *points, width: float = 0.011) -> None:
  """A wrinkle: a tapered stroke that comes and goes with strength [F]."""
  strength = np.clip(strength, 0, 1)
  seen = strength > 0.02
  if not seen.any():
    return
  depth = np.sqrt(strength)
  outline = stroke(path(*points), depth[:, None] * width * taper())
  skin = picture.face.skin
  dark = mix(skin, (70, 24, 22), 0.55)
  picture.fill(outline, mix(skin, dark, depth), seen=seen)
