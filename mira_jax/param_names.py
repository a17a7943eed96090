"""The role of every parameter, by its name: one table for all that ask.

Weight decay, layer-wise learning rates, sharding, int8 and warm starts read it.
A name is the '/'-joined path of a leaf; where the tree lies may precede it:
'encoder/block_0/attn/qkv/kernel', 'params/encoder/...',
'opt_state/0/mu/encoder/...'.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import jax


class Role(NamedTuple):
  """A kind of parameter."""

  name: str
  pattern: str  # of the end of a parameter's name
  inputs: int = 0  # axes of a kernel that are summed over; 0: it is no kernel
  outputs: int = 1  # its other axes, which follow
  split: int = 0  # what tensor parallelism splits, from the end; 0: nothing


_ATTN = '(time_|framewise_)?attn/'
_MLP = '(framewise_)?mlp/'
_NORM = '(norm|decoder_norm|(framewise_)?norm[12]|time_norm)/'

ROLES = (
  Role('embedding', 'embed/kernel', inputs=4),
  Role('embedding bias', 'embed/bias'),
  Role('stem', r'embed/conv_\d+/kernel', inputs=3),
  Role('stem norm scale', r'embed/norm_\d+/scale'),
  Role('stem norm bias', r'embed/norm_\d+/bias'),
  Role('positions', '(positions|positions_time)'),
  Role('class token', '(cls|cls_time)'),
  Role('mask token', 'mask_token'),
  # [C, 3, H, D], [H, D], [H, D, C]
  Role('qkv', f'{_ATTN}qkv/kernel', inputs=1, outputs=3, split=2),
  Role('qv bias', f'{_ATTN}[qv]_bias', split=2),
  Role('projection', f'{_ATTN}proj/kernel', inputs=2, split=3),
  Role('projection bias', f'{_ATTN}proj/bias'),
  Role('average', f'{_ATTN}confidence'),  # MiRA's, which is no parameter
  # [C, F], [F], [F, C]
  Role('hidden', f'{_MLP}fc1/kernel', inputs=1, split=1),
  Role('hidden bias', f'{_MLP}fc1/bias', split=1),
  Role('mlp output', f'{_MLP}fc2/kernel', inputs=1, split=2),
  Role('mlp output bias', f'{_MLP}fc2/bias'),
  Role('norm scale', f'{_NORM}scale'),
  Role('norm bias', f'{_NORM}bias'),
  Role('branch scale', '(scale[12]|time_scale)'),
  Role('to decoder', 'to_decoder/kernel', inputs=1),
  Role('decoder head', 'decoder_head/kernel', inputs=1),
  Role('decoder head bias', 'decoder_head/bias'),
  Role('pooling query', 'query'),
  Role('head', 'head/kernel', inputs=1),
  Role('head bias', 'head/bias'),
  # Of other systems (docs/systems.md): small, and neither decayed nor Muon's,
  # but for the layers of window cross-attention.
  Role('direction', 'orientation/direction'),
  Role('orientation', 'orientation/(reduce|expand)_kernel'),
  Role('gate', f'{_ATTN}gate/gate_kernel'),
  Role('head mixing', f'{_ATTN}head_mix/mix_kernel'),
  Role('experts', r'(qkv|proj|fc[12])_experts/(a|b|scale)'),
  Role('cross windows', r'cross_windows/(?!norm)\w+/kernel', inputs=1),
  Role(
    'cross windows other',
    r'cross_windows/((?!norm/)\w+/(bias|scale)|\w+)',
  ),
  Role('channels', r'(channels(_norm)?|channel_head)/\w+'),
  Role('reliability', r'reliability/(reduce/)?\w+'),
  Role('extra head', '(identity_head|oracle|position_stream)/(kernel|bias)'),
)

# Parts of a model: the first component of a parameter's name.
HEAD = 'head'
EMBEDDED = ('embed', 'positions', 'cls', 'cross_windows')  # before the blocks
TIME_EMBEDDED = ('positions_time', 'cls_time')  # the temporal blocks
POSITIONS = ('params/positions', 'params/positions_time')
MASK_TOKEN = 'params/mask_token'  # only of an autoencoder


def path_name(path: tuple[Any, ...]) -> str:
  """The name of a leaf from its path in a tree."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


@functools.cache
def find_role(name: str) -> Role | None:
  """The role of a name; None for what belongs to no model (a step count)."""
  return next((role for role in ROLES if matches(role, name)), None)


def matches(role: Role, name: str) -> bool:
  """Whether a name, wherever its tree lies, has a role."""
  return bool(re.fullmatch(f'(.*/)?{role.pattern}', name))


def role_of(name: str) -> Role:
  """The role of a parameter.

  Raises:
    KeyError: the table lacks it.
  """
  if (role := find_role(name)) is None:
    raise KeyError(f'{name} has no role in mira_jax.param_names')
  return role


def is_head(name: str) -> bool:
  """Whether it is the classification head's."""
  return role_of(name).name in ('head', 'head bias')


def kernel_axes(
  name: str, ndim: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
  """Axes of a kernel that are inputs, and outputs; None for what is no kernel.

  Axes before them are those of stacked blocks.
  """
  role = role_of(name)
  if not role.inputs:
    return None
  middle = ndim - role.outputs
  inputs = tuple(range(middle - role.inputs, middle))
  return inputs, tuple(range(middle, ndim))


# ----- blocks: stacked ('blocks', of scan=True) or single ('block_0', ...) ----


def is_stacked(name: str) -> bool:
  """Whether the first axis is that of stacked blocks."""
  return '/blocks/' in name


def block_index(name: str) -> int | None:
  """The number of a single block."""
  match = re.search(r'/block_(\d+)/', f'/{name}')
  return int(match[1]) if match else None


def stacked_name(name: str) -> str:
  """The name of a single block's parameter among stacked ones."""
  return re.sub(r'/block_\d+/', '/blocks/', name)


def single_name(name: str, index: int) -> str:
  """The inverse of `stacked_name`."""
  return name.replace('/blocks/', f'/block_{index}/')


# ----- what a warm start takes ------------------------------------------------

_SYSTEM_HEADS = (
  'channels|channels_norm|channel_head|reliability|identity_head|oracle'
  '|position_stream'
)
_TASK = re.compile(
  r'params/(head|query|norm|decoder\w*|to_decoder|mask_token'
  rf'|{_SYSTEM_HEADS})\b'
)
# Systems within the backbone, which weights of a plain model lack.
_ADDED = re.compile(
  '(^|/)(orientation|gate|head_mix|[a-z0-9]+_experts|cross_windows)/'
)
_PROBE = re.compile(rf'(head|query|{_SYSTEM_HEADS})\b')
_ENCODER_NORM = re.compile(r'params/norm\b')


def is_task(name: str) -> bool:
  """Whether a new task learns it anew; all else is the backbone."""
  return bool(_TASK.match(name) or _ADDED.search(name))


def is_probe(name: str) -> bool:
  """Whether it learns on a frozen backbone: the head, and other systems."""
  return bool(_PROBE.match(name) or _ADDED.search(name))


def is_last_norm(name: str) -> bool:
  """The norm before the head, or of an autoencoder's encoder.

  A classifier's is of the mean of the tokens, an autoencoder's of each.
  """
  return bool(_ENCODER_NORM.match(name))
