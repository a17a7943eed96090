"""Figures: explained clips, confusion matrices, curves, contact sheets.

Every function returns a `Picture`; its `save` writes a PNG with the arrays
beside it (`x.png`, `x.npz`). Figures use no pyplot and no global state, so any
thread may draw. The colours (Okabe and Ito) and maps (inferno, RdBu, Blues) are
safe for colour-blind readers. matplotlib is imported on first use.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from typing import Any

from mira_jax.errors import MiraInputError

_MODULES = {
  'blocks_figure': 'blocks',
  'clip_figure': 'clip',
  'color_table': 'style',
  'confusion_figure': 'charts',
  'contact_sheet': 'sheets',
  'curves_figure': 'charts',
  'faithfulness_figure': 'charts',
  'features_figure': 'charts',
  'overlay_frames': 'overlay',
  'reconstruction_figure': 'sheets',
  'reliability_figure': 'charts',
  'timeline_figure': 'charts',
  'maps_figure': 'systems',
  'unit_timeline_figure': 'unit_timeline',
}


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  if 'matplotlib' not in sys.modules:
    _import_matplotlib()
  return getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)


def _import_matplotlib() -> None:
  """Imports matplotlib, whatever the settings of the user are.

  Notebooks set MPLBACKEND for their child processes to a module that may be
  missing there. One that exists is set afterwards, for the caller's windows.
  """
  backend = os.environ.pop('MPLBACKEND', None)
  logger = logging.getLogger('matplotlib')
  level = logger.level
  logger.setLevel(logging.ERROR)  # it warns of settings that are not used here
  try:
    import matplotlib
  except (OSError, ValueError) as error:
    hint = f'matplotlib cannot read it, correct or remove that file ({error})'
    raise MiraInputError('bad_settings', 'matplotlibrc', hint) from error
  finally:
    logger.setLevel(level)
    if backend:
      os.environ['MPLBACKEND'] = backend
  if backend:
    with contextlib.suppress(ValueError):
      matplotlib.rcParams['backend'] = backend
