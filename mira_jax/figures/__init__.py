"""Pictures: what MiRA did to a clip, confusion matrices, curves, data sheets.

Every picture comes in two steps: `build_*` returns a matplotlib Figure, and
the function without that prefix saves it as PNG with its arrays beside it
(`x.png`, `x.npz`). Figures are objects of their own: no pyplot, no global
state, so that a picture can be drawn from any thread. The colours (Okabe and
Ito) and maps (inferno, RdBu, Blues) are safe for colour-blind readers.
"""

from mira_jax.figures.agreement import (
  agreement_figure,
  build_agreement_figure,
)
from mira_jax.figures.charts import (
  build_confusion_figure,
  build_contact_sheet,
  build_curves_figure,
  confusion_figure,
  contact_sheet,
  curves_figure,
)
from mira_jax.figures.clip import ClipPicture, build_clip_figure, clip_figure
from mira_jax.figures.reconstruction import (
  build_reconstruction_figure,
  reconstruction_figure,
)
from mira_jax.figures.timeline import (
  build_timeline_figure,
  timeline_figure,
)

__all__ = [
  'ClipPicture',
  'agreement_figure',
  'build_agreement_figure',
  'build_clip_figure',
  'build_confusion_figure',
  'build_contact_sheet',
  'build_curves_figure',
  'build_reconstruction_figure',
  'clip_figure',
  'confusion_figure',
  'contact_sheet',
  'curves_figure',
  'build_timeline_figure',
  'reconstruction_figure',
  'timeline_figure',
]
