r"""PyTorch state dicts to flax variables and back, by one table.

The PyTorch names are those of the authors' code. A row of the
table is (flax path, PyTorch name, how the array is laid out); `(\d+)` in a path
is a block's index, `\1` in the name repeats it. Models with scan=True, whose
blocks are stacked, are not covered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.param_names import path_name
from mira_jax.weights.weights_file import compact, flatten

_SHAPES = 'mis-shaped'
Variables = Mapping[str, Any]
StateDict = Mapping[str, np.ndarray]


class Layout(NamedTuple):
  """How one array changes its layout, both ways; a reshape is implied."""

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


def _norm(path: str, name: str) -> tuple:
  return (
    (f'params/{path}/scale', f'{name}.weight', SAME),
    (f'params/{path}/bias', f'{name}.bias', SAME),
  )


def _dense(path: str, name: str) -> tuple:
  return (
    (f'params/{path}/kernel', f'{name}.weight', LINEAR),
    (f'params/{path}/bias', f'{name}.bias', SAME),
  )


def _embed(name: str) -> tuple:
  return (
    ('params/embed/kernel', f'{name}.proj.weight', CONV),
    ('params/embed/bias', f'{name}.proj.bias', SAME),
  )


def _blocks(path: str, name: str) -> tuple:
  path, name = rf'{path}/block_(\d+)', rf'{name}.\1'
  attention = tuple(
    (flax.replace('/', f'/{path}/{kind}/', 1), f'{name}.{kind}.{torch}', layout)
    for kind in ('attn', 'framewise_attn')
    for flax, torch, layout in ATTENTION
  )
  scales = tuple(
    (f'params/{path}/scale{i}', f'{name}.gamma_{i}', SAME) for i in (1, 2)
  )
  halves = []
  for prefix in ('', 'framewise_'):  # the second is the ST block's
    for i in (1, 2):
      norm, dense = f'{prefix}norm{i}', (f'{prefix}mlp', f'fc{i}')
      halves += _norm(f'{path}/{norm}', f'{name}.{norm}')
      halves += _dense('/'.join((path, *dense)), '.'.join((name, *dense)))
  return (*attention, *scales, *halves)


CLASSIFIER = (
  *_embed('patch_embed'),
  ('params/positions', 'pos_embed', ROW),
  ('params/cls', 'cls_token', SAME),
  *_blocks('encoder', 'blocks'),
  *_norm('norm', 'fc_norm'),
  *_dense('head', 'head'),
)

AUTOENCODER = (
  *_embed('encoder.patch_embed'),
  *_blocks('encoder', 'encoder.blocks'),
  *_norm('norm', 'encoder.norm'),
  ('params/to_decoder/kernel', 'encoder_to_decoder.weight', LINEAR),
  ('params/mask_token', 'mask_token', SAME),
  *_blocks('decoder', 'decoder.blocks'),
  *_norm('decoder_norm', 'decoder.norm'),
  *_dense('decoder_head', 'decoder.head'),
)


def to_torch(variables: Variables, table: tuple) -> dict[str, np.ndarray]:
  """Flax variables {'params': ..., 'mira': ...} as a PyTorch state dict.

  Raises:
    ValueError: for a variable that the table does not name.
  """
  state = {}
  for path, leaf in flatten(variables).items():
    name, layout = lookup(path, table)
    # A copy: safetensors would write a transposed view in the wrong order.
    state[name] = np.ascontiguousarray(layout.to_torch(np.asarray(leaf)))
  return state


def from_torch(
  state: StateDict, template: Variables, table: tuple, allow_missing: str = ''
) -> Variables:
  """A PyTorch state dict as flax variables shaped like `template`.

  Arrays keep the dtype that they have in the state dict.

  Args:
    state: arrays by PyTorch name.
    template: variables of the model, from `init` or `jax.eval_shape`.
    table: CLASSIFIER, AUTOENCODER or ATTENTION.
    allow_missing: regular expression of PyTorch names that may be missing; the
      template's leaves stay in their place.

  Raises:
    MiraInputError: naming every missing, extra and mis-shaped array.
  """
  leaves = flatten(template)
  rows = {path: lookup(path, table) for path in leaves}
  expected = {}
  for path, leaf in leaves.items():
    name, layout = rows[path]
    expected[name] = layout.to_torch(np.empty(leaf.shape, np.bool_)).shape
  _check_names(state, expected, allow_missing)

  def convert(path, leaf):
    name, layout = rows[path_name(path)]
    if name not in state:
      return leaf
    array = layout.to_flax(np.asarray(state[name])).reshape(leaf.shape)
    return np.ascontiguousarray(array)

  return jax.tree_util.tree_map_with_path(convert, template)


def _check_names(state: StateDict, expected: dict, allow_missing: str):
  missing = [
    name
    for name in expected
    if name not in state and not re.fullmatch(allow_missing, name)
  ]
  extra = [name for name in state if name not in expected]
  shapes = [
    f'{name} is {state[name].shape}, not {shape}'
    for name, shape in expected.items()
    if name in state and state[name].shape != shape
  ]
  faults = [
    f'{title}: {", ".join(names) if title == _SHAPES else compact(names)}'
    for title, names in (
      ('missing', missing),
      ('extra', extra),
      (_SHAPES, shapes),
    )
    if names
  ]
  if faults:
    raise MiraInputError(
      'weights_mismatch',
      'state dict',
      '; '.join(faults),
      exit_code=ExitCode.CHECKPOINT,
    )


def lookup(path: str, table: tuple) -> tuple[str, Layout]:
  """The PyTorch name of a variable and how its array is laid out.

  Raises:
    ValueError: the table does not name the variable.
  """
  for pattern, name, layout in table:
    match = re.fullmatch(pattern, path)
    if match:
      return match.expand(name), layout
  raise ValueError(f'{path} has no PyTorch name in this table')
