"""Classify clips and picture what MiRA did with their frames.

  mira predict CLIP... [--workdir RUN | --weights FILE]
  mira predict --webcam [--seconds N] [--workdir RUN | --weights FILE]

CLIP is a video file, a folder of frames, a folder with clips in it, or a
pattern such as 'clips/**/*.mp4'. Probabilities are averaged over several
windows of the clip; the picture shows the middle one. With --timeline windows
slide over the clip instead, and every second has probabilities of its own.
Clips that cannot be read are reported, and the others go on. Of a camera
nothing is stored, but for the picture, with --out.

--weights takes all that `mira convert` reads, with flags for what it does not
say, or a folder that `mira export` wrote, which has no attention to picture.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
import pathlib
import traceback
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from mira_jax import figures, output, terminal
from mira_jax.cli import printer, weight_flags
from mira_jax.cli.arguments import at_least
from mira_jax.data import trees
from mira_jax.devices import memory, platform
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.inference import engine, export, find_clips, untrusted, webcam
from mira_jax.video import decode, footage
from mira_jax.weights import convert

DEFAULT_RUN = 'runs/quickstart'
_SLIDING = 8  # windows that slide, in a batch


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the clips, the model and what to write."""
  parser.add_argument('clips', nargs='*', metavar='CLIP')
  parser.add_argument(
    '--webcam',
    nargs='?',
    type=at_least(0),
    const=0,
    metavar='INDEX',
    help='record a camera instead (default: the first, 0)',
  )
  parser.add_argument(
    '--seconds', type=at_least(1), default=3, help='to record (default: 3)'
  )
  model = parser.add_mutually_exclusive_group()
  model.add_argument(
    '--workdir',
    metavar='RUN',
    default=DEFAULT_RUN,
    help=f'folder of a finished run (default: {DEFAULT_RUN})',
  )
  model.add_argument(
    '--weights',
    metavar='SRC',
    help='what `mira convert` reads, or an export, instead',
  )
  weight_flags.add(parser)
  parser.add_argument(
    '--views',
    type=at_least(1, most=1000),
    default=5,
    help='windows per clip (default: 5)',
  )
  parser.add_argument(
    '--out',
    metavar='DIR',
    help='where the pictures go (default, except of a camera: predictions)',
  )
  parser.add_argument(
    '--allow-gif', action='store_true', help='read animated GIFs, too'
  )
  parser.add_argument(
    '--no-picture', action='store_true', help='write no pictures'
  )
  parser.add_argument(
    '--timeline',
    action='store_true',
    help='classify every second, by windows that slide over the clip',
  )
  parser.add_argument(
    '--stride',
    type=_above_zero,
    default=0.5,
    metavar='SECONDS',
    help='between the starts of such windows (default: 0.5)',
  )
  parser.add_argument(
    '--fps',
    type=_above_zero,
    help='frames per second, where the clip does not say',
  )
  parser.add_argument(
    '--track', action='store_true', help='cut out the largest face of a clip'
  )
  parser.add_argument(
    '--dtype',
    choices=('float32', 'bfloat16'),
    help="of the computation (default: the model's)",
  )
  parser.add_argument(
    '--int8', action='store_true', help='hold the weights in eight bits'
  )
  parser.add_argument(
    '--threads',
    type=at_least(1),
    default=2,
    help='clips decoded while one is classified (default: 2)',
  )
  parser.add_argument(
    '--format',
    choices=printer.FORMATS,
    default='table',
    help='what is printed, clip by clip (default: table)',
  )
  parser.add_argument('--json', action='store_true', help='--format=json')
  platform.add_argument(parser)


def _above_zero(text: str) -> float:
  value = float(text)
  if not 0 < value < float('inf'):
    raise argparse.ArgumentTypeError(f'{text} is not above 0')
  return value


