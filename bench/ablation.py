"""Does MiRA help? The same training without it, and in both modes.

  python bench/ablation.py [--seeds 5] [--epochs 12] [--init-from RUN]

Trains a small transformer on drawn faces with weak and brief expressions, once
per mode and seed, from random weights or from those of --init-from. A seed
fixes the initial weights (of the head, if the others are given), the order of
the clips, their augmentation and the validation clips, so runs of the same seed
are pairs: the table has the mean and the standard deviation of each mode, and
the mean difference to plain with a two-sided paired t-test. The tested weights
are those that the validation clips choose.

Runs are kept below --workdir; a second start goes on where the first stopped.
The JSON goes to --out with the command, the versions and the date.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import sys
from typing import Any

import jax
import numpy as np
import rich
import scipy.stats
from rich import box
from rich.table import Table

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from configs import quickstart
from mira_jax import config, engine, loop, outcome, training

MODES = ('plain', 'exact', 'flashlite')
METRICS = ('war', 'uar', 'macro_f1')


def configuration(args: argparse.Namespace, mode: str, seed: int):
  """The quickstart's transformer and optimiser, on another dataset."""
  cfg: config.Config = quickstart.get_config(mode)
  cfg.seed = seed
  cfg.data.dataset = f'data/synthetic_faces/{args.difficulty}'
  cfg.train.epochs = args.epochs
  cfg.train.init_from = args.init_from
  cfg.eval.watch_test = False
  cfg.train.log_every = 50
  return cfg


def run(args: argparse.Namespace, mode: str, seed: int) -> dict[str, Any]:
  """Scores of one training; trains it unless that is done already."""
  workdir = pathlib.Path(args.workdir) / f'{mode}-{seed}'
  if not outcome.read(workdir):
    cfg = configuration(args, mode, seed)
    loop.train(cfg, training.open_workdir(str(workdir)))
  row = outcome.read(workdir)[0]
  scores = {name: getattr(row.scores, name) for name in METRICS}
  return {'mode': mode, 'seed': seed, 'step': row.step, **scores}


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Mean and spread of each mode, and its difference to plain."""
  by_mode = {
    mode: {
      name: np.array([r[name] for r in runs if r['mode'] == mode])
      for name in METRICS
    }
    for mode in MODES
  }
  rows = []
  for mode, values in by_mode.items():
    row: dict[str, Any] = {'mode': mode, 'seeds': len(values['war'])}
    for name, x in values.items():
      row[name] = {'mean': float(x.mean()), 'sd': float(x.std(ddof=1))}
      if mode != 'plain':
        base = by_mode['plain'][name]
        test = scipy.stats.ttest_rel(x, base)
        low, high = test.confidence_interval(0.95)
        row[name] |= {
          'difference': float((x - base).mean()),
          'interval_95': [float(low), float(high)],
          'p': float(test.pvalue),
        }
    rows.append(row)
  return rows


def table(rows: list[dict[str, Any]], title: str) -> Table:
  """Percentages; differences in points with their 95 % interval."""
  lines = Table(title=title, box=box.SIMPLE_HEAD, title_justify='left')
  lines.add_column('mode')
  for name in ('WAR', 'UAR', 'WAR - plain', '95 % interval', 'p'):
    lines.add_column(name, justify='right')
  for row in rows:
    cells = [
      f'{100 * row[n]["mean"]:.1f} ± {100 * row[n]["sd"]:.1f}'
      for n in ('war', 'uar')
    ]
    if 'p' in row['war']:
      low, high = row['war']['interval_95']
      cells += [
        f'{100 * row["war"]["difference"]:+.1f}',
        f'{100 * low:+.1f} to {100 * high:+.1f}',
        f'{row["war"]["p"]:.3f}',
      ]
    lines.add_row(row['mode'], *cells)
  return lines


def main() -> None:
  """Trains, prints the table and writes the JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--epochs', type=int, default=12)
  parser.add_argument(
    '--difficulty', choices=('macro', 'micro'), default='micro'
  )
  parser.add_argument(
    '--init-from', default='', help='a run that all of them start from'
  )
  parser.add_argument('--workdir', default='runs/ablation')
  parser.add_argument('--out', default='bench/results/ablation.json')
  args = parser.parse_args()
  if args.seeds < 2:
    parser.error('--seeds: a spread needs 2 or more')
  engine.use_compile_cache()
  # Seeds outside, so that a run cut short has whole pairs.
  runs = [run(args, mode, seed) for seed in range(args.seeds) for mode in MODES]
  rows = summary(runs)
  title = f'synthetic_faces/{args.difficulty}, {args.seeds} seeds, test clips'
  rich.print(table(rows, title))
  told = {
    'command': f'python bench/ablation.py {" ".join(sys.argv[1:])}'.strip(),
    'date': datetime.date.today().isoformat(),
    'python': platform.python_version(),
    'jax': jax.__version__,
    'device': jax.devices()[0].device_kind,
    'cores': os.cpu_count(),
    'summary': rows,
    'runs': runs,
  }
  path = pathlib.Path(args.out)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(told, indent=2) + '\n')
  print(f'results: {path}')


if __name__ == '__main__':
  main()
