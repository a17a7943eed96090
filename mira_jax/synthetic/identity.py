"""Identities: the shape and colours of a synthetic face.

Lengths are in units of half a frame: the frame is [-1, 1] in x (right) and y
(down), the head is centred on the origin. Colours are RGB in 0 to 255.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


def _palette(colours: str) -> np.ndarray:
  """Hexadecimal RGB colours as float64 [n, 3]."""
  rows = [list(bytes.fromhex(colour)) for colour in colours.split()]
  return np.array(rows, np.float64)


# From light to dark: a person's colour is a mix of two neighbours.
_SKINS = _palette('ffe0c8 f8d0b2 eebe9a e2ac84 ce946c b27a56 966244 7a4e36')
_HAIRS = _palette('221b1c 3a2821 5c3c2a 805434 964628 c46e38 d6aa60 969496')
# These are taken as they are.
_IRISES = _palette('543420 3c2a22 3a70a8 468058 68788a')
_CLOTHES = _palette('345684 aa3e42 407660 deb04a 5c4c7a 3c3e48 e2e2dc ce704c')
_BACKGROUNDS = _palette(
  'a8cee2 c4dec4 f0d6aa e2bec4 c8bee2 dedede 7e98b0 8cb2a4'
)


@dataclasses.dataclass(kw_only=True)
class HairStyle:
  """One hair cut."""

  volume: float = 0.1  # height of the hair above the skull
  bumps: int = 0  # tufts along its outline
  tuft: float = 0.0  # their depth
  sharp: bool = False  # tufts are points rather than curls
  hairline: float = -0.54  # y at the middle of the forehead
  part: float = 0.0  # x of the parting
  sweep: float = 0.16  # how much lower the hairline is at the temples
  length: float = -1.0  # y that long hair reaches behind the head; -1: none


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


def _uniform(low: float, high: float) -> Any:
  """A field drawn from a range that keeps all features apart."""
  return dataclasses.field(metadata={'range': (low, high)})


@dataclasses.dataclass(kw_only=True)
class Identity:
  """One person, see `sample_identity`."""

  skin: np.ndarray
  hair: np.ndarray
  iris: np.ndarray
  lip: np.ndarray
  cloth: np.ndarray
  background: np.ndarray  # two colours [2, 3]
  background_angle: float
  style: HairStyle
  head_width: float = _uniform(0.6, 0.7)
  head_height: float = _uniform(0.8, 0.88)
  jaw: float = _uniform(0.72, 1.08)  # from a square jaw to a pointed chin
  eye_x: float = _uniform(0.25, 0.295)
  eye_y: float = _uniform(-0.11, -0.07)
  eye_width: float = _uniform(0.135, 0.17)
  eye_height: float = _uniform(0.072, 0.1)
  eye_tilt: float = _uniform(-0.02, 0.035)  # outer corner up
  iris_radius: float = _uniform(0.07, 0.085)
  brow_height: float = _uniform(0.185, 0.225)  # above the eye
  brow_width: float = _uniform(0.15, 0.185)
  brow_thickness: float = _uniform(0.026, 0.043)
  brow_tilt: float = _uniform(-0.015, 0.02)
  brow_arch: float = _uniform(0.02, 0.055)
  nose_width: float = _uniform(0.085, 0.135)
  nose_y: float = _uniform(0.17, 0.23)
  mouth_y: float = _uniform(0.45, 0.49)
  mouth_width: float = _uniform(0.215, 0.28)
  lip_upper: float = _uniform(0.025, 0.05)
  lip_lower: float = _uniform(0.04, 0.075)
  lashes: float
  blush: float
  glasses: int  # 0 none, else the exponent of the rim: 2 round, 4 square
  beard: float  # opacity; 0 none, about 0.3 stubble, 1 full
  moustache: bool
  collar: bool
  freckles: np.ndarray  # [K, 2], none for most


_RANGES = {
  field.name: field.metadata['range']
  for field in dataclasses.fields(Identity)
  if field.metadata
}


def sample_identity(rng: np.random.Generator) -> Identity:
  """Draws one person; the order of the draws is part of every dataset."""
  skin = _mixed(rng, _SKINS)
  whiskers = rng.uniform() < 0.22
  style = HAIR_STYLES[int(rng.integers(len(HAIR_STYLES)))]
  backgrounds = _BACKGROUNDS[rng.permutation(len(_BACKGROUNDS))[:2]]
  lip_red = np.array([(176, 68, 74), (150, 74, 68)])[int(whiskers)]
  spots = rng.uniform((-0.4, 0.03), (0.4, 0.24), (26, 2))
  hair = _mixed(rng, _HAIRS)
  return Identity(
    skin=skin,
    # Never as light as the skin: brows have to be seen.
    hair=hair * min(1.0, 0.62 * skin.mean() / hair.mean()),
    iris=_IRISES[int(rng.integers(len(_IRISES)))],
    lip=0.42 * skin + 0.58 * lip_red * (0.55 + 0.45 * skin.mean() / 220),
    cloth=_CLOTHES[int(rng.integers(len(_CLOTHES)))],
    background=backgrounds * rng.uniform(0.8, 1.05),
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
    **{name: rng.uniform(*ends) for name, ends in _RANGES.items()},
  )


def _mixed(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
  """A mix of two neighbours of a palette and some noise."""
  place = rng.uniform(0, len(palette) - 1)
  low = int(place)
  share = place - low
  colour = (1 - share) * palette[low] + share * palette[low + 1]
  return np.clip(colour + rng.normal(0, 4, 3), 0, 255)