@memory.explained()
def run(args: argparse.Namespace) -> int:
  """Prints probabilities; USAGE if any clip could not be read."""
  _check_clips(args)
  form = 'json' if args.json else args.format
  out = _pictures(args)
  found = trees.Walk()
  for name in args.clips:
    found.add(find_clips.expand(name, allow_gif=args.allow_gif))
  clips = found.clips
  if args.webcam is not None:
    clips = [f'webcam-{args.webcam}']
  platform.start(args.device)
  engine.use_compile_cache()
  model, card = _load(args)
  taken: set[str | None] = set()
  read = functools.partial(_read, args, model.image_size)
  with printer.Printer(form, clips, card['class_names']) as shown:
    for clip, video in find_clips.ahead(read, clips, args.threads):
      try:
        with _reported(clip):
          if isinstance(video, Exception):
            raise video
          picture = out and _free_name(out, clip, taken)
          taken.add(picture)
          result = _predict(args, model, card, clip, video, picture)
      except MiraInputError as error:
        if _is_of_all(error, clip):
          raise
        shown.fail(clip, error)
      else:
        shown.add(result)
    for failure in found.failures:
      error = MiraInputError(failure.code, failure.path, failure.hint)
      shown.fail(failure.path, error)
  for why, count in found.dropped().items():
    terminal.say(f'mira: passed over: {count} {why}', error=True)
  failed = shown.failed or found.unread
  return ExitCode.USAGE if failed else ExitCode.OK


def _is_of_all(error: MiraInputError, clip: str) -> bool:
  """Whether no clip can do better: without a camera, or with such batches."""
  too_large = error.code == 'out_of_memory' and error.path != clip
  return error.code == 'no_camera' or too_large


