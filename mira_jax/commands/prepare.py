"""Turn clips into a dataset for train.py and eval.py.

  mira prepare folder --root DIR --out DIR [--table CSV]
  mira prepare synthetic_faces --out DIR [--difficulty macro|micro]

`folder` takes any tree of CLASS/CLIP, where CLIP is a video file or a folder of
frames, below train/ and test/ if these exist; or a table with the columns path
and label, and if known split, fold and subject. Damaged clips are listed and
left out. `synthetic_faces` draws its clips.
"""

from __future__ import annotations

import argparse

from mira_jax.cli import at_least
from mira_jax.data import prepare, synthetic
from mira_jax.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the kinds of source and their options."""
  sources = parser.add_subparsers(dest='source', required=True)
  folder = sources.add_parser('folder', help='clips on this disk')
  folder.add_argument('--root', required=True, help='folder of the clips')
  folder.add_argument('--table', help='CSV or CSV.GZ that lists them')
  folder.add_argument('--name', help='of the dataset (default: that of ROOT)')
  folder.add_argument(
    '--size', type=at_least(8), default=224, help='pixels of the shorter side'
  )
  folder.add_argument(
    '--cap', type=at_least(1), default=96, help='most frames kept of a clip'
  )
  folder.add_argument(
    '--test-fraction',
    type=float,
    default=0.2,
    help='held out where neither table nor folders name a split',
  )
  faces = sources.add_parser('synthetic_faces', help='drawn faces')
  faces.add_argument(
    '--difficulty', choices=('macro', 'micro'), default='macro'
  )
  faces.add_argument('--train-clips', type=at_least(1), default=2800)
  faces.add_argument('--test-clips', type=at_least(1), default=420)
  faces.add_argument('--size', type=at_least(16), default=64, help='pixels')
  faces.add_argument('--num-frames', type=at_least(8), default=32)
  for source in (folder, faces):
    source.add_argument('--out', required=True, help='folder of the dataset')
    source.add_argument('--seed', type=at_least(0), default=0)
    source.add_argument(
      '--workers', type=at_least(0), help='processes (default: one per core)'
    )


def run(args: argparse.Namespace) -> int:
  """Prepares, and prints what came of it."""
  if args.source == 'folder':
    print(
      prepare.prepare_folder(
        args.root,
        args.out,
        table=args.table,
        size=args.size,
        cap=args.cap,
        workers=args.workers,
        test_fraction=args.test_fraction,
        seed=args.seed,
        name=args.name,
      )
    )
    print(f'report: {args.out}/{prepare.REPORT_NAME}')
    return ExitCode.OK
  folder = synthetic.build(
    args.out,
    difficulty=args.difficulty,
    train_clips=args.train_clips,
    test_clips=args.test_clips,
    size=args.size,
    num_frames=args.num_frames,
    seed=args.seed,
    workers=args.workers,
  )
  print(f'prepared {folder}')
  return ExitCode.OK
