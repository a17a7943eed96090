"""Prepare clips as a dataset for training and evaluation.

  mira prepare NAME --root DOWNLOAD --out DIR       a dataset of `mira datasets`
  mira prepare folder --root DIR --out DIR [--table CSV]
  mira prepare synthetic_faces --out DIR [--difficulty macro|micro]
      [--style studio|street]

NAME is prepared from the dataset provider's download: its parts are found by
name, damaged clips are left out and listed, and clip counts are checked against
the published ones. `folder` takes any tree of CLASS/CLIP, where CLIP is a video
file or a folder of frames, with splits (train, valid, test_set, ...) above or
below the classes if there are any; or a table with the columns path and label,
or path and one for each action unit (AU1, AU01_c, ...), and optionally split,
fold and subject. Interrupted runs resume.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any

from mira_jax import terminal
from mira_jax.cli.arguments import FACE_MODEL, Help, at_least
from mira_jax.errors import ExitCode
from mira_jax.prepare import prepare, store
from mira_jax.prepare.builders import BUILDERS
from mira_jax.prepare.report import REPORT_NAME
from mira_jax.synthetic import dataset
from mira_jax.video import face_crop

GIVES_RESULT = True  # to programs, by --json
_DEFAULTS = prepare.Options()


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
      formatter_class=Help,
    )
    _add_clip_arguments(source)
    for option, values in builder.options.items():
      source.add_argument(f'--{option}', choices=values, default=values[0])
    for flag, kind, default, text in (
      ('max-missing', float, 0.1, 'share of listed clips that may be absent'),
      ('beam-runner', str, '', 'Apache Beam runner, for many machines'),
    ):
      source.add_argument(f'--{flag}', type=kind, default=default, help=text)
    source.add_argument(
      '--beam-option', action='append', default=[], help='of that runner'
    )
  _add_folder(sources)
  _add_faces(sources)
  for source in sources.choices.values():
    source.add_argument('--out', required=True, help='folder of the dataset')
    source.add_argument('--seed', type=at_least(0), default=0)
    source.add_argument(
      '--workers', type=at_least(0), help='processes (default: one per core)'
    )


def _add_folder(sources: Any) -> None:
  folder = sources.add_parser('folder', help='clips on this disk')
  _add_clip_arguments(folder, by_default=True)
  for flag, text in (
    ('table', 'CSV or Excel file that lists the clips'),
    ('encoding', 'of tables that are not UTF-8, as cp1252'),
    ('missing', 'comma-separated labels that count as missing'),
    ('name', 'of the dataset (default: that of ROOT)'),
  ):
    folder.add_argument(f'--{flag}', help=text)
  folder.add_argument(
    '--positive-from',
    type=at_least(1),
    default=1,
    help='intensity from which an action unit of the table counts as shown',
  )


def _add_faces(sources: Any) -> None:
  faces = sources.add_parser('synthetic_faces', help='synthetic faces')
  faces.add_argument(
    '--difficulty', choices=('macro', 'micro'), default='macro'
  )
  faces.add_argument('--style', choices=('studio', 'street'), default='studio')
  for flag, least, default in (
    ('train-clips', 1, 2800),
    ('test-clips', 1, 420),
    ('size', 16, 64),
    ('num-frames', 8, 32),
  ):
    faces.add_argument(f'--{flag}', type=at_least(least), default=default)


def _add_clip_arguments(
  source: argparse.ArgumentParser, by_default: bool = False
) -> None:
  source.add_argument('--root', required=True, help='folder of the clips')
  for flag, kind, text in (
    ('size', at_least(8), 'pixels of the shorter side'),
    ('max-frames', at_least(1), 'of a clip; longer ones are thinned out'),
    ('quality', at_least(1), 'of the JPEG frames, at most 100'),
    ('test-fraction', float, 'held out where the source has no test split'),
  ):
    default = getattr(_DEFAULTS, flag.replace('-', '_'))
    source.add_argument(f'--{flag}', type=kind, default=default, help=text)
  source.add_argument(
    '--format',
    choices=store.FORMATS,
    default=_DEFAULTS.format,
    help='of the frames (auto: PNG for small ones of a lossless source)',
  )
  source.add_argument(
    '--crop',
    choices=face_crop.RULES,
    default='',
    help='how faces are cropped (default: as NAME needs it)',
  )
  source.add_argument('--boxes', help='table of faces for --crop=boxes')
  source.add_argument(
    '--face-model', metavar='FILE', default='', help=FACE_MODEL
  )
  source.add_argument(
    '--check-faces',
    action=argparse.BooleanOptionalAction,
    default=by_default,
    help='report clips that show no face where none is cropped',
  )


def run(args: argparse.Namespace) -> int:
  """Prepares, and prints a summary."""
  if args.source == 'synthetic_faces':
    return _draw(args)
  names = [field.name for field in dataclasses.fields(prepare.Options)]
  common = {name: getattr(args, name) for name in names}
  if args.source == 'folder':
    report = prepare.prepare_folder(
      args.root,
      args.out,
      table=args.table,
      encoding=args.encoding or '',
      missing=None if args.missing is None else args.missing.split(','),
      name=args.name,
      positive_from=args.positive_from,
      **common,
    )
  else:
    options = BUILDERS[args.source].options
    report = prepare.prepare_dataset(
      args.source,
      args.root,
      args.out,
      choices={key: getattr(args, key) for key in options},
      max_missing=args.max_missing,
      beam_runner=args.beam_runner,
      beam_options=args.beam_option,
      **common,
    )
  path = pathlib.Path(args.out, REPORT_NAME)
  terminal.say(*str(report).split('\n'), f'report: {path}')
  terminal.result(json.loads(path.read_bytes()))
  return ExitCode.OK


def _draw(args: argparse.Namespace) -> int:
  folder = dataset.build(
    args.out,
    difficulty=args.difficulty,
    style=args.style,
    train_clips=args.train_clips,
    test_clips=args.test_clips,
    size=args.size,
    num_frames=args.num_frames,
    seed=args.seed,
    workers=args.workers,
  )
  terminal.say(f'prepared {folder}')
  terminal.result({'dataset': str(folder)})
  return ExitCode.OK
