"""Weights of one model as the start of another, and what came of each tensor.

A source is a weights file or a finished run of this package, a classifier or
a pre-training, or a safetensors file of a PyTorch state dict with the names of
the authors' code (`interop.torch_names`).
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.interop import torch_names
from mira_jax.weights import WEIGHTS, flatten, load_weights, unflatten

PyTree = Any
_SHOWN = 4  # names that a report tells before it says how many more

# What a new task learns anew; all else is the backbone.
_TASK = re.compile(r'params/(head|norm|decoder\w*|to_decoder|mask_token)\b')
# Of a pre-training, what has the name but not the meaning of a classifier's:
# its norm is of the encoder's tokens, a classifier's of their mean.
_PRETRAINING_ONLY = re.compile(r'params/norm\b')


@dataclasses.dataclass(kw_only=True, frozen=True)
class Transfer:
  """What became of the tensors, by name.

  Attributes:
    taken: of the model, read from the source.
    fresh: of the new task, which start anew.
    missing: of the backbone, which the source lacks; they start anew too.
    ignored: of the source, which the model has no place for.
  """

  taken: Sequence[str]
  fresh: Sequence[str]
  missing: Sequence[str]
  ignored: Sequence[str]

  def __str__(self) -> str:
    """One line for each kind that there is."""
    lines = [f'taken: {len(self.taken)} tensors']
    for kind in ('fresh', 'missing', 'ignored'):
      names = getattr(self, kind)
      if names:
        more = len(names) - _SHOWN
        told = ', '.join(names[:_SHOWN]) + (f' and {more} more' * (more > 0))
        lines.append(f'{kind}: {len(names)} tensors ({told})')
    return '\n'.join(lines)


def transfer(
  variables: PyTree, path: str | os.PathLike[str]
) -> tuple[PyTree, Transfer]:
  """The variables of a model with the weights of a source put into them.

  Blocks may be stacked (`scan`) in one and not in the other. Moving averages of
  MiRA come along where both have them.

  Args:
    variables: {'params': ..., 'mira': ...} of numpy arrays.
    path: see the module.

  Returns:
    New variables, in the dtypes of the old ones, and the report.

  Raises:
    MiraInputError: the source cannot be read, a tensor of the backbone has
      another shape, or nothing of the backbone is in it.
  """
  have = flatten(variables)
  source = _read(path, have)
  for name, array in flatten(variables).items():
    if name in source and source[name].shape != array.shape:
      if not _TASK.match(name):
        hint = f'{name} is {source[name].shape} there and {array.shape} here; '
        hint += 'give the model the size that the weights were trained with'
        raise _unusable('other_size', path, hint)
      misfit = source.pop(name)
      source[f'{name} {list(misfit.shape)}'] = misfit
  taken = [name for name in have if name in source]
  backbone = [name for name in have if not _TASK.match(name)]
  if not set(taken) & {n for n in backbone if n.startswith('params/')}:
    hint = 'it has nothing of this model; its first tensors are '
    hint += ', '.join(list(source)[:3])
    raise _unusable('other_model', path, hint)
  new = {n: np.asarray(source.get(n, x), x.dtype) for n, x in have.items()}
  absent = [name for name in have if name not in source]
  return unflatten(new), Transfer(
    taken=taken,
    fresh=[name for name in absent if _TASK.match(name)],
    missing=[name for name in absent if not _TASK.match(name)],
    ignored=sorted(source.keys() - have.keys()),
  )


def weights_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """The weights file of a run's folder; a file is itself."""
  path = pathlib.Path(path)
  return path / WEIGHTS if path.is_dir() else path


def _read(
  path: str | os.PathLike[str], have: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """The tensors of a source by the names of the model that takes them."""
  file = weights_path(path)
  state = _torch_state(file)
  if state is not None:
    return _from_torch(state, have)
  variables, card = load_weights(file)
  source = flatten(variables)
  pretrained = card.get('pretrain') is not None
  if pretrained and 'params/mask_token' not in have:
    source = {
      f'{n} (of tokens)' if _PRETRAINING_ONLY.match(n) else n: x
      for n, x in source.items()
    }
  return _restack(source, have)


def _torch_state(path: pathlib.Path) -> dict[str, np.ndarray] | None:
  """A PyTorch state dict, or None when the file is not one."""
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      if (file.metadata() or {}).get('card'):
        return None
    return safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, OSError, ValueError):
    return None  # load_weights says what is wrong with it


def _from_torch(
  state: Mapping[str, np.ndarray], have: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Renames a PyTorch state dict; what has no place keeps its name."""
  if 'params/mask_token' in have:
    table = torch_names.AUTOENCODER
  else:
    table = torch_names.CLASSIFIER
    # As the authors' fine-tuning: the encoder of a pre-training is the model.
    state = {
      re.sub(r'^(backbone|encoder)\.', '', n): x for n, x in state.items()
    }
  unstacked = _unstacked_shapes(have)
  source, used = {}, set()
  for path, shape in unstacked.items():
    try:
      name, layout = torch_names.lookup(path, table)
    except ValueError:  # a part that the authors' models do not have
      continue
    if name in state:
      array = np.asarray(layout.to_flax(state[name]))
      fits = array.size == np.prod(shape, dtype=int)
      source[path] = array.reshape(shape) if fits else array
      used.add(name)
  source |= {name: x for name, x in state.items() if name not in used}
  return _restack(source, have)


def _unstacked_shapes(
  have: Mapping[str, np.ndarray],
) -> dict[str, tuple[int, ...]]:
  shapes = {}
  for name, array in have.items():
    if '/blocks/' in name:
      for i in range(len(array)):
        shapes[name.replace('/blocks/', f'/block_{i}/')] = array.shape[1:]
    else:
      shapes[name] = array.shape
  return shapes


def _restack(
  source: Mapping[str, np.ndarray], have: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Stacks or unstacks blocks, as the model that takes them has them."""
  stacked = any('/blocks/' in name for name in have)
  result: dict[str, Any] = {}
  for name, array in source.items():
    block = re.search(r'/block_(\d+)/', name)
    if stacked and block:
      whole = name.replace(block[0], '/blocks/')
      result.setdefault(whole, {})[int(block[1])] = array
    elif not stacked and '/blocks/' in name:
      for i, one in enumerate(array):
        result[name.replace('/blocks/', f'/block_{i}/')] = one
    else:
      result[name] = array
  return {
    name: np.stack([x[i] for i in sorted(x)]) if isinstance(x, dict) else x
    for name, x in result.items()
  }


def _unusable(
  code: str, path: str | os.PathLike[str], hint: str
) -> MiraInputError:
  return MiraInputError(code, path, hint, exit_code=ExitCode.CHECKPOINT)
