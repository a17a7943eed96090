"""What every block of a model reads, in one dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mira_jax.models.layers import default_init
from mira_jax.models.options import BlockOptions

Array = jax.Array
# Not frozen, as the options of a configuration are not; never changed.
_spec = dataclasses.dataclass(kw_only=True, unsafe_hash=True)


@_spec
class BlockSpec(BlockOptions):
  """Everything that a block reads, in one field of every module.

  Attributes:
    num_frames: T.
    num_prefix: leading tokens of no frame (a class token).
    size: tokens in height and width.
    train: whether a training step is running.
    drop_paths: whether to draw which clips lose a branch (rng 'dropout').
    record: whether to return the arrays of `block_record`.
    kernel_init: of all kernels.
  """

  num_frames: int
  num_prefix: int = 0
  size: tuple[int, int] = (1, 1)
  train: bool = False
  drop_paths: bool = False
  record: bool = False
  kernel_init: Callable[..., Array] = default_init

  @property
  def implementation(self) -> str | None:
    """Of attention: one that returns maps if they are recorded."""
    return self.attention or ('reference' if self.record else None)


def spec_of(options: BlockOptions, **own: Any) -> BlockSpec:
  """The spec of a model's blocks; `own` are the fields of a block alone."""
  names = (field.name for field in dataclasses.fields(BlockOptions))
  fields: dict[str, Any] = {name: getattr(options, name) for name in names}
  fields['dtype'] = jnp.dtype(options.dtype)
  return BlockSpec(**(fields | own))
