"""MAFW: 11 expressions of 9,172 film clips with a single label, 5 folds.

mira eval --config=mafw:B --folds=all --workdir=runs/mafw
mira train --config=mafw:L,flashlite,1 --workdir=runs/mafw-L-1

SIZE,MODE,FOLD; the authors have scripts for flashlite in B, L and H, all folds,
and for exact in B, fold 1. Folds 1 and 5 of B have settings of their own, which
`--folds=all` leaves to the single runs: it takes those of the fold it is given.
Starts from runs/voxceleb2-SIZE-MODE, see voxceleb2.py.
"""

from __future__ import annotations

from mira_jax.config import Config, recipes

ROWS = {'B': {'lr': 2e-3}, 'L': {'lr': 2e-3}, 'H': {'lr': 1e-3}}
# Of B with flashlite alone.
FOLDS = {1: {'warmup': 5}, 5: {'lr': 1e-3, 'final_lr': 5e-7}}


def get_config(text: str | None = None) -> Config:
  """The row of a size, a mode and a fold."""
  spec = recipes.parse(text)
  row = dict(ROWS.get(spec.size, ROWS['B']))
  if spec.size not in ('L', 'H'):
    if spec.mode == 'exact':
      row['lr'] = 1.5e-3
    else:
      row |= FOLDS.get(spec.fold, {})
  return recipes.fine_tuning(spec, 'mafw', **row)
