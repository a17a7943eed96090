"""Write a synthetic face as a video.

  mira draw OUT.mp4 [--expression Happy] [--person 0]

The clip is one of the test split of `synthetic_faces`, larger; its identity is
not in the train split.
"""

from __future__ import annotations

import argparse

from mira_jax import terminal
from mira_jax.cli.arguments import at_least
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.synthetic import dataset, faces, styles
from mira_jax.video import encode

MAX_SIZE = 2048  # pixels
MAX_FRAMES = 1000


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the file, the person and the expression."""
  add = parser.add_argument
  add('out', metavar='OUT.mp4')
  add('--expression', choices=faces.CLASS_NAMES, default='Surprise')
  add('--person', type=at_least(0), default=0)
  add('--difficulty', choices=faces.DIFFICULTIES, default='macro')
  add('--style', choices=styles.STYLES, default='studio')
  add('--size', type=at_least(16), default=224, help='pixels, even')
  add('--num-frames', type=at_least(8), default=32)
  add('--seed', type=at_least(0), default=0)


def run(args: argparse.Namespace) -> int:
  """Draws and writes the clip, and prints its path and annotation."""
  if args.size % 2 or args.size > MAX_SIZE:
    hint = f'use an even size up to {MAX_SIZE}'
    raise MiraInputError('bad_size', str(args.size), hint)
  if args.num_frames > MAX_FRAMES:
    hint = f'use up to {MAX_FRAMES} frames'
    raise MiraInputError('bad_size', str(args.num_frames), hint)
  drawing = {'seed': args.seed, 'split': 'test', 'style': args.style}
  order = faces.class_order(args.person, **drawing)
  clip = faces.draw_clip(
    args.person * len(order) + order.index(args.expression),
    **drawing,
    difficulty=args.difficulty,
    size=args.size,
    num_frames=args.num_frames,
  )
  path = encode.write_video(args.out, clip.frames, dataset.FPS)
  terminal.say(
    f'{path}: {args.expression}, action units {clip.action_units or "none"}, '
    f'onset {clip.onset}, apex {clip.apex}, offset {clip.offset}'
  )
  return ExitCode.OK
