"""The guard of training: which updates are made, and when a run ends for them.

An update is skipped when its loss or gradient is not finite, or when its loss
is a spike: further above the last losses than so many of their standard
deviations, on a scale of logarithms. Both numbers, 128 losses and 6 deviations,
are those of Levanter's SkipStepConfig (stanford-crfm/levanter,
levanter/optim/skipstep.py). Its scale is linear; but losses of clips that are
nearly learnt lie over decades, and every hard clip would be a spike among them.

Updates are judged on the device: the counts are a part of the train state.
`Policy` decides on the host, from these counts, whether the run saves and ends.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mira_jax.errors import ExitCode, MiraInputError

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
  """Counts of a run's updates (int32 []), and its last losses."""

  losses: Array  # float32 [WINDOW], the last finite ones, as a ring
  seen: Array  # finite losses
  skipped: Array  # updates that were not finite
  in_a_row: Array  # of them, those since the last update that was made
  spikes: Array  # updates that were skipped because of a spike
  last_good: Array  # the step of the last update that was made; 0: none


def fresh() -> Guard:
  """The guard of a new run."""
  names = ('seen', 'skipped', 'in_a_row', 'spikes', 'last_good')
  # Arrays of their own: a state is donated, and no buffer can be twice.
  return Guard(
    losses=jnp.zeros(WINDOW, jnp.float32),
    **{name: jnp.zeros((), jnp.int32) for name in names},
  )


def all_finite(tree: PyTree) -> Array:
  """Whether every number of a tree is finite, bool []."""
  finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
  return functools.reduce(jnp.logical_and, finite, jnp.asarray(True))


def is_spike(losses: Array, loss: Array, sigmas: float) -> Array:
  """Whether a loss is far above others, bool [].

  With x the logarithms of the losses [n], which are finite:
  `log(loss) > mean(x) + sigmas * max(std(x), LEAST_SIGMA)`.
  """
  x, level = (jnp.log(jnp.maximum(y, LEAST_LOSS)) for y in (losses, loss))
  return level > x.mean() + sigmas * jnp.maximum(x.std(), LEAST_SIGMA)


def judge(
  guard: Guard, loss: Array, finite: Array, step: Array, sigmas: float
) -> tuple[Guard, Array]:
  """The verdict on the update of a step, and the guard after it.

  Every finite loss is remembered, that of a spike, too: when losses stay on a
  higher level the window fills with them, and updates are made again.

  Args:
    guard: before.
    loss: [].
    finite: bool [], whether loss, gradients and MiRA's averages are.
    step: counted from 1.
    sigmas: of a spike, see `is_spike`; 0: nothing is one.
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
  """Turns KEPT into NOT_FINITE where the new state is not finite.

  Of a finite gradient only an absurd rate makes such an update. It was written
  over the old state: nothing can be skipped any more, and `in_a_row` is beyond
  every limit. `before` was given to `judge`, `guard` and `verdict` are from it.
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
  """Metrics of a step: the counts of the guard, and the verdict."""
  counts = {n: getattr(guard, n) for n in REPORTED if n != 'verdict'}
  return counts | {'verdict': verdict}


# ----- on the host ------------------------------------------------------------


class Policy:
  """Decides whether a run saves its state, and when it ends.

  A state that is held while losses are NaN may be their cause. It is not saved:
  it would be the newest checkpoint, from which no other learning rate could
  resume. `max_bad_steps` updates in a row may be not finite.
  """

  def __init__(self, max_bad_steps: int, start: int):
    self._max_bad_steps, self._start = max_bad_steps, start
    self.saved = start  # step of the newest checkpoint; 0 when there is none
    self.may_save = True  # the last update was finite

  def check(self, step: int, row: Mapping[str, Any]) -> str:
    """Describes an update that was skipped; '' where it was made.

    `row` are the metrics of the step, those of `report` among them.

    Raises:
      MiraInputError: too many updates in a row were not finite.
    """
    self.may_save = not row['in_a_row']
    if row['verdict'] == SPIKE:
      return f'step {step}: a spike, loss {row["loss"]:.4g}, skipped'
    if row['verdict'] != NOT_FINITE:
      return ''
    if row['in_a_row'] <= self._max_bad_steps:
      return f'step {step}: not finite, skipped ({row["in_a_row"]} in a row)'
    newest = f'the newest checkpoint is of step {self.saved}'
    if not self.saved:
      newest = 'there is no checkpoint yet'
    elif row['last_good'] <= self._start:
      newest += '; remove that one, which may be the cause'
    force = ' and add --force' if self.saved else ''
    hint = (
      f'the last good step is {row["last_good"]}, and {newest}; lower '
      f'config.optim.lr or set config.optim.clip_norm{force}, or search the '
      'cause with --debug_nans'
    )
    raise not_finite(step, row, hint)


def not_finite(step: int, row: Mapping[str, Any], hint: str) -> MiraInputError:
  """The error of a step whose update is not finite; names the quantity."""
  quantity = f'the update of step {step} is not finite'
  for name in ('grad_norm', 'loss'):
    if not math.isfinite(row[name]):
      quantity = f'the {name} of step {step} is {row[name]}'
  code = ExitCode.NUMERIC
  return MiraInputError('not_finite', quantity, hint, exit_code=code)
