"""Who is drawn: the shape and colours of one procedural face.

Lengths are in units of half a frame: the frame is [-1, 1] in x (right) and y
(down), the head is centred on the origin. Colours are RGB in 0 to 255.
"""

from __future__ import annotations

import dataclasses

import numpy as np

SKINS = np.array(
  [
    (255, 224, 200), (248, 208, 178), (238, 190, 154), (226, 172, 132),
    (206, 148, 108), (178, 122, 86), (150, 98, 68), (122, 78, 54),
  ],
  np.float64,
)  # fmt: skip
HAIRS = np.array(
  [
    (34, 27, 28), (58, 40, 33), (92, 60, 42), (128, 84, 52),
    (150, 70, 40), (196, 110, 56), (214, 170, 96), (150, 148, 150),
  ],
  np.float64,
)  # fmt: skip
IRISES = np.array(
  [(84, 52, 32), (60, 42, 34), (58, 112, 168), (70, 128, 88), (104, 120, 138)],
  np.float64,
)
BACKGROUNDS = np.array(
  [
    (168, 206, 226), (196, 222, 196), (240, 214, 170), (226, 190, 196),
    (200, 190, 226), (222, 222, 222), (126, 152, 176), (140, 178, 164),
  ],
  np.float64,
)  # fmt: skip
CLOTHES = np.array(
  [
    (52, 86, 132), (170, 62, 66), (64, 118, 96), (222, 176, 74),
    (92, 76, 122), (60, 62, 72), (226, 226, 220), (206, 112, 76),
  ],
  np.float64,
)  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class HairStyle:
  """One hair cut.

  Attributes:
    volume: height of the hair above the skull.
    bumps: how many tufts run along its outline.
    tuft: their depth.
    sharp: tufts are points rather than curls.
    hairline: y of the hairline at the middle of the forehead.
    part: x where the hair is parted.
    sweep: how much lower the hairline is at the temples.
    length: y that the hair behind the head hangs down to; -1 for none.
  """

  volume: float = 0.1
  bumps: int = 0
  tuft: float = 0.0
  sharp: bool = False
  hairline: float = -0.54
  part: float = 0.0
  sweep: float = 0.16
  length: float = -1.0


HAIR_STYLES = (
  HairStyle(),  # a crop
  HairStyle(volume=0.15, part=-0.28, hairline=-0.6, sweep=0.26),
  HairStyle(volume=0.08, bumps=13, tuft=0.15, sharp=True),
  HairStyle(volume=0.15, bumps=13, tuft=0.085, sweep=0.2),
  HairStyle(volume=0.13, hairline=-0.46, sweep=0.1, length=0.5),  # a bob
  HairStyle(volume=0.14, hairline=-0.62, sweep=0.42, length=1.2),
  HairStyle(volume=0.15, part=0.3, hairline=-0.58, sweep=0.34, length=0.95),
  HairStyle(volume=0.17, bumps=17, tuft=0.065, sweep=0.28, length=0.62),
  HairStyle(volume=0.02, hairline=-0.66, sweep=0.3),  # thin hair
)


@dataclasses.dataclass(kw_only=True)
class Identity:
  """One person; `sample_identity` draws them."""

  skin: np.ndarray
  hair: np.ndarray
  iris: np.ndarray
  lip: np.ndarray
  cloth: np.ndarray
  background: np.ndarray  # two colours [2, 3]
  background_angle: float
  style: HairStyle
  head_width: float
  head_height: float
  jaw: float  # below 1 a square jaw, above 1 a pointed chin
  eye_x: float
  eye_y: float
  eye_width: float
  eye_height: float
  eye_tilt: float  # outer corner up
  iris_radius: float
  brow_height: float  # above the eye
  brow_width: float
  brow_thickness: float
  brow_tilt: float
  brow_arch: float
  nose_width: float
  nose_y: float
  mouth_y: float
  mouth_width: float
  lip_upper: float
  lip_lower: float
  lashes: float
  blush: float
  glasses: int  # 0 none, else the exponent of the rim: 2 round, 4 square
  beard: float  # opacity; 0 none, about 0.3 stubble, 1 full
  moustache: bool
  collar: bool
  freckles: np.ndarray  # [K, 2], none for most people


def _colour(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
  """Mixes two neighbours of a palette, so that no two people are equal."""
  place = rng.uniform(0, len(palette) - 1)
  low = int(place)
  share = place - low
  colour = (1 - share) * palette[low] + share * palette[low + 1]
  return np.clip(colour + rng.normal(0, 4, 3), 0, 255)


def _hair(rng: np.random.Generator, skin: np.ndarray) -> np.ndarray:
  """Hair colour, never as light as the skin: brows have to be seen."""
  colour = _colour(rng, HAIRS)
  limit = 0.62 * skin.mean()
  return colour * min(1.0, limit / colour.mean())


def _face(rng: np.random.Generator) -> dict[str, float]:
  """The shape of the face, from ranges that keep all features apart."""
  u = rng.uniform
  return {
    'head_width': u(0.6, 0.7), 'head_height': u(0.8, 0.88),
    'jaw': u(0.72, 1.08),
    'eye_x': u(0.25, 0.295), 'eye_y': u(-0.11, -0.07),
    'eye_width': u(0.135, 0.17), 'eye_height': u(0.072, 0.1),
    'eye_tilt': u(-0.02, 0.035), 'iris_radius': u(0.07, 0.085),
    'brow_height': u(0.185, 0.225), 'brow_width': u(0.15, 0.185),
    'brow_thickness': u(0.026, 0.043), 'brow_tilt': u(-0.015, 0.02),
    'brow_arch': u(0.02, 0.055),
    'nose_width': u(0.085, 0.135), 'nose_y': u(0.17, 0.23),
    'mouth_y': u(0.45, 0.49), 'mouth_width': u(0.215, 0.28),
    'lip_upper': u(0.025, 0.05), 'lip_lower': u(0.04, 0.075),
  }  # fmt: skip


def sample_identity(rng: np.random.Generator) -> Identity:
  """Draws one person.

  Args:
    rng: the person's own generator; equal generators give equal people.
  """
  skin = _colour(rng, SKINS)
  whiskers = rng.uniform() < 0.22
  style = HAIR_STYLES[int(rng.integers(len(HAIR_STYLES)))]
  backs = BACKGROUNDS[rng.permutation(len(BACKGROUNDS))[:2]]
  lip_red = np.array([(176, 68, 74), (150, 74, 68)])[int(whiskers)]
  spots = rng.uniform((-0.4, 0.03), (0.4, 0.24), (26, 2))
  return Identity(
    skin=skin,
    hair=_hair(rng, skin),
    iris=IRISES[int(rng.integers(len(IRISES)))],
    lip=0.42 * skin + 0.58 * lip_red * (0.55 + 0.45 * skin.mean() / 220),
    cloth=CLOTHES[int(rng.integers(len(CLOTHES)))],
    background=backs * rng.uniform(0.8, 1.05),
    background_angle=rng.uniform(0, 2 * np.pi),
    style=dataclasses.replace(
      style, volume=style.volume * rng.uniform(0.85, 1.15)
    ),
    lashes=0.0 if whiskers else rng.uniform(0.3, 1.0),
    blush=rng.uniform(0.2, 1.0),
    glasses=int(rng.choice([0, 2, 4], p=[0.78, 0.12, 0.1])),
    beard=float(whiskers * rng.choice([0.0, 0.3, 0.9])),
    moustache=bool(whiskers and rng.uniform() < 0.6),
    collar=bool(rng.integers(2)),
    freckles=spots if rng.uniform() < 0.18 else spots[:0],
    **_face(rng),
  )
