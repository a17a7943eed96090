"""Weights of one model as the start of another, and what came of each tensor.

A source is whatever `interop.sources` reads: a weights file or a finished run
of this package, a classifier or a pre-training, or files of other programs.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

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
  single_name,
)
from mira_jax.weights import infer_model, sources, torch_names
from mira_jax.weights.weights_file import compact, flatten, restack, unflatten

PyTree = Any
Grid = tuple[int, int, int]
_SHOWN = 4  # names that a report tells before it says how many more


@dataclasses.dataclass(kw_only=True, frozen=True)
class Transfer:
  """What became of the tensors, by name.

  Attributes:
    taken: of the model, read from the source.
    fresh: of the new task, which start anew.
    missing: of the backbone, which the source lacks; they start anew too.
    ignored: of the source, which the model has no place for.
    notes: what else a person must know, one line each.
  """

  taken: Sequence[str]
  fresh: Sequence[str]
  missing: Sequence[str]
  ignored: Sequence[str]
  notes: Sequence[str] = ()

  def __str__(self) -> str:
    """One line for each kind that there is, and one for each note."""
    lines = [f'taken: {len(self.taken)} tensors']
    for kind in ('fresh', 'missing', 'ignored'):
      names = getattr(self, kind)
      if names:
        told = some(names, _SHOWN)
        lines.append(f'{kind}: {len(names)} tensors ({told})')
    return '\n'.join([*lines, *(f'note: {note}' for note in self.notes)])


@dataclasses.dataclass(kw_only=True)
class _Found:
  """A source by the names of the model that takes it.

  Attributes:
    arrays: by name; what has no place keeps its own name.
    class_names: of its head; () where they are not told.
    grid: tokens that it was trained with; None where they are not told.
    notes: see Transfer.
  """

  arrays: dict[str, np.ndarray]
  class_names: Sequence[str]
  grid: Grid | None
  notes: list[str]

  def reject(self, name: str) -> None:
    """Keeps a tensor out of the model, under a name that says its shape."""
    array = self.arrays.pop(name)
    self.arrays[f'{name} {list(array.shape)}'] = array


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
  MiRA come along where both have them, for as many slots.

  Args:
    variables: {'params': ..., 'mira': ...} of numpy arrays.
    source: see the module; of a path the best model is taken.
    class_names: of the model. A head of other classes, or of the same in
      another order, is not taken; nor is one whose classes are not told. None
      takes a head of as many classes.
    grid: tokens in time, height and width that the model is made for.
    allow_missing: parts of the model ('encoder') that the source may lack
      tensors of, which then start anew; the head and the last norm always may.
    interpolate: fit learned positions of another grid to `grid`.

  Returns:
    New variables, in the dtypes of the old ones, and the report.

  Raises:
    MiraInputError: the source cannot be read, lacks tensors of the backbone or
      has them in another shape.
  """
  if not isinstance(source, sources.Source):
    source = sources.read(source)
  have, path = flatten(variables), source.path
  found = _find(source, have)
  _compare_classes(found, have, class_names)
  _fit_averages(found, have)
  _fit_positions(found, have, path, grid, interpolate)
  _check_shapes(found, have, path)
  arrays = found.arrays
  taken = [name for name in have if name in arrays]
  absent = [name for name in have if name not in arrays]
  missing = [name for name in absent if not is_task(name)]
  _check_missing(path, have, arrays, missing, allow_missing)
  new = {n: np.asarray(arrays.get(n, x), x.dtype) for n, x in have.items()}
  return unflatten(new), Transfer(
    taken=taken,
    fresh=[name for name in absent if is_task(name)],
    missing=missing,
    ignored=sorted(arrays.keys() - have.keys()),
    notes=found.notes,
  )


# ----- what a source has -----------------------------------------------------


def _find(source: sources.Source, have: Mapping[str, np.ndarray]) -> _Found:
  """The tensors of a source by the names of the model that takes them."""
  card = source.card
  if not source.native:
    arrays = _from_torch(source.state, have)
  elif card.get('pretrain') is not None and MASK_TOKEN not in have:
    arrays = {
      f'{n} (of tokens)' if is_last_norm(n) else n: x
      for n, x in source.state.items()
    }
  else:
    arrays = source.state
  return _Found(
    arrays=restack(arrays, any(map(is_stacked, have))),
    class_names=card.get('class_names') or source.class_names,
    grid=_grid_of_card(card) if source.native else infer_model.grid_of(source),
    notes=list(source.notes),
  )


def _grid_of_card(card: Mapping[str, Any]) -> Grid:
  model = card['model']
  side = model['image_size'] // model['patch']
  return model['frames'] // model['tubelet'], side, side


