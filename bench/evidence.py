"""Does attention find the moment and the place of an expression, and decide?

  python bench/evidence.py --difficulty=macro [--seeds 3] [--clips 420]

Measures the runs of bench/small_data.py (1,000 labels, trained where missing)
in every mode on synthetic test clips, as `mira explain DATASET` does. It writes
the mean and standard deviation over seeds of every measure.
"""

from __future__ import annotations

import collections
import pathlib
import sys
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bench import paired, small_data
from mira_jax import terminal
from mira_jax.cli import explain_dataset
from mira_jax.config.recipes import MODES
from mira_jax.data import dataset
from mira_jax.devices import platform
from mira_jax.evaluation import report
from mira_jax.inference import engine, predictor

LABELS = 1000


def main() -> None:
  """Trains what is missing, measures, prints a table and writes the JSON."""
  parser = small_data.parser(__doc__)
  parser.add_argument('--clips', type=int, default=None)
  args = parser.parse_args()
  platform.keep_memory('cpu')
  engine.use_compile_cache()
  rows: list[dict[str, Any]] = []
  for mode in MODES:
    folder = pathlib.Path(args.workdir, f'{args.difficulty}_{LABELS}_{mode}')
    configure = small_data.recipe(args.difficulty, LABELS, mode)
    paired.train(('recipe',), args.seeds, configure, str(folder))
    for seed in range(args.seeds):
      model = predictor.load(folder / f'recipe-{seed}', views=1)
      data = dataset.open(configure('recipe', seed).data.dataset)
      found = explain_dataset.measure(
        model, data, 'test', most=args.clips, seed=seed
      )
      rows.append({'mode': mode, 'seed': seed, 'measures': found.measures})
  table = _summary(rows)
  title = f'synthetic_faces/{args.difficulty}, {LABELS} labels, test clips'
  _show(table, title)
  out = pathlib.Path(args.out, f'evidence_{args.difficulty}.json')
  paired.write(str(out), {'summary': table, 'runs': rows})


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
  """Measure -> 'MODE COLUMN' -> mean and standard deviation over seeds."""
  values: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
  for row in rows:
    for measure, columns in row['measures'].items():
      for column, numbers in columns.items():
        values[measure, f'{row["mode"]} {column}'].append(numbers['mean'])
  table: dict[str, Any] = {}
  for (measure, of), each in values.items():
    sd = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
    cell = {'mean': float(np.mean(each)), 'sd': sd}
    table.setdefault(measure, {})[of] = cell
  return table


def _show(table: dict[str, Any], title: str) -> None:
  terminal.say(title)
  for measure, row in table.items():
    lines = report.table(measure, 'mean', 'sd')
    for of, cell in row.items():
      lines.add_row(of, f'{cell["mean"]:.3f}', f'{cell["sd"]:.3f}')
    terminal.show(lines)


if __name__ == '__main__':
  main()
