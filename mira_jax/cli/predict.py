"""Classify clips and picture what MiRA did with their frames.

  mira predict CLIP... [--workdir RUN | --weights FILE]
  mira predict --webcam [--seconds N] [--workdir RUN | --weights FILE]

CLIP is a video file, a folder of frames, a folder with clips in it, or a
pattern such as 'clips/**/*.mp4'. Probabilities are averaged over several
windows of the clip; the picture shows the middle one. With --timeline windows
slide over the clip instead, and every second has probabilities of its own; with
--crop-face, too, seconds that do not show the face have none.
A model of action units gives those that are shown: whose probability is at or
above the threshold that was best on its validation clips.
Clips that cannot be read are reported, and the others go on. Nothing of a
camera is stored, except the picture with --out.

--weights takes all that `mira convert` reads, with flags for what it does not
say, or a folder that `mira export` wrote, which has no attention to picture.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import pathlib

import numpy as np

from mira_jax import files, terminal
from mira_jax.cli import clip_flags, pictures, printer, start
from mira_jax.cli.arguments import above_zero, at_least
from mira_jax.data import trees
from mira_jax.devices import memory
from mira_jax.errors import ExitCode, MiraInputError, checkpoint_error
from mira_jax.inference import (
  faces,
  find_clips,
  predictor,
  webcam,
)
from mira_jax.video import footage

DEFAULT_OUT = 'predictions'
_PICTURES = 20  # clips of which pictures are drawn unasked
_SLIDING = 8  # windows of a timeline in a batch


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the clips, the model and what to write."""
  add = parser.add_argument
  add('clips', nargs='*', metavar='CLIP')
  start.add_model(parser)
  camera = {'nargs': '?', 'type': at_least(0), 'const': 0, 'metavar': 'INDEX'}
  add('--webcam', help='record a camera instead: the first, 0', **camera)
  add('--seconds', type=at_least(1), default=3, help='of the recording')
  start.add_backend(parser)
  add('--int8', action='store_true', help='hold the weights in eight bits')
  windows = at_least(1, most=1000)
  add('--views', type=windows, default=5, help='windows per clip')
  clip_flags.add(parser)
  sliding = 'classify every second, by windows that slide over the clip'
  add('--timeline', action='store_true', help=sliding)
  stride = 'seconds between the starts of such windows'
  add('--stride', type=above_zero, default=0.5, help=stride)
  out = f'of the pictures (default, except of a camera: {DEFAULT_OUT})'
  add('--out', metavar='DIR', help=out)
  drawn = (
    f'draw pictures (default: of {_PICTURES} clips at most, or with --out)'
  )
  add('--picture', action=argparse.BooleanOptionalAction, help=drawn)
  text = f'write their numbers, too (default: of {_PICTURES} clips at most)'
  add('--arrays', action=argparse.BooleanOptionalAction, help=text)
  ahead = 'clips decoded while one is classified'
  add('--threads', type=at_least(1), default=2, help=ahead)
  add('--format', choices=printer.FORMATS, default='table')
  add('--json', action='store_const', dest='format', const='json')
  start.add_arguments(parser)


@memory.explained()
def run(args: argparse.Namespace) -> int:
  """Prints probabilities; USAGE if any clip could not be read."""
  _check_clips(args)
  found = trees.Walk()
  for name in args.clips:
    found.add(find_clips.expand(name, args.allow_gif))
  clips = found.clips
  if args.webcam is not None:
    clips = [f'webcam-{args.webcam}']
  folder, few = _folder(args, len(clips)), len(clips) <= _PICTURES
  numbers = args.arrays if args.arrays is not None else few
  with contextlib.ExitStack() as stack:
    drawer = folder and stack.enter_context(pictures.Drawer(folder, numbers))
    start.device(args)
    model = start.load(
      args,
      views=args.views,
      batch_size=max(args.views, _SLIDING) if args.timeline else args.views,
      dtype=args.dtype,
      int8=args.int8,
      backend=args.backend,
    )
    if not (model.has_records or args.timeline):
      drawer = None  # an export has no attention to picture
    form = printer.Printer(
      args.format,
      model.class_names,
      numbers=numbers,
      thresholds=model.thresholds,
    )
    shown = stack.enter_context(form)
    read = functools.partial(_read, args, model.scorer.image_size)
    for clip, video in find_clips.ahead(read, clips, args.threads):
      _classify(args, model, clip, video, shown, drawer)
    for failure in found.failures:
      error = MiraInputError(failure.code, failure.path, failure.hint)
      shown.fail(failure.path, error)
  if shown.short:
    terminal.say(
      f'mira: warning: {shown.short} of {len(clips)} clips have fewer frames '
      f'than the {model.scorer.frames} that the model takes; their last frame '
      'is repeated',
      error=True,
    )
  for why, count in found.dropped().items():
    terminal.say(f'mira: passed over: {count} {why}', error=True)
  failed = shown.failed or found.unread
  return ExitCode.USAGE if failed else ExitCode.OK


def _folder(args: argparse.Namespace, clips: int) -> pathlib.Path | None:
  """Where pictures are written; None if none are drawn."""
  name = args.out or (None if args.webcam is not None else DEFAULT_OUT)
  wanted = args.picture
  if wanted is None and clips > _PICTURES and not args.out:
    text = f'mira: no pictures of more than {_PICTURES} clips; --picture draws '
    terminal.say(f'{text}them', error=True)
    wanted = False
  return files.open_folder(name) if name and wanted is not False else None


def _check_clips(args: argparse.Namespace) -> None:
  if bool(args.clips) == (args.webcam is not None):
    found = ' '.join(args.clips) or 'no clip'
    hint = 'name clips, or use --webcam without any'
    raise MiraInputError('bad_flag', found, hint)
  clip_flags.check(args)


def _read(args: argparse.Namespace, size: int, clip: str) -> footage.Video:
  if args.webcam is None:
    return clip_flags.read(args, size, clip)
  crop = clip_flags.crop(args)
  if not crop:
    return webcam.record(args.webcam, args.seconds, short_side=size)
  short_side = max(size, faces.SHORT_SIDE)
  whole = webcam.record(args.webcam, args.seconds, short_side=short_side)
  return crop.of_recording(whole, size)


def _classify(
  args: argparse.Namespace,
  model: predictor.Predictor,
  clip: str,
  video: footage.Video | Exception,
  shown: printer.Printer,
  drawer: pictures.Drawer | None,
) -> None:
  """Classifies a clip, begins its picture, and prints what is ready."""
  try:
    with pictures.reported(clip):
      if isinstance(video, Exception):
        raise video
      found = _predict(args, model, clip, video, drawer is not None)
      drawn = drawer and drawer.draw(
        clip, found, model.class_names, model.thresholds
      )
  except MiraInputError as error:
    # The other clips would fail the same way.
    batch = error.code == 'out_of_memory' and error.path != clip
    if batch or error.code in ('no_camera', 'worker_died'):
      raise
    shown.fail(clip, error)
  else:  # a reader that is gone, such as `| head`, is no clip's fault
    shown.add(clip, found, drawn)
    shown.short += found.frames < model.scorer.frames


def _predict(
  args: argparse.Namespace,
  model: predictor.Predictor,
  clip: str,
  video: footage.Video,
  picture: bool,
) -> predictor.Prediction:
  found = model.predict(
    video,
    timeline=args.timeline,
    stride=args.stride,
    fps=args.fps,
    records=picture,
  )
  if not np.isfinite(found.mean).all():
    hint = 'the model gives NaN or infinity; its weights are too large'
    raise checkpoint_error('not_finite', clip, hint)
  return found
