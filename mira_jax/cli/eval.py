"""Score the weights of a run, or of every fold of a protocol.

  mira eval --workdir=runs/quickstart
  mira eval --workdir=runs/quickstart --dataset=DIR --split=test --views=5
  mira eval --workdir=runs/dfew --folds=all --config=dfew:B
  mira eval --workdir=runs/quickstart --step=newest
  mira eval --workdir=runs/quickstart --int8

The second form tests on another dataset, whose classes are matched by name
(see mira_jax.data.label_map). The third trains the folds that are not trained
yet, each in a folder of its own below WORKDIR, and scores them all; without
--config it only scores, and marks the report as partial when some are not
finished. The fourth scores a checkpoint, of a run that need not be finished;
the fifth, weights held in eight bits. Prints tables, and writes scores.json,
confusion.csv and confusion.png below WORKDIR/eval.
"""

from __future__ import annotations

import argparse
import copy
import json
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mira_jax import config, files, terminal
from mira_jax.cli import eval_classes, eval_units, hosts, kept_folds, start
from mira_jax.cli.arguments import at_least
from mira_jax.data import dataset as prepared
from mira_jax.data import pool, protocol
from mira_jax.errors import ExitCode, MiraInputError, checkpoint_error
from mira_jax.evaluation import results
from mira_jax.inference import backends, load
from mira_jax.train import datasets as inputs
from mira_jax.train import loop, run_folder, snapshot
from mira_jax.weights import weights_file

TAKES_CONFIG_FLAGS = True
GIVES_RESULT = True  # to programs, by --json


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the run, what to test it on, and which of its weights."""
  add = parser.add_argument
  folder = 'folder of the run, or of its folds'
  add('--workdir', metavar='DIR', required=True, help=folder)
  add('--dataset', metavar='DIR', help="prepared dataset; else the run's own")
  split = "of it, or 'all'; else what the run was tested on"
  add('--split', metavar='NAME', help=split)
  step = "a checkpoint, 'newest' or 'best'; else the run's weights"
  add('--step', metavar='STEP', help=step)
  add('--folds', metavar='N,N', help="'all', or numbers such as 0,2")
  train = 'or FILE: trains the folds that are not trained yet'
  add('--config', metavar='NAME', help=train)
  add('--views', type=at_least(1, most=1000), help="else the run's own")
  add(
    '--batch-size', type=at_least(1), help="clips at once; else the run's own"
  )
  int8 = 'hold the weights in eight bits, as mira predict --int8 does'
  add('--int8', action='store_true', help=int8)
  start.add_backend(parser)
  start.add_arguments(parser)
  hosts.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Scores one run or several folds."""
  if args.config is None and args.flags:
    hint = 'it changes a configuration: add --config=NAME --folds=all'
    raise MiraInputError('bad_flag', args.flags[0], hint)
  cfg = args.config and config.load(args.config, args.flags)
  if cfg and args.folds is None:
    hint = 'it trains folds: add --folds=all, or use mira train'
    raise MiraInputError('bad_flag', '--config', hint)
  if args.step and args.int8:
    raise MiraInputError('bad_flag', '--int8', 'drop it, or --step')
  backends.check(args.backend, args.int8)
  for flag in ('dataset', 'split', 'step', 'int8'):
    if args.folds is not None and getattr(args, flag):
      hint = 'it is for one run: drop it, or --folds'
      raise MiraInputError('bad_flag', f'--{flag}', hint)
  with start.devices(args):
    if args.folds is None:
      _evaluate_run(args)
    else:
      _evaluate_folds(args, cfg)
  return ExitCode.OK


# ----- one run --------------------------------------------------------------


def _evaluate_run(args: argparse.Namespace) -> None:
  """Scores a run on its own test clips, or on another dataset."""
  workdir = pathlib.Path(args.workdir)
  found = _report_run(workdir, *_scored(workdir, args))
  if _corrects(workdir) and args.backend:
    text = 'the uncorrected prediction is left out: it needs no --backend'
    terminal.say(text)
  elif _corrects(workdir):
    scored = _scored(workdir, args, primary=True)
    found[results.PRIMARY] = _report_run(workdir, *scored)
  terminal.result(found)


