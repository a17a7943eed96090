"""Untrained models in small, as a finished run leaves them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mira_jax import config
from mira_jax.mira import MiraConfig
from mira_jax.models.build import build_model
from mira_jax.synthetic import faces
from mira_jax.weights import weights_file

NAMES = list(faces.CLASS_NAMES)


def save_model(
  path: pathlib.Path,
  mira: MiraConfig | None = None,
  *,
  names: list[str] = NAMES,
  pretrain: dict[str, Any] | None = None,
  datasets: Sequence[str] = (),
  card: dict[str, Any] | None = None,
  **fields: Any,
) -> pathlib.Path:
  """Writes a weights file, or a run folder where `path` has no suffix."""
  model_fields = dataclasses.asdict(
    config.ModelConfig(
      dim=16, depth=2, heads=2, num_classes=len(names), image_size=32, patch=8,
      mira=mira,
    )
  ) | fields  # fmt: skip
  model = build_model(model_fields)
  side = model.image_size
  video = jnp.zeros((1, model.frames, side, side, 3))
  variables = jax.jit(model.init)(jax.random.key(0), video)
  card = (card or {}) | {
    'model': model_fields,
    'pretrain': pretrain,
    'class_names': names,
    'preprocessing': {'rate': 2, 'fit': 'crop'},
  }
  if datasets:
    rows = [{'name': name, 'fingerprint': 'x'} for name in datasets]
    card['datasets'] = rows
  file = path if path.suffix else path / weights_file.WEIGHTS
  weights_file.save_weights(
    file, variables['params'], variables.get('mira', {}), card
  )
  return path
