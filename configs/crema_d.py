"""CREMA-D: 6 acted emotions, 7,442 clips of 91 actors, 5 folds of actors.

mira eval --config=crema_d:B --folds=all --workdir=runs/crema_d

SIZE,MODE,FOLD; the folds are those that were prepared with the clips (the
column fold of the table; consecutive actors in MAE-DFER, arXiv 2307.02227).
The paper has no script for it: this is its fine-tuning of DFEW. Starts from
runs/voxceleb2-SIZE-MODE, see voxceleb2.py.
"""

from __future__ import annotations

from mira_jax.config import Config, recipes


def get_config(text: str | None = None) -> Config:
  """The recipe for a size and a mode, for a fold."""
  return recipes.fine_tuning(recipes.parse(text), 'crema_d')
