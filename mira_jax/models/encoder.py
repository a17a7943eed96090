"""A stack of transformer blocks."""

from __future__ import annotations

import dataclasses
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mira_jax.kernels.operations import REMAT
from mira_jax.models.blocks import BLOCKS, Record, State
from mira_jax.models.options import EncoderOptions
from mira_jax.models.spec import BlockSpec

Array = jax.Array
Records = list[Record]


class Encoder(nn.Module):
  """A stack of blocks, MiRA in the last of them.

  Attributes:
    spec: of its blocks.
    depth: number of blocks.
    mira_last_blocks: see `options.EncoderOptions`.
    drop_path: rate of the last block; rates rise linearly.
    first_drop_path: rate of the first block.
    remat: see `kernels.operations.REMAT`; None keeps all.
    scan: compile one block and loop over stacked parameters (`blocks`, with a
      leading depth axis, instead of `block_0`, `block_1`, ...).
  """

  spec: BlockSpec
  depth: int
  mira_last_blocks: int | None = None
  drop_path: float = 0.0
  first_drop_path: float = 0.0
  remat: str | None = None
  scan: bool = False

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Records]:
    """[B, L, C] -> [B, L, C] and the record of each block, see `Block`."""
    if not 0 <= self.drop_path < 1:
      raise ValueError(f'drop_path is {self.drop_path}; use 0 to below 1')
    rates = np.linspace(
      self.first_drop_path, self.drop_path, self.depth, dtype=np.float32
    )
    block: Any = BLOCKS[self.spec.variant]
    if self.remat:
      block = nn.remat(
        block, prevent_cse=not self.scan, policy=REMAT[self.remat]
      )
    drops = self.spec.train and self.drop_path > 0
    spec = dataclasses.replace(self.spec, drop_paths=drops)
    state = self._start(x)
    if self.scan:
      return self._scan(block, spec, state, rates)
    records = []
    for i, rate in enumerate(rates):
      mira = spec.mira if i >= self._first_mira() else None
      one = block(dataclasses.replace(spec, mira=mira), name=f'block_{i}')
      state, record = one(state, rate)
      records.append(record)
    return _tokens(state), records

  def _start(self, x: Array) -> State:
    """What the first block gets: tokens, and a gate of 1 to carry over."""
    spec, soa = self.spec, self.spec.orientation
    if soa is None or soa.carry == 'none':
      return x
    shape = len(x), spec.num_frames, spec.size[0], x.shape[-1]
    return x, jnp.ones(shape, x.dtype)

  def _first_mira(self) -> int:
    last = self.mira_last_blocks
    return 0 if last is None else max(0, self.depth - last)

  def _scan(
    self, block: Any, spec: BlockSpec, state: State, rates: np.ndarray
  ) -> tuple[Array, Records]:
    if spec.mira is not None and self._first_mira() > 0:
      raise ValueError(
        f'scan needs the same attention in every block, but MiRA is in the '
        f'last {self.mira_last_blocks} of {self.depth}; set '
        'mira_last_blocks=None or scan=False'
      )
    scanned = nn.scan(
      block,
      variable_axes={'params': 0, 'mira': 0},
      split_rngs={'params': True, 'dropout': True},
      length=self.depth,
    )
    state, stacked = scanned(spec, name='blocks')(state, jnp.asarray(rates))
    return _tokens(state), [
      jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
      for i in range(self.depth)
    ]


def _tokens(state: State) -> Array:
  return state[0] if isinstance(state, tuple) else state


def encoder_of(options: EncoderOptions, spec: BlockSpec, **own: Any) -> Encoder:
  """The encoder of a model; `own` are fields that differ from its options."""
  names = ('depth', 'mira_last_blocks', 'drop_path', 'remat', 'scan')
  shared = {name: getattr(options, name) for name in names}
  return Encoder(spec, **shared | own)


def clip_record(record: Record, num_frames: int, num_prefix: int) -> Record:
  """The record of clips from that of their frames, [B * T, ...] each.

  Maps and outputs get the axes [B, T, ...]. The marginals become [B, L] and
  [B, H, L], those of the clip: a token receives attention from its own frame
  only, which is one of T. Prefix tokens are left out of them.
  """
  clips = {
    name: einops.rearrange(x, '(b t) ... -> b t ...', t=num_frames)
    for name, x in record.items()
  }
  for name in ('before', 'after', 'heads_before', 'heads_after'):
    if name in clips:
      marginal = clips[name][..., num_prefix:] / num_frames
      clips[name] = einops.rearrange(marginal, 'b t ... n -> b ... (t n)')
  return clips
