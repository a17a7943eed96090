"""MiRA video transformers for faces, in JAX.

  import mira_jax

  model = mira_jax.load('runs/quickstart')   # or weights, a .pth, an export
  result = model.predict('clip.mp4')         # or uint8 [T, H, W, 3]
  result.label, result.probabilities         # 'Happy', {'Angry': 0.01, ...}

`load` gives a `Predictor`; `ViViT`, with the fields of `SIZES` and a
`MiraConfig`, is the flax module. Names are imported when they are first used:
importing the package loads neither jax nor any model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mira_jax.errors import MiraInputError
  from mira_jax.inference.predictor import Prediction, Predictor, load
  from mira_jax.inference.records import Records
  from mira_jax.mira import MiraConfig
  from mira_jax.models.vivit import SIZES, ViViT

  __version__: str

_MODULES = {
  'MiraInputError': 'errors',
  'Prediction': 'inference.predictor',
  'Predictor': 'inference.predictor',
  'Records': 'inference.records',
  'load': 'inference.predictor',
  'MiraConfig': 'mira',
  'SIZES': 'models.vivit',
  'ViViT': 'models.vivit',
}
__all__ = [
  'MiraConfig',
  'MiraInputError',
  'Prediction',
  'Predictor',
  'Records',
  'SIZES',
  'ViViT',
  '__version__',
  'load',
]


def __getattr__(name: str) -> Any:
  if name == '__version__':
    from importlib import metadata  # slow, and rarely needed

    value = metadata.version('mira-jax')
  elif name in _MODULES:
    module = importlib.import_module(f'mira_jax.{_MODULES[name]}')
    value = getattr(module, name)
  else:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
