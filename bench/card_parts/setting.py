"""What the parts of `bench/card.py` share: tasks, inputs, and a way to time."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

# Cases, their oracle and the interpreter of kernels are those of the tests.
import pass_cases
import plain_passes
from aot import gpu
from mira_jax.kernels import timing, vjp
from mira_jax.kernels.gpu import passes
from mira_jax.kernels.gpu.sweep import Tuning

Item = TypeVar('Item')


class Task(NamedTuple):
  """Some rows that are found together."""

  name: str
  uses: Sequence[str]  # fields of `vjp.Passes`, to be left out if one hangs
  run: Callable[[], Iterable[Mapping[str, Any]]]
  pool: int | None = None  # of the child; None: any


class Setting:
  """What the tasks of a part share: full size on a card, or a dry run."""

  def __init__(self, interpret: bool):
    self.interpret = interpret
    self.kernels = not interpret  # else the whole map stands for them

  def passes(self, tunings: Mapping[str, Tuning] | None = None) -> vjp.Passes:
    """Our kernels."""
    tuned = passes.tuned(tunings or {})
    return tuned if self.kernels else plain_passes.PASSES

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Name -> [B, L, H, D] of what is timed."""
    return {'decoder': (2, 40, 1, 16)} if self.interpret else gpu.SHAPES

  def some(self, items: Iterable[Item], count: int) -> list[Item]:
    """All of them on a card, the first ones in a dry run."""
    return list(items)[: count if self.interpret else None]

  def seconds(
    self, run: Callable, arguments: Sequence[Any], expected: float
  ) -> float:
    """Median seconds of a call, alone on the GPU; `expected` ones, roughly."""
    options: dict[str, Any] = {'group': min(max(int(1e-3 / expected), 1), 16)}
    if self.interpret:
      options = {'rounds': 1, 'least': 0.001}
    return statistics.median(
      timing.seconds(run, arguments, alone=alone(), **options)
    )


@contextlib.contextmanager
def alone() -> Iterator[None]:
  """Keeps other children from timing."""
  with open(os.environ['CARD_LOCK'], 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


@functools.lru_cache(maxsize=2)
def inputs(setting: Setting, name: str) -> pass_cases.Inputs:
  """Random inputs of a named shape, drawn on the device.

  The log-sum-exp is that of many keys in the mean: log L + 1/2.
  """
  shape = setting.shapes[name]
  kinds = pass_cases.shapes(shape)

  @jax.jit
  def draw():
    key = jax.random.key(0)
    x = pass_cases.Inputs(
      *(
        jax.random.normal(jax.random.fold_in(key, i), x.shape).astype(x.dtype)
        for i, x in enumerate(kinds)
      )
    )
    lse = jnp.full_like(x.lse, math.log(shape[1]) + 0.5)
    return x._replace(gain=jnp.exp(x.gain / 4), bias=x.bias / 2, lse=lse)

  return draw()


class Log:
  """What compilers write about the kernels of a task."""

  def __init__(self):
    self._path = pathlib.Path(os.environ['CARD_LOG'])
    self._start = self._path.stat().st_size

  def spills(self) -> dict[str, int]:
    """Bytes that kernels keep in memory, of those compiled since."""
    with self._path.open(errors='replace') as file:
      file.seek(self._start)
      return gpu.spills(file.read())
