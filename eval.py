"""Scores the weights of a run, or of every fold of a protocol.

python eval.py --workdir=runs/quickstart
python eval.py --workdir=runs/quickstart --dataset=DIR --split=test --views=5
python eval.py --workdir=runs/dfew --folds=all --config=configs/dfew.py:B
python eval.py --workdir=runs/quickstart --step=newest
python eval.py --workdir=runs/quickstart --int8

The second form tests on another dataset, whose classes are matched by name
(see mira_jax.data.harmonise). The third trains the folds that are not trained
yet, each in a folder of its own below WORKDIR, and scores them all; without
--config it only scores, and marks the report as partial when some are not
finished. The fourth scores a checkpoint, of a run that need not be finished;
the fifth, weights held in eight bits. Prints tables, and writes scores.json,
confusion.csv and confusion.png below WORKDIR/eval.
"""

from __future__ import annotations

from mira_jax import terminal
from mira_jax.cli import flags as cli_flags

if __name__ == '__main__':  # what follows takes seconds to import
  terminal.leave_on_interrupt('eval.py')

import copy
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from mira_jax import config, figures, output
from mira_jax.cli import hosts
from mira_jax.data import dataset as prepared
from mira_jax.data import label_map, pool
from mira_jax.devices import platform
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import metrics, report, results
from mira_jax.inference import engine
from mira_jax.train import datasets as inputs
from mira_jax.train import loop, run_folder, snapshot
from mira_jax.weights import weights_file

_WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run or folds.')
_DATASET = flags.DEFINE_string('dataset', None, "else the run's own.")
_SPLIT = flags.DEFINE_string(
  'split', None, "of it, or 'all'; else what the run was tested on."
)
_VIEWS = flags.DEFINE_integer('views', None, "else the run's own.", 1, 1000)
_STEP = flags.DEFINE_string(
  'step', None, "a checkpoint, 'newest' or 'best'; else the run's weights."
)
_INT8 = flags.DEFINE_bool(
  'int8', False, 'hold the weights in eight bits, as mira predict --int8 does.'
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', None, "clips at once, else the run's own.", 1
)
_FOLDS = flags.DEFINE_string('folds', None, "'all', or numbers such as 0,2.")
_CONFIG = config_flags.DEFINE_config_file(
  'config', help_string='a file, to train the folds that are not trained yet.'
)
_DEVICE = flags.DEFINE_enum('device', None, platform.PLATFORMS, platform.HELP)
flags.mark_flag_as_required('workdir')


def main(_):
  platform.start(_DEVICE.value, meet=hosts.join)
  engine.use_compile_cache()
  workdir = pathlib.Path(_WORKDIR.value)
  if _FOLDS.value is None:
    if _CONFIG.value is not None:
      hint = 'it trains folds: add --folds=all, or use train.py'
      raise MiraInputError('bad_flag', '--config', hint)
    evaluate_run(workdir)
  else:
    evaluate_folds(workdir, _CONFIG.value, _FOLDS.value)


# ----- one run --------------------------------------------------------------


def evaluate_run(workdir: pathlib.Path) -> None:
  """Scores a run on its own test clips, or on another dataset."""
  if _STEP.value and _INT8.value:
    hint = "it holds a run's final weights so; drop it, or --step"
    raise MiraInputError('bad_flag', '--int8', hint)
  matrix, class_names, facts = _scored(workdir)
  name = facts['tested']
  if jax.process_index() > 0:
    return
  title = f'{name}: {workdir.resolve().name}'
  terminal.show(report.evaluation_table(matrix, class_names, title))
  path = report.write_evaluation(
    workdir / 'eval' / name.replace(', ', '-').replace(' ', '_'),
    matrix=matrix,
    class_names=class_names,
    metadata=facts,
    title=title,
  )
  terminal.say(f'scores: {path}')


def _scored(
  run: pathlib.Path,
) -> tuple[np.ndarray, tuple[str, ...], dict[str, Any]]:
  """Confusion matrix and class names of a run's test, and what was tested."""
  cfg = run_folder.read_config(run)
  size = _BATCH_SIZE.value or cfg.data.batch_size
  if _STEP.value:
    scorer, card = snapshot.load(run, _STEP.value, size)
  else:
    scorer, card = engine.load_run(run, size, eight_bits=_INT8.value)
  output.open_folder(run)
  source, name = _test_clips(cfg, card)
  if _STEP.value:
    name += f', step {card["step"]}'
  if _INT8.value:
    name += ', int8'
  views = _VIEWS.value or cfg.eval.views
  rules = inputs.reading(cfg)
  matrix = inputs.score_source(scorer, source, views=views, **rules)
  facts = {'workdir': str(run), 'tested': name, 'views': views, 'card': card}
  return matrix, source.class_names, facts


def _test_clips(cfg: config.Config, card: dict) -> tuple[pool.Pool, str]:
  """The clips to test, with the classes of the model, and what they are."""
  if not (_DATASET.value or _SPLIT.value):
    datasets = inputs.open_datasets(cfg.data)
    _tell(datasets)
    parts = inputs.open_parts(cfg, datasets)
    name = '+'.join(dict.fromkeys(parts.test.dataset.tolist()))
    return parts.test, f'{name}, {parts.fold_name or cfg.eval.split}'
  paths = [_DATASET.value] if _DATASET.value else config.datasets(cfg.data)
  split = _SPLIT.value or cfg.eval.split
  datasets = [prepared.open(path) for path in paths]
  _tell(datasets)
  pools = [_as_the_model_names_them(d, split, card) for d in datasets]
  name = '+'.join(p.dataset[0] for p in pools)
  return pool.join(pools), f'{name}, {split}'


def _tell(datasets: list[prepared.PreparedDataset]) -> None:
  if jax.process_index() == 0:
    inputs.report(datasets)


