"""Does pre-training help where few clips have labels?

  python bench/few_labels.py --pretrained runs/pretrained [--difficulty macro]

Trains the quickstart's transformer on a tenth of the drawn clips, from random
weights and from those of --pretrained (configs/quickstart_pretrain.py), once
per seed. Pairs, table and files as in bench/ablation.py.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bench import paired
from configs import quickstart
from mira_jax import config
from mira_jax.inference import engine

ARMS = ('scratch', 'pre-trained')


def main() -> None:
  """Trains, prints the table and writes the JSON."""
  parser = paired.parser(
    __doc__,
    seeds=3,
    difficulty='macro',
    workdir='runs/few_labels',
    out='bench/results/few_labels.json',
  )
  parser.add_argument('--pretrained', default='runs/pretrained')
  parser.add_argument('--epochs', type=int, default=20)
  parser.add_argument('--train-fraction', type=float, default=0.1)
  args = parser.parse_args()

  def configure(arm: str, seed: int) -> config.Config:
    cfg = quickstart.get_config('exact')
    paired.synthetic(cfg, args.difficulty, seed)
    cfg.data.train_fraction = args.train_fraction
    cfg.train.epochs = args.epochs
    cfg.train.init_from = args.pretrained if arm == 'pre-trained' else ''
    cfg.train.eval_every = max(1, args.epochs // 2)
    return cfg

  engine.use_compile_cache()
  runs = paired.train(ARMS, args.seeds, configure, args.workdir)
  title = (
    f'synthetic_faces/{args.difficulty}, {args.train_fraction:.0%} of the '
    f'labels, {args.seeds} seeds, test clips'
  )
  paired.report(runs, ARMS, title, args.out)


if __name__ == '__main__':
  main()
