"""Does MiRA help? The same training without it, and in both modes.

  python bench/ablation.py [--seeds 5] [--epochs 12] [--init-from RUN]

Trains a small transformer on synthetic faces with weak and brief expressions,
once per mode and seed, from random weights or from those of --init-from. A seed
fixes the initial weights (of the head, if the others are given), the order of
the clips, their augmentation and the validation clips, so runs of the same seed
are pairs: the table has the mean and the standard deviation of each mode, and
the mean difference to plain with a two-sided paired t-test. The validation
clips choose the tested weights.

Runs are kept below --workdir; a second start goes on where the first stopped.
The JSON goes to --out with the command, the versions and the date.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bench import paired
from configs import quickstart
from mira_jax import config
from mira_jax.inference import engine

MODES = ('plain', 'exact', 'flashlite')


def main() -> None:
  """Trains, prints the table and writes the JSON."""
  parser = paired.parser(
    __doc__,
    seeds=5,
    difficulty='micro',
    workdir='runs/ablation',
    out='bench/results/ablation.json',
  )
  parser.add_argument('--epochs', type=int, default=12)
  parser.add_argument(
    '--train-fraction', type=float, default=1.0, help='of the training clips'
  )
  parser.add_argument(
    '--init-from', default='', help='a run that all of them start from'
  )
  args = parser.parse_args()

  def configure(mode: str, seed: int) -> config.Config:
    cfg = quickstart.get_config(mode)
    paired.synthetic(cfg, args.difficulty, seed)
    cfg.data.train_fraction = args.train_fraction
    cfg.train.epochs = args.epochs
    cfg.train.init_from = args.init_from
    cfg.train.log_every = 50
    cfg.train.eval_every = max(1, args.epochs // 6)
    return cfg

  engine.use_compile_cache()
  runs = paired.train(MODES, args.seeds, configure, args.workdir)
  title = f'synthetic_faces/{args.difficulty}, {args.seeds} seeds, test clips'
  paired.report(runs, MODES, title, args.out)


if __name__ == '__main__':
  main()
