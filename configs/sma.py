"""SMA-style attention on DISFA: four maps per action unit that learn to differ.

mira eval --config=sma:B --folds=all --workdir=runs/sma

SIZE,MODE,FOLD, where a fold holds a third of the people. A reconstruction of
ours: of SMA-Net only the abstract could be read. The recipe is that of
disfa.py; `--config.data.dataset=data/bp4d` is the other dataset of the field,
and `--config.model.head_mix.diversity_weight=0.1` makes heads differ, too. See
docs/systems.md.
"""

from __future__ import annotations

from mira_jax.config import Config, recipes
from mira_jax.systems.channels import ChannelsConfig


def get_config(text: str | None = None) -> Config:
  """The recipe for a size, a mode and a fold."""
  cfg = recipes.action_units(recipes.parse(text), 'disfa')
  cfg.model.channels = ChannelsConfig()
  return cfg
