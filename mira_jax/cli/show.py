"""Draw a contact sheet of a prepared dataset.

  mira show DATASET [--split train] [--out sheet.png]

Shows clips spread over the split, up to eight frames of each, with their
labels.
"""

from __future__ import annotations

import argparse

import numpy as np

from mira_jax import figures, terminal
from mira_jax.cli.arguments import at_least
from mira_jax.data import dataset, records
from mira_jax.errors import ExitCode
from mira_jax.video import footage

FRAMES = 8


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the dataset, the split and the output file."""
  parser.add_argument('dataset', metavar='DATASET')
  parser.add_argument('--split', default='train')
  parser.add_argument('--clips', type=at_least(1), default=14)
  parser.add_argument('--out', default='sheet.png', metavar='FILE.png')


def run(args: argparse.Namespace) -> int:
  """Writes the sheet and prints the size of the dataset."""
  prepared = dataset.open(args.dataset)
  source = prepared.source(args.split)
  chosen = footage.spaced(len(source), args.clips).tolist()
  clips = [source[i] for i in chosen]
  titles = [f'{prepared.class_names[c.label]}  {c.clip_id}' for c in clips]
  sheet = figures.contact_sheet([_frames(clip) for clip in clips], titles)
  splits = ', '.join(f'{name} {n}' for name, n in prepared.splits.items())
  terminal.say(f'{prepared.name}: {splits}; {", ".join(prepared.class_names)}')
  if prepared.action_units:
    shown = dataset.describe_units(dataset.unit_counts(prepared))
    least = prepared.positive_from
    terminal.say(f'action units, shown from intensity {least} on: {shown}')
  terminal.say(f'picture: {sheet.save(args.out)}')
  return ExitCode.OK


def _frames(clip: dataset.Clip) -> np.ndarray:
  """Up to eight frames spread over the clip, uint8 [F, H, W, 3]."""
  chosen = footage.spaced(len(clip), FRAMES).tolist()
  frames = records.read_frames(clip, chosen)
  return np.stack([frames[i] for i in chosen])
