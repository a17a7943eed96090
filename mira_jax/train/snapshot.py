"""Scoring the weights of a run's checkpoints, also while it trains."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from mira_jax.devices import sharding
from mira_jax.inference import engine
from mira_jax.inference import load as loading
from mira_jax.models.build import build_model
from mira_jax.train import build, checkpoint_reader, run_folder
from mira_jax.weights.metadata import unit_thresholds


def load(
  workdir: pathlib.Path,
  which: str,
  batch_size: int = 8,
  dtype: str | None = None,
) -> tuple[engine.Engine, dict[str, Any]]:
  """The engine and the metadata of a checkpoint; see `loading.load_engine`.

  Reads the parameters, or their average if the run keeps one, and MiRA's
  averages, onto any devices. Nothing in the folder of the run is changed.

  Args:
    which: 'newest', 'best' or the number of a step.
    dtype: of the computation, by default the configuration's.

  Raises:
    MiraInputError: there is no such step, it or the metadata is damaged, or the
      run is a pre-training.
  """
  cfg = run_folder.read_config(workdir)
  if cfg.pretrain:
    raise loading.no_classifier(workdir, {'pretrain': cfg.pretrain})
  metadata = run_folder.read_metadata(workdir, cfg)
  own = {'dtype': dtype} if dtype else {}
  model = build_model(dataclasses.asdict(cfg.model) | own)
  video = jax.ShapeDtypeStruct(build.video_shape(cfg), jnp.float32)
  fresh = jax.eval_shape(model.init, jax.random.key(0), video)
  params = 'average' if cfg.optim.ema_decay else 'params'
  wanted = {params: fresh['params'], 'mira': fresh.get('mira', {})}
  mesh = sharding.make_mesh()
  step, found = checkpoint_reader.read_weights(
    workdir / 'checkpoints', which, sharding.abstract(wanted, mesh)
  )
  variables = {'params': found[params], 'mira': found['mira']}
  units = unit_thresholds(metadata) is not None
  scorer = engine.Engine(model, variables, batch_size, mesh, units)
  return scorer, metadata | {'step': step}
