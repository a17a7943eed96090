"""Classify clips and picture what MiRA did with their frames.

  mira predict CLIP... [--workdir RUN | --weights FILE]
  mira predict --webcam [--seconds N] [--workdir RUN | --weights FILE]

CLIP is a video file or a folder of frames. Probabilities are averaged over
several windows of the clip; the picture shows the middle one. Clips that cannot
be read are reported, and the others go on. Of a camera nothing is stored, but
for the picture, with --out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Collection
from typing import Any

import numpy as np
import rich

from mira_jax import devices, engine, figures, memory, output, report
from mira_jax.cli import at_least
from mira_jax.data import decode, webcam
from mira_jax.errors import ExitCode, MiraInputError

DEFAULT_RUN = 'runs/quickstart'


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
    '--weights', metavar='FILE', help='a weights.safetensors file instead'
  )
  parser.add_argument(
    '--views', type=at_least(1), default=5, help='windows per clip (default: 5)'
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
    '--json', action='store_true', help='print JSON instead of a table'
  )
  devices.add_argument(parser)


@memory.explained()
def run(args: argparse.Namespace) -> int:
  """Prints probabilities; USAGE if any clip could not be read."""
  _check_clips(args)
  out = _pictures(args)
  devices.start(args.device)
  engine.use_compile_cache()
  if args.weights:
    model, card = engine.load_file(args.weights, args.views)
  else:
    model, card = engine.load_run(args.workdir, args.views)
  if args.webcam is not None:
    args.clips = [f'webcam-{args.webcam}']
  results, failures = [], []
  for clip in args.clips:
    try:
      taken = {result.get('picture') for result in results}
      picture = out and _free_name(out, clip, taken)
      video = _read(args, clip, model.model.image_size)
      results.append(_predict(model, card, clip, video, args.views, picture))
    except MiraInputError as error:
      if error.code in ('out_of_memory', 'no_camera'):
        raise
      failures.append((clip, error))
  _print(results, failures, card['class_names'], as_json=args.json)
  return ExitCode.USAGE if failures else ExitCode.OK


def _check_clips(args: argparse.Namespace) -> None:
  if bool(args.clips) == (args.webcam is not None):
    found = ' '.join(args.clips) or 'no clip'
    hint = 'name clips, or use --webcam without any'
    raise MiraInputError('bad_flag', found, hint)


def _pictures(args: argparse.Namespace) -> pathlib.Path | None:
  """The folder of the pictures, which can be written to, if there are any."""
  default = None if args.webcam is not None else 'predictions'
  name = None if args.no_picture else args.out or default
  return name and output.open_folder(name)


def _read(args: argparse.Namespace, clip: str, size: int) -> decode.Video:
  if args.webcam is not None:
    return webcam.record(args.webcam, args.seconds, short_side=size)
  return decode.read_clip(clip, short_side=size, allow_gif=args.allow_gif)


def _predict(
  model: engine.Engine,
  card: dict[str, Any],
  clip: str,
  video: decode.Video,
  count: int,
  picture: str | None,
) -> dict[str, Any]:
  rules = card['preprocessing']
  views, indices = model.cut_views(
    video.frames, rate=rules['rate'], views=count, fit=rules['fit']
  )
  probabilities = model.probabilities(views).mean(axis=0)
  result = {
    'clip': clip,
    'probabilities': probabilities,
    'frames': len(video.frames),
    'fps': video.fps,
    'flags': list(video.flags),
  }
  if picture:
    result['picture'] = picture
    title = pathlib.Path(clip).name
    if len(views) > 1:
      title += f' · window {len(views) // 2 + 1} of {len(views)}'
    _draw(
      model,
      picture,
      views,
      indices,
      probabilities,
      card['class_names'],
      title,
    )
  return result


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

  figures.clip_figure(
    path,
    views[middle],
    np.stack([of_view('gain', r) for r in mira]) if mira else None,
    attention('before'),
    attention('after') if mira else None,
    probabilities,
    class_names,
    title,
    indices[middle],
  )


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
  stem = pathlib.Path(clip).resolve().stem
  names = itertools.chain([stem], (f'{stem}_{i}' for i in itertools.count(2)))
  paths = (str(folder / f'{name}.png') for name in names)
  return next(path for path in paths if path not in taken)


def _print(
  results: list[dict[str, Any]],
  failures: list[tuple[str, MiraInputError]],
  class_names: list[str],
  *,
  as_json: bool,
):
  if as_json:
    rows = [
      report.prediction_dict(
        result['clip'], result['probabilities'], class_names
      )
      | {k: v for k, v in result.items() if k not in ('clip', 'probabilities')}
      for result in results
    ]
    rows += [
      {'clip': clip, 'error': error.code, 'hint': error.hint}
      for clip, error in failures
    ]
    print(json.dumps(rows, indent=2, ensure_ascii=False))
  elif results:
    rich.print(
      report.prediction_table(
        [result['clip'] for result in results],
        np.stack([result['probabilities'] for result in results]),
        class_names,
      )
    )
    for result in results:
      if result['flags']:
        print(f'{result["clip"]}: {", ".join(result["flags"])}')
      if 'picture' in result:
        print(f'picture: {result["picture"]}')
  for _, error in failures:
    print(f'mira: {error}', file=sys.stderr)
