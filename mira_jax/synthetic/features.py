"""The features of a procedural face, moved by action units.

Each function adds its polygons to the picture, back to front. `au[k]` is the
intensity [F, 2] of FACS action unit k on the two sides of the picture.
"""

from __future__ import annotations

import numpy as np

from mira_jax.synthetic import head
from mira_jax.synthetic.drawing import (
  INK,
  SIDES,
  SPAN,
  Picture,
  Units,
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
  face: Identity, au: Units, blink: np.ndarray, gaze: np.ndarray
) -> Picture:
  """Draws a face over time.

  Args:
    face: whom to draw.
    au: intensities in [0, 1], [F, 2] for every unit in `faces.ACTION_UNITS`.
    blink: how far the eyes are closed, [F] in [0, 1].
    gaze: where the eyes look, [F, 2] in eye widths.
  """
  picture = Picture(len(blink))
  head.body(picture, face)
  head.skin(picture, face, au)
  _wrinkles(picture, face, au)
  if face.beard:
    head.beard(picture, face, au)
  if face.moustache:
    head.moustache(picture, face, au)
  _nose(picture, face, au)
  _mouth(picture, face, au)
  for column, side in SIDES:
    own = {k: v[:, column] for k, v in au.items()}
    _eye(picture, face, own, side, blink, gaze)
  head.front_hair(picture, face)
  for column, side in SIDES:
    _brow(picture, face, {k: v[:, column] for k, v in au.items()}, side)
  if face.glasses:
    head.glasses(picture, face)
  return picture


def _mouth(picture: Picture, face: Identity, au: Units) -> None:
  """Lips, and teeth and tongue between them."""
  share = (1 + SPAN) / 2
  a = {k: v[:, :1] * (1 - share) + v[:, 1:] * share for k, v in au.items()}
  half = face.mouth_width * (
    1 + 0.32 * a[12] + 0.42 * a[20] - 0.3 * a[23] - 0.3 * a[26]
  )
  corner = -0.01 - 0.1 * a[12] + 0.11 * a[15] + 0.035 * a[20] + 0.05 * a[26]
  middle = 0.03 * a[12] - 0.035 * a[17] - 0.03 * a[15] - 0.02 * a[9]
  flat = np.abs(SPAN) ** 1.8
  line = face.mouth_y + middle + (corner - middle) * flat
  open_shape = (1 - SPAN**2) ** (0.7 - 0.25 * a[20])
  up = (0.055 * a[10] + 0.02 * a[25] + 0.06 * a[26]) * open_shape
  down = (0.08 * a[25] + 0.29 * a[26]) * open_shape
  x = SPAN * half
  inner_up, inner_down = xy(x, line - up), xy(x, line + down)
  thin = np.clip(1 - 0.8 * a[23] - 0.35 * a[12] - 0.2 * a[20], 0.15, 1)
  bow = (1 - SPAN**2) * (1 - 0.3 * np.exp(-((SPAN / 0.16) ** 2)))
  top = face.lip_upper * thin * (1 + 0.5 * a[10]) * bow + 0.03 * a[10] * bow
  bottom = face.lip_lower * (thin + 0.25 * a[17]) * (1 - SPAN**2) ** 0.8
  upper = between(xy(x, line - up - top), inner_up)
  picture.fill(upper, 0.86 * face.lip)
  picture.fill(between(inner_down, xy(x, line + down + bottom)), face.lip)
  _inside_mouth(picture, inner_up, inner_down)


def _inside_mouth(picture: Picture, upper, lower) -> None:
  """The dark of the mouth, with teeth and tongue clipped to its edge."""
  picture.fill(between(upper, lower), (74, 22, 28))
  n = upper.shape[1]
  x, low = upper[..., 0], lower[..., 1]
  gap = low - upper[..., 1]
  tongue = low - np.clip(0.5 * (gap - 0.1), 0, 0.07)
  rows = slice(3, n - 3)
  picture.fill(between(xy(x, tongue)[:, rows], lower[:, rows]), (190, 84, 88))
  teeth = upper[..., 1] + np.clip(gap - 0.012, 0, 0.055)
  rows = slice(2, n - 2)
  picture.fill(between(upper[:, rows], xy(x, teeth)[:, rows]), (246, 242, 234))
  line = stroke(upper, 0.008 * taper(n))
  picture.fill(line, (84, 30, 34))


