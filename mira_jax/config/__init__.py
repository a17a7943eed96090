"""The configuration of a run: one tree of plain dataclasses."""

from mira_jax.config.checks import validate
from mira_jax.config.load import load
from mira_jax.config.schema import (
  Config,
  DataConfig,
  EvalConfig,
  MeshConfig,
  ModelConfig,
  OptimConfig,
  PretrainConfig,
  TrainConfig,
  augment,
  bad_config,
  datasets,
  defaults,
  final_lr,
  from_json,
  peak_lr,
  to_json,
)

__all__ = [
  'Config',
  'DataConfig',
  'EvalConfig',
  'MeshConfig',
  'ModelConfig',
  'OptimConfig',
  'PretrainConfig',
  'TrainConfig',
  'augment',
  'bad_config',
  'datasets',
  'defaults',
  'final_lr',
  'from_json',
  'load',
  'peak_lr',
  'to_json',
  'validate',
]
