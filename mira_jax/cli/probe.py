"""Classify frozen features by their neighbours or by a linear classifier.

  mira probe FEATURES.npz [--method knn|linear] [--protocol split|folds|loso]
  mira probe FEATURES.npz --test OTHER.npz [--method knn|linear]

`mira features` writes FEATURES.npz. The protocols are those of training: the
splits train and test, the stored folds, or leave one subject out. With --test
the probe trains on all clips of FEATURES.npz and tests on all of OTHER.npz, for
example those of another dataset. With --units each action unit has a linear
classifier of its own; a clip shows a unit where one of its frames does. The
number of neighbours and the strength of the penalty are selected within the
training clips, each without its own subject; the table shows every number of
neighbours.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
from collections.abc import Mapping

import numpy as np

from mira_jax import files, terminal
from mira_jax.cli.arguments import numbers
from mira_jax.data import holdout
from mira_jax.devices import memory
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import (
  feature_file,
  probe,
  report,
  results,
  unit_probe,
  unit_report,
  units,
)
from mira_jax.evaluation.metrics import score


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the features, the method and the protocol."""
  add = parser.add_argument
  add('features', metavar='FEATURES.npz')
  add('--test', metavar='OTHER.npz', help='to test on')
  add('--method', choices=('knn', 'linear'), default='knn')
  add('--protocol', choices=('split', 'folds', 'loso'), default='split')
  default = ','.join(map(str, probe.NEIGHBOURS))
  add(
    '--k',
    type=numbers,
    help=f'neighbours to select from (default: {default}, as clips allow)',
  )
  text = 'action units: a linear classifier for each, of whole clips'
  add('--units', action='store_true', help=text)
  add('--balanced', action='store_true', help='weigh all classes alike: linear')
  add('--seed', type=int, default=0, help='of held-out clips')
  add('--out', metavar='DIR', help='for scores and a picture')
  add('--json', action='store_true', help='print JSON instead of tables')


@memory.explained()
def run(args: argparse.Namespace) -> int:
  """Prints the scores of every fold and of all clips."""
  data = _read(args)
  out = args.out and files.open_folder(args.out)
  names = tuple(data['class_names'].tolist())
  tests = feature_file.partition(data, args.protocol)
  if args.units:
    _probe_units(args, data, tests, out)
    return ExitCode.OK
  fewest = min(int(train.sum()) for train, _ in tests.values())
  method = _method(args, fewest, len(names))
  columns = (data['features'], data['label'], _groups(data))
  result = probe.run(method, *columns, tests, len(names))
  chosen = zip((x.name for x in result.folds), result.chosen, strict=True)
  content = {
    'method': args.method,
    'protocol': args.protocol,
    'chosen': dict(chosen),
    'about': feature_file.about(data),
    'sweep': {name: _scores(m) for name, m in _by_value(result.sweep)},
  }
  content |= {'balanced': args.balanced} if args.method == 'linear' else {}
  title = _title(args)
  if args.json:
    content = results.folds_dict(result.folds, names) | content
    print(terminal.as_json(content, encoding=sys.stdout.encoding, indent=2))
  else:
    _print(args, result, names, title)
  if out:
    path = report.write_folds(
      out, result.folds, names, metadata=content, title=title
    )
    if not args.json:  # which prints one document and nothing else
      terminal.say(f'scores: {path}')
  return ExitCode.OK


