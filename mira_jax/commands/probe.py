"""Classify frozen features by their neighbours or by a linear map.

  mira probe FEATURES.npz [--method knn|linear] [--protocol split|folds|loso]

FEATURES.npz is of `mira features`. The protocols are those of training: the
splits train and test, the stored folds, or each subject left out. The number of
neighbours and the strength of the penalty are chosen within the training clips,
each without its own subject; all numbers of neighbours are shown beside.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import zipfile

import numpy as np
import rich
from rich import box
from rich.table import Table

from mira_jax import outcome, probe, report
from mira_jax.data import splits
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.metrics import score

ARRAYS = ('features', 'label', 'clip_id', 'subject', 'fold', 'split')


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the features, the method and the protocol."""
  parser.add_argument('features', metavar='FEATURES.npz')
  parser.add_argument('--method', choices=('knn', 'linear'), default='knn')
  parser.add_argument(
    '--protocol', choices=('split', 'folds', 'loso'), default='split'
  )
  parser.add_argument(
    '--k',
    default=','.join(map(str, probe.NEIGHBOURS)),
    help='numbers of neighbours to choose from (default: %(default)s)',
  )
  parser.add_argument(
    '--temperature',
    type=float,
    default=probe.TEMPERATURE,
    help='of the votes of neighbours (default: %(default)s)',
  )
  parser.add_argument('--seed', type=int, default=0, help='of held-out clips')
  parser.add_argument('--out', metavar='DIR', help='for scores and a picture')
  parser.add_argument(
    '--json', action='store_true', help='print JSON instead of tables'
  )


def run(args: argparse.Namespace) -> int:
  """Prints the scores of every fold and of all clips."""
  data = read(args.features)
  names = tuple(data['class_names'].tolist())
  tests = partition(data, args.protocol)
  result = probe.run(
    _method(args, len(names)),
    data['features'],
    data['label'],
    _groups(data),
    tests,
    len(names),
  )
  folds = [
    outcome.Fold(name=name, matrix=matrix)
    for name, matrix in zip(result.folds, result.matrices, strict=True)
  ]
  told = outcome.folds_dict(folds, names) | {
    'method': args.method,
    'protocol': args.protocol,
    'chosen': dict(zip(result.folds, result.chosen, strict=True)),
    'sweep': {n: _scores(m) for n, m in _in_order(result.sweep)},
    'about': json.loads(str(data['about'])),
  }
  title = f'{args.method}, {args.protocol}: {pathlib.Path(args.features).name}'
  if args.json:
    print(json.dumps(told, indent=2, ensure_ascii=False))
  else:
    _print(args, result, folds, names, title)
  if args.out:
    path = report.write_evaluation(
      args.out,
      matrix=outcome.pooled(folds),
      class_names=names,
      metadata={n: told[n] for n in ('method', 'protocol', 'chosen', 'about')},
      title=title,
    )
    pathlib.Path(args.out, 'folds.json').write_text(
      json.dumps(told, indent=2, ensure_ascii=False) + '\n'
    )
    print(f'scores: {path}')
  return ExitCode.OK


def read(path: str) -> dict[str, np.ndarray]:
  """The arrays of a features file.

  Raises:
    MiraInputError: it is not one.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      data = dict(file)
  except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
    hint = f'write one with `mira features` ({error})'
    raise MiraInputError('not_features', path, hint) from error
  missing = [n for n in (*ARRAYS, 'class_names', 'about') if n not in data]
  if missing:
    hint = f'it has no {missing[0]}; write it with `mira features`'
    raise MiraInputError('not_features', path, hint)
  if not np.isfinite(data['features']).all():
    hint = 'a feature is NaN or infinite: check the weights'
    raise MiraInputError('not_finite', path, hint, exit_code=ExitCode.NUMERIC)
  return data


def partition(
  data: dict[str, np.ndarray], protocol: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Fold -> masks [C] of its training and of its tested clips.

  Raises:
    MiraInputError: the clips lack what the protocol needs.
  """
  if protocol == 'split':
    train, test = (data['split'] == name for name in ('train', 'test'))
    if not (train.any() and test.any()):
      found = ', '.join(np.unique(data['split']))
      hint = 'it needs the splits train and test; use --protocol=loso or folds'
      raise _error('no_split', f'splits {found}', hint)
    return {'test': (train, test)}
  if protocol == 'loso':
    keys, shown = data['subject'], '{}'
    unknown, need = keys == '', 'subject'
  else:
    keys, shown = data['fold'], 'fold {}'
    unknown, need = keys < 0, 'fold'
  if unknown.any():
    hint = f'{unknown.sum()} clips have no {need}; prepare them with a table '
    hint += f'that has a column {need}'
    raise _error(f'no_{need}s', protocol, hint)
  groups = np.unique(keys)
  if len(groups) < 2:
    raise _error('one_fold', protocol, f'all clips are of {need} {groups[0]}')
  return {shown.format(g): (keys != g, keys == g) for g in groups}


def _method(args: argparse.Namespace, num_classes: int) -> probe.Method:
  if args.method == 'knn':
    try:
      ks = sorted({int(k) for k in args.k.split(',')})
    except ValueError as error:
      hint = 'give whole numbers with commas between, such as 1,5,20'
      raise MiraInputError('bad_k', args.k, hint) from error
    if ks[0] < 1 or args.temperature <= 0:
      hint = 'k must be 1 or more, and the temperature above 0'
      raise MiraInputError('bad_k', f'{args.k}, {args.temperature}', hint)
    return probe.knn_method(num_classes, ks, args.temperature)

  def hold_out(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    held, _ = splits.hold_out(groups.tolist(), labels.tolist(), 0.2, args.seed)
    mask = np.zeros(len(labels), bool)
    mask[sorted(held)] = True
    return mask

  return probe.linear_method(num_classes, hold_out)


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
  folds: list[outcome.Fold],
  names: tuple[str, ...],
  title: str,
) -> None:
  if args.protocol == 'split':
    print_matrix = report.evaluation_table(folds[0].matrix, names, title)
    rich.print(print_matrix)
  else:
    rich.print(outcome.folds_table(folds, names, title))
  chosen = {name: result.chosen.count(name) for name in result.chosen}
  of = f' of {len(folds)} folds' if len(folds) > 1 else ''
  told = ', '.join(
    f'{name}' + (f' in {n}{of}' if of else '') for name, n in chosen.items()
  )
  print(f'chosen within the training clips: {told}')
  if args.method == 'knn':
    lines = Table(box=box.SIMPLE_HEAD, header_style='dim', pad_edge=False)
    for name in ('every k', 'WAR', 'UAR', 'macro F1'):
      lines.add_column(name, justify='left' if name[0] == 'e' else 'right')
    for name, matrix in _in_order(result.sweep):
      cells = [f'{100 * x:.1f} %' for x in _scores(matrix).values()]
      lines.add_row(name, *cells)
    rich.print(lines)


def _error(code: str, path: str, hint: str) -> MiraInputError:
  return MiraInputError(code, path, hint, exit_code=ExitCode.DATA)
