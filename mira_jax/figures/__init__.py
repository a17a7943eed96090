"""Figures: explained clips, confusion matrices, curves, contact sheets.

Every function returns a `Picture`; its `save` writes a PNG with the arrays
beside it (`x.png`, `x.npz`). Figures use no pyplot and no global state, so any
thread may draw. The colours (Okabe and Ito) and maps (inferno, RdBu, Blues) are
safe for colour-blind readers. matplotlib is imported on first use.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from mira_jax.errors import MiraInputError

_MODULES = {
  'clip_figure': 'clip',
  'confusion_figure': 'charts',
  'contact_sheet': 'sheets',
  'curves_figure': 'charts',
  'reconstruction_figure': 'sheets',
  'timeline_figure': 'charts',
}


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  logger = logging.getLogger('matplotlib')
  level = logger.level
  logger.setLevel(logging.ERROR)  # it warns of settings that are not used here
  try:
    module = importlib.import_module(f'{__name__}.{_MODULES[name]}')
  except (OSError, ValueError) as error:
    hint = f'correct or remove matplotlibrc and MPLBACKEND ({error})'
    raise MiraInputError('bad_settings', 'matplotlib', hint) from error
  finally:
    logger.setLevel(level)
  return getattr(module, name)
