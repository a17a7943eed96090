"""Synthetic face clips: the built-in dataset `synthetic_faces`.

`draw_clip(index, seed=...)` is a pure function: a person who shows one of seven
expressions, each a set of facial action units that rises, holds and fades, on
a head that moves under light that drifts. Two difficulties: in `macro` the
expression is strong and long; in `micro` it is weak and brief while motion and
light are strong, the case that MiRA's frame weights are for. Two `styles` are
two domains.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mira_jax.synthetic import styles
from mira_jax.synthetic.drawing import Pose, canvas_size
from mira_jax.synthetic.features import draw_face
from mira_jax.synthetic.identity import Identity, sample_identity

# EMFACS prototypes (Friesen & Ekman 1983): units always shown, units that a
# clip shows or not.
PROTOTYPES = {
  'Happy': ((6, 12), (25,)),
  'Sad': ((1, 4, 15), (17,)),
  'Neutral': ((), ()),
  'Angry': ((4, 5, 7, 23), ()),
  'Surprise': ((1, 2, 5, 26), ()),
  'Disgust': ((9, 10), (15, 17)),
  'Fear': ((1, 2, 4, 5, 20, 25), ()),
}
CLASS_NAMES = tuple(PROTOTYPES)  # the order of DFEW's labels
ACTION_UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 17, 20, 23, 25, 26)
SPLITS = ('train', 'test')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difficulty:
  """Ranges of what shows the class; standard deviations of what hides it."""

  intensity: tuple[float, float]  # of the action units at the apex
  duration: tuple[float, float]  # share of the clip that the expression lasts
  shift: float  # head translation, in half frames
  turn: float  # roll, yaw and pitch in radians
  light: float  # relative gain and gradient of the light
  noise: float  # of the sensor, in grey levels


DIFFICULTIES = {
  'macro': Difficulty(
    intensity=(0.75, 1.0), duration=(0.6, 0.85),
    shift=0.02, turn=0.035, light=0.06, noise=2.0,
  ),
  'micro': Difficulty(
    intensity=(0.45, 0.65), duration=(0.2, 0.35),
    shift=0.045, turn=0.07, light=0.13, noise=2.5,
  ),
}  # fmt: skip


@dataclasses.dataclass
class FaceClip:
  """A synthetic clip."""

  frames: np.ndarray  # uint8 [F, S, S, 3], RGB
  label: int  # index into `CLASS_NAMES`
  subject: str  # identity, such as 'train-0012'
  onset: int  # the first frame that shows the expression, never 0; or -1
  apex: int  # the strongest
  offset: int  # the last
  action_units: str  # such as '6+12+25'; '' for Neutral
  intensity: np.ndarray  # float [F], mean of the action units that are shown
  units: np.ndarray  # float [F, A] in [0, 1], of `ACTION_UNITS`, mean of sides


def _generator(seed: int, split: str, *key: int) -> np.random.Generator:
  """A generator of its own for every (seed, split, key)."""
  entropy = (seed, SPLITS.index(split), *key)
  return np.random.default_rng(np.random.SeedSequence(entropy))


def class_order(
  person: int, *, seed: int, split: str, style: str = 'studio'
) -> list[str]:
  """The classes of the seven consecutive clips of a person."""
  if look := styles.STYLES[style]:
    seed += look.seed
  order = _generator(seed, split, person, 1).permutation(len(CLASS_NAMES))
  return [CLASS_NAMES[label] for label in order]


def draw_clip(
  index: int,
  *,
  seed: int,
  split: str,
  difficulty: str,
  size: int = 64,
  num_frames: int = 32,
  style: str = 'studio',
  neutral: bool = False,
) -> FaceClip:
  """Draws clip `index` of a split.

  Seven consecutive clips show one person with each class once, see
  `class_order`; no person is in both splits, or in two of `styles.STYLES`.
  `size` is in pixels per side. With `neutral` the face does not move, and all
  else, noise too, is the same: where frames differ from those without, they
  show the expression.
  """
  person, place = divmod(index, len(CLASS_NAMES))
  name = class_order(person, seed=seed, split=split, style=style)[place]
  look = styles.STYLES[style]
  seed += look.seed if look else 0
  face = sample_identity(_generator(seed, split, person, 0))
  rng = _generator(seed, split, person, 2, place)
  level = DIFFICULTIES[difficulty]
  times = _times(rng, level, num_frames)
  units, (onset, apex, offset) = _expression(
    rng, level, name, _envelope(*times, num_frames)
  )
  shown = {k: np.zeros_like(x) for k, x in units.items()} if neutral else units
  picture = draw_face(face, shown, *_eyes(rng, times[1], num_frames))
  pose = _head_motion(rng, level, num_frames)
  background = _background(face, size)
  own = _generator(seed, split, person, 3, place)
  if look:
    background = styles.clutter(own, look, background)
  frames = _sensor(rng, level, picture.render(pose, background, size))
  if look:
    frames = styles.record(own, look, frames)
  active = [x.mean(-1) for x in units.values() if x.any()]
  return FaceClip(
    frames=frames,
    label=CLASS_NAMES.index(name),
    subject=f'{split}-{person:04d}',
    onset=onset,
    apex=apex,
    offset=offset,
    action_units='+'.join(str(k) for k in units if units[k].any()),
    intensity=np.mean(active, axis=0) if active else np.zeros(num_frames),
    units=np.stack([units[k].mean(-1) for k in ACTION_UNITS], axis=-1),
  )


def _times(rng: np.random.Generator, level: Difficulty, num_frames: int):
  """Start, apex, fade and end of the expression, in frames."""
  length = rng.uniform(*level.duration) * num_frames
  length = np.clip(length, 2.5, num_frames - 3)
  start = rng.uniform(0.5, num_frames - 1.5 - length)
  apex = start + length * rng.uniform(0.25, 0.4)
  fade = start + length * rng.uniform(0.6, 0.75)
  return start, apex, fade, start + length


def _envelope(start, apex, fade, end, num_frames: int) -> np.ndarray:
  """Smooth rise, plateau that sinks a little, smooth fall; [F] in [0, 1]."""
  t = np.arange(num_frames)
  rise = _smoothstep((t - start) / (apex - start))
  fall = _smoothstep((end - t) / (end - fade))
  sink = 1 - 0.1 * np.clip((t - apex) / (end - apex), 0, 1)
  return rise * fall * sink


def _expression(
  rng: np.random.Generator, level: Difficulty, name: str, envelope: np.ndarray
) -> tuple[dict[int, np.ndarray], tuple[int, int, int]]:
  """Intensities {unit: [F, 2]} and the frames (onset, apex, offset)."""
  always, maybe = PROTOTYPES[name]
  shown = always + tuple(k for k in maybe if rng.uniform() < 0.7)
  strength = rng.uniform(*level.intensity)
  units = {k: np.zeros((len(envelope), 2)) for k in ACTION_UNITS}
  for k in shown:
    sides = strength * rng.uniform(0.85, 1.0) * rng.uniform(0.88, 1.0, 2)
    units[k] = envelope[:, None] * sides
  if not shown:
    return units, (-1, -1, -1)
  active = np.flatnonzero(envelope)
  return units, (int(active[0]), int(envelope.argmax()), int(active[-1]))


def _smoothstep(x: np.ndarray) -> np.ndarray:
  x = np.clip(x, 0, 1)
  return x * x * (3 - 2 * x)


def _wander(rng: np.random.Generator, frames: int, columns: int) -> np.ndarray:
  """Smooth random curves [columns, F] of about unit deviation over time."""
  t = np.linspace(0, 2 * np.pi, frames)
  cycles = rng.uniform(0.2, 1.2, (3, columns, 1))
  phase = rng.uniform(0, 2 * np.pi, (3, columns, 1))
  weight = rng.normal(0, np.sqrt(2 / 3), (3, columns, 1))
  return np.sum(weight * np.sin(cycles * t + phase), axis=0)


def _eyes(rng: np.random.Generator, apex: float, num_frames: int):
  """Blinks [F] in [0, 1] and gaze [F, 2].

  There are none to two blinks, in any class, and none around the apex (a
  neutral clip has one too), so that its frame shows the eyes.
  """
  t = np.arange(num_frames)
  blink = np.zeros(num_frames)
  for centre in rng.uniform(0, num_frames, rng.choice(3, p=(0.4, 0.45, 0.15))):
    if abs(centre - apex) > 3:
      blink = np.maximum(blink, _smoothstep(1.6 - np.abs(t - centre) / 1.8))
  gaze = np.clip(0.3 * _wander(rng, num_frames, 2).T, -0.7, 0.7)
  return blink, gaze * (1, 0.5)


def _head_motion(
  rng: np.random.Generator, level: Difficulty, num_frames: int
) -> Pose:
  """A smooth path of the head."""
  x, y, roll, yaw, pitch, scale = _wander(rng, num_frames, 6)
  return Pose(
    x=level.shift * x,
    y=0.7 * level.shift * y,
    roll=np.clip(0.7 * level.turn * roll, -0.35, 0.35),
    yaw=np.clip(2 * level.turn * yaw, -0.45, 0.45),
    pitch=np.clip(level.turn * pitch, -0.3, 0.3),
    scale=1.08 * np.exp(0.6 * level.shift * scale),
  )


def _background(face: Identity, size: int) -> np.ndarray:
  """A gradient between the person's two colours, uint8 [canvas, canvas, 3]."""
  axis = np.linspace(-1, 1, canvas_size(size))
  x, y = np.meshgrid(axis, axis)
  angle = face.background_angle
  share = 0.5 + 0.35 * (np.cos(angle) * x + np.sin(angle) * y)
  low, high = face.background
  colour = low + share[..., None] * (high - low)
  return np.clip(colour, 0, 255).astype(np.uint8)


def _sensor(
  rng: np.random.Generator, level: Difficulty, frames: np.ndarray
) -> np.ndarray:
  """Light that drifts, a gradient that turns, and noise; uint8 as given."""
  num_frames, size = frames.shape[:2]
  gain, across, down = level.light * _wander(rng, num_frames, 3)
  axis = np.linspace(-1, 1, size)
  field = np.exp(np.clip(gain - 0.04, -0.5, 0.2))[:, None, None] * (
    1
    + np.clip(across, -0.5, 0.5)[:, None, None] * axis
    + np.clip(down, -0.5, 0.5)[:, None, None] * axis[:, None]
  )
  noise = rng.standard_normal((num_frames, size, size, 1), np.float32)
  lit = frames * field.astype(np.float32)[..., None]
  lit += np.float32(level.noise) * noise + np.float32(0.5)
  return np.clip(lit, 0, 255, out=lit).astype(np.uint8)
