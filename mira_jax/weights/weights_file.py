"""Weights in one safetensors file that needs nothing beside it.

Tensors are named by their path, 'params/encoder/block_0/attn/qkv/kernel'. The
header carries the metadata: JSON with the model's fields, the class names and
how clips are preprocessed. Nothing in such a file can run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import stat
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from mira_jax.errors import checkpoint_error, not_readable, not_written, short
from mira_jax.param_names import (
  block_index,
  is_stacked,
  path_name,
  single_name,
  stacked_name,
)
from mira_jax.weights.metadata import parse_metadata

PyTree = Any
# In the folder of a run: the best weights, and those of the last step.
WEIGHTS = 'weights.safetensors'
LAST = 'weights-last.safetensors'
# Fields of the header: the metadata, where names are ours and where they are
# PyTorch's; SHA-256 of all else in the file.
METADATA, TORCH_METADATA = 'card', 'mira_card'
DIGEST = 'mira_sha256'
_DEPTH = 32  # of the tree that names make


def flatten(tree: PyTree) -> dict[str, Any]:
  """Nested dicts -> one dict of their leaves with '/'-joined names."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}


def unflatten(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`.

  Raises:
    ValueError: a name is a part of another one, or has too many parts.
  """
  tree: dict[str, Any] = {}
  for name, array in sorted(arrays.items()):
    *folders, last = name.split('/')
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
      if not isinstance(node, dict) or len(folders) > _DEPTH:
        raise ValueError(f'{short(name)} cannot be the name of a tensor')
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
  """Stacks blocks ('block_0', ...) into 'blocks' (`scan`), or unstacks them."""
  result: dict[str, Any] = {}
  for name, array in arrays.items():
    block = block_index(name)
    if stacked and block is not None:
      result.setdefault(stacked_name(name), {})[block] = array
    elif not stacked and is_stacked(name):
      for i, one in enumerate(array):
        result[single_name(name, i)] = one
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
  metadata: Mapping[str, Any],
) -> pathlib.Path:
  """Writes the 'params' and 'mira' collections; see `write_arrays`."""
  arrays = flatten({'params': params, 'mira': state})
  return write_arrays(path, arrays, {METADATA: json.dumps(metadata)})


def write_arrays(
  path: str | os.PathLike[str],
  arrays: Mapping[str, np.ndarray],
  header: Mapping[str, str],
) -> pathlib.Path:
  """Writes safetensors; an existing file stays until the new one is complete.

  Raises:
    MiraInputError: the disk is full or the folder not writable.
  """
  path = pathlib.Path(path)
  part = path.with_name(path.name + '.part')
  # safetensors writes memory as it lies: a transposed view must be copied.
  arrays = {n: np.asarray(a, order='C') for n, a in arrays.items()}
  header = dict(header) | {DIGEST: _digest(arrays, header)}
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)  # of a run that was killed
    part.touch()
    mode = stat.S_IMODE(part.stat().st_mode)  # what the umask leaves
    safetensors.numpy.save_file(arrays, part, metadata=header)
    part.chmod(mode)  # which safetensors restricts to the user
    os.replace(part, path)
  except (OSError, safetensors.SafetensorError) as cause:
    hint = f'weights cannot be written there ({cause})'
    raise not_written(path, hint) from cause
  finally:
    with contextlib.suppress(OSError):
      part.unlink(missing_ok=True)
  return path


def read_arrays(
  path: str | os.PathLike[str],
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
  """The header, without our digest, and the tensors of any safetensors file.

  Raises:
    MiraInputError: the file is absent, unreadable, damaged, not safetensors, or
      its numbers are of a type that NumPy lacks.
  """
  if not os.path.isfile(path):
    raise checkpoint_error('not_found', path, 'name a weights.safetensors file')
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      header = file.metadata() or {}
      names = list(file.keys())
      types = {n: file.get_slice(n).get_dtype() for n in names}
      odd = [n for n in names if types[n].startswith(('F8', 'F4', 'C'))]
      arrays = {n: file.get_tensor(n) for n in names if not odd}
  except OSError as cause:
    raise not_readable(path, cause) from cause
  # Headers can hold anything, and types may be younger than NumPy.
  except (safetensors.SafetensorError, ValueError, AttributeError) as cause:
    hint = f'the file is damaged or of another format ({short(str(cause))})'
    raise checkpoint_error('damaged', path, hint) from cause
  if odd:
    hint = f'{short(odd[0])} is of type {types[odd[0]]}; save it as float32'
    raise checkpoint_error('unsupported', path, hint)
  try:
    unflatten(arrays)
  except ValueError as cause:
    raise checkpoint_error('bad_weights', path, str(cause)) from cause
  digest = header.pop(DIGEST, None)  # absent from older files
  if digest is not None and digest != _digest(arrays, header):
    hint = 'its content does not match its SHA-256; copy it again'
    raise checkpoint_error('damaged', path, hint)
  return header, arrays


def _digest(arrays: Mapping[str, np.ndarray], header: Mapping[str, str]) -> str:
  """SHA-256 of a header and of contiguous arrays with their names."""
  whole = hashlib.sha256(json.dumps(sorted(header.items())).encode())
  for name, array in sorted(arrays.items()):
    whole.update(f'{name!a} {array.dtype} {array.shape};'.encode())
    whole.update(array.reshape(-1).view(np.uint8).data)
  return whole.hexdigest()


def load_weights(
  path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The variables {'params': ..., 'mira': ...} and metadata of a weights file.

  The metadata is unchecked, see `check_metadata`.

  Raises:
    MiraInputError: see `read_arrays`; or it has no metadata, or NaN.
  """
  header, arrays = read_arrays(path)
  if METADATA not in header:
    hint = 'it has no metadata; use a file of train.py or mira convert'
    raise checkpoint_error('bad_metadata', path, hint)
  for name, array in arrays.items():
    check_finite(name, array, path)
  return unflatten(arrays), parse_metadata(header[METADATA], path)


def check_finite(
  name: str, array: np.ndarray, path: str | os.PathLike[str]
) -> None:
  """Raises MiraInputError('not_finite') for NaN and infinity."""
  if not np.isfinite(array).all():
    hint = f'{short(name)} holds NaN or infinity'
    raise checkpoint_error('not_finite', path, hint)
