"""DFEW: 7 expressions of 11,697 film clips, 5 folds.

mira eval --config=dfew:B --folds=all --workdir=runs/dfew
mira train --config=dfew:L,flashlite,1 --workdir=runs/dfew-L-1

SIZE,MODE,FOLD; the authors have scripts for flashlite in B, L and H, all folds,
and for exact in B, fold 1. Starts from runs/voxceleb2-SIZE-MODE, see
voxceleb2.py; an empty `--config.train.init_from=` starts from random weights.
"""

from __future__ import annotations

from mira_jax.config import Config, recipes

ROWS = {
  'B': {'lr': 1e-3},
  'L': {'lr': 2e-3, 'warmup': 15},
  'H': {'lr': 1.5e-3, 'batch': 32},
}


def get_config(text: str | None = None) -> Config:
  """The row of a size and a mode, for a fold."""
  spec = recipes.parse(text)
  row = dict(ROWS.get(spec.size, ROWS['B']))
  if spec.mode == 'exact' and spec.size not in ('L', 'H'):
    row['lr'] = 1.5e-3
  return recipes.fine_tuning(spec, 'dfew', **row)
