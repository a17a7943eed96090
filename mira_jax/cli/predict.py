"""Classify clips and picture what MiRA did with their frames.

  mira predict CLIP... [--workdir RUN | --weights FILE]
  mira predict --webcam [--seconds N] [--workdir RUN | --weights FILE]

CLIP is a video file, a folder of frames, a folder with clips in it, or a
pattern such as 'clips/**/*.mp4'. Probabilities are averaged over several
windows of the clip; the picture shows the middle one. With --timeline windows
slide over the clip instead, and every second has probabilities of its own.
Clips that cannot be read are reported, and the others go on. Nothing of a
camera is stored, except the picture with --out.

--weights takes all that `mira convert` reads, with flags for what it does not
say, or a folder that `mira export` wrote, which has no attention to picture.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import traceback
from collections.abc import Iterator

import numpy as np

from mira_jax import figures, files, terminal
from mira_jax.cli import printer, start, weight_flags
from mira_jax.cli.arguments import above_zero, at_least
from mira_jax.data import trees
from mira_jax.devices import memory
from mira_jax.errors import ExitCode, MiraInputError, checkpoint_error
from mira_jax.inference import find_clips, predictor, untrusted, webcam
from mira_jax.video import footage

DEFAULT_RUN = 'runs/quickstart'
_SLIDING = 8  # windows of a timeline in a batch


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the clips, the model and what to write."""
  add = parser.add_argument
  add('clips', nargs='*', metavar='CLIP')
  model = parser.add_mutually_exclusive_group()
  run = 'folder of a finished run'
  model.add_argument('--workdir', metavar='RUN', default=DEFAULT_RUN, help=run)
  weights = 'what `mira convert` reads, or an export, instead'
  model.add_argument('--weights', metavar='SRC', help=weights)
  weight_flags.add(parser)
  camera = {'nargs': '?', 'type': at_least(0), 'const': 0, 'metavar': 'INDEX'}
  add('--webcam', help='record a camera instead: the first, 0', **camera)
  add('--seconds', type=at_least(1), default=3, help='of the recording')
  start.add_backend(parser)
  add('--int8', action='store_true', help='hold the weights in eight bits')
  windows = at_least(1, most=1000)
  add('--views', type=windows, default=5, help='windows per clip')
  add('--allow-gif', action='store_true', help='read animated GIFs, too')
  add('--crop-face', action='store_true', help='cut out the largest face')
  sliding = 'classify every second, by windows that slide over the clip'
  add('--timeline', action='store_true', help=sliding)
  stride = 'seconds between the starts of such windows'
  add('--stride', type=above_zero, default=0.5, help=stride)
  add('--fps', type=above_zero, help="instead of the clip's own")
  out = 'of the pictures (default, except of a camera: predictions)'
  add('--out', metavar='DIR', help=out)
  add('--no-picture', action='store_true', help='write no pictures')
  ahead = 'clips decoded while one is classified'
  add('--threads', type=at_least(1), default=2, help=ahead)
  add('--format', choices=printer.FORMATS, default='table')
  add('--json', action='store_const', dest='format', const='json')
  start.add_arguments(parser)


@memory.explained()
def run(args: argparse.Namespace) -> int:
  """Prints probabilities; USAGE if any clip could not be read."""
  _check_clips(args)
  folder = args.out or (None if args.webcam is not None else 'predictions')
  out = None if args.no_picture or not folder else files.open_folder(folder)
  found = trees.Walk()
  for name in args.clips:
    found.add(find_clips.expand(name, args.allow_gif))
  clips = found.clips
  if args.webcam is not None:
    clips = [f'webcam-{args.webcam}']
  start.device(args)
  model = _load(args)
  if not (model.has_records or args.timeline):
    out = None  # an export has no attention to picture
  taken: set[str] = set()
  read = functools.partial(_read, args, model.scorer.image_size)
  with printer.Printer(args.format, model.class_names) as shown:
    for clip, video in find_clips.ahead(read, clips, args.threads):
      try:
        with _reported(clip):
          if isinstance(video, Exception):
            raise video
          picture = out and _picture(out, clip, taken)
          result = _predict(args, model, clip, video, picture)
      except MiraInputError as error:
        # The other clips would fail the same way.
        batch = error.code == 'out_of_memory' and error.path != clip
        if batch or error.code == 'no_camera':
          raise
        shown.fail(clip, error)
      else:  # a reader that is gone, such as `| head`, is no clip's fault
        shown.add(clip, result, picture)
    for failure in found.failures:
      error = MiraInputError(failure.code, failure.path, failure.hint)
      shown.fail(failure.path, error)
  for why, count in found.dropped().items():
    terminal.say(f'mira: passed over: {count} {why}', error=True)
  failed = shown.failed or found.unread
  return ExitCode.USAGE if failed else ExitCode.OK


