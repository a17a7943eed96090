r"""Label the clips of a dataset by a model, to adapt to it without its labels.

  mira adapt RUN --dataset TARGET --out labels.csv [--clusters N] [--keep 0.2]
  mira train --config=... --config.data.protocol=lodo --config.data.fold=K \
    --config.data.pseudo_labels=labels.csv

The clips of TARGET are clustered by what RUN predicts of them, or with --by
features by its features, as published; a cluster takes the class that RUN
predicts most often in it, and its share is the confidence. The clips
of highest confidence of each class are written: clip_id, label, confidence. The
labels of TARGET are not read. The second command trains on the other datasets
and on these clips, and tests all clips of TARGET: say so with its scores. RUN
must not have been trained on TARGET: it is the run of that fold without the
table.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax import files, terminal
from mira_jax.cli import features as feature_command
from mira_jax.cli import start
from mira_jax.cli.arguments import at_least
from mira_jax.data import dataset as prepared
from mira_jax.data import pseudo_labels
from mira_jax.devices import memory
from mira_jax.errors import ExitCode, MiraInputError, checkpoint_error
from mira_jax.evaluation import report
from mira_jax.inference import engine, load
from mira_jax.systems import clusters
from mira_jax.weights.metadata import unit_thresholds

GIVES_RESULT = True  # to programs, by --json


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the run, the dataset, and which clips are kept."""
  add = parser.add_argument
  add('run_folder', metavar='RUN', help='folder of a finished run, or weights')
  add('--dataset', metavar='TARGET', required=True)
  add('--out', required=True, metavar='FILE.csv')
  number = 'of clips (default: one for four clips, 1000 at most)'
  add('--clusters', type=at_least(1), help=number)
  by = 'what clusters are of: the log of probabilities (default), or features'
  add(
    '--by', choices=('predictions', 'features'), default='predictions', help=by
  )
  share = 'of the clips of each class (default: 0.2)'
  add('--keep', type=float, default=0.2, help=share)
  add('--seed', type=at_least(0), default=0, help='of the clusters')
  add('--views', type=at_least(1, most=1000), default=1)
  add('--batch-size', type=at_least(1), default=8)
  add('--threads', type=at_least(1), default=16)
  start.add_arguments(parser)


@memory.explained()
def run(args: argparse.Namespace) -> int:
  """Writes the table and prints the clips of each class."""
  out = pathlib.Path(args.out)
  if out.suffix != '.csv':
    raise MiraInputError('bad_name', out, 'end the name in .csv')
  files.open_folder(out.parent)
  target = prepared.open(args.dataset)
  start.device(args)
  made, card = load.load_engine(args.run_folder, args.batch_size)
  _check(card, target, args.run_folder)
  names = card['class_names']
  clips, probability = _scores(made, card, target, 'probabilities', args)
  points = np.log(np.maximum(probability, 1e-9))
  if args.by == 'features':
    _, points = _scores(made.without_head(), card, target, 'logits', args)
  number = args.clusters or min(1000, max(len(names), len(clips) // 4))
  found = clusters.cluster_pseudo_labels(
    points, probability.argmax(1), number, args.keep, args.seed
  )
  rows = [
    (str(clips[i]), names[label], float(share))
    for i, label, share in zip(*found, strict=True)
  ]
  pseudo_labels.write(out, rows)
  counts = np.bincount(found.labels, minlength=len(names)).tolist()
  _say(out, dict(zip(names, counts, strict=True)), found, len(clips))
  return ExitCode.OK


def _check(
  card: Mapping[str, Any], target: prepared.PreparedDataset, run: str
) -> None:
  """Raises MiraInputError for a model that cannot label these clips."""
  load.check_alone(card, run)
  if unit_thresholds(card) is not None:
    hint = 'it learned action units; clusters are labelled with one class'
    raise checkpoint_error('unsupported', run, hint)
  marks = [x['fingerprint'] for x in card.get('datasets') or ()]
  if (mark := prepared.fingerprint(target)) not in marks:
    return
  rule = card.get('protocol') or {}
  if rule.get('name') == 'lodo' and marks[rule['fold']] == mark:
    return
  hint = f'it was trained on {target.name}, whose labels it knows; give a run '
  hint += f'that leaves {target.name} out: protocol lodo, its fold'
  raise checkpoint_error('unsupported', run, hint)


def _say(
  out: pathlib.Path,
  counts: Mapping[str, int],
  found: clusters.PseudoLabels,
  total: int,
) -> None:
  table = report.table('class', 'clips')
  for name, count in counts.items():
    table.add_row(name, str(count))
  terminal.show(table)
  kept, least = len(found.labels), float(found.confidence.min())
  terminal.say(
    f'labels: {out} ({kept} of {total} clips, confidence {least:.2f} or more)',
    f'train:  --config.data.pseudo_labels={out} with protocol lodo',
  )
  terminal.result(
    {'out': str(out), 'of': total, 'counts': counts, 'least': least}
  )


def _scores(
  scorer: engine.Engine,
  card: Mapping[str, Any],
  target: prepared.PreparedDataset,
  field: str,
  args: argparse.Namespace,
) -> tuple[np.ndarray, np.ndarray]:
  """Ids [C] and a field [C, ...] of all clips but the damaged ones."""
  ids, rows, rules = [], [], card['preprocessing']
  for split in target.splits:
    source = target.source(split)
    found, damaged = feature_command.score_clips(
      scorer, source, rules, args, field
    )
    ids.append(np.delete(target.index(split).clip_id, damaged))
    rows.append(found)
  return np.concatenate(ids), np.concatenate(rows)
