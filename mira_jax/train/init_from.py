"""Starts a run from the weights of another run or program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mira_jax import config
from mira_jax.devices import sharding
from mira_jax.errors import checkpoint_error
from mira_jax.models.layers import token_grid
from mira_jax.train import build
from mira_jax.train import step as steps
from mira_jax.weights import infer_model, sources, warm_start


def start_from(
  cfg: config.Config,
  class_names: Sequence[str],
  state: steps.TrainState,
  mesh: Mesh,
) -> tuple[steps.TrainState, warm_start.Transfer]:
  """A fresh state with the weights of `train.init_from`; see `transfer`.

  Raises:
    MiraInputError: there is no such run or file, or see there.
  """
  path, model = cfg.train.init_from, cfg.model
  if not sources.weights_path(path).is_file():
    hint = 'there are no weights; finish that run, name another one, or start '
    hint += 'from random weights with an empty --config.train.init_from='
    raise checkpoint_error('not_found', path, hint)
  own = {'params': state.params, 'mira': state.mira}
  source = sources.read(path)
  shape = build.video_shape(cfg)
  variables, report = warm_start.transfer(
    sharding.gather(own, mesh),
    source,
    class_names=class_names,
    grid=token_grid(shape, model.tubelet, model.patch),
    allow_missing=[x for x in cfg.train.allow_missing.split(',') if x],
    interpolate=cfg.train.interpolate_positions,
  )
  groups = dataclasses.asdict(model), dataclasses.asdict(cfg.data)
  notes = [*report.notes, *infer_model.differences(source, *groups)]
  origin = source.origin()
  report = dataclasses.replace(report, notes=notes, origin=origin)
  own = {'params': variables['params'], 'mira': variables.get('mira', {})}
  own = jax.device_put(own, sharding.shardings(own, mesh))
  average = jax.tree.map(jnp.copy, own['params']) if state.average else {}
  return dataclasses.replace(state, **own, average=average), report
