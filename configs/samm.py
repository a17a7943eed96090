"""SAMM: 159 micro-expressions of 29 subjects.

mira eval --config=samm:B --folds=all --workdir=runs/samm

SIZE,MODE,FOLD, where a fold leaves one subject out. The paper probes frozen
features here and has no script for it: this is its fine-tuning of DFEW, and
the probe is `mira features` and `mira probe --protocol=loso`. Starts from
runs/voxceleb2-SIZE-MODE, see voxceleb2.py.
"""

from __future__ import annotations

from mira_jax.config import Config, recipes


def get_config(text: str | None = None) -> Config:
  """The recipe for a size and a mode, without one subject."""
  return recipes.fine_tuning(recipes.parse(text), 'samm', protocol='loso')
