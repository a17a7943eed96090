"""FaceSleuth-R, as far as it is known: CASME II, SAMM and SMIC, three classes.

mira eval --config=facesleuth:B --folds=all --workdir=runs/facesleuth

SIZE,MODE,FOLD, where a fold leaves one dataset out: it trains on the other two
and tests on all of the third, with the classes of MEGC 2019 (negative,
positive, surprise). Single-orientation attention is on the change since the
first frame. Of `config.model.orientation`, `orientation=fixed` with `angle=90`
is its vertical form (CVA), and `mode=released` the operator of the public code.
The paper's architecture, recipe and tables could not be read: size and
optimisation are our fine-tuning of CASME II. See docs/systems.md.
"""

from __future__ import annotations

import pathlib

from mira_jax.config import Config, recipes
from mira_jax.systems.orientation import OrientationConfig

CLASSES = pathlib.Path(__file__).parent / 'classes' / 'megc3.csv'


def get_config(text: str | None = None) -> Config:
  """The recipe for a size and a mode, without one dataset."""
  spec = recipes.parse(text)
  datasets = 'casme2,data/samm,data/smic'
  cfg = recipes.fine_tuning(spec, datasets, protocol='lodo')
  cfg.data.classes = str(CLASSES)
  cfg.model.orientation = OrientationConfig(reference='onset')
  return cfg
