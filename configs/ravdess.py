"""RAVDESS: 8 acted emotions, 1,440 clips of 24 actors, 6 folds of actors.

mira eval --config=ravdess:B --folds=all --workdir=runs/ravdess

SIZE,MODE,FOLD; the folds are those that were prepared with the clips (the
column fold of the table; 4 actors each in MAE-DFER, arXiv 2307.02227).
The paper has no script for it: this is its fine-tuning of DFEW. Starts from
runs/voxceleb2-SIZE-MODE, see voxceleb2.py.
"""

from __future__ import annotations

from mira_jax.config import Config, recipes


def get_config(text: str | None = None) -> Config:
  """The recipe for a size and a mode, for a fold."""
  return recipes.fine_tuning(recipes.parse(text), 'ravdess')