def _probe_units(
  args: argparse.Namespace,
  data: feature_file.Features,
  tests: Mapping[str, tuple[np.ndarray, np.ndarray]],
  out: pathlib.Path | None,
) -> None:
  """Prints and writes the scores of a probe of every action unit.

  Raises:
    MiraInputError: the file has no action units, or a flag is not of them.
  """
  if 'action_units' not in data:
    hint = 'its dataset has no action units; leave out --units'
    raise MiraInputError('not_features', args.features, hint)
  if args.k:
    raise MiraInputError('bad_flag', '--k', 'it does not go with --units')
  found = unit_probe.run(
    data,
    _groups(data),
    tests,
    hold_out=functools.partial(_hold_out, seed=args.seed),
    balanced=args.balanced,
  )
  half = [units.HALF] * len(data['action_units'])
  least = dict.fromkeys(found, half)
  title = _title(argparse.Namespace(**vars(args) | {'method': 'linear'}))
  whole = units.join([*found.values()])
  if args.json:
    content = {n: unit_report.as_dict(x, half) for n, x in found.items()}
    content = {'folds': content, 'pooled': unit_report.as_dict(whole, half)}
    print(terminal.as_json(content, encoding=sys.stdout.encoding, indent=2))
  elif args.protocol == 'split':
    terminal.show(unit_report.evaluation_table(whole, half, title))
  else:
    terminal.show(unit_report.folds_table(found, least, title))
  if out:
    about = {'protocol': args.protocol, 'about': feature_file.about(data)}
    path = unit_report.write_folds(out, found, least, metadata=about)
    if not args.json:
      terminal.say(f'scores: {path}')


def _groups(data: feature_file.Features) -> np.ndarray:
  """The subject of every clip; a group of its own where it is unknown."""
  clips = np.arange(len(data['label'])).astype(str)
  alone = np.char.add('clip ', clips)
  return np.where(data['subject'] == '', alone, data['subject'])


def _title(args: argparse.Namespace) -> str:
  files = [args.features, *filter(None, [args.test])]
  names = ' -> '.join(pathlib.Path(file).name for file in files)
  return f'{args.method}, {args.protocol}: {names}'


def _read(args: argparse.Namespace) -> feature_file.Features:
  data = feature_file.read(args.features)
  if not args.test:
    return data
  if args.protocol != 'split':
    hint = 'with --test the other file is tested; leave --protocol out'
    raise MiraInputError('bad_flag', f'--protocol={args.protocol}', hint)
  return feature_file.train_and_test(data, feature_file.read(args.test))


def _method(
  args: argparse.Namespace, fewest: int, num_classes: int
) -> probe.Method:
  """The chosen method; a fold has at least `fewest` training clips."""
  if args.method == 'linear':
    return functools.partial(
      probe.linear,
      num_classes=num_classes,
      hold_out=functools.partial(_hold_out, seed=args.seed),
      balanced=args.balanced,
    )
  ks = args.k or [k for k in probe.NEIGHBOURS if k <= fewest]
  probe.check_k(ks, fewest)
  return functools.partial(probe.knn, num_classes=num_classes, ks=ks)


def _hold_out(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
  """Marks a fifth of the training clips, of whole subjects where known."""
  known = len(np.unique(groups)) < len(groups)
  subjects = groups.tolist() if known else [''] * len(groups)
  held, _ = holdout.hold_out(subjects, labels.tolist(), 0.2, seed)
  return np.isin(np.arange(len(labels)), sorted(held))


def _by_value(sweep: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
  return sorted(sweep.items(), key=lambda item: float(item[0].split('=')[1]))


def _scores(matrix: np.ndarray) -> dict[str, float]:
  scores = score(matrix)
  return {'war': scores.war, 'uar': scores.uar, 'macro_f1': scores.macro_f1}


def _print(
  args: argparse.Namespace,
  result: probe.Result,
  names: tuple[str, ...],
  title: str,
) -> None:
  folds, chosen = result.folds, result.chosen
  if args.protocol == 'split':
    terminal.show(report.evaluation_table(folds[0].matrix, names, title))
  else:
    terminal.show(report.folds_table(folds, names, title))
  if args.method == 'knn':
    lines = report.table('neighbours', 'WAR', 'UAR', 'macro F1')
    for name, matrix in _by_value(result.sweep):
      lines.add_row(name, *map(report.percent, _scores(matrix).values()))
    terminal.show(lines)
  counts = {name: chosen.count(name) for name in chosen}
  shown = ', '.join(f'{name} ({n})' for name, n in counts.items())
  terminal.say(f'selected within the training clips (folds): {shown}')
