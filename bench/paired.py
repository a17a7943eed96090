"""Trainings that differ in one thing, in pairs of the same seed: the table."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import rich
import scipy.stats
from rich import box
from rich.table import Table

from mira_jax import config
from mira_jax.evaluation import results
from mira_jax.train import loop, run_folder

METRICS = ('war', 'uar', 'macro_f1')


def parser(
  doc: str | None, *, seeds: int, difficulty: str, workdir: str, out: str
) -> argparse.ArgumentParser:
  """The flags of every bench of pairs, with these defaults."""
  made = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  made.add_argument('--seeds', type=_seeds, default=seeds)
  made.add_argument(
    '--difficulty', choices=('macro', 'micro'), default=difficulty
  )
  made.add_argument('--workdir', default=workdir)
  made.add_argument('--out', default=out)
  return made


def _seeds(text: str) -> int:
  if (count := int(text)) < 2:
    raise argparse.ArgumentTypeError('a spread needs 2 or more')
  return count


def synthetic(cfg: config.Config, difficulty: str, seed: int) -> None:
  """Trains on synthetic faces; a seed draws clips, weights and order."""
  cfg.seed = cfg.data.fold_seed = seed
  cfg.data.dataset = f'data/synthetic_faces/{difficulty}'
  cfg.eval.watch_test = False


def train(
  arms: Sequence[str],
  seeds: int,
  configure: Callable[[str, int], config.Config],
  workdir: str,
) -> list[dict[str, Any]]:
  """Scores of every arm and seed; trains what is not trained below workdir.

  Seeds are outside, so that a run that is cut short has whole pairs. The scores
  are those of the test clips, with the weights that validation clips choose.
  """
  runs = []
  for seed in range(seeds):
    for arm in arms:
      folder = pathlib.Path(workdir) / f'{arm.replace(" ", "_")}-{seed}'
      if not results.read(folder):
        loop.train(configure(arm, seed), run_folder.open_workdir(str(folder)))
      row = results.read(folder)[0]
      scores = {name: getattr(row.scores, name) for name in METRICS}
      runs.append({'arm': arm, 'seed': seed, 'step': row.step, **scores})
  return runs


def summary(
  runs: Sequence[dict[str, Any]], arms: Sequence[str]
) -> list[dict[str, Any]]:
  """Mean and spread of each arm, and its difference to the first one."""
  values = {
    arm: {
      name: np.array([run[name] for run in runs if run['arm'] == arm])
      for name in METRICS
    }
    for arm in arms
  }
  rows = []
  for arm in arms:
    row: dict[str, Any] = {'arm': arm, 'seeds': len(values[arm]['war'])}
    for name, x in values[arm].items():
      row[name] = {'mean': float(x.mean()), 'sd': float(x.std(ddof=1))}
      if arm != arms[0]:
        row[name] |= difference(x - values[arms[0]][name])
    rows.append(row)
  return rows


def difference(x: np.ndarray) -> dict[str, Any]:
  """Two-sided paired t-test of differences [seeds], as JSON."""
  if not x.any():  # nothing differs: the test has no answer
    return {'difference': 0.0, 'interval_95': [0.0, 0.0], 'p': 1.0}
  test = scipy.stats.ttest_1samp(x, 0.0)
  low, high = test.confidence_interval(0.95)
  return {
    'difference': float(x.mean()),
    'interval_95': [float(low), float(high)],
    'p': float(test.pvalue),
  }


def table(rows: Sequence[dict[str, Any]], title: str) -> Table:
  """Percentages; differences in points with their 95 % interval."""
  lines = Table(title=title, box=box.SIMPLE_HEAD, title_justify='left')
  lines.add_column('')
  names = ('WAR', 'UAR', f'WAR - {rows[0]["arm"]}', '95 % interval', 'p')
  for name in names:
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
    lines.add_row(row['arm'], *cells)
  return lines


def report(
  runs: Sequence[dict[str, Any]], arms: Sequence[str], title: str, out: str
) -> None:
  """Prints the table and writes it with the command, versions and date."""
  rows = summary(runs, arms)
  rich.print(table(rows, title))
  write(out, {'summary': rows, 'runs': list(runs)})


def write(out: str, found: dict[str, Any]) -> None:
  """Writes what was found after the command, versions and date."""
  result = {
    'command': ' '.join(['python', *sys.argv]),
    'date': datetime.date.today().isoformat(),
    'python': platform.python_version(),
    'jax': jax.__version__,
    'device': jax.devices()[0].device_kind,
    'cores': os.cpu_count(),
    **found,
  }
  path = pathlib.Path(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=2) + '\n')
  print(f'results: {path}')
