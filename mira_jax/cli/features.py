"""Extract features for every clip of a prepared dataset into one array file.

  mira features DATASET --out FILE.npz (--workdir RUN | --weights FILE)

The model is a finished run (a pre-training or a classifier), or any weights
that `mira convert` reads. Features are pooled after the last norm and averaged
over views; the head is not used. The file holds the arrays features [C, D],
label, clip_id, subject, fold, split [C] and class_names [K], and `about`, JSON
of their origin, and of a dataset with action units action_units [A], positive
and known [C, A]: frames of a clip that show a unit, and those where that is
annotated. `mira probe` and numpy.load read it.

Flags such as --heads are for foreign weights that do not record them.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mira_jax import files, terminal
from mira_jax.cli import start, weight_flags
from mira_jax.cli.arguments import at_least
from mira_jax.data import dataset as prepared
from mira_jax.data import pipeline
from mira_jax.devices import memory
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.evaluation import feature_file
from mira_jax.inference import backends, load, scorer
from mira_jax.train import run_folder
from mira_jax.weights import sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the dataset, the model and where to write."""
  add = parser.add_argument
  add('dataset', metavar='DATASET')
  model = parser.add_mutually_exclusive_group(required=True)
  model.add_argument('--workdir', metavar='RUN', help='folder of a run')
  other = 'what `mira convert` reads, instead'
  model.add_argument('--weights', metavar='SRC', help=other)
  weight_flags.add(parser)
  add('--out', required=True, metavar='FILE.npz')
  add('--splits', help='with commas between (default: all)')
  add('--views', type=at_least(1, most=1000), default=1)
  add('--batch-size', type=at_least(1), default=8)
  add('--threads', type=at_least(1), default=16)
  start.add_backend(parser)
  start.add_arguments(parser)


@memory.explained()
def run(args: argparse.Namespace) -> int:
  """Writes the file and prints its size."""
  out = pathlib.Path(args.out)
  if out.suffix != '.npz':
    raise MiraInputError('bad_name', out, 'end the name in .npz')
  backends.check(args.backend, False)
  files.open_folder(out.parent)
  start.device(args)
  dataset = prepared.open(args.dataset)
  splits = args.splits.split(',') if args.splits else list(dataset.splits)
  path = args.workdir or args.weights
  model, card, report = load.load_backbone(
    path, args.batch_size, weight_flags.overrides(args), args.dtype
  )
  served = start.serve(args, model, card)
  terminal.say(*str(report).split('\n'))
  rules, source = card['preprocessing'], sources.weights_path(path)
  parts = [_split(served, dataset, split, rules, args) for split in splits]
  arrays = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
  about = {
    'dataset': dataset.name,
    'fingerprint': run_folder.fingerprint(dataset),
    'views': args.views,
    'weights': str(source),
    'weights_sha256': files.sha256(source),
    'card': card,
  }
  units = dataset.action_units
  feature_file.write(out, arrays, dataset.class_names, about, units)
  count, dim = arrays['features'].shape
  terminal.say(
    f'features: {out} ({count} clips of {", ".join(splits)}, {dim} numbers)'
  )
  return ExitCode.OK


def score_clips(
  served: scorer.Scorer,
  source: pipeline.Source,
  rules: Mapping[str, Any],
  args: argparse.Namespace,
  field: str,
) -> tuple[np.ndarray, np.ndarray]:
  """A field of `Scorer.score_split` of a split, and its damaged clips.

  Clips are read by the `rules` of the model's metadata, in the views and by the
  threads of the command line.
  """
  batches = pipeline.eval_batches(
    source,
    frames=served.frames,
    size=served.image_size,
    batch_size=served.batch_size,
    views=args.views,
    threads=args.threads,
    rate=rules['rate'],
    fit=rules['fit'],
  )
  found, _, damaged = served.score_split(
    batches, len(source), args.views, field
  )
  return found, damaged


def _split(
  served: scorer.Scorer,
  dataset: prepared.PreparedDataset,
  split: str,
  rules: dict[str, Any],
  args: argparse.Namespace,
) -> dict[str, np.ndarray]:
  """The arrays of a split, without its damaged clips."""
  source, index = dataset.source(split), dataset.index(split)
  features, damaged = score_clips(served, source, rules, args, 'logits')
  kept = np.setdiff1d(np.arange(len(source)), damaged)
  if len(damaged):
    terminal.say(f'{len(damaged)} damaged clips of {split} are left out')
  return {
    'features': features.astype(np.float32),
    'split': np.full(len(kept), split),
    **{
      field.name: getattr(index, field.name)[kept]
      for field in dataclasses.fields(index)
    },
  }
