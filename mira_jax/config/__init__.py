"""The configuration of a run: one tree of plain dataclasses."""

from mira_jax.config.checks import validate as validate
from mira_jax.config.load import load as load
from mira_jax.config.schema import OLDER_FOLDS as OLDER_FOLDS
from mira_jax.config.schema import Config as Config
from mira_jax.config.schema import DataConfig as DataConfig
from mira_jax.config.schema import EvalConfig as EvalConfig
from mira_jax.config.schema import MeshConfig as MeshConfig
from mira_jax.config.schema import ModelConfig as ModelConfig
from mira_jax.config.schema import OptimConfig as OptimConfig
from mira_jax.config.schema import PretrainConfig as PretrainConfig
from mira_jax.config.schema import TrainConfig as TrainConfig
from mira_jax.config.schema import augment as augment
from mira_jax.config.schema import bad_config as bad_config
from mira_jax.config.schema import datasets as datasets
from mira_jax.config.schema import defaults as defaults
from mira_jax.config.schema import final_lr as final_lr
from mira_jax.config.schema import from_json as from_json
from mira_jax.config.schema import peak_lr as peak_lr
from mira_jax.config.schema import to_json as to_json
from mira_jax.config.schema import units as units
