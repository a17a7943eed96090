"""How a synthetic clip looks beside what it shows: the domain of a dataset.

A 'studio' clip is as the face is drawn. In the 'street' a cheap camera records
other people before clutter, in dim coloured light from one side. Faces, their
expressions and how they move are drawn alike in both, so that what a model
loses from one to the other, it loses by the look.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
  """Ranges, each drawn once for a clip."""

  exposure: Range  # mean grey level of the first frame
  contrast: Range  # factor on what differs from it
  cast: tuple[Range, Range, Range]  # factor on red, green and blue
  side_light: Range  # how much darker the dark side is, a share
  resolution: Range  # pixels of the camera, a share of the clip's
  noise: Range  # of its sensor, in grey levels
  clutter: int  # rectangles behind the head
  seed: int  # added to that of a dataset, so that people are others


STYLES: dict[str, Style | None] = {
  'studio': None,
  'street': Style(
    exposure=(65.0, 120.0), contrast=(0.6, 0.9),
    cast=((1.0, 1.2), (0.85, 1.0), (0.55, 0.85)), side_light=(0.2, 0.5),
    resolution=(0.5, 0.75), noise=(3.0, 7.0), clutter=14, seed=2**32,
  ),
}  # fmt: skip


def clutter(
  rng: np.random.Generator, style: Style, background: np.ndarray
) -> np.ndarray:
  """Rectangles over a background uint8 [canvas, canvas, 3]."""
  size = len(background)
  background = background.copy()
  for _ in range(style.clutter):
    left, top = rng.uniform(-0.2, 1.0, 2) * size
    width, height = rng.uniform(0.05, 0.4, 2) * size
    ends = np.array([left, top, left + width, top + height]).astype(int)
    colour = (rng.uniform(30, 230) + rng.normal(0, 25, 3)).clip(0, 255)
    x, y, right, bottom = ends.tolist()
    cv2.rectangle(background, (x, y), (right, bottom), colour.tolist(), -1)
  return background


def record(
  rng: np.random.Generator, style: Style, frames: np.ndarray
) -> np.ndarray:
  """Frames uint8 [F, S, S, 3] as the camera of a style sees them."""
  count, size = frames.shape[:2]
  exposure, contrast, dark, share, noise = (
    rng.uniform(*ends)
    for ends in (
      style.exposure,
      style.contrast,
      style.side_light,
      style.resolution,
      style.noise,
    )
  )
  cast = np.array([rng.uniform(*ends) for ends in style.cast])
  side = rng.choice((-1.0, 1.0)) * np.linspace(-1, 1, size)
  light = (1 - dark * (side + 1) / 2)[:, None] * cast
  lit = frames * light.astype(np.float32)
  # The first frame shows no expression: the exposure does not depend on it.
  mean = float(lit[0].mean(dtype=np.float64))
  gain = np.float32(contrast * exposure / mean)
  lit = np.float32(exposure) + gain * (lit - np.float32(mean))
  few = max(8, round(share * size))
  seen = np.empty_like(frames)
  for i in range(count):
    small = cv2.resize(lit[i], (few, few), interpolation=cv2.INTER_AREA)
    small += np.float32(noise) * rng.standard_normal(small.shape, np.float32)
    large = cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)
    seen[i] = np.clip(large + np.float32(0.5), 0, 255)
  return seen
