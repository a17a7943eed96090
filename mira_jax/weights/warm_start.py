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
  EMBEDDING,
  MASK_TOKEN,
  POSITIONS,
  is_last_norm,
  is_stacked,
  is_task,
)
from mira_jax.weights import sources, torch_names
from mira_jax.weights.infer_model import grid_of
from mira_jax.weights.weights_file import (
  compact,
  flatten,
  restack,
  unflatten,
)

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
    source: see the module; of a path the best model is taken.
    class_names: of the model. A head of other classes, or of the same in
      another order, is not taken; nor is one of unknown classes. None takes a
      head of as many classes.
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
    *_drop_averages(arrays, have),
    *_fit_positions(arrays, have, source, grid, interpolate),
  ]
  _drop_misshapen(arrays, have, source.path)
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


def _drop(arrays: Arrays, name: str) -> None:
  """Keeps a tensor out of the model, under a name with its shape."""
  array = arrays.pop(name)
  arrays[f'{name} {list(array.shape)}'] = array


def _drop_other_classes(
  arrays: Arrays,
  have: Mapping[str, Any],
  source: sources.Source,
  class_names: Sequence[str] | None,
) -> list[str]:
  """Drops the head of other classes; returns a note."""
  heads = [n for n in arrays if n.startswith('params/head/')]
  theirs = list(source.metadata.get('class_names') or source.class_names)
  if class_names is None or not heads or 'params/head/kernel' not in have:
    return []
  if list(class_names) == theirs:
    return []
  for name in heads:
    _drop(arrays, name)
  if not theirs:
    why = 'its weights do not name their classes (mira convert --classes does)'
  elif sorted(class_names) == sorted(theirs):
    why = f'the order of its classes was {", ".join(theirs)}'
  else:
    why = f'its classes were {some(theirs, 12)}'
  return [f'the head starts anew: {why}']


def _drop_averages(arrays: Arrays, have: Mapping[str, Any]) -> list[str]:
  """Drops MiRA's averages of another number of frames; returns a note."""
  other = [
    name
    for name, array in have.items()
    if name.startswith('mira/')
    and name in arrays
    and arrays[name].shape[-1:] != array.shape[-1:]
  ]
  if not other:
    return []
  pair = arrays[other[0]], have[other[0]]
  before, now = ((0, *array.shape)[-1] for array in pair)
  for name in other:
    _drop(arrays, name)
  return [
    f"MiRA's averages start anew: they are of {before} temporal tokens, "
    f'not {now}'
  ]


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
  return notes if learned else [f'positions are computed for {new} tokens, '
                                f'not {old}']  # fmt: skip


def _axes(name: str, arrays: Mapping[str, Any], grid: Grid) -> Grid | None:
  """The axes of a grid that a table of positions has."""
  t, h, w = grid
  choices = ((t, 1, 1),) if name.endswith('_time') else ((t, h, w), (1, h, w))
  length = len(arrays[name])
  return next((axes for axes in choices if math.prod(axes) == length), None)


def _drop_misshapen(arrays: Arrays, have: Mapping[str, Any], path: Any) -> None:
  """Drops misshapen tensors of a task; refuses those of a backbone."""
  wrong = [
    name
    for name, array in have.items()
    if name in arrays and arrays[name].shape != array.shape
  ]
  backbone = [name for name in wrong if not is_task(name)]
  if backbone:
    first = backbone[0]
    there, here = arrays[first].shape, have[first].shape
    hint = f'{first} is {there} in the weights and {here} in this model'
    if len(backbone) > 1:
      hint += f'; misshapen are {compact(backbone)}'
    if flags := _size_flags(arrays.get(EMBEDDING)):
      hint += f'; the weights need {flags}'
    raise checkpoint_error('other_size', path, hint)
  for name in wrong:
    _drop(arrays, name)


def _size_flags(embed: np.ndarray | None) -> str:
  """The sizes that a first layer has, as flags."""
  size = () if embed is None else embed.shape
  if len(size) != 5:
    return ''
  if size[3] != 3:  # PyTorch's [dim, 3, t, p, p], not [t, p, p, 3, dim]
    size = (*size[2:], size[1], size[0])
  fields = {'tubelet': size[0], 'patch': size[2], 'dim': size[4]}
  return ' '.join(f'--config.model.{name}={n}' for name, n in fields.items())


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
  refused = [n for n, part in parts.items() if part not in allow_missing]
  if refused:
    needed = ','.join(sorted({*parts.values(), *allow_missing}))
    hint = f'it lacks {len(refused)} tensors of the model: {compact(refused)}; '
    hint += f'train.py --config.train.allow_missing={needed} initialises them'
    raise checkpoint_error('bad_weights', path, hint)
