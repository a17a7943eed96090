"""Unpack the archives that a dataset's owner delivers.

  mira unpack ARCHIVE... --out DIR [--ask-password]

Reads zip, tar, tar.gz, tar.bz2, tar.xz, and pieces of them such as
vox2_dev_mp4_partaa or clips.zip.001, of which one is enough when the others
lie beside it. Run it again after an interruption: what is there is skipped.
Encrypted zips are slow, a megabyte or two a second; 7-Zip is faster.
"""

from __future__ import annotations

import argparse
import getpass
import warnings

import rich.filesize

from mira_jax import terminal
from mira_jax.errors import ExitCode, MiraInputError
from mira_jax.prepare import archives


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the archives and where they go."""
  parser.add_argument('archives', nargs='+', metavar='ARCHIVE')
  parser.add_argument('--out', required=True, metavar='DIR')
  parser.add_argument(
    '--ask-password', action='store_true', help='ask for it on the terminal'
  )


def run(args: argparse.Namespace) -> int:
  """Unpacks, and says how much."""
  ask = _ask if args.ask_password else None
  done = archives.unpack(args.archives, args.out, ask=ask)
  terminal.say(
    f'{args.out}: {done.files} files unpacked '
    f'({rich.filesize.decimal(done.size)}), {done.skipped} skipped '
    'that were there'
  )
  return ExitCode.OK


def _ask(name: str) -> str:
  """Asks unseen; never reads a password that would be shown or piped in."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('error', getpass.GetPassWarning)
      return getpass.getpass(f'password of {name}: ')
  except (getpass.GetPassWarning, EOFError) as error:
    raise MiraInputError(
      'no_password',
      name,
      'a password is asked for on a terminal only',
      exit_code=ExitCode.DATA,
    ) from error