def _from_torch(
  state: Mapping[str, np.ndarray], have: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Renames a PyTorch state dict; what has no place keeps its name."""
  if MASK_TOKEN in have:
    table = torch_names.AUTOENCODER
  else:
    table = torch_names.CLASSIFIER
    # As the authors' fine-tuning: the encoder of a pre-training is the model.
    state = {re.sub(r'^encoder\.', '', n): x for n, x in state.items()}
  source, used = {}, set()
  for path, shape in _unstacked_shapes(have).items():
    try:
      name, layout = torch_names.lookup(path, table)
    except ValueError:  # a part that the authors' models do not have
      continue
    if name in state:
      array = state[name]
      expected = layout.to_torch(np.empty(shape, np.bool_)).shape
      fits = array.shape == expected
      if fits:
        array = layout.to_flax(array).reshape(shape)
      elif path in POSITIONS and array.ndim == 3:
        array = array[0]  # of another number, which may still be of use
      source[path] = array
      used.add(name)
  return source | {name: x for name, x in state.items() if name not in used}


def _unstacked_shapes(
  have: Mapping[str, np.ndarray],
) -> dict[str, tuple[int, ...]]:
  shapes = {}
  for name, array in have.items():
    if is_stacked(name):
      for i in range(len(array)):
        shapes[single_name(name, i)] = array.shape[1:]
    else:
      shapes[name] = array.shape
  return shapes


# ----- what of it fits --------------------------------------------------------


def _compare_classes(
  found: _Found,
  have: Mapping[str, np.ndarray],
  class_names: Sequence[str] | None,
) -> None:
  """Leaves out a head that means other classes, and says so."""
  heads = [n for n in found.arrays if n.startswith('params/head/')]
  if class_names is None or not heads or 'params/head/kernel' not in have:
    return
  ours, theirs = list(class_names), list(found.class_names)
  if ours == theirs:
    return
  for name in heads:
    found.reject(name)
  if not theirs:
    why = 'its weights do not name their classes (mira convert --classes does)'
  elif sorted(ours) == sorted(theirs):
    why = f'the order of its classes was {", ".join(theirs)}'
  else:
    why = f'its classes were {", ".join(theirs[:12])}'
  found.notes.append(f'the head starts anew: {why}')


def _fit_averages(found: _Found, have: Mapping[str, np.ndarray]) -> None:
  """Leaves out MiRA's averages for another number of slots, and says so."""
  other = [
    name
    for name, array in have.items()
    if name.startswith('mira/')
    and name in found.arrays
    and found.arrays[name].shape[-1:] != array.shape[-1:]
  ]
  if other:
    pair = found.arrays[other[0]], have[other[0]]
    before, now = ((0, *array.shape)[-1] for array in pair)
    found.notes.append(
      f"MiRA's averages start anew: they are of {before} slots, not {now}"
    )
  for name in other:
    found.reject(name)


def _fit_positions(
  found: _Found,
  have: Mapping[str, np.ndarray],
  path: str | os.PathLike[str],
  grid: Grid | None,
  interpolate: bool,
) -> None:
  """Interpolates learned positions if asked; says that computed ones change."""
  if found.grid is None or grid is None or found.grid == grid:
    return
  before, now = ('{} x {} x {}'.format(*g) for g in (found.grid, grid))
  learned = [n for n in POSITIONS if n in have and n in found.arrays]
  if not learned:
    found.notes.append(f'positions are computed for {now} tokens, not {before}')
  for name in learned:
    old, new = _axes(name, found.arrays, found.grid), _axes(name, have, grid)
    if old == new:  # those within a frame do not mind its number
      continue
    if not interpolate or None in (old, new):
      hint = f'{name} is learned for {before} tokens in time, height and width,'
      hint += f' and the model has {now}; give it the frames and image_size of '
      hint += 'the weights, or --config.train.interpolate_positions'
      raise checkpoint_error('other_size', path, hint)
    resized = resize_positions(found.arrays[name], old, new)
    found.arrays[name] = np.asarray(resized)
    found.notes.append(f'{name}: interpolated from {before} to {now} tokens')


def _axes(
  name: str, arrays: Mapping[str, np.ndarray], grid: Grid
) -> Grid | None:
  """Which axes of a grid a table of positions has."""
  t, h, w = grid
  choices = ((t, 1, 1),) if name.endswith('_time') else ((t, h, w), (1, h, w))
  length = len(arrays[name])
  return next((axes for axes in choices if math.prod(axes) == length), None)


def _check_shapes(
  found: _Found,
  have: Mapping[str, np.ndarray],
  path: str | os.PathLike[str],
) -> None:
  """Leaves out misshapen tensors of a task; refuses those of a backbone."""
  wrong = [
    name
    for name, array in have.items()
    if name in found.arrays and found.arrays[name].shape != array.shape
  ]
  backbone = [name for name in wrong if not is_task(name)]
  if backbone:
    first = backbone[0]
    there, here = (x[first].shape for x in (found.arrays, have))
    hint = f'{first} is {there} in the weights and {here} in this model; give '
    hint += 'it the size that the weights were trained with'
    embed = found.arrays.get(EMBEDDING)
    size = () if embed is None else embed.shape
    if len(size) == 5:  # [tubelet, patch, patch, 3, dim]
      if size[3] != 3:  # PyTorch's [dim, 3, tubelet, patch, patch]
        size = (*size[2:], size[1], size[0])
      fields = {'tubelet': size[0], 'patch': size[2], 'dim': size[4]}
      flags = (f'--config.model.{name}={n}' for name, n in fields.items())
      hint += f', {" ".join(flags)}'
    if len(backbone) > 1:
      hint += f'; misshapen are {compact(backbone)}'
    raise checkpoint_error('other_size', path, hint)
  for name in wrong:
    found.reject(name)


def _check_missing(
  path: str | os.PathLike[str],
  have: Mapping[str, np.ndarray],
  source: Mapping[str, np.ndarray],
  missing: Sequence[str],
  allow_missing: Sequence[str],
) -> None:
  """Refuses a source without all of the backbone, or with nothing of it."""
  params = [name for name in missing if name.startswith('params/')]
  backbone = [n for n in have if n.startswith('params/') and not is_task(n)]
  if len(params) == len(backbone):
    hint = 'it has nothing of this model; its first tensors are '
    hint += ', '.join(list(source)[:3])
    raise checkpoint_error('other_model', path, hint)
  parts = {name: name.split('/')[1] for name in params}
  refused = [n for n, part in parts.items() if part not in allow_missing]
  if refused:
    needed = ','.join(sorted(set(parts.values()) | set(allow_missing)))
    hint = f'it lacks {len(refused)} tensors of the model: {compact(refused)}; '
    hint += f'train.py --config.train.allow_missing={needed} starts them anew'
    raise checkpoint_error('bad_weights', path, hint)
