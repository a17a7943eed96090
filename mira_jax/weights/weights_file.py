"""Weights in one safetensors file that needs nothing beside it.

Tensors are named by their path, 'params/encoder/block_0/attn/qkv/kernel'. The
header carries a card: JSON with the model's fields, the class names and how
clips are prepared. Nothing in such a file can run code.
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

from mira_jax.errors import checkpoint_error, not_readable, not_written
from mira_jax.param_names import (
  block_index,
  is_stacked,
  path_name,
  single_name,
  stacked_name,
)
from mira_jax.weights.metadata import parse_card

PyTree = Any
# In the folder of a run: the chosen weights, and those of the last step.
WEIGHTS = 'weights.safetensors'
LAST = 'weights-last.safetensors'
# In the header: SHA-256 of all else that is in the file.
DIGEST = 'mira_sha256'
_DEPTH = 32  # of the tree that names make


def flatten(tree: PyTree) -> dict[str, Any]:
  """Nested dicts -> one dict of their leaves with '/'-joined names."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}


def unflatten(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
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
        raise ValueError(f'no tensor can be called {name[:200]!a}')
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
  card: Mapping[str, Any],
) -> pathlib.Path:
  """Writes a weights file; whatever was at `path` stays until it is complete.

  Args:
    path: the file; its name should end in '.safetensors'.
    params: the 'params' collection.
    state: the 'mira' collection; {} for a plain model.
    card: JSON-able; what `load_weights` gives back.

  Raises:
    MiraInputError: see `write_arrays`.
  """
  arrays = flatten({'params': params, 'mira': state})
  return write_arrays(path, arrays, {'card': json.dumps(card)})


def write_arrays(
  path: str | os.PathLike[str],
  arrays: Mapping[str, np.ndarray],
  header: Mapping[str, str],
) -> pathlib.Path:
  """Writes safetensors; whatever was at `path` stays until it is complete.

  Raises:
    MiraInputError: there is no room, or no leave to write there.
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
    part.chmod(mode)  # which safetensors restricts to the owner
    os.replace(part, path)
  except (OSError, safetensors.SafetensorError) as cause:
    hint = f'weights must have room there ({cause})'
    raise not_written(path, hint) from cause
  finally:
    with contextlib.suppress(OSError):
      part.unlink(missing_ok=True)
  return path


def read_arrays(
  path: str | os.PathLike[str],
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
  """What is in a safetensors file, of whatever program.

  Returns:
    The words of its header, without ours of the digest, and its tensors.

  Raises:
    MiraInputError: not there or not to be read, not safetensors, damaged, or
      with numbers that NumPy or float32 does not have.
  """
  if not os.path.isfile(path):
    raise checkpoint_error('not_found', path, 'name a weights.safetensors file')
  try:
    with open(path, 'rb') as stream:
      start = stream.read(9)
    with safetensors.safe_open(path, framework='numpy') as file:
      header = file.metadata() or {}
      names = list(file.keys())
      types = {n: file.get_slice(n).get_dtype() for n in names}
      odd = {n: x for n, x in types.items() if x.startswith(('F8', 'F4', 'C'))}
      arrays = {n: file.get_tensor(n) for n in names if not odd}
  except OSError as cause:
    raise not_readable(path, cause) from cause
  # Headers can say anything, and types may be younger than NumPy.
  except (safetensors.SafetensorError, ValueError, AttributeError) as cause:
    named = os.fspath(path).endswith('.safetensors')
    code = 'damaged' if named or start[8:] == b'{' else 'not_weights'
    hint = f'the file is damaged or of another format ({str(cause)[:200]!a})'
    raise checkpoint_error(code, path, hint) from cause
  if odd:
    name, kind = next(iter(odd.items()))
    hint = f'{name[:200]!a} has numbers of {kind}; save it as float32'
    raise checkpoint_error('unsupported', path, hint)
  try:
    unflatten(arrays)
  except ValueError as cause:
    raise checkpoint_error('bad_weights', path, str(cause)) from cause
  told = header.pop(DIGEST, None)  # older files have none
  if told is not None and told != _digest(arrays, header):
    hint = 'it is not what was written (SHA-256); copy it again'
    raise checkpoint_error('damaged', path, hint)
  return header, arrays


def _digest(arrays: Mapping[str, np.ndarray], header: Mapping[str, str]) -> str:
  """SHA-256 of a header and of contiguous arrays with their names."""
  whole = hashlib.sha256(json.dumps(sorted(header.items())).encode())
  for name, array in sorted(arrays.items()):
    whole.update(f'{name!a} {array.dtype} {array.shape};'.encode())
    whole.update(array.reshape(-1).view(np.uint8))
  return whole.hexdigest()


def load_weights(
  path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads a weights file.

  Returns:
    The model's variables {'params': ..., 'mira': ...} and the card, of which
    only `card.check_card` says that it can be used.

  Raises:
    MiraInputError: see `read_arrays`; or no card, tensors that no model has,
      or NaN inside.
  """
  header, arrays = read_arrays(path)
  return unflatten(arrays), card_of(header, arrays, path)


def card_of(
  header: Mapping[str, str],
  arrays: Mapping[str, np.ndarray],
  path: str | os.PathLike[str],
) -> dict[str, Any]:
  """The card of a weights file, whose tensors are those of a model.

  Args:
    header: from `read_arrays`.
    arrays: from it.
    path: for errors.

  Raises:
    MiraInputError: see `load_weights`.
  """
  card = parse_card(header['card'], path) if 'card' in header else None
  if not isinstance(card, dict):
    hint = 'it has no card; use a file that train.py or mira convert wrote'
    raise checkpoint_error('not_weights', path, hint)
  for name, array in arrays.items():
    if not np.isfinite(array).all():
      hint = f'{name[:200]!a} holds NaN or infinity'
      raise checkpoint_error('not_finite', path, hint)
  return card
