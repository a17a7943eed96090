"""The flags of commands that read clips, and how they are read."""

from __future__ import annotations

import argparse

from mira_jax.cli.arguments import FACE_MODEL, above_zero
from mira_jax.errors import MiraInputError
from mira_jax.inference import faces, find_clips
from mira_jax.video import footage, yunet


def add(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of decoding and cropping."""
  add = parser.add_argument
  add('--allow-gif', action='store_true', help='read animated GIFs, too')
  add('--crop-face', action='store_true', help='cut out the largest face')
  hidden = argparse.SUPPRESS  # a former name
  add('--track', action='store_true', dest='crop_face', help=hidden)
  add('--face-model', metavar='FILE', default='', help=FACE_MODEL)
  add('--fps', type=above_zero, help="instead of the clip's own")


def check(args: argparse.Namespace) -> None:
  """Raises MiraInputError for a face model that is unused, or is none."""
  if args.face_model and not args.crop_face:
    hint = 'it finds the face for --crop-face; add that flag'
    raise MiraInputError('bad_flag', '--face-model', hint)
  if args.face_model:
    yunet.check(args.face_model)


def crop(args: argparse.Namespace) -> faces.Crop | None:
  """What cuts out faces, if that is asked."""
  if not args.crop_face:
    return None
  return faces.Crop(model=args.face_model, by_second=args.timeline)


def read(args: argparse.Namespace, size: int, clip: str) -> footage.Video:
  """A clip, shrunk to `size` pixels; see `find_clips.read`."""
  options = {'allow_gif': args.allow_gif, 'crop': crop(args)}
  return find_clips.read(clip, short_side=size, fps=args.fps, **options)
