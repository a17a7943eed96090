"""What do the other systems add to a small model, with MiRA and without?

  python bench/systems.py [--tasks macro,micro,units,domains] [--seeds 3]

Trains every option of docs/systems.md, and the sensible pairs with MiRA, on
synthetic faces: seven expressions ('macro', 'micro'), action units ('units',
mean F1 at 0.5), and expressions in one domain that are tested in another
('domains': trained in the studio, tested in the street). A seed chooses
weights, order and augmentation, so that runs of a seed are pairs. Parameters,
the time of a step and its memory are relative to plain; both are of the
compiled training step alone.

Runs are kept below --workdir, and a second start goes on where the first
stopped; several may run side by side, each with --arms or --tasks of its own,
and the last prints the table of all.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import rich
from rich import box
from rich.table import Table

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from bench import paired
from mira_jax import config
from mira_jax.cli import main as cli
from mira_jax.devices import platform, sharding
from mira_jax.evaluation import results
from mira_jax.inference import engine
from mira_jax.synthetic import faces
from mira_jax.train import build, loop, run_folder

_SOA = 'orientation.reference=onset'
_UNITS = ','.join(map(str, faces.ACTION_UNITS))
# Weights of plain runs of the same seed, and labels by `mira adapt` of them.
_START, _LABELS = 'START', 'LABELS'
_FROZEN = (f'train.init_from={_START}', 'optim.freeze_backbone=true')
# Fields of config.model; of another group with its name.
ARMS: dict[str, tuple[str, ...]] = {
  'plain': (),
  'MiRA exact': ('mira.mode=exact',),
  'MiRA flashlite': ('mira.mode=flashlite',),
  'SOA': (_SOA,),
  'SOA, fixed (CVA)': (
    _SOA, 'orientation.orientation=fixed', 'orientation.angle=90',
  ),
  'SOA, released': (_SOA, 'orientation.mode=released'),
  'SOA, keys': (_SOA, 'orientation.target=keys'),
  'SOA, carried': (_SOA, 'orientation.carry=mean'),
  'ARBEx head': ('reliability=default',),
  'ARBEx head, as released': (
    'reliability.anchors=1', 'reliability.rule=released',
    'reliability.attention=batch', 'reliability.output=primary',
    'reliability.anchor_loss=released',
  ),
  'ARBEx windows': ('cross_windows.scales=2',),
  'SMA-style head': ('channels=default',),
  'SMA-style weights': ('channels.form=reweight',),
  'diverse heads': ('head_mix.diversity_weight=0.1',),
  'gated attention': ('gate=default',),
  'gated attention, elements': ('gate.kind=element',),
  'identity adversary': ('identity=default',),
  'phase clips': ('data.phases=clips',),
  'phase images': ('data.phases=images',),
  'position stream': (_SOA, 'position_stream=true'),
  'annotated units (oracle)': (f'oracle_units={_UNITS}',),
  'frozen, head alone': _FROZEN,
  'frozen, experts': (*_FROZEN, 'experts.rank=4'),
  'pseudo-labels': (f'data.pseudo_labels={_LABELS}',),
  'SOA + MiRA exact': (_SOA, 'mira.mode=exact'),
  'SOA + MiRA flashlite': (_SOA, 'mira.mode=flashlite'),
  'SOA, keys + MiRA flashlite': (
    _SOA, 'orientation.target=keys', 'mira.mode=flashlite',
  ),
  'ARBEx head + MiRA exact': ('reliability=default', 'mira.mode=exact'),
  'SMA-style head + MiRA exact': ('channels=default', 'mira.mode=exact'),
  'diverse heads + MiRA exact': (
    'head_mix.diversity_weight=0.1', 'mira.mode=exact',
  ),
  'gated attention + MiRA exact': ('gate=default', 'mira.mode=exact'),
}  # fmt: skip
# What a task is trained and tested on, and its score.
TASKS = {
  'macro': ('macro', 'WAR'),
  'micro': ('micro', 'WAR'),
  'units': ('macro', 'F1'),
  'domains': ('macro,macro_street', 'WAR'),
}
CLIPS, EPOCHS = 280, 8  # of each part, and passes over the training clips
_CLASSES_ONLY = ('reliability', 'data.phases', 'oracle_units')
_ONLY = {_START: 'micro', _LABELS: 'domains'}  # a task of an option


def main() -> None:
  """Trains, prints the table and writes the JSON."""
  args = _flags()
  platform.keep_memory('cpu')
  engine.use_compile_cache()
  workdir = pathlib.Path(args.workdir)
  for seed in range(args.seeds):
    for task in args.tasks:
      for arm in filter(lambda x: serves(x, task), args.arms):
        _train(workdir, arm, task, seed)
  if not args.train_only:
    _report(args, workdir)


def _flags() -> argparse.Namespace:
  made = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name, every in (('arms', ARMS), ('tasks', TASKS)):
    made.add_argument(
      f'--{name}', type=lambda x: x.split(','), default=[*every]
    )
  made.add_argument('--seeds', type=int, default=3)
  made.add_argument('--workdir', default='runs/systems')
  made.add_argument('--out', default='bench/results/systems.json')
  made.add_argument('--train-only', action='store_true', help='no table')
  return made.parse_args()


def serves(arm: str, task: str) -> bool:
  """Whether an option is one of a task."""
  fields = ' '.join(ARMS[arm])
  if any(word in fields and task != only for word, only in _ONLY.items()):
    return False
  return task != 'units' or not any(x in fields for x in _CLASSES_ONLY)


def configure(
  arm: str, task: str, seed: int, workdir: pathlib.Path = pathlib.Path()
) -> config.Config:
  """The training of an arm: one small member of configs/small.py."""
  groups = ('data.', 'train.', 'optim.')
  fields = [x if x.startswith(groups) else f'model.{x}' for x in ARMS[arm]]
  cfg = config.load('small:280,plain', [f'--config.{x}' for x in fields])
  if cfg.train.init_from:
    cfg.train.init_from = str(_folder(workdir, 'plain', 'macro', seed))
  if cfg.data.pseudo_labels:
    plain = _folder(workdir, 'plain', 'domains', seed)
    cfg.data.pseudo_labels = str(plain / 'labels.csv')
  names = TASKS[task][0].split(',')
  cfg.data.dataset = ','.join(f'data/synthetic_faces/{x}' for x in names)
  cfg.data.train_clips = cfg.data.test_clips = CLIPS
  cfg.model.dim, cfg.model.members, cfg.model.mirror = 96, 1, False
  cfg.data.batch_size, cfg.eval.watch_test = 14, False
  cfg.train.epochs = EPOCHS // (3 if cfg.data.phases != 'none' else 1)
  cfg.optim.warmup_epochs = cfg.train.epochs / 10
  cfg.seed, cfg.train.log_every, cfg.train.save_every = seed, 100, 10**6
  if task == 'domains':
    cfg.data.protocol, cfg.data.fold = 'lodo', 1
    cfg.train.epochs //= 2  # of twice as many clips
  if task == 'units':
    cfg.data.labels = 'action_units'
    cfg.optim.class_weights = 'inverse'
  return cfg


def _folder(
  workdir: pathlib.Path, arm: str, task: str, seed: int
) -> pathlib.Path:
  name = '_'.join(arm.replace(',', '').replace('+', '').split())
  return workdir / task / f'{name}-{seed}'


def _train(workdir: pathlib.Path, arm: str, task: str, seed: int) -> None:
  """Trains a run that is not finished; leaves out one that is."""
  folder = _folder(workdir, arm, task, seed)
  if not (folder / results.NAME).exists():
    cfg = configure(arm, task, seed, workdir)
    labels = pathlib.Path(cfg.data.pseudo_labels)
    if cfg.data.pseudo_labels and not labels.exists():
      target = config.datasets(cfg.data)[1]
      flags = [f'--dataset={target}', f'--out={labels}', '--clusters=40']
      cli.main(['adapt', str(labels.parent), *flags, '--keep=0.5'])
    loop.train(cfg, run_folder.open_workdir(str(folder)))


def _score(folder: pathlib.Path) -> float:
  """WAR, or mean F1, of the weights of a run on its test clips."""
  row = json.loads((folder / results.NAME).read_bytes())['results'][0]
  scores = row['scores']
  return scores['war'] if 'war' in scores else scores['mean_f1']


class Step:
  """The compiled training step of an arm, and what it costs."""

  def __init__(self, arm: str):
    cfg = configure(arm, 'macro', 0)
    cfg.model.num_classes = 7
    if cfg.model.identity is not None:
      cfg.model.identity.subjects = CLIPS // 7
    mesh = sharding.make_mesh()
    program = build.classifier(cfg, mesh, subjects=[0] * CLIPS)
    made = build.training(cfg, program, mesh, 20, donate=False)
    state = jax.jit(made.init)(jax.random.key(0))
    batch = {
      name: np.zeros(x.shape, x.dtype)
      for name, x in build.abstract_batch(cfg, mesh).items()
    }
    batch['mask'] = np.ones_like(batch['mask'])
    self._args = state, sharding.put_batch(batch, mesh), jax.random.key(1)
    self._run = made.step.lower(*self._args).compile()
    self.parameters = sum(x.size for x in jax.tree.leaves(state.params))
    self.bytes = self._run.memory_analysis().temp_size_in_bytes

  def seconds(self) -> float:
    """Of one step."""
    start = time.perf_counter()
    jax.block_until_ready(self._run(*self._args))
    return time.perf_counter() - start

  def relative_to(self, plain: Step) -> dict[str, float]:
    """Costs over those of the plain step; times are medians of 15 in turns."""
    pairs = [(self.seconds(), plain.seconds()) for _ in range(16)][1:]
    own, other = np.median(pairs, axis=0)
    return {
      'parameters': self.parameters / plain.parameters,
      'step': float(own / other),
      'memory': self.bytes / plain.bytes,
    }


def _report(args: argparse.Namespace, workdir: pathlib.Path) -> None:
  """The table of the options whose seeds are all trained, and its file."""
  scores = {
    arm: {task: _scores(workdir, arm, task, args.seeds) for task in TASKS}
    for arm in ARMS
  }
  rows, step = [], Step('plain')
  for arm, found in scores.items():
    if all(values is None for values in found.values()):
      continue
    row: dict[str, Any] = {'arm': arm, 'fields': ARMS[arm]}
    for task, values in found.items():
      if values is None:
        continue
      row[task] = {'mean': values.mean(), 'runs': values.tolist()}
      base = scores['plain'][task]
      if arm != 'plain' and base is not None:
        row[task] |= paired.difference(values - base)
    rows.append(row | Step(arm).relative_to(step))
  rich.print(table(rows, args.seeds))
  paired.write(args.out, {'seeds': args.seeds, 'rows': rows})


def _scores(
  workdir: pathlib.Path, arm: str, task: str, seeds: int
) -> np.ndarray | None:
  """The score of each seed; None unless all are trained."""
  each = [_folder(workdir, arm, task, seed) for seed in range(seeds)]
  if not all((x / results.NAME).exists() for x in each):
    return None
  return np.array([_score(x) for x in each])


def table(rows: Sequence[dict[str, Any]], seeds: int) -> Table:
  """Scores in percent, differences to plain, and costs relative to it."""
  title = f'synthetic faces, {seeds} seeds: difference to plain (95 % interval)'
  lines = Table(title=title, box=box.SIMPLE_HEAD, title_justify='left')
  lines.add_column('')
  for task, (_, score) in TASKS.items():
    lines.add_column(f'{task} {score}', justify='right')
  for name in ('parameters', 'step', 'memory'):
    lines.add_column(name, justify='right')
  for row in rows:
    cells = [_cell(row.get(task)) for task in TASKS]
    cells += [f'{row[x]:.2f} x' for x in ('parameters', 'step', 'memory')]
    lines.add_row(row['arm'], *cells)
  return lines


def _cell(found: dict[str, Any] | None) -> str:
  if found is None:
    return '-'
  cell = f'{100 * found["mean"]:.1f}'
  if 'difference' in found:
    low, high = found['interval_95']
    cell += f'  {100 * found["difference"]:+.1f}'
    cell += f' ({100 * low:+.1f} to {100 * high:+.1f})'
  return cell


if __name__ == '__main__':
  main()
