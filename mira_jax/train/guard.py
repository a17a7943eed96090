"""The guard of training: which updates are made, and what it has seen.

An update is skipped when what it is computed from is not finite, or when its
loss is a spike: further above the last losses than so many of their standard
deviations, on a scale of logarithms. Both numbers, 128 losses and 6 deviations,
are those of Levanter's SkipStepConfig (stanford-crfm/levanter,
levanter/optim/skipstep.py). Its scale is linear; but losses of clips that are
nearly learnt lie over decades, and every hard clip would be a spike among them.

Everything stays on the device: what the guard knows is a part of the state.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any

WINDOW = 128  # losses that a spike is measured by
# A deviation of logarithms is taken to be at least this: losses that are
# constant but for rounding would make anything a spike.
LEAST_SIGMA = 0.01
LEAST_LOSS = 1e-30  # what a loss of 0 is taken for
KEPT, NOT_FINITE, SPIKE = range(3)  # the verdict on an update
RUINED = 2**30  # updates in a row, which no limit allows
REPORTED = frozenset({'skipped', 'spikes', 'in_a_row', 'last_good', 'verdict'})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(kw_only=True)
class Guard:
  """What the guard knows.

  Attributes:
    losses: float32 [WINDOW], the last finite losses, as a ring.
    seen: int32 [], how many finite losses there were.
    skipped: int32 [], updates that were not finite.
    in_a_row: int32 [], of them, those since the last update that was made.
    spikes: int32 [], updates that were skipped because of a spike.
    last_good: int32 [], the step of the last update that was made; 0: none.
  """

  losses: Array
  seen: Array
  skipped: Array
  in_a_row: Array
  spikes: Array
  last_good: Array


def fresh() -> Guard:
  """The guard of a run that begins."""
  names = ('seen', 'skipped', 'in_a_row', 'spikes', 'last_good')
  # Arrays of their own: a state is donated, and no buffer can be twice.
  return Guard(
    losses=jnp.zeros(WINDOW, jnp.float32),
    **{name: jnp.zeros((), jnp.int32) for name in names},
  )


def all_finite(tree: PyTree) -> Array:
  """Whether every number of a tree is finite, bool []."""
  return functools.reduce(
    jnp.logical_and,
    (jnp.isfinite(x).all() for x in jax.tree.leaves(tree)),
    jnp.asarray(True),
  )


def is_spike(losses: Array, loss: Array, sigmas: float) -> Array:
  """Whether a loss is far above others, bool [].

  With x the logarithms of the losses:
  `log(loss) > mean(x) + sigmas * max(std(x), LEAST_SIGMA)`.

  Args:
    losses: [n], finite.
    loss: [].
    sigmas: above 0.
  """
  x, level = (jnp.log(jnp.maximum(y, LEAST_LOSS)) for y in (losses, loss))
  return level > x.mean() + sigmas * jnp.maximum(x.std(), LEAST_SIGMA)


def judge(
  guard: Guard, loss: Array, finite: Array, step: Array, sigmas: float
) -> tuple[Guard, Array]:
  """The verdict on an update, and what the guard knows after it.

  Every finite loss is remembered, that of a spike, too: when losses stay on a
  higher level the window fills with them, and updates are made again.

  Args:
    guard: before.
    loss: float [], of the step.
    finite: bool [], whether all is that the update is computed from.
    step: int32 [], number of the step, counted from 1.
    sigmas: of a spike, see `is_spike`; 0: nothing is one.

  Returns:
    The guard and one of KEPT, NOT_FINITE, SPIKE as int32 [].
  """
  loss = loss.astype(jnp.float32)
  full = guard.seen >= WINDOW
  spike = full & is_spike(guard.losses, loss, sigmas) if sigmas else False
  verdict = jnp.where(finite, jnp.where(spike, SPIKE, KEPT), NOT_FINITE)
  remembered = jnp.isfinite(loss)
  ring = guard.losses.at[guard.seen % WINDOW].set(loss)
  return Guard(
    losses=jnp.where(remembered, ring, guard.losses),
    seen=guard.seen + remembered.astype(jnp.int32),
    skipped=guard.skipped + (verdict == NOT_FINITE),
    in_a_row=jnp.where(
      verdict == KEPT, 0, guard.in_a_row + (verdict == NOT_FINITE)
    ),
    spikes=guard.spikes + (verdict == SPIKE),
    last_good=jnp.where(verdict == KEPT, step, guard.last_good),
  ), verdict.astype(jnp.int32)


def confirm(
  before: Guard, guard: Guard, verdict: Array, finite: Array
) -> tuple[Guard, Array]:
  """Judges an update that was made by what it has left.

  Of a finite gradient only an absurd rate makes an update that is not finite.
  It was written over what was there: nothing can be skipped any more, and
  `in_a_row` is beyond every limit.

  Args:
    before: as given to `judge`.
    guard: from `judge`.
    verdict: from `judge`.
    finite: bool [], whether all is finite that the step has left.

  Returns:
    The guard and the verdict, which is NOT_FINITE instead of KEPT.
  """
  ruined = dataclasses.replace(
    before,
    skipped=before.skipped + 1,
    in_a_row=jnp.full_like(before.in_a_row, RUINED),
  )
  return jax.tree.map(
    lambda a, b: jnp.where(finite, a, b),
    (guard, verdict),
    (ruined, jnp.full_like(verdict, NOT_FINITE)),
  )


def missed(guard: Guard) -> Array:
  """How many updates were not made, int32 []."""
  return guard.skipped + guard.spikes


def report(guard: Guard, verdict: Array) -> dict[str, Array]:
  """What a step tells of the guard: its numbers, and the verdict."""
  return {
    'skipped': guard.skipped,
    'spikes': guard.spikes,
    'in_a_row': guard.in_a_row,
    'last_good': guard.last_good,
    'verdict': verdict,
  }
