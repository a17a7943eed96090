"""Initialises a model with the weights of another, tensor by tensor.

A source is whatever `sources` reads: a weights file or a finished run of this
package, a classifier or a pre-training, or files of other programs.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mira_jax.errors import checkpoint_error, some
from mira_jax.models.layers import resize_positions
from mira_jax.param_names import (
  MASK_TOKEN,
  POSITIONS,
  is_last_norm,
  is_stacked,
  is_task,
)
from mira_jax.weights import sources, torch_names
from mira_jax.weights.infer_model import grid_of
from mira_jax.weights.weights_file import compact, flatten, restack, unflatten

PyTree = Any
Arrays = dict[str, np.ndarray]
Grid = tuple[int, int, int]


@dataclasses.dataclass(kw_only=True, frozen=True)
class Transfer:
  """The fate of every tensor, by name."""

  taken: Sequence[str]  # of the model, read from the source
  fresh: Sequence[str]  # of the new task, initialised at random
  missing: Sequence[str]  # of the backbone, initialised at random too
  ignored: Sequence[str]  # of the source, without a place in the model
  notes: Sequence[str] = ()  # further differences, one line each
  # File, SHA-256 and repository of the source, where asked for.
  origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    """One line for each kind of fate, and one for each note."""
    lines = [f'taken: {len(self.taken)} tensors']
    for kind in ('fresh', 'missing', 'ignored'):
      if names := getattr(self, kind):
        lines.append(f'{kind}: {len(names)} tensors ({some(names, 4)})')
    return '\n'.join([*lines, *(f'note: {note}' for note in self.notes)])


def transfer(
  variables: PyTree,
  source: sources.Source | str | os.PathLike[str],
  *,
  class_names: Sequence[str] | None = None,
  grid: Grid | None = None,
  allow_missing: Sequence[str] = (),
  interpolate: bool = False,
) -> tuple[PyTree, Transfer]:
  """The variables of a model with the weights of a source put into them.

  Blocks may be stacked (`scan`) in one and not in the other. Moving averages of
  MiRA are taken where both have them, for as many temporal tokens.

  Args:
    variables: {'params': ..., 'mira': ...} of numpy arrays.
    source: weights that were read, or their path.
    class_names: of the model; a head of other, unknown or reordered classes is
      not taken. None takes a head of as many classes.
    grid: tokens in time, height and width that the model is made for.
    allow_missing: parts of the model ('encoder') that the source may lack
      tensors of; the head and the last norm it always may.
    interpolate: fit learned positions of another grid to `grid`.

  Returns:
    New variables, in the dtypes of the old ones, and the report.

  Raises:
    MiraInputError: the source cannot be read, lacks tensors of the backbone or
      has them in another shape.
  """
  if not isinstance(source, sources.Source):
    source = sources.read(source)
  have = flatten(variables)
  arrays = _named_as(source, have)
  notes = [
    *source.notes,
    *_drop_other_classes(arrays, have, source, class_names),
    *_fit_positions(arrays, have, source, grid, interpolate),
    *_repeat_for_members(arrays, have),
    *_drop_misshapen(arrays, have, source.path),
  ]
  absent = [name for name in have if name not in arrays]
  missing = [name for name in absent if not is_task(name)]
  _check_missing(source.path, have, arrays, missing, allow_missing)
  new = {n: np.asarray(arrays.get(n, x), x.dtype) for n, x in have.items()}
  return unflatten(new), Transfer(
    taken=[name for name in have if name in arrays],
    fresh=[name for name in absent if is_task(name)],
    missing=missing,
    ignored=sorted(arrays.keys() - have.keys()),
    notes=notes,
  )


def _named_as(source: sources.Source, have: Mapping[str, Any]) -> Arrays:
  """The source's tensors by the model's names; those without keep theirs."""
  state, decoder = source.state, MASK_TOKEN in have
  if not source.native:
    table = torch_names.AUTOENCODER if decoder else torch_names.CLASSIFIER
    if not decoder:  # the encoder of a pre-training is the model
      state = {re.sub(r'^encoder\.', '', n): x for n, x in state.items()}
    single = restack(have, stacked=False)
    shapes = {name: array.shape for name, array in single.items()}
    found = torch_names.match(state, shapes, table)
    arrays = found.arrays | {n: state[n] for n in found.extra}
    for name, array in found.misshapen.items():
      positions = name in POSITIONS and array.ndim == 3
      arrays[name] = array[0] if positions else array
  elif source.metadata.get('pretrain') is not None and not decoder:
    # The norm of a pre-training is of tokens, a classifier's of their mean.
    arrays = {
      f'{n} (of tokens)' if is_last_norm(n) else n: x for n, x in state.items()
    }
  else:
    arrays = state
  return restack(arrays, any(map(is_stacked, have)))


# What has an axis of classes, and what learned who the people of a dataset are.
_OF_CLASSES = re.compile(
  'params/(head|reliability|channel_head|channels|oracle)/'
)
_OF_PEOPLE = re.compile('params/identity_head/')


def _drop_other_classes(
  arrays: Arrays,
  have: Mapping[str, Any],
  source: sources.Source,
  class_names: Sequence[str] | None,
) -> list[str]:
  """Drops the heads of other classes and people; returns a note."""
  theirs = source.class_names
  if class_names is None or 'params/head/kernel' not in have:
    return []
  _set_aside(arrays, _OF_PEOPLE)
  if list(class_names) == theirs or not _set_aside(arrays, _OF_CLASSES):
    return []
  if not theirs:
    why = 'its weights do not name their classes (mira convert --classes does)'
  elif sorted(class_names) == sorted(theirs):
    why = f'the order of its classes was {", ".join(theirs)}'
  else:
    why = f'its classes were {some(theirs, 12)}'
  return [f'the head starts anew: {why}']


def _set_aside(arrays: Arrays, pattern: re.Pattern[str]) -> list[str]:
  """Renames tensors, so that none is taken; returns their names."""
  names = [name for name in arrays if pattern.match(name)]
  for name in names:
    array = arrays.pop(name)
    arrays[f'{name} {list(array.shape)}'] = array
  return names


def _fit_positions(
  arrays: Arrays,
  have: Mapping[str, Any],
  source: sources.Source,
  grid: Grid | None,
  interpolate: bool,
) -> list[str]:
  """Interpolates learned positions on request; returns notes."""
  before = grid_of(source)
  if before is None or grid is None or before == grid:
    return []
  old, new = ('{} x {} x {}'.format(*g) for g in (before, grid))
  learned = [n for n in POSITIONS if n in have and n in arrays]
  notes = []
  for name in learned:
    here, there = _axes(name, have, grid), _axes(name, arrays, before)
    if here == there:  # spatial ones do not depend on the frames
      continue
    if not interpolate or here is None or there is None:
      hint = f'{name} is learned for {old} tokens in time, height and width, '
      hint += f'and the model has {new}; give it the frames and image_size of '
      hint += 'the weights, or --config.train.interpolate_positions'
      raise checkpoint_error('other_size', source.path, hint)
    table = resize_positions(jnp.asarray(arrays[name]), there, here)
    arrays[name] = np.asarray(table)
    notes.append(f'{name}: interpolated from {old} to {new} tokens')
  if not learned:
    notes.append(f'positions are computed for {new} tokens, not {old}')
  return notes


def _axes(name: str, arrays: Mapping[str, Any], grid: Grid) -> Grid | None:
  """The axes of a grid that a table of positions has."""
  t, h, w = grid
  choices = ((t, 1, 1),) if name.endswith('_time') else ((t, h, w), (1, h, w))
  length = len(arrays[name])
  return next((axes for axes in choices if math.prod(axes) == length), None)


def _repeat_for_members(arrays: Arrays, have: Mapping[str, Any]) -> list[str]:
  """Gives every member of an ensemble the tensors of a single model."""
  shared = [name for name in have if name in arrays]
  more = {have[name].ndim - np.ndim(arrays[name]) for name in shared}
  if more != {1}:  # one axis more in each of them
    return []
  repeated = [n for n in shared if have[n].shape[1:] == arrays[n].shape]
  for name in repeated:
    arrays[name] = np.broadcast_to(arrays[name], have[name].shape)
  return [f'all members start alike ({some(repeated, 2)})'] * bool(repeated)


def _drop_misshapen(
  arrays: Arrays, have: Mapping[str, Any], path: Any
) -> list[str]:
  """Drops tensors of other shapes; refuses those of a backbone.

  Returns:
    A note on MiRA's averages, which are of another number of temporal tokens.
  """
  shapes = {n: arrays[n].shape for n in have if n in arrays}
  wrong = [n for n, shape in shapes.items() if shape != have[n].shape]
  averages = [n for n in wrong if n.startswith('mira/')]
  backbone = [n for n in wrong if not is_task(n) and n not in averages]
  if backbone:
    first = backbone[0]
    hint = f'{first} is {shapes[first]} in the weights and {have[first].shape} '
    hint += f'in this model; misshapen are {some(backbone, 3)}'
    raise checkpoint_error('other_size', path, hint)
  for name in wrong:
    array = arrays.pop(name)
    arrays[f'{name} {list(array.shape)}'] = array
  note = "MiRA's averages start anew: they are of other temporal tokens"
  return [note] if averages else []


def _check_missing(
  path: Any,
  have: Mapping[str, Any],
  arrays: Arrays,
  missing: Sequence[str],
  allow_missing: Sequence[str],
) -> None:
  """Refuses a source without all of the backbone, or with nothing of it."""
  params = [name for name in missing if name.startswith('params/')]
  backbone = [n for n in have if n.startswith('params/') and not is_task(n)]
  if len(params) == len(backbone):
    hint = 'it has nothing of this model; its first tensors are '
    raise checkpoint_error('other_model', path, hint + some(list(arrays), 3))
  parts = {name: name.split('/')[1] for name in params}
  if refused := [n for n in params if parts[n] not in allow_missing]:
    needed = ','.join(sorted({*parts.values(), *allow_missing}))
    hint = f'it lacks {len(refused)} tensors of the model: {compact(refused)}; '
    hint += f'train.py --config.train.allow_missing={needed} initialises them'
    raise checkpoint_error('bad_weights', path, hint)
