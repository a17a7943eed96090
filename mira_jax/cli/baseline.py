"""Score a linear SVM on HOG of a prepared dataset, which models have to beat.

  mira baseline DATASET [--protocol split|folds|loso] [--num-folds K]
  mira baseline --workdir RUN

The second form takes datasets, protocol and folds of a run, so that both are
trained and tested on the same clips. Prints WAR and UAR with 95 % intervals
(bootstrap of subjects), and writes folds.json, scores.json, predictions.csv,
confusion.csv and confusion.png into a folder baseline-... beside the dataset,
or below --out. `mira train`, `mira eval` and `mira report` compare runs of the
same dataset and protocol with it.
"""

from __future__ import annotations

import argparse
import json
import pathlib

from mira_jax import baseline, config, files, terminal
from mira_jax.cli.arguments import at_least
from mira_jax.data import dataset as prepared
from mira_jax.data import descriptors, protocol
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import report
from mira_jax.train import datasets as inputs
from mira_jax.train import run_folder

GIVES_RESULT = True  # to programs, by --json


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the datasets, the protocol and the descriptors."""
  add = parser.add_argument
  add('dataset', metavar='DATASET', nargs='?', help='or several, with commas')
  add('--workdir', metavar='RUN', help='a run, or the folder of its folds')
  text = '(default: split, or folds with --num-folds)'
  add('--protocol', choices=protocol.PROTOCOLS, help=text)
  fields = config.DataConfig()
  add('--num-folds', type=at_least(2), help='folds of subjects; else stored')
  add('--fold-seed', type=at_least(0), help=f'(default: {fields.fold_seed})')
  add('--split', metavar='NAME', help='that is tested (default: test)')
  add('--classes', metavar='FILE.csv', help='as config.data.classes')
  kinds = descriptors.KINDS
  add('--features', choices=kinds, default=kinds[0], help='of gray frames')
  add('--threads', type=at_least(1), default=16, help='that decode clips')
  add('--out', metavar='DIR', help='for the results')


def run(args: argparse.Namespace) -> int:
  """Prints the scores of every fold and of all clips, and stores them."""
  names, rules = _chosen(args)
  datasets = [prepared.open(name) for name in names]
  inputs.report(datasets)
  parent = pathlib.Path(args.out) if args.out else None
  out = baseline.folder(datasets, rules, parent, args.features)
  files.open_folder(out)
  made = baseline.evaluate(
    datasets, rules, features=args.features, threads=args.threads
  )
  title = f'baseline: {"+".join(d.name for d in datasets)}, {rules.protocol}'
  if rules.protocol == 'split':
    table = report.evaluation_table(made.matrix, made.class_names, title)
  else:
    table = report.folds_table(made.folds, made.class_names, title)
  terminal.show(table)
  path = baseline.write(made, out, rules)
  terminal.say(f'{made}; {made.seconds:.0f} s', f'scores: {path}')
  terminal.result(json.loads(path.read_bytes()))
  return ExitCode.OK


def _chosen(args: argparse.Namespace) -> tuple[list[str], protocol.Rules]:
  """Folders of datasets and the rules, of the flags or of a run."""
  rules = {
    'protocol': args.protocol or ('folds' if args.num_folds else None),
    'num_folds': args.num_folds,
    'fold_seed': args.fold_seed,
    'test_split': args.split,
    'classes': args.classes,
  }
  given = {name: x for name, x in rules.items() if x is not None}
  if args.workdir is None:
    if not args.dataset:
      hint = 'name a prepared dataset, or a run by --workdir'
      raise MiraInputError('bad_flag', 'DATASET', hint)
    return args.dataset.split(','), protocol.Rules(**given)
  if args.dataset or given:
    hint = 'it is that of the run: drop it, or --workdir'
    first = args.dataset or f'--{next(iter(given)).replace("_", "-")}'
    raise MiraInputError('bad_flag', first, hint)
  workdir = pathlib.Path(args.workdir)
  folds = run_folder.folds(workdir)
  cfg = run_folder.read_config(next(iter(folds.values()), workdir))
  return config.datasets(cfg.data), inputs.rules(cfg)