def _corrects(run: pathlib.Path) -> bool:
  """Whether a model corrects its predictions: both are then scored."""
  balancing = run_folder.read_config(run).model.reliability
  return balancing is not None and balancing.output == 'corrected'


def _kind(cfg: config.Config) -> types.ModuleType:
  """The functions of what a run learned, action units or classes."""
  return eval_units if cfg.data.labels == results.UNITS else eval_classes


def _report_run(
  workdir: pathlib.Path, predicted: Any, facts: Mapping[str, Any]
) -> dict[str, Any]:
  """Prints and writes the scores of a run; returns them."""
  name = facts['tested']
  if jax.process_index() > 0:
    return {}
  title = f'{name}: {workdir.resolve().name}'
  folder = workdir / 'eval' / name.replace(', ', '-').replace(' ', '_')
  kind = _kind(run_folder.read_config(workdir))
  path = kind.report_run(predicted, facts, title, folder)
  terminal.say(f'scores: {path}')
  return json.loads(path.read_bytes())


def _scored(
  run: pathlib.Path, args: argparse.Namespace, primary: bool = False
) -> tuple[Any, dict[str, Any]]:
  """The predictions of a run's test, and what was tested.

  `primary` leaves out the correction of a model with reliability balancing.
  """
  cfg = run_folder.read_config(run)
  size = args.batch_size or cfg.data.batch_size
  if args.step:
    made, card = snapshot.load(run, args.step, size, args.dtype)
  else:
    options = {'dtype': args.dtype, 'eight_bits': args.int8}
    made, card = load.load_engine(run, size, **options)
  scorer = made.primary() if primary else start.serve(args, made, card)
  files.open_folder(run)
  source, name, fold = _test_clips(cfg, card, args)
  if args.step:
    name += f', step {card["step"]}'
  name += f', {results.PRIMARY}' if primary else ''
  for how in (args.backend, args.dtype, 'int8' if args.int8 else None):
    name += f', {how}' if how else ''
  views = args.views or cfg.eval.views
  names = card['class_names']
  predicted = _kind(cfg).score(scorer, source, cfg, views, fold, names)
  facts = {'workdir': str(run), 'tested': name, 'views': views, 'card': card}
  return predicted, facts


def _test_clips(
  cfg: config.Config, card: dict, args: argparse.Namespace
) -> tuple[pool.Pool, str, str]:
  """The clips to test with the classes of the model, their name, their fold."""
  if args.dataset:
    datasets = [prepared.open(args.dataset)]
  else:
    datasets = inputs.open_datasets(cfg.data)
  if jax.process_index() == 0:
    inputs.report(datasets)
  if not (args.dataset or args.split):
    _check_unchanged(datasets, card, args)
    parts = inputs.open_parts(cfg, datasets)
    name = '+'.join(dict.fromkeys(parts.test.dataset.tolist()))
    tested = f'{name}, {parts.fold_name or cfg.eval.split}'
    return parts.test, tested, parts.fold_name
  split = args.split or cfg.eval.split
  clips_with, names = _kind(cfg).clips_with, card['class_names']
  pools = []
  for dataset in datasets:
    found, left_out = clips_with(dataset, split, names)
    pools.append(found)
    if left_out and jax.process_index() == 0:
      unknown = ', '.join(left_out)
      terminal.say(f'left out: {unknown}, which the model does not know')
  name = '+'.join(distinct_name(d, card) for d in datasets)
  return pool.join(pools), f'{name}, {split}', ''


def _check_unchanged(
  datasets: Sequence[prepared.PreparedDataset],
  card: dict,
  args: argparse.Namespace,
) -> None:
  """Other clips would be split in another way than those of the training.

  Raises:
    MiraInputError: the datasets of a fold have changed since it was trained.
  """
  trained = {x['fingerprint'] for x in card.get('datasets') or ()}
  changed = [x for x in datasets if prepared.fingerprint(x) not in trained]
  if not (trained and changed):
    return
  name = changed[0].directory
  hint = 'it has changed since the training, whose clips may be tested now'
  if args.folds is not None:
    hint += '; restore it, or choose a new --workdir'
    raise checkpoint_error('run_changed', name, hint)
  if jax.process_index() == 0:
    terminal.say(f'{name}: {hint}')


