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
  'agreement_figure': 'agreement',
  'ClipPicture': 'clip',
  'clip_figure': 'clip',
  'confusion_figure': 'charts',
  'contact_sheet': 'charts',
  'curves_figure': 'charts',
  'reconstruction_figure': 'reconstruction',
  'timeline_figure': 'timeline',
}


def __getattr__(name: str) -> Any:
  if name in _MODULES:
    _import_matplotlib()
    module = importlib.import_module(f'{__name__}.{_MODULES[name]}')
    return getattr(module, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def _import_matplotlib() -> None:
  """Imports matplotlib with its own settings, not the user's.

  Notebooks set MPLBACKEND for their child processes to a module that may be
  missing there. A backend that exists is set afterwards: the caller may want
  windows.

  Raises:
    MiraInputError: matplotlibrc cannot be read ('bad_settings').
  """
  if 'matplotlib.figure' in sys.modules:
    return
  backend = os.environ.pop('MPLBACKEND', None)
  logger = logging.getLogger('matplotlib')
  level = logger.level
  logger.setLevel(logging.ERROR)  # its warnings are about unused settings
  try:
    import matplotlib
    import matplotlib.figure
  except (OSError, ValueError) as error:
    hint = f'matplotlib cannot read it, correct or remove that file ({error})'
    raise MiraInputError('bad_settings', 'matplotlibrc', hint) from error
  finally:
    logger.setLevel(level)
    if backend is not None:
      os.environ['MPLBACKEND'] = backend
  if backend:
    with contextlib.suppress(ValueError):
      matplotlib.rcParams['backend'] = backend
