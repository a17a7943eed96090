"""The head of a synthetic face: skin, hair, whiskers, clothes, glasses.

Each function adds its polygons to the picture, back to front.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mira_jax.synthetic.drawing import (
  SIDES,
  Picture,
  between,
  ellipse,
  mix,
  path,
  taper,
  xy,
)
from mira_jax.synthetic.identity import Identity


def body(picture: Picture) -> None:
  """Hair behind the head, neck, shoulders and ears."""
  face = picture.face
  if face.style.length > -1:
    _back_hair(picture)
  neck = 0.52 * face.head_width
  shade = mix(face.skin, 0.55 * face.skin, 0.55)
  picture.fill(xy([-neck, neck, neck, -neck], [0.4, 0.4, 1.3, 1.3]), shade)
  x = np.array([-1.4, -1.15, -0.5, -neck, 0, neck, 0.5, 1.15, 1.4])
  y = np.array([1.9, 1.04, 0.93, 0.87, 1.02, 0.87, 0.93, 1.04, 1.9])
  picture.fill(xy(x, y), face.cloth)
  if face.collar:
    for side in SIDES:
      x = side * np.array([neck - 0.03, neck + 0.09, 0.22, 0.0])
      picture.fill(xy(x, [0.84, 0.92, 1.12, 1.02]), mix(face.cloth, 255, 0.55))
  for side in SIDES:
    x = side * (face.head_width + 0.005)
    picture.fill(ellipse(x, 0.02, 0.075, 0.14), 0.92 * face.skin)
    picture.fill(ellipse(x, 0.03, 0.035, 0.085), 0.76 * face.skin)


def _back_hair(picture: Picture) -> None:
  """Hair that hangs behind the head."""
  face, style = picture.face, picture.face.style
  wide = face.head_width + style.volume
  y = np.linspace(-0.35, style.length, 40)
  curls = style.tuft * np.abs(np.sin(0.41 * style.bumps * (y + 0.35)))
  x = wide * (1 - 0.12 * np.linspace(0, 1, 40) ** 3) + curls
  top = ellipse(0, -0.3, wide, face.head_height - 0.3 + style.volume, 48)
  for part in (top, between(xy(-x, y), xy(x, y))):
    picture.fill(part, 0.78 * face.hair)


def skin(picture: Picture) -> None:
  """Skin, shaded towards its edge, with blush and freckles."""
  face = picture.face
  angle = np.linspace(0, 2 * np.pi, 56, endpoint=False)
  for grow, share in ((1.0, 0.2), (0.96, 0.12), (0.92, 0.05), (0.87, 0.0)):
    edge = _contour(face, angle, _jaw_drop(picture), grow)
    picture.fill(edge, mix(face.skin, 0.5 * face.skin, share))
  red = mix(face.skin, (224, 84, 84), 0.6)
  for side, own in picture.sides():
    for radius, share in ((0.15, 0.1), (0.11, 0.2), (0.07, 0.3)):
      y = 0.2 - 0.05 * own[6]
      spot = ellipse(side * 0.36, y, radius, 0.75 * radius)
      picture.fill(spot, mix(face.skin, red, share * face.blush))
  for x, y in face.freckles:
    picture.fill(ellipse(x, y, 0.011, 0.011, 6), 0.78 * face.skin)


def front_hair(picture: Picture) -> None:
  """Hair above the face: a band from the hairline out to the tufts."""
  face, style = picture.face, picture.face.style
  angle = np.linspace(-1.5, 1.5, 61 if style.tuft == 0 else 141)
  skull = _contour(face, angle)
  wave = np.abs((angle / np.pi * style.bumps) % 1 - 0.5) * 2
  tufts = style.tuft * (wave if style.sharp else np.sqrt(1 - wave**2))
  thick = (style.volume + tufts) * np.sqrt(1.02 - (angle / 1.5) ** 2)
  outer = skull * (1 + thick / face.head_height)[:, None]
  t = np.sin(angle) / np.sin(1.5)
  away = np.abs(t - style.part * (1 - t**2))  # from the parting
  line = style.hairline + style.sweep * away**2.2
  line -= 0.05 * np.exp(-(((t - style.part) / 0.2) ** 2))
  line += (skull[0, 0, 1] - line) * np.abs(t) ** 9  # down to the ears
  edge = np.sqrt(1 - (line / face.head_height) ** 2)
  inner = xy(face.head_width * np.clip(0.97 * t, -edge, edge), line)
  picture.fill(between(outer, inner), face.hair)
  if style.tuft == 0:
    shine = (0.55 * outer + 0.45 * inner)[:, 12:30]
    picture.stroke(shine, 0.02 * taper(18), mix(face.hair, 255, 0.16))


def beard(picture: Picture) -> None:
  """Whiskers from ear to ear, around the mouth."""
  face = picture.face
  angle = np.linspace(1.75, 2 * np.pi - 1.75, 25)
  low = _contour(face, angle, _jaw_drop(picture), 1.005)
  t = np.linspace(1, -1, 25)
  dip = face.mouth_y - 0.16 - 0.16 * np.abs(t) ** 6
  high = dip + 0.12 * np.sin(np.pi * np.abs(t)) ** 2
  outline = between(xy(0.93 * face.head_width * t, high), low)
  picture.fill(outline, mix(face.skin, face.hair, face.beard))


def moustache(picture: Picture) -> None:
  """Two brush strokes that ride on the upper lip."""
  face, au = picture.face, picture.au
  rise = (0.08 * au[10] + 0.06 * au[26] + 0.02 * au[25]).mean(1)
  y = face.mouth_y - face.lip_upper - 0.06 - rise
  for side, own in picture.sides():
    corner = y + 0.05 - 0.07 * own[12] + 0.06 * own[15]
    half = face.mouth_width * (1 + 0.2 * own[12])
    line = path((0, y), (side * 0.6 * half, y - 0.02), (side * half, corner))
    picture.stroke(line, 0.036 * np.linspace(1, 0.2, 12), 0.85 * face.hair)


def glasses(picture: Picture) -> None:
  """Rims, a bridge and the arms."""
  face = picture.face
  y, rx = face.eye_y + 0.02, min(face.eye_x - 0.04, face.eye_width + 0.06)
  colour = (52, 44, 50)
  for side in SIDES:
    x = side * face.eye_x
    rim = ellipse(x, y, rx, 0.165, 29, face.glasses)
    rim = np.concatenate([rim, rim[:, :1]], axis=1)
    picture.stroke(rim, 0.012, colour, lift=0.1)
    arm = xy([x + side * rx, side * face.head_width], [y - 0.04, y - 0.05])
    picture.stroke(arm, 0.012, colour)
  inner = face.eye_x - rx
  bridge = path((-inner, y - 0.02), (0, y - 0.06), (inner, y - 0.02))
  picture.stroke(bridge, 0.012, colour, lift=0.1)


def _contour(
  face: Identity, angle, drop: Any = 0.0, grow: float = 1.0
) -> np.ndarray:
  """Edge of the head at angles from the top [N], jaw dropped by drop [F]."""
  s, c = np.sin(angle), np.cos(angle)
  x = np.sign(s) * np.abs(s) ** np.where(c < 0, face.jaw, 0.92)
  y = -face.head_height * c * np.where(c > 0, 0.98, 1.0)
  chin = np.maximum(0, -c) ** 2
  y = y + chin * np.atleast_1d(drop)[:, None]
  return xy(face.head_width * x * grow, y * grow)


def _jaw_drop(picture: Picture) -> np.ndarray:
  """How far the chin moves down, [F]."""
  au = picture.au
  return (0.13 * au[26] + 0.02 * au[25] - 0.015 * au[17]).mean(1)
