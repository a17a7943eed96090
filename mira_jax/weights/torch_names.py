r"""PyTorch state dicts to flax variables and back, by one table.

The PyTorch names are those of the authors' code. A row of a table is (flax
path, PyTorch name, layout of the array); `(\d+)` in a path is a block's index,
`\1` in the name repeats it. Models with scan=True, whose blocks are stacked,
are not covered.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mira_jax.errors import checkpoint_error
from mira_jax.param_names import path_name
from mira_jax.weights.weights_file import compact, flatten

Variables = Mapping[str, Any]
StateDict = Mapping[str, np.ndarray]
Table = tuple[tuple[str, str, 'Layout'], ...]


class Layout(NamedTuple):
  """The layout of an array in both; reshaping to the model's is implied."""

  to_flax: Any
  to_torch: Any


SAME = Layout(lambda w: w, lambda x: x)
VECTOR = Layout(lambda w: w, lambda x: x.reshape(-1))
ROW = Layout(lambda w: w, lambda x: x[None])
# [out, in] against [in, out...] and [in..., out].
LINEAR = Layout(lambda w: w.T, lambda x: x.reshape(x.shape[0], -1).T)
PROJECT = Layout(lambda w: w.T, lambda x: x.reshape(-1, x.shape[-1]).T)
# [out, in, t, h, w] against [t, h, w, in, out].
CONV = Layout(
  lambda w: w.transpose(2, 3, 4, 1, 0), lambda x: x.transpose(4, 3, 0, 1, 2)
)

ATTENTION = (
  ('params/q_bias', 'q_bias', VECTOR),
  ('params/v_bias', 'v_bias', VECTOR),
  ('params/qkv/kernel', 'qkv.weight', LINEAR),
  ('params/proj/kernel', 'proj.weight', PROJECT),
  ('params/proj/bias', 'proj.bias', SAME),
  ('mira/confidence', 'c_buf', ROW),
)


def _affine(
  path: str, name: str, layout: Layout = LINEAR, weight: str = 'kernel'
) -> Table:
  return (
    (f'params/{path}/{weight}', f'{name}.weight', layout),
    (f'params/{path}/bias', f'{name}.bias', SAME),
  )


def _norm(path: str, name: str) -> Table:
  return _affine(path, name, SAME, 'scale')


def _blocks(path: str, name: str) -> Table:
  path, name = rf'{path}/block_(\d+)', rf'{name}.\1'
  rows = []
  for prefix in ('', 'framewise_'):  # the second is the ST block's
    attn, mlp = f'{prefix}attn', f'{prefix}mlp'
    for flax, torch, layout in ATTENTION:
      flax = flax.replace('/', f'/{path}/{attn}/', 1)
      rows.append((flax, f'{name}.{attn}.{torch}', layout))
    for i in (1, 2):
      rows += _norm(f'{path}/{prefix}norm{i}', f'{name}.{prefix}norm{i}')
      rows += _affine(f'{path}/{mlp}/fc{i}', f'{name}.{mlp}.fc{i}')
  for i in (1, 2):
    rows.append((f'params/{path}/scale{i}', f'{name}.gamma_{i}', SAME))
  return tuple(rows)


CLASSIFIER = (
  *_affine('embed', 'patch_embed.proj', CONV),
  ('params/positions', 'pos_embed', ROW),
  ('params/cls', 'cls_token', SAME),
  *_blocks('encoder', 'blocks'),
  *_norm('norm', 'fc_norm'),
  *_affine('head', 'head'),
)

AUTOENCODER = (
  *_affine('embed', 'encoder.patch_embed.proj', CONV),
  *_blocks('encoder', 'encoder.blocks'),
  *_norm('norm', 'encoder.norm'),
  ('params/to_decoder/kernel', 'encoder_to_decoder.weight', LINEAR),
  ('params/mask_token', 'mask_token', SAME),
  *_blocks('decoder', 'decoder.blocks'),
  *_norm('decoder_norm', 'decoder.norm'),
  *_affine('decoder_head', 'decoder.head'),
)


def to_torch(variables: Variables, table: Table) -> dict[str, np.ndarray]:
  """Flax variables {'params': ..., 'mira': ...} as a PyTorch state dict.

  Raises:
    ValueError: the table does not name a variable.
  """
  state = {}
  for path, leaf in flatten(variables).items():
    if not (row := _find(path, table)):
      raise ValueError(f'{path} has no PyTorch name in this table')
    name, layout = row
    # A copy: safetensors would write a transposed view in the wrong order.
    state[name] = np.ascontiguousarray(layout.to_torch(np.asarray(leaf)))
  return state


@dataclasses.dataclass
class Match:
  """A state dict beside the variables of a model."""

  arrays: dict[str, np.ndarray]  # that fit, by path, in flax's layout
  misshapen: dict[str, np.ndarray]  # by path, as they are
  missing: list[str]  # paths without a tensor
  extra: list[str]  # names without a path


def match(
  state: StateDict, shapes: Mapping[str, tuple[int, ...]], table: Table
) -> Match:
  """Sorts a state dict by the paths and shapes of a model's variables."""
  found = Match({}, {}, [], [])
  used = set()
  for path, shape in shapes.items():
    name, layout = _find(path, table) or ('', SAME)
    if name not in state:
      found.missing.append(path)
      continue
    used.add(name)
    array = np.asarray(state[name])
    if array.shape == _torch_shape(layout, shape):
      array = layout.to_flax(array).reshape(shape)
      found.arrays[path] = np.ascontiguousarray(array)
    else:
      found.misshapen[path] = array
  found.extra = [name for name in state if name not in used]
  return found


def from_torch(
  state: StateDict,
  template: Variables,
  table: Table,
  allow_missing: Container[str] = (),
) -> Variables:
  """A PyTorch state dict as flax variables shaped like `template`.

  Arrays keep the dtype that they have in the state dict. MiRA's averages may
  be missing; the template's stay in their place.

  Args:
    state: arrays by PyTorch name.
    template: variables of the model, from `init` or `jax.eval_shape`.
    table: CLASSIFIER, AUTOENCODER or ATTENTION.
    allow_missing: other paths of which the template's leaves may stay.

  Raises:
    MiraInputError: naming every missing, extra and misshapen array.
  """
  shapes = {path: leaf.shape for path, leaf in flatten(template).items()}
  found = match(state, shapes, table)
  names = {path: _find(path, table) or (path, SAME) for path in shapes}
  missing = [
    names[path][0]
    for path in found.missing
    if not (path in allow_missing or path.startswith('mira/'))
  ]
  misshapen = []
  for path, array in found.misshapen.items():
    name, layout = names[path]
    shape = _torch_shape(layout, shapes[path])
    misshapen.append(f'{name} is {array.shape}, not {shape}')
  faults = {
    'missing': compact(missing),
    'extra': compact(found.extra),
    'mis-shaped': ', '.join(misshapen),
  }
  if any(faults.values()):
    hint = '; '.join(f'{kind}: {x}' for kind, x in faults.items() if x)
    raise checkpoint_error('weights_mismatch', 'state dict', hint)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: found.arrays.get(path_name(path), leaf), template
  )


def _find(path: str, table: Table) -> tuple[str, Layout] | None:
  for pattern, name, layout in table:
    if match_ := re.fullmatch(pattern, path):
      return match_.expand(name), layout
  return None


def _torch_shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
  return layout.to_torch(np.empty(shape, np.bool_)).shape
