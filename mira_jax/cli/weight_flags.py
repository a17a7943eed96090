"""The flags of every command that reads weights of other programs."""

from __future__ import annotations

import argparse

from mira_jax.cli.arguments import at_least
from mira_jax.weights.infer_model import MODES, Overrides


def add(parser: argparse.ArgumentParser) -> None:
  """Adds the flags for facts that files of other programs may lack."""
  flags = parser.add_argument_group('weights that lack these facts')
  flags.add_argument(
    '--key', metavar='NAME', help='which model of a file that has several'
  )
  flags.add_argument('--mode', choices=MODES)
  flags.add_argument('--classes', help='names in order, commas between')
  for flag in ('--heads', '--decoder-heads', '--frames', '--image-size'):
    flags.add_argument(flag, type=at_least(1))
  flags.add_argument('--rate', type=at_least(1), help='frame stride (usual: 4)')
  flags.add_argument(
    '--fit', choices=('crop', 'squash'), help='how frames become square'
  )


def overrides(args: argparse.Namespace) -> Overrides:
  """The values of those flags."""
  names = ('key', 'mode', 'heads', 'decoder_heads', 'frames', 'image_size')
  return Overrides(
    **{name: getattr(args, name) for name in (*names, 'rate', 'fit')},
    class_names=_parts(args.classes or ''),
    allow_missing=_parts(getattr(args, 'allow_missing', '')),
  )


def _parts(text: str) -> list[str]:
  return [part.strip() for part in text.split(',') if part.strip()]
