"""The train state and the training step.

The model is any object with `init` and `apply` as flax modules have them.
Randomness is an argument: every draw comes from a key folded with the step, so
a resumed run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mira_jax.devices import sharding
from mira_jax.train import guard as guards
from mira_jax.train.losses import Metrics, Objective

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(kw_only=True)
class TrainState:
  """The state of a training, which every step updates."""

  step: Array  # int32 [], how many were made, skipped updates among them
  params: PyTree
  mira: PyTree  # averages of MiRA; {} without
  opt_state: PyTree
  average: PyTree  # exponential moving average of the parameters; {} without
  guard: guards.Guard = dataclasses.field(default_factory=guards.fresh)

  @property
  def variables(self) -> dict[str, PyTree]:
    """Variables to score: averaged parameters where there are, and MiRA's."""
    return {'params': self.average or self.params, 'mira': self.mira}


def init_state(
  init: Callable[[Array], PyTree],
  optimizer: optax.GradientTransformation,
  key: Array,
  *,
  averaged: bool = False,
) -> TrainState:
  """A fresh state of variables `init(key)`; `averaged` keeps an average."""
  variables = init(key)
  params = variables['params']
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    mira=variables.get('mira', {}),
    opt_state=optimizer.init(params),
    # Arrays of their own: a state is donated, and no buffer can be twice.
    average=jax.tree.map(jnp.copy, params) if averaged else {},
  )


def make_train_step(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  mesh: Mesh,
  *,
  repeats: int = 1,
  accumulate: int = 1,
  ema_decay: float = 0.0,
  spike_sigmas: float = 6.0,
  total_steps: int = 1,
  donate: bool = True,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
  """The jitted training step (state, batch, key) -> (state, metrics).

  `key` is the run's; the step folds itself into it. An update whose loss or
  gradient is not finite, or whose loss is a spike, is skipped: only `step` and
  `guard` change, everything else stays, to the bit. Metrics are scalars: loss,
  those of the objective, grad_norm, learning_rate and those of `guard.report`.

  Args:
    objective: see `losses`.
    optimizer: as in `optim.adamw`.
    schedule: of the optimizer, to report the learning rate.
    mesh: the devices, see `devices.sharding`.
    repeats: times that every clip of a batch goes through the model, each time
      augmented anew (repeated augmentation; Hoffer et al., CVPR 2020).
    accumulate: parts of equal size that a batch goes through the model in, to
      need less memory: gradients and metrics are their means. Mixing and MiRA's
      batch statistics are then those of a part.
    ema_decay: weight of the past in `TrainState.average`; 0 keeps no average.
    spike_sigmas: see `guard.judge`.
    total_steps: of the training; the share of them that is done is the
      `progress` [B] of every batch.
    donate: False keeps the state that is passed in, at twice the memory.
  """
  gradients = _gradients(objective, repeats, accumulate)

  def step(state: TrainState, batch: Batch, key: Array):
    key = jax.random.fold_in(key, state.step)
    progress = jnp.minimum(state.step / total_steps, 1).astype(jnp.float32)
    rows = next(iter(batch.values())).shape[:1]
    batch = dict(batch, progress=jnp.full(rows, progress))
    with sharding.ambient(mesh):
      mira, (grads, metrics) = gradients(state.params, state.mira, batch, key)
    metrics |= {
      'grad_norm': optax.tree.norm(grads),
      # The optimizer counts the updates that it made.
      'learning_rate': schedule(state.step - guards.missed(state.guard)),
    }
    finite = guards.all_finite((metrics['loss'], metrics['grad_norm'], mira))
    guard, verdict = guards.judge(
      state.guard, metrics['loss'], finite, state.step + 1, spike_sigmas
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = {
      'params': params,
      'mira': mira,
      'opt_state': opt_state,
      'average': _average(state.average, params, ema_decay),
    }
    # The verdict is known before the update is computed, so it is written over
    # the old state, in one pass.
    keep = verdict == guards.KEPT
    old = {name: getattr(state, name) for name in new}
    held = jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)
    guard, verdict = guards.confirm(
      state.guard, guard, verdict, guards.all_finite(held)
    )
    state = TrainState(step=state.step + 1, guard=guard, **held)
    # With the shardings of the old state, or the next step would compile again.
    where = sharding.shardings(state, mesh)
    state = jax.lax.with_sharding_constraint(state, where)
    return state, metrics | guards.report(guard, verdict)

  return jax.jit(
    step,
    donate_argnums=0 if donate else (),
    compiler_options=compiler_options(mesh),
  )


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
  """For programs with gradients: a CPU keeps what `layers.once` marks.

  Barriers stay until operations are fused. Where one residual gradient is fused
  into the next, a step costs the square of the depth.
  """
  if mesh.devices.flat[0].platform != 'cpu':
    return None
  return {'xla_disable_hlo_passes': 'cse_barrier_expander'}


def _gradients(
  objective: Objective, repeats: int, accumulate: int
) -> Callable[[PyTree, PyTree, Batch, Array], tuple[PyTree, tuple]]:
  """(params, mira, batch, key) -> mira, (gradients, metrics) of a batch."""
  differentiate = jax.value_and_grad(objective, has_aux=True)

  def one_part(params: PyTree, mira: PyTree, batch: Batch, key: Array):
    (loss, (metrics, mira)), grads = differentiate(params, mira, batch, key)
    return mira, (grads, {'loss': loss, **metrics})

  def whole(params: PyTree, mira: PyTree, batch: Batch, key: Array):
    batch = {
      n: einops.repeat(x, 'b ... -> (b r) ...', r=repeats)
      for n, x in batch.items()
    }
    if accumulate == 1:
      return one_part(params, mira, batch, key)
    # Every n-th row together: rows that lie side by side on a device stay
    # there, but whole thirds of a batch would be on a third of the devices.
    parts = {
      n: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)
      for n, x in batch.items()
    }
    keys = jax.random.split(key, accumulate)

    def add(carry, part):
      mira, total = carry
      mira, result = one_part(params, mira, *part)
      return (mira, jax.tree.map(jnp.add, total, result)), None

    first = jax.tree.map(lambda x: x[0], (parts, keys))
    shapes = jax.eval_shape(one_part, params, mira, *first)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (mira, total), _ = jax.lax.scan(add, (mira, zeros), (parts, keys))
    return mira, jax.tree.map(lambda x: x / accumulate, total)

  return whole


def _average(past: PyTree, params: PyTree, decay: float) -> PyTree:
  if not decay:
    return past
  return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, past, params)
