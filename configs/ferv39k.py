"""FERV39k: 7 expressions of 38,935 clips, one split of its own.

mira train --config=ferv39k:B --workdir=runs/ferv39k-B
mira eval --workdir=runs/ferv39k-B --views=5

SIZE,MODE; the authors have scripts for flashlite in B, L and H. They test 2
windows of a clip while training and 5 in a job of its own. Starts from
runs/voxceleb2-SIZE-MODE, see voxceleb2.py.
"""

from __future__ import annotations

from mira_jax.config import Config, recipes

ROWS = {
  'B': {'lr': 1e-3, 'batch': 128, 'warmup': 5, 'rate': 1},
  'L': {'lr': 5e-4, 'batch': 64, 'rate': 1},
  'H': {'lr': 1.5e-3, 'batch': 64, 'rate': 4},
}


def get_config(text: str | None = None) -> Config:
  """The row of a size and a mode."""
  spec = recipes.parse(text)
  row = ROWS.get(spec.size, ROWS['B'])
  return recipes.fine_tuning(spec, 'ferv39k', views=2, protocol='split', **row)
