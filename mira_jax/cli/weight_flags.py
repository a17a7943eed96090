"""The flags of every command that reads weights of other programs."""

from __future__ import annotations

import argparse

from mira_jax.cli.arguments import at_least
from mira_jax.weights import infer_model


def add(parser: argparse.ArgumentParser) -> None:
  """Adds the flags for what files of other programs may not say."""
  flags = parser.add_argument_group('of weights that do not say it')
  flags.add_argument(
    '--key', metavar='NAME', help='which model of a file that has several'
  )
  flags.add_argument('--mode', choices=infer_model.MODES)
  flags.add_argument('--classes', help='names in order, commas between')
  for flag in ('--heads', '--decoder-heads', '--frames', '--image-size'):
    flags.add_argument(flag, type=at_least(1))
  flags.add_argument(
    '--rate', type=at_least(1), help='one of so many frames is read (usual: 4)'
  )
  flags.add_argument(
    '--fit', choices=('crop', 'squash'), help='how frames become square'
  )


def wishes(args: argparse.Namespace) -> infer_model.Wishes:
  """What those flags say."""
  return infer_model.Wishes(
    **{
      name: getattr(args, name)
      for name in ('key', 'mode', 'heads', 'decoder_heads', 'frames')
    },
    image_size=args.image_size,
    rate=args.rate,
    fit=args.fit,
    class_names=_parts(args.classes or ''),
    allow_missing=_parts(getattr(args, 'allow_missing', '')),
  )


def _parts(text: str) -> list[str]:
  """What commas separate."""
  return [part.strip() for part in text.split(',') if part.strip()]
