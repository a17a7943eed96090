"""Builds the dataset `synthetic_faces`: it needs no download and no licence.

The clips are `faces.draw_clip(0), faces.draw_clip(1), ...` of each split, so a
dataset is a function of the arguments of `build` alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax.data import dataset
from mira_jax.data import workers as clip_workers
from mira_jax.errors import MiraInputError
from mira_jax.synthetic import faces, styles
from mira_jax.video import images

FPS = 25.0  # a blink of five frames then lasts 0.2 s, as in life
JPEG_QUALITY = 95
POSITIVE_FROM = 2  # an action unit counts as shown, as in DISFA


def build(
  out: str | pathlib.Path,
  *,
  difficulty: str = 'macro',
  style: str = 'studio',
  train_clips: int = 2800,
  test_clips: int = 420,
  size: int = 64,
  num_frames: int = 32,
  seed: int = 0,
  workers: int | None = None,
) -> pathlib.Path:
  """Draws and writes a dataset; the same bytes for any number of workers.

  Workers are spawned: a script that calls this needs the usual
  `if __name__ == '__main__'`, or workers=0. Multiples of 7 clips have balanced
  classes. The other arguments are those of `faces.draw_clip`.

  Returns:
    The folder of the finished dataset, as `dataset.write`.

  Raises:
    MiraInputError: with code 'bad_value', or as `dataset.write`.
  """
  counts = {'train': train_clips, 'test': test_clips}
  for field, value, known in (
    ('difficulty', difficulty, faces.DIFFICULTIES),
    ('style', style, styles.STYLES),
  ):
    if value not in known:
      hint = f'use one of {", ".join(known)}'
      raise MiraInputError('bad_value', f'{field}={value}', hint)
  if size < 16 or num_frames < 8:
    value = f'size={size}, num_frames={num_frames}'
    raise MiraInputError('bad_value', value, 'use 16 and 8 or more')
  drawing: dict[str, Any] = {
    'seed': seed, 'size': size, 'num_frames': num_frames,
    'difficulty': difficulty, 'style': style,
  }  # fmt: skip
  jobs = [(split, i) for split, n in counts.items() for i in range(n)]
  draw = functools.partial(_draw, drawing=drawing)
  clips = clip_workers.run(draw, jobs, workers, 'drawing synthetic faces')
  return dataset.write(
    out,
    name=f'synthetic_faces_{named(difficulty, style)}',
    class_names=faces.CLASS_NAMES,
    splits={
      split: functools.partial(itertools.islice, clips, count)
      for split, count in counts.items()
    },
    description='Synthetic faces that show seven expressions.',
    metadata=drawing
    | {
      'level': level(difficulty, style),
      'action_units': [f'AU{k}' for k in faces.ACTION_UNITS],
      'positive_from': POSITIVE_FROM,
    },
  )


def named(difficulty: str, style: str) -> str:
  """The folder of a dataset, such as 'macro' or 'macro_street'."""
  return difficulty if style == 'studio' else f'{difficulty}_{style}'


def of_name(name: str) -> tuple[str, str]:
  """The difficulty and style of such a name, for `build`, which checks them."""
  difficulty, _, style = name.partition('_')
  return difficulty, style or 'studio'


def level(difficulty: str, style: str = 'studio') -> dict[str, Any]:
  """The ranges of a difficulty and a style, as the metadata keeps them."""
  fields = dataclasses.asdict(faces.DIFFICULTIES[difficulty])
  if look := styles.STYLES[style]:
    fields['style'] = dataclasses.asdict(look)
  return json.loads(json.dumps(fields))


def is_current(metadata: Mapping[str, Any]) -> bool:
  """Whether this version draws what the metadata of a dataset says."""
  difficulty = metadata.get('difficulty')
  style = metadata.get('style', 'studio')  # earlier versions have no other
  known = difficulty in faces.DIFFICULTIES and style in styles.STYLES
  return known and metadata.get('level') == level(str(difficulty), style)


class Truth:
  """What the clips of a synthetic dataset show, and where: drawn again.

  Raises:
    MiraInputError: the dataset is of another version of the drawing, or none
      that was drawn ('not_synthetic').
  """

  def __init__(self, prepared: dataset.PreparedDataset):
    about = {'style': 'studio'} | prepared.metadata
    names = ('seed', 'size', 'num_frames', 'difficulty', 'style')
    if {*names} - {*about} or not is_current(about):
      hint = 'it was not drawn by this version; frames alone are known'
      raise MiraInputError('not_synthetic', prepared.name, hint)
    self._drawing: dict[str, Any] = {name: about[name] for name in names}

  def __call__(self, clip_id: str) -> tuple[np.ndarray, np.ndarray]:
    """The intensity [F] of a clip's expression, and its change of each pixel.

    The latter is float32 [F, S, S], the mean absolute difference of colours.
    """
    split, _, index = clip_id.partition('-')
    with_it, without = (
      faces.draw_clip(int(index), split=split, neutral=x, **self._drawing)
      for x in (False, True)
    )
    change = with_it.frames.astype(np.float32) - without.frames
    return with_it.intensity, np.abs(change).mean(-1)


def _draw(job: tuple[str, int], drawing: dict[str, Any]) -> dataset.Clip:
  """Draws and encodes one clip of (split, index).

  A drawn unit in [0, 1] is stored as the nearest of the six intensities 0 to 5,
  so that one counts as shown from 0.3 on.
  """
  split, index = job
  drawn = vars(faces.draw_clip(index, split=split, **drawing))
  del drawn['intensity']
  drawn['intensities'] = np.rint(5 * drawn.pop('units')).astype(np.int8)
  frames = [images.encode_jpeg(f, JPEG_QUALITY) for f in drawn.pop('frames')]
  name = f'{split}-{index:06d}'
  return dataset.Clip(clip_id=name, frames=frames, fps=FPS, **drawn)
