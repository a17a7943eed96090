"""Pictures: what MiRA did to a clip, confusion matrices, curves, data sheets.

Every picture comes in two steps: `build_*` returns a matplotlib Figure, and
the function without that prefix saves it as PNG with its arrays beside it
(`x.png`, `x.npz`). Figures are objects of their own: no pyplot, no global
state, so that a picture can be drawn from any thread. The colours (Okabe and
Ito) and maps (inferno, RdBu, Blues) are safe for colour-blind readers.

matplotlib is imported when the first of them is asked for.
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
  'agreement': ('agreement_figure', 'build_agreement_figure'),
  'charts': (
    'build_confusion_figure',
    'build_contact_sheet',
    'build_curves_figure',
    'confusion_figure',
    'contact_sheet',
    'curves_figure',
  ),
  'clip': ('ClipPicture', 'build_clip_figure', 'clip_figure'),
  'reconstruction': ('build_reconstruction_figure', 'reconstruction_figure'),
  'style': (),
  'timeline': ('build_timeline_figure', 'timeline_figure'),
}
__all__ = sorted(name for names in _MODULES.values() for name in names)


def __getattr__(name: str) -> Any:
  for module, names in _MODULES.items():
    if name == module or name in names:
      _import_matplotlib()
      found = importlib.import_module(f'{__name__}.{module}')
      return found if name == module else getattr(found, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def _import_matplotlib() -> None:
  """Imports it without regard to how a person has set it up.

  Notebooks set MPLBACKEND for all their children, where it names a module that
  need not be there. A backend that is there is set as if it were imported as
  usual: the caller may want windows.

  Raises:
    MiraInputError: a file of settings that cannot be read ('bad_settings').
  """
  if 'matplotlib.figure' in sys.modules:
    return
  backend = os.environ.pop('MPLBACKEND', None)
  logger = logging.getLogger('matplotlib')
  level = logger.level
  logger.setLevel(logging.ERROR)  # what it warns of does not reach pictures
  try:
    import matplotlib
    import matplotlib.figure
  except (OSError, ValueError) as error:
    hint = f'matplotlib cannot read it, mend or remove that file ({error})'
    raise MiraInputError('bad_settings', 'matplotlibrc', hint) from error
  finally:
    logger.setLevel(level)
    if backend is not None:
      os.environ['MPLBACKEND'] = backend
  if backend:
    with contextlib.suppress(ValueError):
      matplotlib.rcParams['backend'] = backend