def _check_clips(args: argparse.Namespace) -> None:
  if bool(args.clips) == (args.webcam is not None):
    found = ' '.join(args.clips) or 'no clip'
    hint = 'name clips, or use --webcam without any'
    raise MiraInputError('bad_flag', found, hint)
  if args.webcam is not None and args.crop_face:
    raise MiraInputError('bad_flag', '--crop-face', 'it is for clips in files')


def _load(args: argparse.Namespace) -> predictor.Predictor:
  model = predictor.load(
    args.weights or args.workdir,
    views=args.views,
    batch_size=max(args.views, _SLIDING) if args.timeline else args.views,
    dtype=args.dtype,
    int8=args.int8,
    backend=args.backend,
    time_limit=untrusted.SECONDS,
    **dataclasses.asdict(weight_flags.overrides(args)),
  )
  for note in model.notes:
    terminal.say(f'note: {note}', error=True)
  return model


def _read(args: argparse.Namespace, size: int, clip: str) -> footage.Video:
  if args.webcam is not None:
    return webcam.record(args.webcam, args.seconds, short_side=size)
  return find_clips.read(
    clip,
    short_side=size,
    allow_gif=args.allow_gif,
    crop_face=args.crop_face,
  )


@contextlib.contextmanager
def _reported(clip: str) -> Iterator[None]:
  """Turns any error of a clip into one line, so that the others go on.

  Raises:
    MiraInputError: instead of any other error ('unexpected').
  """
  try:
    with memory.explained(clip):
      yield
  except MiraInputError:
    raise
  except Exception as error:
    terminal.check()
    hint = f'{type(error).__name__}: {error}'
    if isinstance(error, OSError):  # names the file and the reason
      raise MiraInputError('os_error', clip, hint) from error
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f'{pathlib.Path(frame.filename).name}:{frame.lineno}'
    hint = f'{hint[:300]} ({place}); the other clips go on, please report it'
    raise MiraInputError('unexpected', clip, hint) from error


def _predict(
  args: argparse.Namespace,
  model: predictor.Predictor,
  clip: str,
  video: footage.Video,
  picture: str | None,
) -> predictor.Prediction:
  """Classifies a clip, and draws its picture."""
  found = model.predict(
    video,
    timeline=args.timeline,
    stride=args.stride,
    fps=args.fps,
    records=picture is not None and not args.timeline,
  )
  if not np.isfinite(found.mean).all():
    hint = 'the model gives NaN or infinity; its weights are too large'
    raise checkpoint_error('not_finite', clip, hint)
  names, title = model.class_names, pathlib.Path(clip).name
  if picture and found.timeline is not None:
    figures.timeline_figure(found.timeline, names, title).save(picture)
  elif picture and (records := found.records):
    if records.windows > 1:
      title += f' · window {records.number + 1} of {records.windows}'
    figures.clip_figure(
      frames=records.window,
      indices=records.indices,
      gain=records.gain,
      before=records.before,
      after=records.after,
      probabilities=found.mean,
      class_names=names,
      title=title,
    ).save(picture)
  return found


def _picture(folder: pathlib.Path, clip: str, taken: set[str]) -> str:
  """DIR/NAME.png, numbered where clips share a name; adds it to `taken`."""
  # As long as the names of files may be, with a number and a suffix.
  stem = os.fsdecode(os.fsencode(pathlib.Path(clip).resolve().stem)[:240])
  names = itertools.chain([stem], (f'{stem}_{i}' for i in itertools.count(2)))
  name = next(name for name in names if name not in taken)
  taken.add(name)
  return str(folder / f'{name}.png')
