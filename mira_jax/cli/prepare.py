"""Turn clips into a dataset for train.py and eval.py.

  mira prepare NAME --root DOWNLOAD --out DIR       a dataset of `mira datasets`
  mira prepare folder --root DIR --out DIR [--table CSV]
  mira prepare synthetic_faces --out DIR [--difficulty macro|micro]

NAME is prepared as its owner delivers it: what is where is found out, damaged
clips are listed and left out, and counts are held against the owner's. `folder`
takes any tree of CLASS/CLIP, where CLIP is a video file or a folder of frames,
with splits (train, valid, test_set, ...) above or below the classes if there
are any; or a table with the columns path and label, and if known split, fold
and subject. `synthetic_faces` draws its clips.
A run that is interrupted goes on when it is started again.
"""

from __future__ import annotations

import argparse

from mira_jax import terminal
from mira_jax.cli.arguments import at_least
from mira_jax.errors import ExitCode
from mira_jax.prepare import prepare
from mira_jax.prepare.builders import BUILDERS
from mira_jax.prepare.report import REPORT_NAME
from mira_jax.synthetic import dataset
from mira_jax.video import face_crop


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the kinds of source and their options."""
  sources = parser.add_subparsers(
    dest='source', required=True, metavar='NAME', help='and: --help'
  )
  for name, builder in BUILDERS.items():
    source = sources.add_parser(
      name,
      help=builder.title,
      description=f'{builder.title}: {builder.ask}\n\n{builder.layout}',
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_clip_arguments(source)
    for option, values in builder.options.items():
      source.add_argument(f'--{option}', choices=values, default=values[0])
    source.add_argument(
      '--max-missing',
      type=float,
      default=0.1,
      help='share of the listed clips that may be absent',
    )
    source.add_argument(
      '--beam-runner',
      default='',
      help='an Apache Beam runner, for what one machine cannot do',
    )
    source.add_argument(
      '--beam-option', action='append', default=[], help='of that runner'
    )
  folder = sources.add_parser('folder', help='clips on this disk')
  _add_clip_arguments(folder)
  folder.add_argument('--table', help='CSV or Excel file that lists them')
  folder.add_argument(
    '--encoding', default='', help='of tables that are not UTF-8, as cp1252'
  )
  folder.add_argument(
    '--sheet', default='', help='of an Excel file in which several fit'
  )
  folder.add_argument(
    '--missing',
    metavar='LABEL,...',
    help='labels that are none, in place of NA, ?, null and the like',
  )
  folder.add_argument('--name', help='of the dataset (default: that of ROOT)')
  faces = sources.add_parser('synthetic_faces', help='drawn faces')
  faces.add_argument(
    '--difficulty', choices=('macro', 'micro'), default='macro'
  )
  faces.add_argument('--train-clips', type=at_least(1), default=2800)
  faces.add_argument('--test-clips', type=at_least(1), default=420)
  faces.add_argument('--size', type=at_least(16), default=64, help='pixels')
  faces.add_argument('--num-frames', type=at_least(8), default=32)
  for source in sources.choices.values():
    source.add_argument('--out', required=True, help='folder of the dataset')
    source.add_argument('--seed', type=at_least(0), default=0)
    source.add_argument(
      '--workers', type=at_least(0), help='processes (default: one per core)'
    )


def _add_clip_arguments(source: argparse.ArgumentParser) -> None:
  source.add_argument('--root', required=True, help='folder of the clips')
  source.add_argument(
    '--size', type=at_least(8), default=224, help='pixels of the shorter side'
  )
  source.add_argument(
    '--cap', type=at_least(1), default=96, help='most frames kept of a clip'
  )
  source.add_argument(
    '--quality', type=at_least(1), default=95, help='of the JPEG frames'
  )
  source.add_argument(
    '--crop',
    choices=face_crop.RULES,
    help='how faces are cut out (default: as NAME needs it)',
  )
  source.add_argument('--boxes', help='table of faces for --crop=boxes')
  source.add_argument(
    '--test-fraction',
    type=float,
    default=0.2,
    help='held out where nothing names a test split',
  )


def run(args: argparse.Namespace) -> int:
  """Prepares, and prints what came of it."""
  if args.source == 'synthetic_faces':
    return _draw(args)
  common = {
    'size': args.size,
    'cap': args.cap,
    'quality': args.quality,
    'boxes': args.boxes,
    'workers': args.workers,
    'test_fraction': args.test_fraction,
    'seed': args.seed,
  }
  if args.source == 'folder':
    report = prepare.prepare_folder(
      args.root,
      args.out,
      table=args.table,
      encoding=args.encoding,
      sheet=args.sheet,
      missing=None if args.missing is None else args.missing.split(','),
      name=args.name,
      crop_rule=args.crop or 'none',
      **common,
    )
  else:
    options = BUILDERS[args.source].options
    report = prepare.prepare_dataset(
      args.source,
      args.root,
      args.out,
      options={key: getattr(args, key) for key in options},
      crop_rule=args.crop,
      max_missing=args.max_missing,
      beam_runner=args.beam_runner,
      beam_options=args.beam_option,
      **common,
    )
  terminal.say(*str(report).split('\n'), f'report: {args.out}/{REPORT_NAME}')
  return ExitCode.OK


def _draw(args: argparse.Namespace) -> int:
  folder = dataset.build(
    args.out,
    difficulty=args.difficulty,
    train_clips=args.train_clips,
    test_clips=args.test_clips,
    size=args.size,
    num_frames=args.num_frames,
    seed=args.seed,
    workers=args.workers,
  )
  terminal.say(f'prepared {folder}')
  return ExitCode.OK