@contextlib.contextmanager
def _reported(clip: str) -> Iterator[None]:
  """Turns whatever goes wrong with a clip into one line: others go on.

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
    if isinstance(error, OSError):  # that says which file, and why
      raise MiraInputError('os_error', clip, hint) from error
    frames = traceback.extract_tb(error.__traceback__)
    place = f'{pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}'
    hint = f'{hint[:300]} ({place}); the other clips go on, please report it'
    raise MiraInputError('unexpected', clip, hint) from error


def _check_clips(args: argparse.Namespace) -> None:
  if bool(args.clips) == (args.webcam is not None):
    found = ' '.join(args.clips) or 'no clip'
    hint = 'name clips, or use --webcam without any'
    raise MiraInputError('bad_flag', found, hint)
  if args.webcam is not None and args.track:
    raise MiraInputError('bad_flag', '--track', 'it is for clips in files')


def _pictures(args: argparse.Namespace) -> pathlib.Path | None:
  """The folder of the pictures, which can be written to, if there are any."""
  default = None if args.webcam is not None else 'predictions'
  name = None if args.no_picture else args.out or default
  return name and output.open_folder(name)


def _load(args: argparse.Namespace) -> tuple[engine.Scorer, dict[str, Any]]:
  # A batch holds the windows of one clip: what it gives does not depend on
  # others, whatever MiRA's statistics are.
  size = max(args.views, _SLIDING) if args.timeline else args.views
  if args.weights and export.is_export(args.weights):
    if args.dtype or args.int8:
      hint = 'an export is computed as it was exported; leave it out'
      raise MiraInputError('bad_flag', '--dtype, --int8', hint)
    exported = export.load(args.weights, size, untrusted.SECONDS)
    return _as_wished(args, exported, exported.card, args.weights)
  options = {'dtype': args.dtype, 'eight_bits': args.int8}
  if args.weights:
    found = convert.read(args.weights, weight_flags.wishes(args))
    for remark in found.remarks:
      terminal.say(f'note: {remark}', error=True)
    return engine.load(found, args.weights, size, **options)
  found = engine.load_run(args.workdir, size, **options)
  return _as_wished(args, *found, args.workdir)


def _as_wished(
  args: argparse.Namespace,
  scorer: engine.Scorer,
  card: dict[str, Any],
  path: str,
) -> tuple[engine.Scorer, dict[str, Any]]:
  """A model that says all itself, which no flag may contradict."""
  wishes = weight_flags.wishes(args)
  if wishes.key:
    raise MiraInputError('bad_flag', path, f'--key {wishes.key}: it has one')
  convert.check_wishes(card, wishes, path)
  return scorer, card


def _read(args: argparse.Namespace, size: int, clip: str) -> footage.Video:
  if args.webcam is not None:
    return webcam.record(args.webcam, args.seconds, short_side=size)
  if args.track:
    return find_clips.read_face(clip, size, allow_gif=args.allow_gif)
  return decode.read_clip(clip, short_side=size, allow_gif=args.allow_gif)


def _predict(
  args: argparse.Namespace,
  model: engine.Scorer,
  card: dict[str, Any],
  clip: str,
  video: footage.Video,
  picture: str | None,
) -> dict[str, Any]:
  """What is told of a clip; draws its picture."""
  rules, names = card['preprocessing'], card['class_names']
  cut = {'rate': rules['rate'], 'fit': rules['fit']}
  title = pathlib.Path(clip).name
  if not (args.timeline or isinstance(model, engine.Engine)):
    picture = None  # an export has no attention maps to show
  if args.fps:
    video = video.at(args.fps)
  result = {
    'clip': clip,
    'frames': video.count,
    'fps': video.fps,
    'flags': list(video.flags),
  }
  if args.timeline:
    seconds = model.timeline(video, stride=args.stride, **cut)
    result |= {'probabilities': seconds.mean(axis=0), 'timeline': seconds}
    if picture:
      figures.timeline_figure(seconds, names, title).save(picture)
  else:
    views, indices = model.cut_views(video, views=args.views, **cut)
    result['probabilities'] = model.probabilities(views).mean(axis=0)
    if 1 < video.count < indices.shape[1]:  # one frame is 'static' already
      result['flags'].append(f'repeated:{video.count}/{indices.shape[1]}')
    if picture:
      if len(views) > 1:
        title += f' · window {len(views) // 2 + 1} of {len(views)}'
      _draw(
        model, picture, views, indices, result['probabilities'], names, title
      )
  return result | ({'picture': picture} if picture else {})


def _draw(
  model: engine.Engine,
  path: str,
  views: np.ndarray,
  indices: np.ndarray,
  probabilities: np.ndarray,
  class_names: list[str],
  title: str,
):
  """Frames, gains, and the attention that tokens receive, mean over blocks."""
  # All views together: batch statistics are then those of the prediction.
  _, records = model.records(views)
  middle = len(views) // 2
  mira = [record for record in records if 'gain' in record]
  shown = mira or records

  def of_view(name: str, record: dict[str, np.ndarray]) -> np.ndarray:
    array = record[name]  # the batch may share one row
    return array[min(middle, len(array) - 1)]

  def attention(name: str) -> np.ndarray:
    return np.mean(
      [_on_grid(of_view(name, record), model.model.grid) for record in shown],
      axis=0,
    )

  shown_clip = figures.ClipPicture(
    frames=views[middle],
    gain=np.stack([of_view('gain', r) for r in mira]) if mira else None,
    before=attention('before'),
    after=attention('after') if mira else None,
    probabilities=probabilities,
    class_names=class_names,
    title=title,
    indices=indices[middle],
  )
  figures.clip_figure(shown_clip).save(path)


def _on_grid(marginal: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
  """Attention that tokens receive, [L] after any class token, as [T, h, w].

  Where a whole frame is one token (a temporal encoder), its places share.
  """
  frames, height, width = grid
  places = height * width
  if len(marginal) < frames * places:
    marginal = np.repeat(marginal[-frames:] / places, places)
  return marginal[-frames * places :].reshape(grid)


def _free_name(
  folder: pathlib.Path, clip: str, taken: Collection[str | None]
) -> str:
  """DIR/NAME.png; numbered if a clip of that name came before."""
  # As long as the names of files may be, with a number and a suffix.
  stem = os.fsdecode(os.fsencode(pathlib.Path(clip).resolve().stem)[:240])
  names = itertools.chain([stem], (f'{stem}_{i}' for i in itertools.count(2)))
  paths = (str(folder / f'{name}.png') for name in names)
  return next(path for path in paths if path not in taken)
