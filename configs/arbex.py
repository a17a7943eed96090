"""ARBEx on DFEW: guided windows before the blocks, a balanced head behind them.

mira eval --config=arbex:B --folds=all --workdir=runs/arbex

SIZE,MODE,FOLD. Window cross-attention is guided by the change between frames,
at three scales of 14 x 14 tokens; ten anchors per class correct predictions
that lack confidence. `mira eval` scores the predictions with the correction and
without. ARBEx was published for still images, with networks of its own that are
trained on faces and landmarks: this is its head and its block in a video
transformer, with our fine-tuning of DFEW. See docs/systems.md.
"""

from __future__ import annotations

from mira_jax.config import Config, recipes
from mira_jax.systems.cross_windows import CrossWindowsConfig
from mira_jax.systems.reliability import ReliabilityConfig


def get_config(text: str | None = None) -> Config:
  """The recipe for a size, a mode and a fold."""
  cfg = recipes.fine_tuning(recipes.parse(text), 'dfew')
  cfg.model.cross_windows = CrossWindowsConfig(scales=3)
  cfg.model.reliability = ReliabilityConfig()
  return cfg
