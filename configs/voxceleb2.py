"""Pre-training on VoxCeleb2: 1.09 million face clips, without labels.

mira train --config=voxceleb2:B,exact --workdir=runs/vox-B

SIZE,MODE; the authors have scripts for exact and flashlite in B, L and H. Their
fine-tuning starts from the 200th epoch, for B in the middle of the cosine of
301; ours from the end of the run, in runs/voxceleb2-SIZE-MODE unless
--config.train.init_from names another one.
"""

from __future__ import annotations

from mira_jax.config import Config, recipes

ROWS = {
  ('B', 'exact'): {'lr': 1.5e-4, 'warmup': 20, 'batch': 4096, 'epochs': 301},
  ('B', 'flashlite'): {
    'lr': 1.5e-4,
    'warmup': 20,
    'batch': 4096,
    'epochs': 301,
  },
  ('L', 'exact'): {'lr': 1.5e-4, 'warmup': 40, 'batch': 2560, 'epochs': 201},
  ('L', 'flashlite'): {'lr': 7e-5, 'warmup': 20, 'batch': 2560, 'epochs': 201},
  ('H', 'exact'): {'lr': 1.5e-4, 'warmup': 20, 'batch': 2560, 'epochs': 201},
  ('H', 'flashlite'): {
    'lr': 8e-5,
    'warmup': 20,
    'batch': 2560,
    'epochs': 201,
    'drop_path': 0.1,
  },
}


def get_config(text: str | None = None) -> Config:
  """The row of a size and a mode."""
  spec = recipes.parse(text)
  size = spec.size if spec.size in ('L', 'H') else 'B'
  mode = 'exact' if spec.mode == 'exact' else 'flashlite'
  return recipes.pre_training(spec, 'voxceleb2', **ROWS[size, mode])