def _eye(
  picture: Picture, face: Identity, own, side: float, blink, gaze
) -> None:
  """One eye; own[k] is [F]. Discs are clipped to the lids by their y."""
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

  def clipped(disc):
    high, low = lids(side * (disc[..., 0] - cx) / half)
    return xy(disc[..., 0], np.clip(disc[..., 1], high, low))

  high, low = lids(SPAN)
  x = cx + side * half * SPAN
  picture.fill(between(xy(x, high), xy(x, low)), (250, 248, 244))
  r = face.iris_radius
  at = cx + 0.3 * half * gaze[:, 0], cy - 0.008 + 0.3 * half * gaze[:, 1]
  discs = ((r, 0.7 * face.iris), (0.82 * r, face.iris), (0.5 * r, INK))
  for radius, colour in discs:
    picture.fill(clipped(ellipse(*at, radius, radius)), colour)
  glint = ellipse(at[0] - 0.4 * r, at[1] - 0.4 * r, 0.3 * r, 0.3 * r, 8)
  picture.fill(clipped(glint), (255, 255, 255))
  lash = 0.014 + 0.012 * face.lashes
  profile = lash * (0.55 + 0.45 * np.linspace(0, 1, len(SPAN)))
  picture.fill(stroke(xy(x, high), profile), INK)
  picture.fill(stroke(xy(x, low), 0.006), 0.5 * face.skin)
  fold = high - 0.035 - 0.02 * (1 - own[5])[:, None]
  rows = slice(2, -2)
  picture.fill(stroke(xy(x, fold)[:, rows], 0.007), 0.72 * face.skin)


def _brow(picture: Picture, face: Identity, own, side: float) -> None:
  """One brow; own[k] is [F]. Unit 4 gives way to unit 1 at the inner end."""
  base = face.eye_y - face.brow_height
  frown = own[4] * (1 - 0.95 * own[1])
  inner = base - 0.12 * own[1] + 0.125 * frown + 0.05 * own[9]
  arch = -0.1 * own[2] - 0.03 * own[1] * (1 - own[4]) + 0.075 * own[4] * (
    1 - own[2]) + 0.05 * own[9]  # fmt: skip
  outer = base + 0.02 - 0.1 * own[2] + 0.03 * own[4] + 0.02 * own[9]
  near = face.eye_x - 0.95 * face.brow_width - 0.03 * own[4]
  far = face.eye_x + face.brow_width
  line = path(
    (side * near, inner),
    (side * (near + 0.35 * (far - near)), base + arch - face.brow_arch),
    (side * (near + 0.7 * (far - near)), base + arch - 1.2 * face.brow_arch),
    (side * far, outer - face.brow_tilt),
  )  # fmt: skip
  width = face.brow_thickness * np.linspace(1.1, 0.35, 12)
  width[0] *= 0.6
  picture.fill(stroke(line, width), 0.72 * face.hair)


