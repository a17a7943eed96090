"""Hints at the start of a run, a line each: where its results may surprise."""

from __future__ import annotations

import numpy as np

from mira_jax import config
from mira_jax.data.pool import Pool
from mira_jax.errors import some

FEW_STEPS = 300  # fewer leave a model from random weights near where it began
_SHORT = 0.05  # share of clips that may be too short without a hint
_WARNING = 'warning: '


def of_steps(cfg: config.Config, total: int, per_epoch: int) -> list[str]:
  """The number of steps; a warning where it is small.

  A number that validation chose, of a refit, is not the epochs'.
  """
  found = [f'steps: {total}, {per_epoch} per epoch']
  warmup = cfg.optim.warmup_epochs
  if warmup > cfg.train.epochs / 2:
    found.append(
      f'{_WARNING}the learning rate rises in {warmup:g} of {cfg.train.epochs} '
      f'epochs; --config.optim.warmup_epochs={cfg.train.epochs / 10:g} is usual'
    )
  if total == cfg.train.epochs * per_epoch < FEW_STEPS:
    enough = -(-FEW_STEPS // per_epoch)
    found.append(
      f'{_WARNING}{total} steps are few; --config.train.epochs={enough} or a '
      'smaller --config.data.batch_size makes more'
    )
  return found


def of_frames(cfg: config.Config, clips: Pool) -> list[str]:
  """Compares the frames of training clips with those of the model.

  Nothing where few clips are too short, or an older version prepared them
  without their lengths.
  """
  model = cfg.model
  known = clips.num_frames[clips.num_frames > 0]
  short = known < model.frames
  if not len(known) or short.mean() < _SHORT:
    return []
  low, high = known.min(), known.max()
  have = f'{low}' if low == high else f'{low} to {high}'
  frames, tubelet = fitting(known, model.tubelet)
  fits = f'--config.model.frames={frames}'
  if tubelet != model.tubelet:
    fits += f' --config.model.tubelet={tubelet}'
  return [
    f'{_WARNING}clips have {have} frames, the model takes {model.frames}: the '
    f'last one is repeated in {short.sum()} of {len(known)} training clips; '
    f'{fits} fits'
  ]


def fitting(num_frames: np.ndarray, tubelet: int) -> tuple[int, int]:
  """Frames that nearly all clips of int [C] frames have, in whole tubelets.

  The tubelet is 1 where time would be a single token; it is returned, too.
  """
  most = int(np.quantile(num_frames, _SHORT, method='lower'))
  if most < 2 * tubelet:
    tubelet = 1
  return most // tubelet * tubelet, tubelet


def of_classes(clips: Pool) -> list[str]:
  """The rarest class of the training clips; a warning for those without one."""
  counts = dict(zip(clips.class_names, clips.counts, strict=True))
  found = []
  if absent := [name for name, count in counts.items() if not count]:
    found.append(f'{_WARNING}no training clip shows {some(absent, 4)}')
  present = {name: count for name, count in counts.items() if count}
  rarest = min(present, key=present.__getitem__)
  return [*found, f'rarest class: {rarest}, {present[rarest]} training clips']


def of_units(clips: Pool) -> list[str]:
  """The rarest action unit of the training clips; warnings as `of_classes`."""
  found, rates = [], dict[str, float]()
  columns = zip(
    clips.action_units, clips.positive.T, clips.known.T, strict=True
  )
  for name, positive, known in columns:
    rates[name] = positive.sum() / max(known.sum(), 1)
  if absent := [name for name, rate in rates.items() if not rate]:
    found.append(f'{_WARNING}no training frame shows {some(absent, 4)}')
  present = {name: rate for name, rate in rates.items() if rate}
  if not present:
    return found
  rarest = min(present, key=present.__getitem__)
  return [*found, f'rarest unit: {rarest}, {present[rarest]:.1%} of frames']


def of_validation(
  cfg: config.Config, clips: Pool | None, decides: bool
) -> list[str]:
  """The size of validation, and a warning where it is too small to decide.

  Nothing where the clips have decided, and are training clips of a refit.
  """
  if clips is None or (decides and cfg.train.refit):
    return []
  people = len({*clips.subject.tolist()} - {''})
  size = f'validation: {len(clips)} clips' + f' of {people} people' * (
    people > 0
  )
  if decides:
    return [size]
  effect = 'the last weights are kept'
  if cfg.train.refit:
    effect = 'they are trained on, too, for all steps'
  elif cfg.train.patience:
    effect += ', and patience ends nothing'
  few = f'too few to choose by, so that {effect}'
  force = '--config.eval.min_val_clips=0 chooses all the same'
  return [f'{_WARNING}{size}, {few}; {force}']