def distinct_name(dataset: prepared.PreparedDataset, card: dict) -> str:
  """A dataset's name; with its digest if the model's own has the same name."""
  own = {x['name']: x['fingerprint'] for x in card.get('datasets') or ()}
  digest = prepared.fingerprint(dataset)
  if own.get(dataset.name, digest) == digest:
    return dataset.name
  return f'{dataset.name} {digest[:8]}'


# ----- folds ----------------------------------------------------------------


def _evaluate_folds(
  args: argparse.Namespace, cfg: config.Config | None
) -> None:
  """Trains the folds that are not trained, if it may; scores all of them."""
  workdir = pathlib.Path(args.workdir)
  trained = [*run_folder.folds(workdir).values()]
  if cfg and trained:
    run_folder.keep_folds(cfg, trained[0])
  if not (cfg or trained):
    hint = 'there are no folds here; train them with --config=FILE'
    raise MiraInputError('not_a_run', workdir, hint)
  base = cfg or run_folder.read_config(trained[0])
  for run in trained:  # before anything is trained, and of folds kept as well
    run_folder.check_rules(run, base)
  datasets = inputs.open_datasets(base.data)
  names = protocol.fold_names(datasets, inputs.rules(base))
  if len(names) == 1:
    hint = f'{base.data.protocol!r} has no folds; use folds, loso or lodo'
    raise config.bad_config('config.data.protocol', hint)
  numbers = _chosen(args.folds, len(names))
  if cfg is None and args.folds == 'all':
    numbers = [n for n in numbers if _is_trained(run_folder.fold(workdir, n))]
  if not numbers:
    hint = 'no fold is finished; train them with --config=FILE'
    raise checkpoint_error('not_finished', workdir, hint)
  kind, scored = _kind(base), {}
  for number in numbers:
    run = run_folder.fold(workdir, number)
    scored[number] = _fold(run, cfg, args, number, names[number])
    if jax.process_index() == 0:
      terminal.say(kind.progress([*scored.values()], len(numbers)))
  if jax.process_index() == 0:
    # Of several processes that score folds here, the last reads all of them.
    with files.lock(workdir / 'eval' / '.lock', wait=True):
      for fold in scored.values():
        kept_folds.keep(fold, args)
      scored = kept_folds.kept(workdir, names, args) | scored
      _report_folds(workdir, names, scored, base)
    folds = [*scored.values()]
    if line := kind.below_baseline(base, datasets, workdir, folds):
      terminal.say(line)


def _is_trained(run: pathlib.Path) -> bool:
  return (run / weights_file.WEIGHTS).exists()


def _chosen(which: str, count: int) -> list[int]:
  if which == 'all':
    return list(range(count))
  numbers = [int(n) if n.isdecimal() else -1 for n in which.split(',')]
  if not all(0 <= number < count for number in numbers):
    hint = f"use 'all' or numbers from 0 to {count - 1}, such as 0,1"
    raise MiraInputError('bad_flag', f'--folds={which}', hint)
  return numbers


def _fold(
  run: pathlib.Path,
  cfg: config.Config | None,
  args: argparse.Namespace,
  number: int,
  name: str,
) -> kept_folds.Scored:
  """One fold's evaluation; trains it first if need be."""
  if cfg is not None and not _is_trained(run):
    if jax.process_index() == 0:
      terminal.say(f'training {name} into {run}')
    mine = copy.deepcopy(cfg)
    mine.data.fold = number
    loop.train(mine, run_folder.open_workdir(str(run)))
  elif cfg is not None and jax.process_index() == 0:
    terminal.say(*run_folder.other_settings(run, cfg))
  predicted, _ = _scored(run, args)
  return kept_folds.Scored(run, name, predicted)


def _report_folds(
  workdir: pathlib.Path,
  names: Sequence[str],
  scored: Mapping[int, kept_folds.Scored],
  cfg: config.Config,
) -> None:
  """Prints and writes the table of all folds that are scored."""
  missing = [name for i, name in enumerate(names) if i not in scored]
  count = f'{len(scored)}'
  if missing:
    count += f' of {len(names)}'
  name = cfg.data.protocol
  title = f'{workdir.resolve().name}: protocol {name}, {count} folds'
  folds = [scored[number] for number in sorted(scored)]
  path = _kind(cfg).report_folds(workdir, folds, missing, title, name)
  terminal.say(f'folds: {path}')
  terminal.result(json.loads(path.read_bytes()))
