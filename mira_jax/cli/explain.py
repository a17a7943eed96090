"""Show what a model attends to: pages and pictures of clips.

  mira explain CLIP... [--workdir RUN | --weights SRC]
  mira explain CLIP --against SRC              two models side by side
  mira explain CLIP --timeline                 the whole clip, window by window
  mira explain CLIP --overlay out.mp4          the clip with attention burnt in
  mira explain DATASET [--split test]          measures of its clips

Writes for each CLIP a page NAME.html that needs no network, with the frames,
attention before and after MiRA and gains, of every block and head; and its
pictures NAME.png and NAME-blocks.png, whose numbers are beside them (.npz).
Without --timeline they show the middle window of the clip.

Of a prepared DATASET it measures whether attention and gain find the annotated
moment and, in synthetic faces, the place of the expression, and by deletion and
insertion curves whether they are faithful (docs/evidence.md).
"""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mira_jax import figures, files, terminal
from mira_jax.cli import (
  clip_flags,
  explain_dataset,
  explain_page,
  pictures,
  start,
)
from mira_jax.cli.arguments import above_zero, at_least
from mira_jax.data import trees
from mira_jax.devices import memory
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.figures.style import SIDE
from mira_jax.inference import find_clips, predictor
from mira_jax.inference.records import Records
from mira_jax.video import encode, footage, geometry

