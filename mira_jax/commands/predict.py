"""Classify clips and picture what MiRA did with their frames.

  mira predict CLIP... [--workdir RUN | --weights FILE]

CLIP is a video file or a folder of frames. Probabilities are averaged over
several windows of the clip; the picture shows the middle one. Clips that cannot
be read are reported, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

import numpy as np
import rich

from mira_jax import engine, figures, report, training
from mira_jax.data import decode
from mira_jax.errors import ExitCode, MiraInputError

DEFAULT_RUN = 'runs/quickstart'


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the clips, the model and what to write."""
  parser.add_argument('clips', nargs='+', metavar='CLIP')
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
    '--views', type=_positive, default=5, help='windows per clip (default: 5)'
  )
  parser.add_argument(
    '--out',
    metavar='DIR',
    default='predictions',
    help='where the pictures go (default: predictions)',
  )
  parser.add_argument(
    '--no-picture', action='store_true', help='write no pictures'
  )
  parser.add_argument(
    '--json', action='store_true', help='print JSON instead of a table'
  )


def run(args: argparse.Namespace) -> int:
  """Prints probabilities; USAGE if any clip could not be read."""
  training.use_compile_cache()
  if args.weights:
    model, card = engine.load_file(args.weights, args.views)
  else:
    model, card = engine.load_run(args.workdir, args.views)
  results, failures = [], []
  for clip in args.clips:
    try:
      results.append(_predict(model, card, clip, args))
    except MiraInputError as error:
      failures.append((clip, error))
  _print(results, failures, card['class_names'], as_json=args.json)
  return ExitCode.USAGE if failures else ExitCode.OK


def _predict(
  model: engine.Engine,
  card: dict[str, Any],
  clip: str,
  args: argparse.Namespace,
) -> dict[str, Any]:
  video = decode.read_clip(clip)
  rules = card['preprocessing']
  views, indices = model.cut_views(
    video.frames, rate=rules['rate'], views=args.views, fit=rules['fit']
  )
  probabilities = model.probabilities(views).mean(axis=0)
  result = {
    'clip': clip,
    'probabilities': probabilities,
    'frames': len(video.frames),
    'fps': video.fps,
    'flags': list(video.flags),
  }
  if not args.no_picture:
    middle = args.views // 2
    result['picture'] = str(
      _picture(
        model,
        _picture_path(args.out, clip),
        views[middle],
        indices[middle],
        probabilities,
        card['class_names'],
        pathlib.Path(clip).name,
      )
    )
  return result


def _picture(
  model: engine.Engine,
  path: pathlib.Path,
  frames: np.ndarray,
  indices: np.ndarray,
  probabilities: np.ndarray,
  class_names: list[str],
  title: str,
) -> pathlib.Path:
  """Frames, gains, and the attention that tokens receive, mean over blocks."""
  _, records = model.records(frames[None])
  mira = [record for record in records if 'gain' in record]
  shown = mira or records

  def attention(name: str) -> np.ndarray:
    maps = np.mean([record[name][0] for record in shown], axis=0)
    return maps[-np.prod(model.model.grid) :].reshape(model.model.grid)

  return figures.clip_figure(
    path,
    frames,
    np.stack([record['gain'][0] for record in mira]) if mira else None,
    attention('before'),
    attention('after') if mira else None,
    probabilities,
    class_names,
    title,
    indices,
  )


def _picture_path(folder: str, clip: str) -> pathlib.Path:
  """DIR/NAME.png, numbered if another clip of that name came before."""
  stem = pathlib.Path(clip).resolve().stem
  path = pathlib.Path(folder, f'{stem}.png')
  path.parent.mkdir(parents=True, exist_ok=True)
  return path


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
      notes = ', '.join(result['flags'])
      print(
        f'{result["clip"]}: {notes}' if notes else '', end='\n' * bool(notes)
      )
      if 'picture' in result:
        print(f'picture: {result["picture"]}')
  for _, error in failures:
    print(f'mira: {error}', file=sys.stderr)


def _positive(text: str) -> int:
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'{text} must be at least 1')
  return value