def _as_the_model_names_them(
  dataset: prepared.PreparedDataset, split: str, card: dict
) -> pool.Pool:
  """A split whose labels are the model's; raises where none is common."""
  known = {label_map.common_name(n): n for n in card['class_names']}
  rename = {
    name: known.get(label_map.common_name(name), '')
    for name in dataset.class_names
  }
  if not any(rename.values()):
    hint = f'the model knows {", ".join(card["class_names"])}'
    path, code = dataset.directory, ExitCode.DATA
    raise MiraInputError('other_classes', path, hint, exit_code=code)
  splits = list(dataset.splits) if split == 'all' else [split]
  names = card['class_names']
  clips = pool.of_dataset(dataset, splits, names, rename)
  left_out = [name for name, ours in rename.items() if not ours]
  if left_out and jax.process_index() == 0:
    terminal.say(
      f'left out: {", ".join(left_out)}, which the model does not know'
    )
  return clips


# ----- folds ----------------------------------------------------------------


def evaluate_folds(
  workdir: pathlib.Path, cfg: config.Config | None, which: str
) -> None:
  """Trains the folds that are not trained, if it may; scores all of them."""
  if _STEP.value or _INT8.value:
    name = '--step' if _STEP.value else '--int8'
    hint = 'it is of the weights of one run; drop it, or --folds'
    raise MiraInputError('bad_flag', name, hint)
  if _DATASET.value or _SPLIT.value:
    hint = 'a fold is tested on the clips that it left out; drop that flag'
    raise MiraInputError('bad_flag', '--dataset, --split', hint)
  base = cfg or run_folder.read_config(_first_fold(workdir))
  names = inputs.fold_names(base, inputs.open_datasets(base.data))
  if len(names) == 1:
    hint = f'{base.data.protocol!r} has no folds; use folds, loso or lodo'
    raise config.bad_config('config.data.protocol', hint)
  numbers = _chosen(which, len(names))
  if cfg is None and which == 'all':
    numbers = _finished(workdir, numbers)
  folds = [
    _fold(workdir / f'fold-{number}', cfg, number, names[number])
    for number in numbers
  ]
  if jax.process_index() == 0:
    missing = [n for i, n in enumerate(names) if i not in numbers]
    _report_folds(workdir, folds, base.data.protocol, missing)


def _first_fold(workdir: pathlib.Path) -> pathlib.Path:
  """The folder of a fold that was trained at least in part."""
  for path in sorted(workdir.glob('fold-*/config.json')):
    return path.parent
  hint = 'there are no folds here; train them with --config=FILE'
  raise MiraInputError('not_a_run', workdir, hint)


def _finished(workdir: pathlib.Path, numbers: list[int]) -> list[int]:
  """The folds that have weights."""
  found = [
    n
    for n in numbers
    if (workdir / f'fold-{n}' / weights_file.WEIGHTS).exists()
  ]
  if not found:
    hint = 'no fold is finished; train them with --config=FILE'
    code = ExitCode.CHECKPOINT
    raise MiraInputError('not_finished', workdir, hint, exit_code=code)
  return found


def _chosen(which: str, count: int) -> list[int]:
  if which == 'all':
    return list(range(count))
  numbers = [int(n) if n.isdecimal() else -1 for n in which.split(',')]
  if not all(0 <= number < count for number in numbers):
    hint = f"use 'all' or numbers from 0 to {count - 1}, such as 0,1"
    raise MiraInputError('bad_flag', f'--folds={which}', hint)
  return numbers


def _fold(
  run: pathlib.Path, cfg: config.Config | None, number: int, name: str
) -> tuple[results.Fold, tuple[str, ...]]:
  """One fold's evaluation and class names; trains it first if need be."""
  if cfg is not None and not (run / weights_file.WEIGHTS).exists():
    if jax.process_index() == 0:
      terminal.say(f'training {name} into {run}')
    mine = copy.deepcopy(cfg)
    mine.data.fold = number
    loop.train(mine, run_folder.open_workdir(str(run)))
  matrix, class_names, _ = _scored(run)
  fold = results.Fold(name=name, matrix=matrix, results=results.read(run))
  return fold, class_names


def _report_folds(
  workdir: pathlib.Path,
  scored: list[tuple[results.Fold, tuple[str, ...]]],
  protocol: str,
  missing: list[str],
) -> None:
  folds, class_names = [fold for fold, _ in scored], scored[0][1]
  for fold, names in scored:
    if names != class_names:
      hint = f'its classes are not those of {folds[0].name}: {class_names}'
      code = ExitCode.DATA
      raise MiraInputError('other_classes', fold.name, hint, exit_code=code)
  count = f'{len(folds)}'
  if missing:
    count += f' of {len(folds) + len(missing)}'
  title = f'{workdir.resolve().name}: protocol {protocol}, {count} folds'
  terminal.show(report.folds_table(folds, class_names, title, missing))
  folder = workdir / 'eval' / 'folds'
  folder.mkdir(parents=True, exist_ok=True)
  whole = results.pooled(folds)
  np.savetxt(folder / 'confusion.csv', whole, fmt='%d', delimiter=',')
  picture = folder / 'confusion.png'
  title = ', '.join(filter(None, [title, 'pooled', results.partial(missing)]))
  scores = str(metrics.score(whole))
  figures.confusion_figure(picture, whole, class_names, title, scores)
  told = results.folds_dict(folds, class_names, missing)
  told |= {'protocol': protocol}
  path = folder / 'folds.json'
  path.write_text(terminal.as_json(told, indent=2) + '\n', encoding='utf-8')
  terminal.say(f'folds: {path}', f'picture: {picture}')


if __name__ == '__main__':
  cli_flags.run(main)
