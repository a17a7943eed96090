"""How Hugging Face's processors make what a model takes of a frame.

Their files say it: how pixels are scaled and normalised, which the first layer
of our model takes over exactly, and how frames become square, which ours do in
one of two ways.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax.augment.transforms import MEAN, STD
from mira_jax.weights import settings

# Where processors are described; the first that there is counts, as there.
PROCESSORS = (
  'processor_config.json',
  'video_preprocessor_config.json',
  'preprocessor_config.json',
)
_NESTED = ('video_processor', 'image_processor')
PROCESSOR = settings.table(
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
  without_meaning="""
    processor_class do_convert_rgb default_to_square data_format pad_size
    input_data_format return_tensors device return_metadata video_metadata
    model_valid_processing_keys model_input_names
    """,
)
_FILTERS = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'box', 'hamming')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
  """What a model takes: `scale * p + offset` for p in [0, 1], per channel.

  Attributes:
    scale: [3].
    offset: [3].
    fit: how frames become square, see `data.geometry.resize`; None: not said.
  """

  scale: np.ndarray
  offset: np.ndarray
  fit: str | None = None

  @property
  def usual(self) -> bool:
    """Whether it is what our models take."""
    mean, std = np.array(MEAN), np.array(STD)
    found = np.stack([self.scale * std, self.offset + self.scale * mean])
    return bool(np.allclose(found, [[1] * 3, [0] * 3], rtol=0, atol=1e-6))


def pixels(
  files: Mapping[str, dict[str, Any]], vivit: bool, image_size: int | None
) -> tuple[Pixels, list[str]]:
  """What a model takes, and what a person must know.

  Args:
    files: content of those of PROCESSORS that are there, by name.
    vivit: whether the model is a ViViT.
    image_size: of the model in pixels; None: not known.

  Raises:
    ValueError: a setting has a value that ours cannot follow.
  """
  name, values = _processor(files)
  if values is None:
    if vivit:
      found = Pixels(scale=np.full(3, 2.0), offset=np.full(3, -1.0))
      told = 'from -1 to 1'
    else:
      found = Pixels(scale=1 / np.array(STD), offset=-np.array(MEAN) / STD)
      told = 'normalised as ours'
    return found, [f'no {PROCESSORS[-1]}: its pixels are taken to be {told}']
  notes = PROCESSOR.check(values, name)
  kind = ' '.join(str(values.get(f'{n}_type', '')) for n in _KINDS).lower()
  if kind.strip() and 'vivit' not in kind and 'videomae' not in kind:
    lacking = [n for n in _NEEDED if n not in values]
    if lacking:
      why = f'its own {", ".join(lacking)} are not known here, so it is not'
      raise settings.refused(name, 'image_processor_type', kind.strip(), why)
  vivit = 'vivit' in kind or (vivit and 'videomae' not in kind)
  scale, offset = _affine(values, name, vivit)
  fit, more = _geometry(values, name, vivit, image_size)
  found = Pixels(scale=scale, offset=offset, fit=fit)
  return found, notes + more


_KINDS = ('image_processor', 'feature_extractor', 'video_processor')
_NEEDED = ('image_mean', 'image_std', 'size')


def _processor(
  files: Mapping[str, dict[str, Any]],
) -> tuple[str, dict[str, Any] | None]:
  for name in PROCESSORS:
    values = files.get(name)
    if name == PROCESSORS[0]:
      inner = (values[n] for n in _NESTED if values and n in values)
      values = next(inner, None)
    if values is not None:
      if not isinstance(values, dict):
        raise ValueError(f'{name}: its processor is no group of settings')
      return name, values
  return '', None


def _affine(
  values: settings.Settings, where: str, vivit: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Scale and offset [3] of pixels from 0 to 1."""
  scale, offset = np.full(3, 255.0), np.zeros(3)
  usual = 1 / 127.5 if vivit else 1 / 255
  if settings.flag(values, 'do_rescale', where, True):
    factor = settings.number(values, 'rescale_factor', where)
    scale = scale * (usual if factor is None else factor)
    if settings.flag(values, 'offset', where, vivit):
      offset = offset - 1
  if settings.flag(values, 'do_normalize', where, True):
    mean = _channels(values, 'image_mean', where)
    std = _channels(values, 'image_std', where)
    if (std <= 0).any():
      why = 'only numbers above 0 are'
      raise settings.refused(where, 'image_std', values['image_std'], why)
    scale, offset = scale / std, (offset - mean) / std
  return scale, offset


def _channels(values: settings.Settings, name: str, where: str) -> np.ndarray:
  """One number for every channel; a single one is of all."""
  value = values.get(name)
  value = 0.5 if value is None else value
  numbers = value if isinstance(value, (list, tuple)) else [value] * 3
  whole = len(numbers) == 3 and all(type(x) in (int, float) for x in numbers)
  if not whole or not np.isfinite(numbers).all():
    raise settings.refused(where, name, value, 'only three numbers are')
  return np.array(numbers, np.float64)


def _geometry(
  values: settings.Settings, where: str, vivit: bool, image_size: int | None
) -> tuple[str, list[str]]:
  """How frames become square here, and in what that differs from theirs."""
  size = values.get('size') or {'shortest_edge': 256 if vivit else 224}
  size = {'shortest_edge': size} if type(size) is int else size
  crop = values.get('crop_size') or 224
  crop = {'height': crop, 'width': crop} if type(crop) is int else crop
  pair = _pair(size, 'size', where)
  resizes = settings.flag(values, 'do_resize', where, True)
  crops = settings.flag(values, 'do_center_crop', where, True)
  edge = pair or settings.whole(size, 'shortest_edge', where)
  if edge is None:
    why = 'only shortest_edge, or height and width, is'
    raise settings.refused(where, 'size', size, why)
  cut = _pair(crop, 'crop_size', where) if crops else None
  notes = []
  if (end := cut or edge) != (image_size or end) and (resizes or crops):
    notes.append(f'{where}: its frames have {end} pixels, {image_size} here')
  if not resizes:
    notes.append(f'{where}: frames are not resized there (do_resize), here so')
  elif cut and cut != edge:
    notes.append(
      f'{where}: the middle {cut} of {edge} pixels are cut out there; here '
      f'the whole {"frame" if pair else "middle square"} is taken'
    )
  number = values.get('resample', 2)
  if number not in range(len(_FILTERS)):
    raise settings.refused(where, 'resample', number, 'only 0 to 5 are')
  notes.append(
    f'{where}: frames are resized by {_FILTERS[number]} filters there, here by '
    'the mean of areas where they shrink, else bilinearly'
  )
  if settings.flag(values, 'do_sample_frames', where, False):
    told = ', '.join(f'{n} {values[n]}' for n in _SAMPLED if n in values)
    notes.append(
      f'{where}: clips are sampled there ({told or "do_sample_frames"}); here '
      'one of --rate frames is read'
    )
  return ('squash' if pair else 'crop'), notes


_SAMPLED = ('fps', 'num_frames')


def _pair(size: Any, name: str, where: str) -> int | None:
  """The side of a square; None of what has no height."""
  if not isinstance(size, Mapping):
    raise settings.refused(where, name, size, 'only a group of lengths is')
  if 'height' not in size and 'width' not in size:
    return None
  both = (size.get('height'), size.get('width'))
  return settings.side({name: both}, name, where)
