"""The preprocessing of Hugging Face's processors.

Their files have the scale and normalisation of pixels, which the first layer of
our model takes over exactly, and the way in which frames become square, of
which ours has two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax.augment.transforms import MEAN, STD
from mira_jax.errors import short
from mira_jax.weights.settings import Settings, Table

# Files that describe a processor; the first one counts, as in transformers.
PROCESSORS = (
  'processor_config.json',
  'video_preprocessor_config.json',
  'preprocessor_config.json',
)
_NESTED = ('video_processor', 'image_processor')
PROCESSOR = Table(
  used="""
    do_resize size do_center_crop crop_size resample do_rescale rescale_factor
    offset do_normalize image_mean image_std do_sample_frames fps num_frames
    image_processor_type feature_extractor_type video_processor_type
    """,
  only={
    'do_flip_channel_order': (False, None),
    'do_pad': (False, None),
    'do_zero_centering': (False, None),
  },
  without_effect="""
    processor_class do_convert_rgb default_to_square data_format pad_size
    input_data_format return_tensors device return_metadata video_metadata
    model_valid_processing_keys model_input_names
    """,
)
# Settings of frames that ours follow only roughly, and which a note lists.
_FRAMES = ('do_resize', 'size', 'do_center_crop', 'crop_size', 'resample',
           'do_sample_frames', 'fps', 'num_frames')  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
  """The input of a model: `scale * p + offset` for p in [0, 1]."""

  scale: np.ndarray  # [3]
  offset: np.ndarray  # [3]

  @property
  def usual(self) -> bool:
    """Whether it is the input of our models."""
    mean, std = np.array(MEAN), np.array(STD)
    found = np.stack([self.scale * std, self.offset + self.scale * mean])
    return bool(np.allclose(found, [[1] * 3, [0] * 3], rtol=0, atol=1e-6))


def pixels(
  files: Mapping[str, dict[str, Any]], vivit: bool
) -> tuple[Pixels, str | None, list[str]]:
  """The input of a model, its resize mode if that is known, and notes.

  Args:
    files: content of those of PROCESSORS that exist, by name.
    vivit: whether the model is a ViViT.

  Raises:
    ValueError: a setting has a value that ours cannot follow.
  """
  rules = _processor(files)
  if rules is None:
    if vivit:
      found = Pixels(scale=np.full(3, 2.0), offset=np.full(3, -1.0))
    else:
      found = Pixels(scale=1 / np.array(STD), offset=-np.array(MEAN) / STD)
    assumed = 'from -1 to 1' if vivit else 'normalised as ours'
    return found, None, [f'no {PROCESSORS[-1]}: pixels {assumed} are assumed']
  notes = rules.check(PROCESSOR)
  kinds = (rules.values.get(f'{n}_type', '') for n in _KINDS)
  kind = ' '.join(map(str, kinds)).lower()
  if kind.strip() and 'vivit' not in kind and 'videomae' not in kind:
    needed = ('image_mean', 'image_std', 'size')
    if lacking := [n for n in needed if n not in rules.values]:
      why = f'its own {", ".join(lacking)} are unknown, so it is not'
      name = next(f'{n}_type' for n in _KINDS if f'{n}_type' in rules.values)
      raise rules.refused(name, why)
  vivit = 'vivit' in kind or (vivit and 'videomae' not in kind)
  scale, offset = _affine(rules, vivit)
  fit = _fit(rules)
  frames = [f'{n} {short(x)}' for n in _FRAMES if (x := rules.values.get(n))]
  if frames:
    notes.append(
      f'{rules.file}: frames were prepared with {", ".join(frames)}; here with '
      f'--fit={fit}, areas where they shrink, and one of --rate frames'
    )
  return Pixels(scale=scale, offset=offset), fit, notes


_KINDS = ('image_processor', 'feature_extractor', 'video_processor')


def _processor(files: Mapping[str, dict[str, Any]]) -> Settings | None:
  for name in PROCESSORS:
    values: Any = files.get(name)
    if name == PROCESSORS[0]:
      inner = (values[n] for n in _NESTED if values and n in values)
      values = next(inner, None)
    if values is not None:
      if not isinstance(values, dict):
        raise ValueError(f'{name}: its processor is no group of settings')
      return Settings(values, name)
  return None


def _affine(rules: Settings, vivit: bool) -> tuple[np.ndarray, np.ndarray]:
  """Scale and offset [3] of pixels from 0 to 1."""
  scale, offset = np.full(3, 255.0), np.zeros(3)
  if rules.flag('do_rescale', True):
    scale *= rules.number('rescale_factor') or 1 / (127.5 if vivit else 255)
    if rules.flag('offset', vivit):
      offset -= 1
  if rules.flag('do_normalize', True):
    mean, std = _channels(rules, 'image_mean'), _channels(rules, 'image_std')
    if (std <= 0).any():
      raise rules.refused('image_std', 'only numbers above 0 are')
    scale, offset = scale / std, (offset - mean) / std
  return scale, offset


def _channels(rules: Settings, name: str) -> np.ndarray:
  """One number for every channel; a single one is of all."""
  value = rules.values.get(name)
  value = 0.5 if value is None else value
  numbers = value if isinstance(value, (list, tuple)) else [value] * 3
  whole = len(numbers) == 3 and all(type(x) in (int, float) for x in numbers)
  if not whole or not np.isfinite(numbers).all():
    raise rules.refused(name, 'only three numbers are')
  return np.array(numbers, np.float64)


def _fit(rules: Settings) -> str:
  """'squash' where frames become a height and width, 'crop' for an edge."""
  for name in ('do_resize', 'do_center_crop', 'do_sample_frames'):
    rules.flag(name, None)
  if rules.values.get('resample', 2) not in range(6):
    raise rules.refused('resample', 'only the filters 0 to 5 are')
  fits = {}
  for name in ('size', 'crop_size'):
    value = rules.values.get(name) or 224
    match {'shortest_edge': value} if type(value) is int else value:
      case {'height': int(side), 'width': width} if side == width > 0:
        fits[name] = 'squash'
      case {'shortest_edge': int(side)} if side > 0:
        fits[name] = 'crop'
      case _:
        raise rules.refused(name, 'only one length, or equal sides, are')
  return fits['size']
