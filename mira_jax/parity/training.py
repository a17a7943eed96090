"""Trainings on given clips: model, loss, optimiser and step are the product's.

Nothing is drawn at random: the clips of each step come prepared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax

from mira_jax import config
from mira_jax.devices import sharding
from mira_jax.train import build, losses
from mira_jax.train.losses import Batch, Metrics, Objective, PyTree
from mira_jax.train.step import TrainState


def classification(model: build.Model) -> Objective:
  """Cross-entropy of batches {'video': normalised, 'target': [B, K]}."""

  def objective(params, mira, batch, key):
    video, targets = batch['video'], batch['target']
    every = jax.numpy.ones(len(video), bool)
    return losses.classify(model, params, mira, video, targets, every, key)

  return objective


def run(
  model: build.Model,
  objective: Objective,
  settings: config.OptimConfig,
  variables: PyTree,
  batches: Iterable[Batch],
  total: int,
) -> Iterator[tuple[TrainState, Metrics]]:
  """The state and metrics after each step, on one device.

  Args:
    model: it is trained.
    objective: its loss, see `train.losses`.
    settings: of the optimiser; `warmup_epochs` are steps.
    variables: of the model at the start.
    batches: one for every step.
    total: steps of the schedule.
  """
  cfg = config.Config(optim=settings, train=config.TrainConfig(epochs=total))
  program = build.Program(model, lambda key: variables, objective, '')
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  training = build.training(cfg, program, mesh, steps_per_epoch=1)
  key = jax.random.key(0)
  state = training.init(key)
  for batch in batches:
    state, metrics = training.step(state, batch, key)
    yield state, metrics
