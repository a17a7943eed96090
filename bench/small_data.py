"""Does configs/small.py beat its baseline where few clips have labels?

  python bench/small_data.py [--labels 100,250,1000] [--seeds 3]

Trains the recipe on so many labelled synthetic clips, once per seed, and HOG
with a linear SVM (`mira baseline`) on the same clips; a seed chooses clips,
weights and order. Pairs, tables and files as in bench/ablation.py; one file for
each number of labels.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bench import paired
from mira_jax import baseline, config
from mira_jax.devices import platform
from mira_jax.evaluation import metrics
from mira_jax.inference import engine
from mira_jax.train import datasets

ARMS = ('baseline', 'recipe')


def main() -> None:
  """Trains, prints the tables and writes the JSON."""
  made = parser(__doc__)
  made.add_argument('--labels', default='100,250,1000')
  made.add_argument('--mode', default='exact')
  args = made.parse_args()
  platform.keep_memory('cpu')
  engine.use_compile_cache()
  for labels in map(int, args.labels.split(',')):
    configure = recipe(args.difficulty, labels, args.mode)
    name = f'{args.difficulty}_{labels}_{args.mode}'
    workdir = pathlib.Path(args.workdir, name)
    runs = paired.train(ARMS[1:], args.seeds, configure, str(workdir))
    floors = [_floor(configure('', seed), seed) for seed in range(args.seeds)]
    title = f'synthetic_faces/{args.difficulty}, {labels} labels, test clips'
    out = pathlib.Path(args.out, f'small_{name}.json')
    paired.report(floors + runs, ARMS, title, str(out))


def parser(doc: str | None) -> argparse.ArgumentParser:
  """The flags of benches of these runs."""
  return paired.parser(
    doc,
    seeds=3,
    difficulty='macro',
    workdir='runs/small_data',
    out='bench/results',
  )


def recipe(
  difficulty: str, labels: int, mode: str
) -> Callable[[str, int], config.Config]:
  """Gives the configuration of an arm and a seed."""

  def configure(_: str, seed: int) -> config.Config:
    cfg = config.load(f'small:{labels},{mode}')
    paired.synthetic(cfg, difficulty, seed)
    cfg.data.train_fraction = labels / cfg.data.train_clips
    return cfg

  return configure


def _floor(cfg: config.Config, seed: int) -> dict[str, Any]:
  """The baseline's scores on the clips of a configuration."""
  opened = datasets.open_datasets(cfg.data)
  made = baseline.evaluate(opened, datasets.rules(cfg))
  scores = metrics.score(made.matrix)
  found = {name: getattr(scores, name) for name in paired.METRICS}
  return {'arm': ARMS[0], 'seed': seed, **found}


if __name__ == '__main__':
  main()