def _nose(picture: Picture, face: Identity, au: Units) -> None:
  """Bridge, tip and wings; unit 9 pulls the wings up and apart."""
  pull = au[9] + 0.4 * au[10]
  shade = mix(face.skin, 0.5 * face.skin, 0.34)
  light = mix(face.skin, 255, 0.28)
  lift = 0.035 * pull.mean(1)
  y = face.nose_y - 0.5 * lift
  w = face.nose_width
  side = between(
    path((0.02, face.eye_y), (0.05, y - 0.15), (w, y - 0.02)),
    path((0.055, face.eye_y), (0.035, y - 0.1), (0.2 * w, y + 0.02)),
  )
  picture.fill(side, mix(face.skin, shade, 0.6), lift=0.06)
  picture.fill(
    ellipse(-0.01, y - 0.055, 0.3 * w, 0.05), mix(face.skin, light, 0.8),
    lift=0.12,
  )  # fmt: skip
  for column, sign in SIDES:
    up = 0.045 * pull[:, column]
    wide = w * (1 + 0.25 * pull[:, column])
    wing = path(
      (sign * wide * 0.9, y - 0.06 - up), (sign * wide * 1.25, y + 0.01 - up),
      (sign * wide * 0.7, y + 0.035 - up), (sign * wide * 0.4, y + 0.01),
    )  # fmt: skip
    picture.fill(stroke(wing, 0.014 * taper()), shade, lift=0.08)
    hole = ellipse(sign * wide * 0.5, y + 0.015 - 0.5 * up, 0.32 * w, 0.018)
    picture.fill(hole, 0.45 * face.skin, lift=0.1)
  under = path((-0.4 * w, y + 0.02), (0, y + 0.06), (0.4 * w, y + 0.02))
  picture.fill(stroke(under, 0.012 * taper()), shade, lift=0.12)


def _wrinkles(picture: Picture, face: Identity, au: Units) -> None:
  """Creases that the muscles fold into the skin."""
  top = face.eye_y - face.brow_height
  raised = au[1].mean(1)
  for k in (1, 2):
    y, low = top - 0.1 * k, 0.03 * au[2].mean(1)
    line = path((-0.24, y + 0.01), (0, y - 0.03 - low), (0.24, y + 0.01))
    _crease(picture, face, line, 0.8 * raised)
  for column, side in SIDES:
    own = {k: v[:, column] for k, v in au.items()}
    _side_wrinkles(picture, face, own, side)
  chin = face.mouth_y + 0.2
  line = path((-0.13, chin + 0.03), (0, chin - 0.045), (0.13, chin + 0.03))
  _crease(picture, face, line, au[17].mean(1), 0.016)


def _side_wrinkles(picture: Picture, face: Identity, own, side: float) -> None:
  """Creases of one side; own[k] is [F]."""

  def crease(strength, *points, width=0.011):
    line = path(*((side * x, y) for x, y in points))
    _crease(picture, face, line, strength, width)

  eye, nose, mouth = face.eye_y, face.nose_y, face.mouth_y
  outer = face.eye_x + face.eye_width
  crease(own[4], (0.035, eye - 0.2), (0.05, eye - 0.1), (0.04, eye - 0.04))
  fold = np.maximum(own[12], np.maximum(own[10], own[9]))
  wing = face.nose_width + 0.03
  reach = face.mouth_width * (1.15 + 0.3 * own[12])
  crease(
    fold, (wing, nose - 0.04), (reach + 0.04, nose + 0.06),
    (reach + 0.02, mouth - 0.08 * own[12]), width=0.012,
  )  # fmt: skip
  crease(own[15], (face.mouth_width, mouth + 0.1), (face.mouth_width + 0.02,
         mouth + 0.15), (face.mouth_width - 0.03, mouth + 0.2))  # fmt: skip
  for k in (0, 1):
    y = eye - 0.09 + 0.09 * k
    crease(own[9], (0.0, y - 0.01), (0.04, y), (0.085, y + 0.045), width=0.013)
    y = eye + 0.01 + 0.05 * k
    crease(
      0.7 * own[6],
      (outer + 0.015, y),
      (outer + 0.05, y),
      (outer + 0.08, y + 0.05 * k),
    )
  crease(
    0.8 * np.maximum(own[6], own[7]), (face.eye_x - 0.12, eye + 0.1),
    (face.eye_x, eye + 0.155), (outer, eye + 0.09),
  )  # fmt: skip


def _crease(picture: Picture, face: Identity, line, strength, width=0.011):
  """A wrinkle: a tapered stroke that comes and goes with strength [F]."""
  strength = np.clip(strength, 0, 1)
  seen = strength > 0.02
  if not seen.any():
    return
  depth = np.sqrt(strength)
  outline = stroke(line, depth[:, None] * width * taper(line.shape[1]))
  dark = mix(face.skin, (70, 24, 22), 0.55)
  picture.fill(outline, mix(face.skin, dark, depth), seen=seen)
