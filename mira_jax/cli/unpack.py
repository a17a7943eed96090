"""Unpack the zip and tar archives of a dataset.

  mira unpack ARCHIVE... --out DIR [--encoding gb18030]

Files that are there with the right size are skipped, so that the same command
resumes after an interruption. 7-Zip unpacks split and encrypted archives.
"""

from __future__ import annotations

import argparse

from mira_jax import terminal
from mira_jax.errors import ExitCode
from mira_jax.prepare import archives


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the archives and the output folder."""
  parser.add_argument('archives', nargs='+', metavar='ARCHIVE')
  parser.add_argument('--out', required=True, metavar='DIR')
  parser.add_argument(
    '--encoding', default='utf-8', help='of names that are not UTF-8'
  )


def run(args: argparse.Namespace) -> int:
  """Unpacks, and prints how many files."""
  for path in args.archives:
    files, skipped = archives.unpack(path, args.out, encoding=args.encoding)
    terminal.say(f'{path}: {files} files unpacked, {skipped} skipped')
  return ExitCode.OK
