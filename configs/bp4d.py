"""BP4D: 12 action units of 41 people in 8 tasks, 3 folds of subjects.

mira eval --config=bp4d:B --folds=all --workdir=runs/bp4d

SIZE,MODE,FOLD, where a fold holds a third of the people. The recipe is that of
disfa.py, which says what of it is the field's.
"""

from __future__ import annotations

from mira_jax.config import Config, recipes


def get_config(text: str | None = None) -> Config:
  """The recipe for a size, a mode and a fold."""
  return recipes.action_units(recipes.parse(text), 'bp4d')
