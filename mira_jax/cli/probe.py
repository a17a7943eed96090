"""Classify frozen features by their neighbours or by a linear map.

  mira probe FEATURES.npz [--method knn|linear] [--protocol split|folds|loso]
  mira probe FEATURES.npz --test OTHER.npz [--method knn|linear]

FEATURES.npz is of `mira features`. The protocols are those of training: the
splits train and test, the stored folds, or each subject left out. With --test
all clips of FEATURES.npz are trained on and all of OTHER.npz are tested, those
of another dataset, say. The number of neighbours and the strength of the
penalty are chosen within the training clips, each without its own subject; all
numbers of neighbours are shown beside.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import numpy as np
from rich import box
from rich.table import Table

from mira_jax import output, terminal
from mira_jax.data import holdout
from mira_jax.devices import memory
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import feature_file, probe, report, results
from mira_jax.evaluation.metrics import score

Tests = dict[str, tuple[np.ndarray, np.ndarray]]  # of feature_file.partition


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the features, the method and the protocol."""
  parser.add_argument('features', metavar='FEATURES.npz')
  parser.add_argument('--test', metavar='OTHER.npz', help='to test on')
  parser.add_argument('--method', choices=('knn', 'linear'), default='knn')
  parser.add_argument(
    '--protocol', choices=('split', 'folds', 'loso'), default='split'
  )
  parser.add_argument(
    '--k',
    help='numbers of neighbours to choose from (default: those of '
    f'{",".join(map(str, probe.NEIGHBOURS))} that the training clips allow)',
  )
  parser.add_argument(
    '--temperature',
    type=float,
    default=probe.TEMPERATURE,
    help='of the votes of neighbours (default: %(default)s)',
  )
  parser.add_argument(
    '--balanced',
    action='store_true',
    help='let every class weigh the same in the linear fit',
  )
  parser.add_argument('--seed', type=int, default=0, help='of held-out clips')
  parser.add_argument('--out', metavar='DIR', help='for scores and a picture')
  parser.add_argument(
    '--json', action='store_true', help='print JSON instead of tables'
  )


@memory.explained()
def run(args: argparse.Namespace) -> int:
  """Prints the scores of every fold and of all clips."""
  data = _read(args)
  out = args.out and output.open_folder(args.out)
  names = tuple(data['class_names'].tolist())
  tests = feature_file.partition(data, args.protocol)
  result = probe.run(
    _method(args, tests, len(names)),
    data['features'],
    data['label'],
    _groups(data),
    tests,
    len(names),
  )
  folds = [
    results.Fold(name=name, matrix=matrix)
    for name, matrix in zip(result.folds, result.matrices, strict=True)
  ]
  told = results.folds_dict(folds, names) | {
    'method': args.method,
    'protocol': args.protocol,
    'chosen': dict(zip(result.folds, result.chosen, strict=True)),
    'sweep': {n: _scores(m) for n, m in _in_order(result.sweep)},
    'about': feature_file.about(data),
  }
  if args.method == 'linear':
    told['balanced'] = args.balanced
  title = f'{args.method}, {args.protocol}: {pathlib.Path(args.features).name}'
  if args.test:
    title += f' -> {pathlib.Path(args.test).name}'
  text = terminal.as_json(told, indent=2)
  if args.json:
    print(terminal.as_json(told, encoding=sys.stdout.encoding, indent=2))
  else:
    _print(args, result, folds, names, title)
  if out:
    (out / 'folds.json').write_text(text + '\n', encoding='utf-8')
    path = report.write_evaluation(
      out,
      matrix=results.pooled(folds),
      class_names=names,
      metadata={n: told[n] for n in ('method', 'protocol', 'chosen', 'about')},
      title=title,
    )
    if not args.json:  # of which the document is all that is printed
      terminal.say(f'scores: {path}')
  return ExitCode.OK


def _read(args: argparse.Namespace) -> feature_file.Features:
  data = feature_file.read(args.features)
  if not args.test:
    return data
  if args.protocol != 'split':
    hint = 'with --test the other file is tested; leave --protocol out'
    raise MiraInputError('bad_flag', f'--protocol={args.protocol}', hint)
  return feature_file.train_and_test(data, feature_file.read(args.test))


def _method(
  args: argparse.Namespace, tests: Tests, num_classes: int
) -> probe.Method:
  if args.method == 'knn':
    fewest = min(int(train.sum()) for train, _ in tests.values())
    ks = _ks(args.k, fewest)
    if not args.temperature > 0:
      hint = 'the temperature of the votes must be above 0'
      raise MiraInputError('bad_flag', f'{args.temperature}', hint)
    return probe.knn_method(num_classes, ks, args.temperature)

  def hold_out(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    alone = len(set(groups.tolist())) == len(groups)
    subjects = [''] * len(groups) if alone else groups.tolist()
    held, _ = holdout.hold_out(subjects, labels.tolist(), 0.2, args.seed)
    mask = np.zeros(len(labels), bool)
    mask[sorted(held)] = True
    return mask

  return probe.linear_method(num_classes, hold_out, args.balanced)


def _ks(text: str | None, fewest: int) -> list[int]:
  """Numbers of neighbours that a fold of the fewest training clips has."""
  if text is None:
    return [k for k in probe.NEIGHBOURS if k <= fewest]
  try:
    ks = sorted({int(k) for k in text.split(',')})
  except ValueError as error:
    hint = 'give whole numbers with commas between, such as 1,5,20'
    raise MiraInputError('bad_k', text, hint) from error
  probe.check_k(ks, fewest)
  return ks


def _groups(data: dict[str, np.ndarray]) -> np.ndarray:
  """The subject of every clip; a group of its own where it is unknown."""
  alone = np.array([f'clip {i}' for i in range(len(data['label']))])
  return np.where(data['subject'] == '', alone, data['subject'])


def _in_order(sweep: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
  return sorted(sweep.items(), key=lambda item: float(item[0].split('=')[1]))


def _scores(matrix: np.ndarray) -> dict[str, float]:
  scores = score(matrix)
  return {'war': scores.war, 'uar': scores.uar, 'macro_f1': scores.macro_f1}


def _print(
  args: argparse.Namespace,
  result: probe.Result,
  folds: list[results.Fold],
  names: tuple[str, ...],
  title: str,
) -> None:
  if args.protocol == 'split':
    print_matrix = report.evaluation_table(folds[0].matrix, names, title)
    terminal.show(print_matrix)
  else:
    terminal.show(results.folds_table(folds, names, title))
  if args.method == 'knn':
    terminal.show(_sweep(result))
  else:
    chosen = {name: result.chosen.count(name) for name in result.chosen}
    told = ', '.join(f'{name} ({n})' for name, n in chosen.items())
    terminal.say(f'selected within the training clips (folds): {told}')


def _sweep(result: probe.Result) -> Table:
  """All numbers of neighbours, and in how many folds each was selected."""
  folds = len(result.folds)
  lines = Table(box=box.SIMPLE_HEAD, header_style='dim', pad_edge=False)
  lines.add_column('neighbours')
  for name in ('WAR', 'UAR', 'macro F1'):
    lines.add_column(name, justify='right')
  lines.add_column('selected within the training clips')
  for name, matrix in _in_order(result.sweep):
    cells = [f'{100 * x:.1f} %' for x in _scores(matrix).values()]
    count = result.chosen.count(name)
    mark = 'selected' if folds == 1 else f'in {count} of {folds} folds'
    lines.add_row(name, *cells, mark * (count > 0))
  return lines
