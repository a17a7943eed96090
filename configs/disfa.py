"""DISFA: 8 action units of 27 people, 3 folds of subjects.

mira eval --config=disfa:B --folds=all --workdir=runs/disfa

SIZE,MODE,FOLD, where a fold holds a third of the people. The paper has no
script for it: this is its fine-tuning of DFEW with the loss and the protocol of
the field, weights inverse to the frequency of a unit and F1 of three
subject-exclusive folds. Samples are the middle frames of windows. Starts from
runs/voxceleb2-SIZE-MODE, see voxceleb2.py.
"""

from __future__ import annotations

from mira_jax.config import Config, recipes


def get_config(text: str | None = None) -> Config:
  """The recipe for a size, a mode and a fold."""
  return recipes.action_units(recipes.parse(text), 'disfa')
