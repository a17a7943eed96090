"""Picture the clips of a prepared dataset.

  mira show DATASET [--split train] [--out sheet.png]

Writes a contact sheet: clips spread over the split, eight frames of each, with
their labels.
"""

from __future__ import annotations

import argparse

import numpy as np

from mira_jax import figures, terminal
from mira_jax.cli.arguments import at_least
from mira_jax.data import dataset, records
from mira_jax.errors import ExitCode

FRAMES = 8


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the dataset and what to show of it."""
  parser.add_argument('dataset', metavar='DATASET')
  parser.add_argument('--split', default='train')
  parser.add_argument('--clips', type=at_least(1), default=14)
  parser.add_argument('--out', default='sheet.png', metavar='FILE.png')


def run(args: argparse.Namespace) -> int:
  """Writes the sheet and says what the dataset holds."""
  prepared = dataset.open(args.dataset)
  source = prepared.source(args.split)
  count = min(args.clips, len(source))
  chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
  clips = [source[int(index)] for index in chosen]
  path = figures.contact_sheet(
    args.out,
    [_frames(clip) for clip in clips],
    [f'{prepared.class_names[c.label]}  {c.clip_id}' for c in clips],
  )
  splits = ', '.join(f'{name} {n}' for name, n in prepared.splits.items())
  terminal.say(f'{prepared.name}: {splits}; {", ".join(prepared.class_names)}')
  terminal.say(f'picture: {path}')
  return ExitCode.OK


def _frames(clip: dataset.Clip) -> np.ndarray:
  """Frames spread over the clip, uint8 [8, H, W, 3]."""
  chosen = np.linspace(0, len(clip) - 1, FRAMES).round().astype(int)
  frames = records.read_frames(clip, chosen.tolist())
  return np.stack([frames[i] for i in chosen.tolist()])