GIVES_RESULT = True  # to programs, by --json
DEFAULT_OUT = 'explanations'
_WINDOWS = 12  # of a timeline, on a page
_LONGEST = 128  # windows of an overlay


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the clips, the models and what to write."""
  add = parser.add_argument
  add('clips', nargs='+', metavar='CLIP', help='or one prepared dataset')
  start.add_model(parser)
  add('--against', metavar='SRC', help='a second run or weights, beside it')
  add('--views', type=at_least(1, most=1000), default=5, help='per clip')
  add('--timeline', action='store_true', help='the whole clip')
  stride = 'seconds between the starts of windows of a timeline'
  add('--stride', type=above_zero, default=0.5, help=stride)
  add('--overlay', metavar='FILE.mp4', help='video of the clip with attention')
  add('--out', metavar='DIR', default=DEFAULT_OUT, help='for all else')
  clip_flags.add(parser)
  measured = parser.add_argument_group('of a dataset')
  add = measured.add_argument
  add('--split', default='test')
  text = 'of the split, spread over it (default: all)'
  add('--clips', type=at_least(1), metavar='N', dest='most', help=text)
  add('--seed', type=at_least(0), default=0, help='of random orders')
  start.add_arguments(parser)


@memory.explained()
def run(args: argparse.Namespace) -> int:
  """Writes the pages; USAGE if any clip could not be read."""
  clip_flags.check(args)
  if data := explain_dataset.is_dataset(args.clips[0]):
    _check_alone(args)
    start.device(args)
    model = start.load(args, views=1)
    _check(args.weights or args.workdir, model)
    explain_dataset.explain(args, model, data)
    return ExitCode.OK
  found = trees.Walk()
  for name in args.clips:
    found.add(find_clips.expand(name, args.allow_gif))
  if args.overlay and len(found.clips) > 1:
    hint = f'it is of one clip, not of {len(found.clips)}'
    raise MiraInputError('bad_flag', f'--overlay={args.overlay}', hint)
  folder = files.open_folder(args.out)
  start.device(args)
  options = {'views': args.views}
  models = [(args.weights or args.workdir, start.load(args, **options))]
  if args.against:
    models.append((args.against, predictor.load(args.against, **options)))
  for name, model in models:
    _check(name, model)
  failed = bool(found.failures)
  for failure in found.failures:
    error = MiraInputError(failure.code, failure.path, failure.hint)
    terminal.say(f'mira: {error}', error=True)
  taken: set[str] = set()
  written = []
  for clip in found.clips:
    try:
      path = folder / pictures.new_stem(clip, taken)
      written.append({'clip': clip} | _explain(args, models, clip, path))
    except MiraInputError as error:
      if len(found.clips) == 1:
        raise
      terminal.say(f'mira: {error}', error=True)
      failed = True
  terminal.result(written)
  return ExitCode.USAGE if failed else ExitCode.OK


def _check(name: str, model: predictor.Predictor) -> None:
  """Raises MiraInputError for a model without attention to show."""
  if not model.has_records:
    hint = 'an export has no attention to show; give the run or its weights'
    raise MiraInputError('unsupported', name, hint)


def _check_alone(args: argparse.Namespace) -> None:
  """Raises MiraInputError for what does not go with a dataset."""
  flags = {
    f'{len(args.clips)} clips': len(args.clips) > 1,
    '--against': args.against,
    '--timeline': args.timeline,
    '--overlay': args.overlay,
    '--crop-face': args.crop_face,
  }
  if wrong := [name for name, given in flags.items() if given]:
    hint = f'it does not go with the dataset {args.clips[0]}; drop it'
    raise MiraInputError('bad_flag', wrong[0], hint)


def _explain(
  args: argparse.Namespace,
  models: Sequence[tuple[str, predictor.Predictor]],
  clip: str,
  path: pathlib.Path,
) -> dict[str, Any]:
  """Writes the page and the pictures of a clip, and says where."""
  title = pathlib.Path(clip).name
  sections, drawn = [], []
  for i, (name, model) in enumerate(models):
    video = clip_flags.read(args, model.scorer.image_size, clip)
    options = {'timeline': args.timeline, 'stride': args.stride}
    predicted = None
    if model.class_names:
      predicted = model.predict(video, **options, records=True)
    if args.timeline or predicted is None:
      shown = model.all_records(video, _WINDOWS)
    else:
      assert predicted.records
      shown = [predicted.records]
    section = explain_page.Section(
      name=name, model=model, video=video, predicted=predicted, records=shown
    )
    stem = path.name + f'-{i + 1}' * (len(models) > 1)
    for picture in section.draw(title, path.with_name(stem)):
      terminal.say(f'picture: {picture}')
      drawn.append(str(picture))
    sections.append(section)
  page = path.with_name(path.name + '.html')
  files.write_text(page, explain_page.render(title, sections))
  terminal.say(f'page: {page}')
  written: dict[str, Any] = {'page': str(page), 'pictures': drawn}
  if args.overlay:
    model = models[0][1]
    small, large = (
      clip_flags.read(args, size, clip)
      for size in (model.scorer.image_size, SIDE)
    )
    verdict = sections[0].verdict
    path = write_overlay(model, small, large, args.overlay, verdict)
    terminal.say(f'overlay: {path}')
    written['overlay'] = str(path)
  return written


def write_overlay(
  model: predictor.Predictor,
  video: footage.Video,
  large: footage.Video,
  path: str | os.PathLike[str],
  verdict: str,
) -> pathlib.Path:
  """Writes a clip with the attention of each frame's temporal token.

  Args:
    model: that attends.
    video: the clip, as the model takes it.
    large: the same clip, as it is shown.
    path: of the new video.
    verdict: a word on the clip; '' for none.

  Raises:
    MiraInputError: a clip of too many windows ('too_long'), or see
      `encode.write_video`.
  """
  if len(video) > _LONGEST * model.window:
    hint = f'an overlay has at most {_LONGEST * model.window} frames; cut it'
    raise MiraInputError('too_long', video.path, hint)
  found = model.all_records(video, _LONGEST)
  shown = [x.before if x.after is None else x.after for x in found]
  maps = np.concatenate([x * x.size for x in shown])
  ticks = np.arange(len(large))
  number = _token_of(found, large.of_ticks(ticks))
  fit = model.metadata['preprocessing']['fit']
  frames = (geometry.resize(x, SIDE, fit) for x in large.take(ticks))
  caption = ' · '.join(filter(None, [verdict, 'attention, × uniform']))
  drawn = figures.overlay_frames(frames, maps, number, caption)
  return encode.write_video(path, drawn, large.fps or 25)


def _token_of(found: Sequence[Records], frames: np.ndarray) -> np.ndarray:
  """The temporal token that each frame int [F] belongs to, of all windows.

  Of windows that overlap, as the last two may, it is of the nearer one.
  """
  middles = np.array([x.indices.mean() for x in found])
  window = np.abs(frames[:, None] - middles).argmin(1)
  sampled = np.stack([x.indices for x in found])
  place = np.abs(frames[:, None] - sampled[window]).argmin(1)
  count = len(found[0].before)
  return window * count + place * count // sampled.shape[1]
