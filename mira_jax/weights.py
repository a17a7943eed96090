"""Weights in one safetensors file that needs nothing beside it.

Tensors are named by their path, 'params/encoder/block_0/attn/qkv/kernel'. The
header carries a card: JSON with the model's fields, the class names and how
clips are prepared. Nothing in such a file can run code.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from mira_jax.errors import checkpoint_error

PyTree = Any
# In the folder of a run: the chosen weights, and those of the last step.
WEIGHTS = 'weights.safetensors'
LAST = 'weights-last.safetensors'


def flatten(tree: PyTree) -> dict[str, Any]:
  """Nested dicts -> one dict of their leaves with '/'-joined names."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}


def path_name(path: tuple[Any, ...]) -> str:
  """The name of a leaf from its path in a tree of dicts."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def unflatten(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for name, array in arrays.items():
    *folders, last = name.split('/')
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = array
  return tree


def compact(names: Iterable[str]) -> str:
  """Names with commas; those that differ by the block alone are one, with *."""
  groups: dict[str, list[str]] = {}
  for name in names:
    key = re.sub(r'(?<=block_)\d+|(?<=blocks\.)\d+', '*', name)
    groups.setdefault(key, []).append(name)
  return ', '.join(
    own[0] if len(own) == 1 else f'{key} ({len(own)})'
    for key, own in groups.items()
  )


def restack(
  arrays: Mapping[str, np.ndarray], stacked: bool
) -> dict[str, np.ndarray]:
  """Stacks blocks ('block_0', ...) into 'blocks' (`scan`), or unstacks them.

  Args:
    arrays: by '/'-joined names, with stacked blocks or single ones.
    stacked: whether they shall be stacked.
  """
  result: dict[str, Any] = {}
  for name, array in arrays.items():
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


def save_weights(
  path: str | os.PathLike[str],
  params: PyTree,
  state: PyTree,
  card: Mapping[str, Any],
) -> pathlib.Path:
  """Writes a weights file; whatever was at `path` stays until it is complete.

  Args:
    path: the file; its name should end in '.safetensors'.
    params: the 'params' collection.
    state: the 'mira' collection; {} for a plain model.
    card: JSON-able; what `load_weights` gives back.
  """
  arrays = flatten({'params': params, 'mira': state})
  return write_arrays(path, arrays, {'card': json.dumps(card)})


def write_arrays(
  path: str | os.PathLike[str],
  arrays: Mapping[str, np.ndarray],
  header: Mapping[str, str],
) -> pathlib.Path:
  """Writes safetensors; whatever was at `path` stays until it is complete."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + '.part')
  # safetensors writes memory as it lies: a transposed view must be copied.
  arrays = {n: np.ascontiguousarray(a) for n, a in arrays.items()}
  safetensors.numpy.save_file(arrays, part, metadata=dict(header))
  os.replace(part, path)
  return path


def load_weights(
  path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a weights file.

  Returns:
    The model's variables {'params': ..., 'mira': ...} and the card.

  Raises:
    MiraInputError: no such file, not safetensors, no card, or NaN inside.
  """
  if not os.path.isfile(path):
    raise checkpoint_error('not_found', path, 'name a weights.safetensors file')
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      card = json.loads((file.metadata() or {}).get('card', 'null'))
      names = list(file.keys())
      arrays = {name: file.get_tensor(name) for name in names}
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    hint = f'the file is damaged or of another format ({error})'
    raise checkpoint_error('not_weights', path, hint) from error
  if not isinstance(card, dict):
    hint = 'it has no card; use a file that train.py wrote'
    raise checkpoint_error('not_weights', path, hint)
  for name, array in arrays.items():
    if not np.isfinite(array).all():
      raise checkpoint_error(
        'not_finite', path, f'{name} holds NaN or infinity'
      )
  return unflatten(arrays), card
